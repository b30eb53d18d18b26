import type { TestNode } from "../node/node.ts";

/** Exec sessions to run at once, each at a URL of its own, that move `bytes` each. */
export interface StreamLoad {
  urls: string[];
  /** From the container, or into it. */
  direction: "out" | "in";
  bytes: number;
  /** Client certificate and key, PEM, for https. */
  certificate?: string;
  key?: string;
}

export interface StreamLoadResult {
  bytes: number;
  ms: number;
}

const program = new URL("main.ts", import.meta.url).pathname;
const timeoutMs = 300_000;

/** Runs the load from the node's network namespace, in a process of its own. Rejects with what went wrong. */
export async function runStreamLoad(node: TestNode, load: StreamLoad): Promise<StreamLoadResult> {
  const result = await node.exec(process.execPath, [program, JSON.stringify(load)], { timeoutMs });
  if (result.failure !== undefined) throw new Error(`${result.message}\n${result.stderr}`);
  return JSON.parse(result.stdout) as StreamLoadResult;
}
