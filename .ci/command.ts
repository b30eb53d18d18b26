import { spawn } from "node:child_process";

/** How a command ended. `code` is 127 if it could not be started and 128 if a signal ended it, as a shell would say. */
export interface Ended {
  code: number;
  /** Standard output and standard error as they came; empty from {@link show}. */
  output: string;
  seconds: number;
}

/** Runs a command without a shell and keeps what it prints. Never rejects. */
export function capture(file: string, args: readonly string[]): Promise<Ended> {
  return start(file, args, "pipe");
}

/** Runs a command without a shell and lets it print. Never rejects. @param env beside our own environment */
export function show(file: string, args: readonly string[], env: Record<string, string> = {}): Promise<Ended> {
  return start(file, args, "inherit", env);
}

async function start(
  file: string,
  args: readonly string[],
  output: "pipe" | "inherit",
  env: Record<string, string> = {},
): Promise<Ended> {
  const startedAt = performance.now();
  const root = new URL("..", import.meta.url).pathname;
  const chunks: Buffer[] = [];
  const options = { cwd: root, env: { ...process.env, ...env } };
  const child = spawn(file, args, { ...options, stdio: ["ignore", output, output] });
  child.stdout?.on("data", (chunk: Buffer) => chunks.push(chunk));
  child.stderr?.on("data", (chunk: Buffer) => chunks.push(chunk));
  const code = await new Promise<number>((resolve) => {
    child.on("error", (err) => {
      chunks.push(Buffer.from(`${err.message}\n`));
      resolve(127);
    });
    child.on("close", (exitCode) => resolve(exitCode ?? 128));
  });
  return { code, output: Buffer.concat(chunks).toString("utf8"), seconds: (performance.now() - startedAt) / 1000 };
}
