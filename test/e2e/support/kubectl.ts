import { spawn } from "node:child_process";
import { createHash } from "node:crypto";

/** How a command ended. */
export interface Ended {
  /** null: a signal ended it. */
  code: number | null;
  /** The first MiB, as text. */
  stdout: string;
  stderr: string;
  /** Of all of standard output. */
  stdoutBytes: number;
  stdoutSHA256: string;
}

export interface KubectlOptions {
  /** Standard input; nothing unless given. */
  stdin?: string | Uint8Array;
  /** Standard input stays open, for `write`. */
  staysOpen?: true;
  env?: Record<string, string>;
  /** SIGKILL after this long; default 120 s. */
  timeoutMs?: number;
}

/** A command that runs. */
export interface Running {
  readonly pid: number;
  readonly ended: Promise<Ended>;
  stdout(): string;
  stderr(): string;
  /** Resolves when standard output or error holds the text; rejects with what was said instead when it ends or 30 s pass. */
  said(text: string | RegExp): Promise<void>;
  write(text: string): void;
  /** Closes its standard input. */
  closeInput(): void;
  kill(signal?: NodeJS.Signals): void;
}

export interface Kubectl {
  /** Runs `kubectl` in the namespace to its end. Never rejects. */
  run(args: readonly string[], options?: KubectlOptions): Promise<Ended>;
  /** As `run`, but rejects unless it exits with 0. @returns its standard output */
  demand(args: readonly string[], options?: KubectlOptions): Promise<string>;
  start(args: readonly string[], options?: KubectlOptions): Running;
  /** Runs it with a terminal of `columns` × `rows`, which holds its input, output and errors. */
  startWithTerminal(args: readonly string[], size: { columns: number; rows: number }): Running;
}

/** Debian's kubectl, or another: versions speak different protocols to the API server. */
const kubectl = process.env["KUBECTL"] ?? "kubectl";
const timeoutMsDefault = 120_000;
const saidTimeoutMs = 30_000;
const textBytesMax = 1 << 20;

/** kubectl's ways to carry streams; versions before 1.29 only know SPDY. */
export const protocols: { protocol: string; env: Record<string, string> }[] = [
  {
    protocol: "SPDY",
    env: { KUBECTL_REMOTE_COMMAND_WEBSOCKETS: "false", KUBECTL_PORT_FORWARD_WEBSOCKETS: "false" },
  },
  {
    protocol: "WebSocket, if kubectl and node know it",
    env: { KUBECTL_REMOTE_COMMAND_WEBSOCKETS: "true", KUBECTL_PORT_FORWARD_WEBSOCKETS: "true" },
  },
];

export function openKubectl(kubeconfig: string, namespace: string): Kubectl {
  const start: Kubectl["start"] = (args, options) =>
    startCommand(kubectl, ["--kubeconfig", kubeconfig, "--namespace", namespace, ...args], options);
  const run: Kubectl["run"] = (args, options) => start(args, options).ended;
  return {
    run,
    demand: async (args, options) => {
      const { code, stdout, stderr } = await run(args, options);
      if (code !== 0) throw new Error(`kubectl ${args.join(" ")} exited with ${code}: ${stderr.trim()}`);
      return stdout;
    },
    start,
    startWithTerminal: (args, { columns, rows }) => {
      const words = [kubectl, "--kubeconfig", kubeconfig, "--namespace", namespace, ...args];
      const command = `stty cols ${columns} rows ${rows}; exec ${words.map(quoted).join(" ")}`;
      return startCommand("script", ["--quiet", "--return", "--flush", "--command", command, "/dev/null"], {
        staysOpen: true,
      });
    },
  };
}

/** Starts any command; it is killed when its time is over. */
export function startCommand(file: string, args: readonly string[], options: KubectlOptions = {}): Running {
  const { stdin, staysOpen, env = {}, timeoutMs = timeoutMsDefault } = options;
  const child = spawn(file, [...args], {
    stdio: [stdin === undefined && staysOpen === undefined ? "ignore" : "pipe", "pipe", "pipe"],
    env: { ...process.env, ...env },
  });
  const texts = { stdout: "", stderr: "" };
  const hash = createHash("sha256");
  let stdoutBytes = 0;
  const listeners = new Set<() => void>();
  const onData = (name: "stdout" | "stderr") => (chunk: Buffer) => {
    if (name === "stdout") {
      stdoutBytes += chunk.length;
      hash.update(chunk);
    }
    if (texts[name].length < textBytesMax) texts[name] += chunk.toString();
    for (const listener of listeners) listener();
  };
  child.stdout?.on("data", onData("stdout"));
  child.stderr?.on("data", onData("stderr"));
  child.stdin?.on("error", () => {}); // it may end before it has read all
  if (stdin !== undefined) child.stdin?.write(stdin);
  if (staysOpen === undefined) child.stdin?.end();

  const timer = setTimeout(() => child.kill("SIGKILL"), timeoutMs);
  const { promise: ended, resolve } = Promise.withResolvers<Ended>();
  child.on("error", (err) => {
    texts.stderr += String(err);
  });
  child.on("close", (code) => {
    clearTimeout(timer);
    resolve({ code, ...texts, stdoutBytes, stdoutSHA256: hash.digest("hex") });
    for (const listener of listeners) listener();
  });
  return {
    pid: child.pid ?? 0,
    ended,
    stdout: () => texts.stdout,
    stderr: () => texts.stderr,
    said: async (text) => {
      const { promise, resolve: found } = Promise.withResolvers<boolean>();
      const look = () => {
        const said = texts.stdout + texts.stderr;
        if (typeof text === "string" ? said.includes(text) : text.test(said)) found(true);
      };
      const late = setTimeout(() => found(false), saidTimeoutMs);
      listeners.add(look);
      look();
      void ended.then(look).then(() => found(false));
      const isSaid = await promise;
      clearTimeout(late);
      listeners.delete(look);
      if (!isSaid) throw new Error(`${file} did not say ${String(text)} but: ${texts.stdout}${texts.stderr}`);
    },
    write: (text) => void child.stdin?.write(text),
    closeInput: () => void child.stdin?.end(),
    kill: (signal = "SIGTERM") => void child.kill(signal),
  };
}

function quoted(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}
