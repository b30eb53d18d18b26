import { createTestNode } from "../support/node/node.ts";
import { connectRuntime } from "../support/runtime/connect.ts";
import { streamingScenarios } from "../support/streaming/scenarios.ts";

streamingScenarios(async () => {
  const node = await createTestNode();
  try {
    const runtime = await connectRuntime(node);
    return {
      node,
      runtime,
      connection: { kind: "cri", endpoint: node.runtimeEndpoint },
      restart: async () => await node.containerd.restart("SIGKILL"),
      lostStatus: /^$/, // its streaming server dies with it
      killsCommands: false,
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
