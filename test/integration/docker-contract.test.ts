import { busyboxImageName, webImageName } from "../support/images/images.ts";
import { startRegistry } from "../support/node/registry.ts";
import { runtimeContract } from "../support/runtime/contract.ts";
import { openDocker } from "../support/runtime/opened.ts";

runtimeContract("Docker", async () =>
  openDocker(async (docker) => {
    const registry = await startRegistry(docker.node, { name: docker.registryName });
    return {
      dir: docker.node.dir,
      cgroupRoot: docker.node.cgroupRoot,
      busyboxImage: busyboxImageName,
      webImage: webImageName,
      logLine: (stream, text) => new RegExp(`^\\{"log":"${text}\\\\n","stream":"${stream}","time":"[^"]+"\\}$`, "m"),
      registry: { name: docker.registryName, push: registry.push },
      restart: async () => {
        await docker.stop();
        await docker.start();
      },
    };
  }),
);
