import { startTestDocker } from "../support/runtime/docker.ts";
import { streamingScenarios } from "../support/streaming/scenarios.ts";

streamingScenarios(async () => {
  const docker = await startTestDocker();
  try {
    const runtime = await docker.connect();
    return {
      node: docker.node,
      runtime,
      connection: { kind: "docker", socketPath: docker.socketPath, cni: docker.cni },
      restart: async () => {
        await docker.stop("SIGKILL");
        await docker.start();
      },
      lostStatus: /"status":"Failure".*Docker daemon/, // the streaming server is the agent's own
      killsCommands: true,
      dispose: async () => {
        await runtime.close();
        await docker.destroy();
      },
    };
  } catch (err) {
    await docker.destroy();
    throw err;
  }
});
