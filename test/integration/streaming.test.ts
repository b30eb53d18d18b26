import { openCRI } from "../support/runtime/opened.ts";
import { streamingScenarios } from "../support/streaming/scenarios.ts";

streamingScenarios(async () =>
  openCRI(async (node) => ({
    node,
    connection: { kind: "cri", endpoint: node.runtimeEndpoint },
    restart: async () => await node.containerd.restart("SIGKILL"),
    lostStatus: /^$/, // its streaming server dies with it
    killsCommands: false,
  })),
);
