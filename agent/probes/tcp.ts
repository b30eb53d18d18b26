import { connect } from "node:net";
import { errnoText } from "../lib/errno-text.ts";
import { messageOf } from "../lib/errors.ts";
import { handlerPort, hostPort } from "./address.ts";
import type { ProbeOutcome, Prober } from "./port.ts";
import { probeTimeoutMs } from "./spec.ts";

/** A port that accepts a connection is good. */
export const probeTCP: Prober = async (probe, { container, podIP }, signal) => {
  const { tcpSocket } = probe;
  if (tcpSocket === undefined) return { kind: "error", output: "missing TCP handler" };
  const host = tcpSocket.host === undefined || tcpSocket.host === "" ? podIP : tcpSocket.host;
  let port: number;
  try {
    port = handlerPort(tcpSocket.port, container);
  } catch (err) {
    return { kind: "error", output: messageOf(err) };
  }
  return await new Promise<ProbeOutcome>((resolve) => {
    const deadline = AbortSignal.any([signal, AbortSignal.timeout(probeTimeoutMs(probe))]);
    const socket = connect({ host, port, noDelay: true });
    const end = (outcome: ProbeOutcome) => {
      deadline.removeEventListener("abort", onAbort);
      // A reset instead of a long goodbye: thousands of probes an hour would leave as many sockets in TIME_WAIT.
      if (outcome.kind === "success") socket.resetAndDestroy();
      else socket.destroy();
      resolve(outcome);
    };
    const onAbort = () => end({ kind: "failure", output: `dial tcp ${hostPort(host, port)}: i/o timeout` });
    deadline.addEventListener("abort", onAbort, { once: true });
    socket.on("connect", () => end({ kind: "success", output: "" }));
    socket.on("error", (err) => end({ kind: "failure", output: errnoText(err) }));
  });
};
