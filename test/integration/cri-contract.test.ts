import { busyboxImageName, webImageName } from "../support/images/images.ts";
import { createTestNode } from "../support/node/node.ts";
import { startRegistry } from "../support/node/registry.ts";
import { connectRuntime } from "../support/runtime/connect.ts";
import { runtimeContract } from "../support/runtime/contract.ts";

runtimeContract("containerd by CRI", async () => {
  const node = await createTestNode();
  try {
    const registry = await startRegistry(node);
    const runtime = await connectRuntime(node);
    return {
      runtime,
      dir: node.dir,
      cgroupRoot: node.cgroupRoot,
      busyboxImage: busyboxImageName,
      webImage: webImageName,
      registry: { name: "registry.local", push: registry.push },
      restart: async () => await node.containerd.restart(),
      fetch: async (url) => await (await fetch(url, { signal: AbortSignal.timeout(2_000) })).text(),
      dispose: async () => {
        await runtime.close();
        await node.destroy();
      },
    };
  } catch (err) {
    await node.destroy();
    throw err;
  }
});
