import { hasCode } from "../../lib/errors.ts";
import type { DockerClient } from "./client.ts";
import type { WireInspect } from "./wire.ts";

export interface StopOptions {
  /** For messages: "stop container abc". */
  what: string;
  graceSeconds: number;
  /** The whole may take this much longer than the grace. */
  requestTimeoutMs: number;
}

/**
 * Ends a running container: its stop signal, then SIGKILL after the grace. Resolves when it has ended, or is gone.
 *
 * Docker has one call for all of this. But Engine 23 and the first of 24 give up the grace and send SIGKILL at once when the
 * connection that asked ends, as it does with the agent: a database would die in the middle of its work.
 */
export async function stopContainer(
  client: DockerClient,
  { Id, Config }: Pick<WireInspect, "Id" | "Config">,
  { what, graceSeconds, requestTimeoutMs }: StopOptions,
): Promise<void> {
  const graceMs = graceSeconds * 1000;
  const container = client.docker.getContainer(Id);
  const end = async (signal: AbortSignal) => {
    const send = async (name: string) => {
      const kill = async (abortSignal: AbortSignal): Promise<unknown> =>
        await container.kill({ signal: name, abortSignal });
      await client.call(what, kill, { signal });
    };
    const ended = async (timeoutMs: number) => {
      const wait = async (abortSignal: AbortSignal): Promise<unknown> =>
        await container.wait({ condition: "not-running", abortSignal });
      await client.call(what, wait, { signal, timeoutMs });
    };
    if (graceMs > 0 && (await isSent(send(Config?.StopSignal || "SIGTERM")))) {
      try {
        return await ended(graceMs);
      } catch (err) {
        if (!hasCode(err, "DeadlineExceeded")) throw err;
      }
    }
    await send("SIGKILL");
    await ended(requestTimeoutMs);
  };
  try {
    await client.call(what, end, { timeoutMs: requestTimeoutMs + graceMs });
  } catch (err) {
    // It went meanwhile, or ended: the daemon sends no signal to what does not run.
    if (!hasCode(err, "NotFound", "Conflict")) throw err;
  }
}

/** False if the daemon is there but could not send a signal: then another one may do. */
async function isSent(call: Promise<unknown>): Promise<boolean> {
  try {
    await call;
    return true;
  } catch (err) {
    if (hasCode(err, "Internal", "Invalid")) return false;
    throw err;
  }
}
