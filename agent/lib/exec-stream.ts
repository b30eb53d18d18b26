import { spawn } from "node:child_process";
import type { Readable } from "node:stream";
import { systemClock, type Timer } from "./clock.ts";
import { killGroup, killWaitMs } from "./exec.ts";

export interface ExecStreamOptions {
  /**
   * Takes the next piece of stdout or stderr; the command waits until it resolves. A rejection kills the command. It must
   * not outlast `signal`.
   */
  write(chunk: Buffer): Promise<void>;
  /** Kills the command and what it started; the only thing that limits its time. */
  signal: AbortSignal;
}

/** How a command ended. `failure` is absent exactly if it exited with 0. */
export interface ExecStreamResult {
  code: number | undefined;
  failure?: "exit" | "signal" | "canceled" | "spawn";
  /** One line for people. */
  message: string;
}

/**
 * Runs `file` with an argument array; there is no shell. Hands its output out as it comes, of any length, at the pace of
 * whoever takes it. How it ended is data; rejects only with what `write` rejected with. The command has ended in any case, unless
 * the kernel makes it wait: then it is left behind {@link killWaitMs} after it was killed.
 */
export async function execStream(
  file: string,
  args: readonly string[],
  { write, signal }: ExecStreamOptions,
): Promise<ExecStreamResult> {
  if (signal.aborted) return { code: undefined, failure: "canceled", message: `${file} was canceled` };
  const child = spawn(file, [...args], { stdio: ["ignore", "pipe", "pipe"], detached: true });
  let spawnError: Error | undefined;
  let giveUp = () => {};
  const closed = new Promise<{ code: number | null; killedBy: NodeJS.Signals | null }>((resolve) => {
    giveUp = () => {
      child.unref();
      resolve({ code: null, killedBy: "SIGKILL" });
    };
    child.on("error", (err) => {
      spawnError = err;
      if (child.pid === undefined) resolve({ code: null, killedBy: null });
    });
    child.on("close", (code, killedBy) => resolve({ code, killedBy }));
  });
  // There are none, whatever the types say, if the process was out of file descriptors.
  const outputs = [child.stdout, child.stderr].filter((source: Readable | undefined) => source !== undefined);
  let killTimer: Timer | undefined;
  const kill = () => {
    // Afterwards its process ID may be somebody else's.
    if (child.exitCode === null && child.signalCode === null) {
      killGroup(child);
      killTimer ??= systemClock.after(killWaitMs, giveUp);
    }
    // What left the group may hold the other ends open.
    for (const source of outputs) source.destroy();
  };
  signal.addEventListener("abort", kill, { once: true });

  let lastWrite: Promise<void> = Promise.resolve();
  const pump = async (source: Readable) => {
    for await (const chunk of source as AsyncIterable<Buffer>) {
      lastWrite = lastWrite.then(async () => await write(chunk));
      await lastWrite;
    }
  };
  const writeErrors: unknown[] = [];
  const pumps = outputs.map((source) =>
    pump(source).catch((err: unknown) => {
      if (signal.aborted || child.pid === undefined) return; // the source was destroyed
      writeErrors.push(err);
      kill();
    }),
  );
  const { code, killedBy } = await closed;
  killTimer?.cancel();
  await Promise.all(pumps);
  signal.removeEventListener("abort", kill);
  if (writeErrors.length > 0) throw asError(writeErrors[0]);
  if (code === 0 && !signal.aborted) return { code, message: `${file} succeeded` };
  const failure = signal.aborted
    ? "canceled"
    : spawnError !== undefined
      ? "spawn"
      : killedBy !== null
        ? "signal"
        : "exit";
  const how = {
    exit: `exited with ${code}`,
    signal: `was killed by ${killedBy}`,
    canceled: "was canceled",
    spawn: `could not be started (${spawnError?.message})`,
  }[failure];
  return { code: code ?? undefined, failure, message: `${file} ${how}` };
}

function asError(err: unknown): Error {
  return err instanceof Error ? err : new Error(String(err));
}
