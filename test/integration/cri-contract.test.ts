import { busyboxImageName, webImageName } from "../support/images/images.ts";
import { startRegistry } from "../support/node/registry.ts";
import { runtimeContract } from "../support/runtime/contract.ts";
import { openCRI } from "../support/runtime/opened.ts";

runtimeContract("containerd by CRI", async () =>
  openCRI(async (node) => {
    const registry = await startRegistry(node);
    return {
      dir: node.dir,
      cgroupRoot: node.cgroupRoot,
      busyboxImage: busyboxImageName,
      webImage: webImageName,
      registry: { name: "registry.local", push: registry.push },
      restart: async () => await node.containerd.restart(),
    };
  }),
);
