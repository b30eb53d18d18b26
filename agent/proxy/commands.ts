import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { AgentError } from "../lib/errors.ts";
import { exec, type ExecOptions, type ExecResult } from "../lib/exec.ts";

/** Runs netfilter's commands. The seam between the proxy and child processes. */
export interface Commands {
  /** As {@link exec}. */
  run(file: string, args: readonly string[], options: ExecOptions): Promise<ExecResult>;
  /**
   * Runs a command and calls `onLine` for each line of its output, which may be huge and is not kept.
   * `onLine` returns false once it has seen enough; the command is then killed, and that is no failure.
   */
  lines(file: string, args: readonly string[], options: LinesOptions): Promise<ExecResult>;
}

export interface LinesOptions {
  onLine(line: string): boolean | void;
  /** Written to the command's standard input, which is then closed. */
  stdin?: string;
  timeoutMs: number;
  signal?: AbortSignal;
}

// Enough for the one message that a person reads.
const stderrBytesMax = 4096;

/**
 * Commands on this machine.
 *
 * @param prefix put before every command line, such as `["nsenter", "--net=/run/netns/x"]` to work in another namespace
 */
export function createCommands(prefix: readonly string[] = []): Commands {
  const full = (file: string, args: readonly string[]): [string, readonly string[]] => {
    const [first = file, ...rest] = [...prefix, file, ...args];
    return [first, rest];
  };
  return {
    run: (file, args, options) => exec(...full(file, args), options),
    lines: (file, args, options) => runLines(...full(file, args), options),
  };
}

/**
 * Throws unless a command succeeded: an `AgentError`, Unimplemented if there is no such command.
 *
 * @param explain looks at a failure's stderr and returns what to add to the message
 */
export function expectSuccess(result: ExecResult, what: string, explain?: (stderr: string) => string): void {
  switch (result.failure) {
    case undefined:
      return;
    case "canceled":
      throw new AgentError("Canceled", `${what}: ${result.message}`);
    case "exit": {
      const detail = explain?.(result.stderr) ?? "";
      // 4 is iptables' RESOURCE_PROBLEM: somebody else holds the lock, or changed the tables at the same time.
      throw new AgentError(result.code === 4 ? "Unavailable" : "Invalid", `${what}: ${result.message}${detail}`);
    }
    case "spawn":
      // Another attempt would not find it either; any other reason, such as too many open files, may pass.
      throw new AgentError(
        result.message.includes("ENOENT") ? "Unimplemented" : "Unavailable",
        `${what}: ${result.message}`,
      );
    case "signal":
    case "timeout":
      throw new AgentError("Unavailable", `${what}: ${result.message}`);
    default:
      result.failure satisfies never;
  }
}

async function runLines(file: string, args: readonly string[], options: LinesOptions): Promise<ExecResult> {
  const startedAt = performance.now();
  let isEnough = false;
  let stderr = "";
  let spawnError: Error | undefined;
  const deadline = AbortSignal.timeout(options.timeoutMs);
  const signal = options.signal === undefined ? deadline : AbortSignal.any([deadline, options.signal]);
  const child = spawn(file, [...args], { stdio: ["pipe", "pipe", "pipe"], signal, killSignal: "SIGKILL" });
  const closed = new Promise<{ code: number | null; killedBy: NodeJS.Signals | null }>((resolve) => {
    child.on("error", (err) => {
      spawnError = err;
      if (child.pid === undefined) resolve({ code: null, killedBy: null });
    });
    child.on("close", (code, killedBy) => resolve({ code, killedBy }));
  });
  child.stderr.on("data", (chunk: Buffer) => {
    if (stderr.length < stderrBytesMax) stderr += chunk.toString("utf8");
  });
  // EPIPE: the command closed its input early; how it exits says whether that matters.
  child.stdin.on("error", () => {});
  child.stdin.end(options.stdin);
  const reader = createInterface({ input: child.stdout, crlfDelay: Number.POSITIVE_INFINITY });
  reader.on("line", (line) => {
    if (isEnough || options.onLine(line) !== false) return;
    isEnough = true;
    child.kill("SIGKILL");
  });
  const end = await closed;
  reader.close();
  const failure = isEnough
    ? undefined
    : options.signal?.aborted === true
      ? "canceled"
      : deadline.aborted
        ? "timeout"
        : child.pid === undefined
          ? "spawn"
          : end.killedBy !== null
            ? "signal"
            : end.code === 0
              ? undefined
              : "exit";
  const how = failure === "exit" ? `exited with ${end.code}` : (failure ?? "succeeded");
  const firstLine = stderr.trim().split("\n", 1)[0] || spawnError?.message || "";
  return {
    code: end.code ?? undefined,
    signal: end.killedBy ?? undefined,
    stdout: "",
    stderr,
    truncated: false,
    durationMs: performance.now() - startedAt,
    ...(failure === undefined ? {} : { failure }),
    message: `${file} ${how}${firstLine === "" ? "" : `: ${firstLine}`}`,
  };
}
