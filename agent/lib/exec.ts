import { type ChildProcess, spawn } from "node:child_process";

export interface ExecOptions {
  /** Written to the child's standard input, which is then closed. */
  stdin?: string | Uint8Array;
  /** Told the child's process ID, which is its group's too; the child gets its input when this has resolved. Must not reject. */
  beforeStdin?: (pid: number) => Promise<void>;
  /** The child and what it started get SIGKILL after this long; the call ends then, at the latest {@link killWaitMs} later. */
  timeoutMs: number;
  signal?: AbortSignal;
  env?: NodeJS.ProcessEnv;
  cwd?: string;
  /** Takes stdout piece by piece as it comes; none of it is kept then. Must not throw. */
  onStdout?: (chunk: Buffer) => void;
  /** Bytes of stdout and of stderr kept, each; the rest is read and dropped. Default 1 MiB. */
  outputBytesMax?: number;
  /** `message` says nothing of stderr: what the command complains about may be secret. */
  isStderrSecret?: boolean;
}

/** How a child ended. `failure` is absent exactly if it exited with 0. */
export interface ExecResult {
  code: number | undefined;
  signal: NodeJS.Signals | undefined;
  stdout: string;
  stderr: string;
  truncated: boolean;
  durationMs: number;
  failure?: "exit" | "signal" | "timeout" | "canceled" | "spawn";
  /** One line for people: file, how it ended, the first line of stderr unless that is secret. */
  message: string;
}

const outputBytesMaxDefault = 1 << 20;
// What a child wrote before it ended is read at once. Only what it left running in the background can hold its outputs
// open for longer, and nobody waits for that.
export const pipesWaitMs = 500;
// A process that got SIGKILL is gone within milliseconds, also on a busy machine. One that waits in the kernel for a server or a
// disk that does not answer goes when that does, if ever: nobody waits for it any longer than this.
export const killWaitMs = 1_000;

/**
 * Runs `file` with an argument array; there is no shell. Never rejects: how it ended is data.
 * The first reason wins (a child killed for its timeout is a "timeout", not a "signal").
 *
 * The child leads a process group and a session of its own: what it started ends with it when it is killed, it has no
 * terminal to ask on, and an interrupt typed at the agent's terminal reaches it by way of `signal` only. A child that ends by
 * itself may leave something running. One that cannot be killed, because the kernel makes it wait, is left behind: the
 * message says so, and what it was about to do may still happen.
 */
export async function exec(file: string, args: readonly string[], options: ExecOptions): Promise<ExecResult> {
  const { stdin, timeoutMs, signal, env, cwd, outputBytesMax = outputBytesMaxDefault } = options;
  const startedAt = performance.now();
  const out = collector(outputBytesMax);
  const err = collector(outputBytesMax);
  let reason: "timeout" | "canceled" | undefined;
  let spawnError: Error | undefined;
  let survivor: number | undefined;

  const ended = await new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve) => {
    if (signal?.aborted === true) {
      reason = "canceled";
      resolve({ code: null, signal: null });
      return;
    }
    let child: ChildProcess;
    try {
      child = spawn(file, [...args], {
        stdio: [stdin === undefined ? "ignore" : "pipe", "pipe", "pipe"],
        detached: true,
        ...(env === undefined ? {} : { env }),
        ...(cwd === undefined ? {} : { cwd }),
      });
    } catch (err) {
      // Node.js emits some of the kernel's answers as events and throws the others: ETXTBSY, E2BIG.
      spawnError = err instanceof Error ? err : new Error(String(err));
      resolve({ code: null, signal: null });
      return;
    }
    let exited: { code: number | null; signal: NodeJS.Signals | null } | undefined;
    let pipesTimer: NodeJS.Timeout | undefined;
    let killTimer: NodeJS.Timeout | undefined;
    const closePipes = () => {
      for (const pipe of [child.stdin, child.stdout, child.stderr]) pipe?.destroy();
    };
    const giveUp = () => {
      survivor = child.pid;
      child.unref();
      finish({ code: null, signal: null });
    };
    const stop = (why: "timeout" | "canceled") => {
      // Afterwards its process ID may be somebody else's.
      if (exited === undefined) {
        reason ??= why;
        killGroup(child);
        killTimer ??= setTimeout(giveUp, killWaitMs);
      }
      // What left the group may hold these open for long.
      closePipes();
    };
    const timer = setTimeout(() => stop("timeout"), timeoutMs);
    const onAbort = () => stop("canceled");
    signal?.addEventListener("abort", onAbort, { once: true });
    const finish = (end: { code: number | null; signal: NodeJS.Signals | null }) => {
      clearTimeout(timer);
      clearTimeout(pipesTimer);
      clearTimeout(killTimer);
      signal?.removeEventListener("abort", onAbort);
      resolve(end);
    };
    child.on("error", (e) => {
      spawnError = e;
      finish({ code: null, signal: null });
    });
    child.on("exit", (code, sig) => {
      exited = { code, signal: sig };
      pipesTimer = setTimeout(closePipes, pipesWaitMs);
    });
    child.on("close", (code, sig) => finish({ code, signal: sig }));
    child.stdout?.on("data", options.onStdout ?? out.add);
    child.stderr?.on("data", err.add);
    // EPIPE: the child closed its input early; how it exits says whether that matters.
    child.stdin?.on("error", () => {});
    const feed = () => void child.stdin?.end(stdin);
    if (stdin !== undefined && options.beforeStdin !== undefined && child.pid !== undefined) {
      void options.beforeStdin(child.pid).then(feed, feed);
    } else if (stdin !== undefined) feed();
  });

  const stdout = out.text();
  const stderr = err.text();
  const failure =
    reason ?? (spawnError ? "spawn" : ended.signal !== null ? "signal" : ended.code === 0 ? undefined : "exit");
  const remains = survivor === undefined ? "" : `; process ${survivor} hangs in the kernel and cannot be killed`;
  const how =
    failure === undefined
      ? "succeeded"
      : failure === "exit"
        ? `exited with ${ended.code}`
        : failure === "signal"
          ? `was killed by ${ended.signal}`
          : failure === "timeout"
            ? `did not end within ${timeoutMs} ms${remains}`
            : failure === "canceled"
              ? `was canceled${remains}`
              : `could not be started (${spawnError?.message})`;
  const firstLine = options.isStderrSecret === true ? "" : (stderr.trim().split("\n", 1)[0] ?? "");
  return {
    code: ended.code ?? undefined,
    signal: ended.signal ?? undefined,
    stdout,
    stderr,
    truncated: out.truncated() || err.truncated(),
    durationMs: performance.now() - startedAt,
    ...(failure === undefined ? {} : { failure }),
    message: `${file} ${how}${firstLine === "" ? "" : `: ${firstLine}`}`,
  };
}

/** Kills a child that leads a process group, with the group. */
export function killGroup(child: ChildProcess): void {
  if (child.pid === undefined) return; // it never began
  try {
    process.kill(-child.pid, "SIGKILL");
  } catch {
    child.kill("SIGKILL"); // the group may not be signalled, or is gone
  }
}

function collector(bytesMax: number) {
  const chunks: Buffer[] = [];
  let kept = 0;
  let cut = false;
  return {
    add: (chunk: Buffer) => {
      const rest = bytesMax - kept;
      if (chunk.length > rest) cut = true;
      if (rest <= 0) return;
      const part = chunk.length > rest ? chunk.subarray(0, rest) : chunk;
      chunks.push(part);
      kept += part.length;
    },
    text: () => Buffer.concat(chunks).toString("utf8"),
    truncated: () => cut,
  };
}
