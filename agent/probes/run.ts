import type { Probe } from "../kube/types.ts";
import { messageOf } from "../lib/errors.ts";
import type { Runtime } from "../runtime/port.ts";
import { execProber } from "./exec.ts";
import { probeGRPC } from "./grpc.ts";
import { probeHTTP } from "./http.ts";
import type { ProbeOutcome, Prober } from "./port.ts";
import { probeTCP } from "./tcp.ts";

/** How often a probe that could not be carried out is tried before its turn is given up (kubelet: maxProbeRetries). */
export const attemptsMax = 3;

/** Carries out whichever kind a probe is of, and again if it could not be carried out. */
export function createProber(runtime: Pick<Runtime, "execSync">): Prober {
  const exec = execProber(runtime);
  return async (probe, target, signal) => {
    const prober = proberOf(probe, exec);
    for (let attempt = 1; ; attempt += 1) {
      const outcome = await prober(probe, target, signal).catch(
        (err: unknown): ProbeOutcome => ({ kind: "error", output: messageOf(err) }),
      );
      if (outcome.kind !== "error" || attempt >= attemptsMax || signal.aborted) return outcome;
    }
  };
}

function proberOf(probe: Probe, exec: Prober): Prober {
  if (probe.exec !== undefined) return exec;
  if (probe.httpGet !== undefined) return probeHTTP;
  if (probe.tcpSocket !== undefined) return probeTCP;
  if (probe.grpc !== undefined) return probeGRPC;
  return async () => ({ kind: "error", output: "missing probe handler" });
}
