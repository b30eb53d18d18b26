import { openDocker } from "../support/runtime/opened.ts";
import { streamingScenarios } from "../support/streaming/scenarios.ts";

streamingScenarios(async () =>
  openDocker(async (docker) => ({
    node: docker.node,
    connection: { kind: "docker", socketPath: docker.socketPath, cni: docker.cni },
    restart: async () => {
      await docker.stop("SIGKILL");
      await docker.start();
    },
    lostStatus: /"status":"Failure".*Docker daemon/, // the streaming server is the agent's own
    killsCommands: true,
  })),
);
