import type { Container } from "../kube/types.ts";
import { hasCode, messageOf } from "../lib/errors.ts";
import { expand } from "../lib/expand.ts";
import type { Runtime } from "../runtime/port.ts";
import type { ProbeOutcome, Prober } from "./port.ts";
import { probeTimeoutMs } from "./spec.ts";

/** Bytes of a command's output that are kept (kubelet: 10 KiB). */
export const execOutputBytesMax = 10 * 1024;

/**
 * A command that ends with 0 in time is good. The runtime ends one that does not; when `signal` aborts, nobody waits for
 * that any more.
 */
export function execProber(runtime: Pick<Runtime, "execSync">): Prober {
  return async (probe, { container, containerID }, signal) => {
    const command = expandCommand(probe.exec?.command ?? [], container);
    const timeoutSeconds = Math.ceil(probeTimeoutMs(probe) / 1_000);
    return await orAborted(signal, async () => {
      try {
        const { stdout, stderr, exitCode } = await runtime.execSync(containerID, command, timeoutSeconds);
        const output = Buffer.concat([stdout, stderr]).subarray(0, execOutputBytesMax).toString("utf8");
        return { kind: exitCode === 0 ? "success" : "failure", output };
      } catch (err) {
        if (!hasCode(err, "DeadlineExceeded")) return { kind: "error", output: messageOf(err) };
        const what = JSON.stringify(command.join(" "));
        return { kind: "failure", output: `command timed out: ${what} timed out after ${timeoutSeconds}s` };
      }
    });
  };
}

// `$(NAME)` in a command, by the container's literal variables; those that come from elsewhere are not known here.
function expandCommand(command: readonly string[], { env = [] }: Container): string[] {
  const values = new Map(env.map(({ name, value = "" }) => [name, value]));
  return command.map((word) => expand(word, (name) => values.get(name)));
}

/** @param work must not reject */
async function orAborted(signal: AbortSignal, work: () => Promise<ProbeOutcome>): Promise<ProbeOutcome> {
  const { promise, resolve } = Promise.withResolvers<ProbeOutcome>();
  const onAbort = () => resolve({ kind: "error", output: "no longer wanted" });
  signal.addEventListener("abort", onAbort, { once: true });
  if (signal.aborted) onAbort();
  else void work().then(resolve);
  try {
    return await promise;
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
