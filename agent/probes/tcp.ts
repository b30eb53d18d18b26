import { connect } from "node:net";
import { errnoText } from "../lib/errno-text.ts";
import { messageOf } from "../lib/errors.ts";
import { handlerHost, handlerPort, hostPort } from "./address.ts";
import { withDeadline } from "./deadline.ts";
import { lookup } from "./lookup.ts";
import type { ProbeOutcome, Prober } from "./port.ts";
import { probeTimeoutMs } from "./spec.ts";

/** A port that accepts a connection is good. */
export const probeTCP: Prober = async (probe, { container, podIP }, signal) => {
  const { tcpSocket } = probe;
  if (tcpSocket === undefined) return { kind: "error", output: "missing TCP handler" };
  let address: { host: string; port: number };
  try {
    const { host, port } = tcpSocket;
    address = { host: handlerHost(host, podIP), port: handlerPort(port, container) };
  } catch (err) {
    return { kind: "error", output: messageOf(err) };
  }
  return await withDeadline(
    { timeoutMs: probeTimeoutMs(probe), signal },
    async (deadline) => await dial(address, deadline),
  );
};

async function dial({ host, port }: { host: string; port: number }, deadline: AbortSignal): Promise<ProbeOutcome> {
  return await new Promise<ProbeOutcome>((resolve) => {
    const socket = connect({ host, port, lookup });
    const end = (outcome: ProbeOutcome) => {
      socket.destroy();
      resolve(outcome);
    };
    const onAbort = () => end({ kind: "failure", output: `dial tcp ${hostPort(host, port)}: i/o timeout` });
    if (deadline.aborted) onAbort();
    deadline.addEventListener("abort", onAbort, { once: true });
    socket.on("connect", () => end({ kind: "success", output: "" }));
    socket.on("error", (err) => end({ kind: "failure", output: errnoText(err) }));
  });
}
