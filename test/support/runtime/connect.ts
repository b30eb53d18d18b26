import { silentLogger } from "../../../agent/lib/log.ts";
import { connectCRI } from "../../../agent/runtime/cri/connect.ts";
import type { Runtime } from "../../../agent/runtime/port.ts";
import type { TestNode } from "../node/node.ts";

const requestTimeoutMs = 120_000;

/** A CRI client of a test node's containerd; close it. For tests that look at the runtime behind the agent's back. */
export async function connectRuntime({ runtimeEndpoint }: Pick<TestNode, "runtimeEndpoint">): Promise<Runtime> {
  return await connectCRI({ runtimeEndpoint, requestTimeoutMs, log: silentLogger });
}
