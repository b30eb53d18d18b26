import { StringDecoder } from "node:string_decoder";
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
  const { onLine, signal, ...about } = options;
  const enough = new AbortController();
  const decoder = new StringDecoder("utf8");
  let begun = "";
  const result = await exec(file, args, {
    ...about,
    signal: signal === undefined ? enough.signal : AbortSignal.any([enough.signal, signal]),
    outputBytesMax: stderrBytesMax,
    onStdout: (chunk) => {
      const lines = (begun + decoder.write(chunk)).split("\n");
      begun = lines.pop() ?? "";
      for (const line of lines) {
        if (enough.signal.aborted) return;
        if (onLine(line) === false) enough.abort();
      }
    },
  });
  if (enough.signal.aborted) {
    const { failure: _, ...rest } = result;
    return { ...rest, truncated: false, message: `${file} was asked for no more` };
  }
  if (begun !== "" && result.failure === undefined) onLine(begun);
  return { ...result, truncated: false };
}
