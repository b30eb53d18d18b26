import { addAbortListener } from "node:events";
import { forEachChunk } from "../../lib/chunks.ts";
import { type Clock, systemClock } from "../../lib/clock.ts";
import { AgentError, hasCode, messageOf } from "../../lib/errors.ts";
import type { ExecSyncResult } from "../port.ts";
import type { DockerExec, DockerExecs } from "./exec.ts";
import { outputParser } from "./frames.ts";

// Of stdout and of stderr, each; the rest is read and dropped. containerd's limit, which is that of an answer over CRI.
export const execOutputBytesMax = 16 << 20;

/**
 * Runs a command to its end. Its outputs are cut at {@link execOutputBytesMax} each.
 *
 * Rejects with DeadlineExceeded when the time is over, Canceled when `signal` aborts: the command is killed then, with what
 * it started; Internal if it could not be started, NotFound or Conflict if there is no such container that runs.
 *
 * @param timeoutSeconds 0: no limit
 */
export async function execSync(
  execs: DockerExecs,
  containerID: string,
  command: readonly string[],
  timeoutSeconds: number,
  signal?: AbortSignal,
  clock: Clock = systemClock,
): Promise<ExecSyncResult> {
  const late = new AbortController();
  const timer = timeoutSeconds > 0 ? clock.after(timeoutSeconds * 1000, () => late.abort()) : undefined;
  const stop = AbortSignal.any([late.signal, execs.closing, ...(signal === undefined ? [] : [signal])]);
  let exec: DockerExec | undefined;
  try {
    exec = await execs.start({ containerID, command, tty: false, stdin: false }, stop);
    return await collect(exec, containerID, stop);
  } catch (err) {
    // Who asks again at once, as probes do, must not meet the command that was too late; who lost interest need not wait.
    if (exec !== undefined) await whileWanted(exec.kill("SIGKILL"), signal);
    if (late.signal.aborted) {
      const message = `exec in container ${containerID}: timeout of ${timeoutSeconds} s exceeded`;
      throw new AgentError("DeadlineExceeded", message, { cause: err });
    }
    if (stop.aborted) throw new AgentError("Canceled", `exec in container ${containerID}: canceled`, { cause: err });
    throw err;
  } finally {
    timer?.cancel();
  }
}

async function collect(exec: DockerExec, containerID: string, stop: AbortSignal): Promise<ExecSyncResult> {
  const { socket } = exec;
  const stdout = new CappedOutput();
  const stderr = new CappedOutput();
  const parser = outputParser(false);
  const onStop = () => socket.destroy();
  stop.addEventListener("abort", onStop);
  if (stop.aborted) onStop();
  try {
    await forEachChunk(socket, async (chunk) => {
      for (const { stream, payload } of parser.push(chunk)) {
        if (stream === "system") throw new AgentError("Internal", payload.toString());
        (stream === "stdout" ? stdout : stderr).add(payload);
      }
    });
  } catch (err) {
    throw hasCode(err, "Internal")
      ? err
      : new AgentError("Unavailable", `exec in container ${containerID}: ${messageOf(err)}`, { cause: err });
  } finally {
    stop.removeEventListener("abort", onStop);
    socket.destroy();
  }
  const outcome = await exec.outcome(stdout.bytes().toString(), stop);
  if (outcome.kind === "failed") {
    throw new AgentError("Internal", `exec in container ${containerID}: ${outcome.message}`);
  }
  return { stdout: stdout.bytes(), stderr: stderr.bytes(), exitCode: outcome.exitCode };
}

class CappedOutput {
  readonly #pieces: Buffer[] = [];
  #room = execOutputBytesMax;

  add(piece: Buffer): void {
    if (this.#room === 0) return;
    const kept = Buffer.from(piece.subarray(0, this.#room)); // a copy: the chunk it came in is given back
    this.#pieces.push(kept);
    this.#room -= kept.length;
  }

  bytes(): Buffer {
    return Buffer.concat(this.#pieces);
  }
}

/** Waits for `work`, but no longer once the signal has aborted. */
async function whileWanted(work: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return await work;
  const { promise, resolve } = Promise.withResolvers<void>();
  using _listener = addAbortListener(signal, () => resolve());
  await Promise.race([work, promise]);
}
