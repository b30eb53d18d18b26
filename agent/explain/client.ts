import { request } from "node:http";
import { errnoOf } from "../lib/errno.ts";
import { AgentError } from "../lib/errors.ts";
import { type PodAnswer, type PodsAnswer, protocolVersion, socketPathOf } from "./protocol.ts";

// The agent answers from memory; one that takes longer than this hangs.
export const answerTimeoutMs = 10_000;
// Ten thousand pods fit.
export const answerBytesMax = 16 << 20;

/** Asks the running agent for its pods. Rejects with an AgentError that says what to do. */
export async function askPods(rootDir: string): Promise<PodsAnswer> {
  // What says our protocol's version has its shape.
  return (await ask(rootDir, "/pods")) as PodsAnswer;
}

/** Asks the running agent for one pod. Rejects with an AgentError that says what to do. */
export async function askPod(rootDir: string, namespace: string, name: string): Promise<PodAnswer> {
  return (await ask(rootDir, `/pods/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`)) as PodAnswer;
}

async function ask(rootDir: string, path: string): Promise<object> {
  const socketPath = socketPathOf(rootDir);
  const text = await get(socketPath, path).catch((err: unknown) => {
    throw explained(err, socketPath);
  });
  const body = parsed(text);
  if (body !== undefined && "version" in body && body.version === protocolVersion) return body;
  throw new AgentError(
    "Unimplemented",
    `the agent at ${socketPath} is of another version than this program: use the nodelet that it was started from`,
  );
}

async function get(socketPath: string, path: string): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const signal = AbortSignal.timeout(answerTimeoutMs);
  const asking = request({ socketPath, path, host: "nodelet", signal }, (response) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    response.on("data", (chunk: Buffer) => {
      chunks.push(chunk);
      bytes += chunk.length;
      if (bytes > answerBytesMax) asking.destroy(new Error(`the answer has more than ${answerBytesMax} bytes`));
    });
    response.on("error", reject);
    response.on("end", () => resolve(Buffer.concat(chunks).toString()));
  });
  asking.on("error", reject);
  asking.end();
  return await promise;
}

function parsed(text: string): object | undefined {
  try {
    const body: unknown = JSON.parse(text);
    return typeof body === "object" && body !== null ? body : undefined;
  } catch {
    return undefined;
  }
}

/** What people can do about it. */
function explained(err: unknown, socketPath: string): AgentError {
  const options = { cause: err };
  const errno = errnoOf(err) ?? "";
  if (["ENOENT", "ENOTDIR"].includes(errno)) {
    const advice = "Is nodelet running? If it was started with --root-dir, say the same here";
    return new AgentError("Unavailable", `no agent answers: there is no ${socketPath}. ${advice}`, options);
  }
  if (errno === "ECONNREFUSED") {
    const advice = "it has ended without taking its socket away. Start it again";
    return new AgentError("Unavailable", `no agent answers at ${socketPath}: ${advice}`, options);
  }
  if (["EACCES", "EPERM"].includes(errno)) {
    return new AgentError("Forbidden", `${socketPath} may only be opened by root: try again with sudo`, options);
  }
  if (err instanceof Error && ["TimeoutError", "AbortError"].includes(err.name)) {
    const message = `has not answered within ${answerTimeoutMs / 1_000} s: it hangs, see its log`;
    return new AgentError("DeadlineExceeded", `the agent at ${socketPath} ${message}`, options);
  }
  return new AgentError("Unavailable", `the agent at ${socketPath} gives no good answer: ${String(err)}`, options);
}
