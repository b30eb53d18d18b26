import type { Runtime } from "../../../agent/runtime/port.ts";
import { createTestNode, type TestNode } from "../node/node.ts";
import { connectRuntime } from "./connect.ts";
import { startTestDocker, type TestDocker } from "./docker.ts";

/** A runtime on a machine of its own. */
interface Opened {
  runtime: Runtime;
  /** Ends the runtime and all that it stands on. */
  dispose(): Promise<void>;
}

/** A test node's containerd by CRI, with what else `describe` tells of it. Nothing is left when any of it fails. */
export async function openCRI<T extends object>(describe: (node: TestNode) => Promise<T>): Promise<T & Opened> {
  const node = await createTestNode();
  return await opened(node, async () => await connectRuntime(node), describe);
}

/** The same for a test node's Docker. */
export async function openDocker<T extends object>(describe: (docker: TestDocker) => Promise<T>): Promise<T & Opened> {
  const docker = await startTestDocker();
  return await opened(docker, async () => await docker.connect(), describe);
}

async function opened<Machine extends { destroy(): Promise<void> }, T extends object>(
  machine: Machine,
  connect: () => Promise<Runtime>,
  describe: (machine: Machine) => Promise<T>,
): Promise<T & Opened> {
  try {
    const described = await describe(machine);
    const runtime = await connect();
    const dispose = async () => {
      await runtime.close();
      await machine.destroy();
    };
    return { ...described, runtime, dispose };
  } catch (err) {
    await machine.destroy();
    throw err;
  }
}
