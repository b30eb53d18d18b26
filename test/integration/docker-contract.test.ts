import { busyboxImageName, webImageName } from "../support/images/images.ts";
import { startRegistry } from "../support/node/registry.ts";
import { runtimeContract } from "../support/runtime/contract.ts";
import { startTestDocker } from "../support/runtime/docker.ts";

runtimeContract("Docker", async () => {
  const docker = await startTestDocker();
  try {
    const registry = await startRegistry(docker.node, { name: docker.registryName });
    const runtime = await docker.connect();
    return {
      runtime,
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
      fetch: async (url) => await (await fetch(url, { signal: AbortSignal.timeout(2_000) })).text(),
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
