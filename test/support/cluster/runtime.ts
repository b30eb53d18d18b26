import { mkdir, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Runtime } from "../../../agent/runtime/port.ts";
import type { Image } from "../images/oci.ts";
import { renderRegistryHosts } from "../node/containerd-config.ts";
import type { TestNode } from "../node/node.ts";
import { connectRuntime } from "../runtime/connect.ts";
import type { TestDocker } from "../runtime/docker.ts";

export type RuntimeName = "containerd" | "docker";

/** What runs a local cluster's pods, for tests that go behind the agent's back. */
export interface ClusterRuntime {
  readonly name: RuntimeName;
  /** For `containerRuntimeEndpoint`. */
  readonly endpoint: string;
  /** A client beside the agent's; close it. */
  connect(): Promise<Runtime>;
  /** Ends the daemon; containers go on. */
  stop(signal?: NodeJS.Signals): Promise<void>;
  /** Resolves when it serves. */
  start(): Promise<void>;
  restart(signal?: NodeJS.Signals): Promise<void>;
  loadImages(images: readonly Image[]): Promise<void>;
  /**
   * The registry part of names of images that the runtime finds in the node's registry (`startRegistry`).
   *
   * @param wanted what it is to be called where the runtime can be told so; Docker knows registries by their address only
   */
  registryName(wanted: string): string;
  /** The same for a server that speaks plain http at this address. */
  nameOfServer(address: string, wanted: string): Promise<string>;
  /** SIGKILL to the container's processes. */
  kill(containerID: string): Promise<void>;
  /** What is there of sandboxes' networks: namespaces with containerd, addresses and CNI's records with Docker. */
  networks(): Promise<string[]>;
}

/** Throws for a name that is none. */
export function runtimeNamed(name: string): RuntimeName {
  if (name !== "containerd" && name !== "docker") throw new Error(`no runtime "${name}": use containerd or docker`);
  return name;
}

export function containerdOf(node: TestNode): ClusterRuntime {
  const { containerd, paths } = node;
  return {
    name: "containerd",
    endpoint: node.runtimeEndpoint,
    connect: async () => await connectRuntime(node),
    stop: async (signal) => await containerd.stop(signal),
    start: async () => await containerd.start(),
    restart: async (signal) => await containerd.restart(signal),
    loadImages: async (images) => await containerd.importImages(images),
    registryName: (wanted) => wanted,
    nameOfServer: async (address, wanted) => {
      const dir = join(paths.registryConfigDir, wanted);
      await mkdir(dir, { recursive: true });
      await writeFile(join(dir, "hosts.toml"), renderRegistryHosts(address));
      return wanted;
    },
    kill: async (containerID) => {
      const socket = ["--address", paths.containerdSocket, "--namespace", "k8s.io"];
      await node.exec("ctr", [...socket, "tasks", "kill", "--signal", "SIGKILL", containerID]);
    },
    networks: async () => await namesIn(join(paths.containerdState, "io.containerd.grpc.v1.cri/netns")),
  };
}

export function dockerOf(docker: TestDocker): ClusterRuntime {
  const { node, cni } = docker;
  return {
    name: "docker",
    endpoint: `unix://${docker.socketPath}`,
    // As the agent is: others see nothing of its pods.
    connect: async () => await docker.connect({ nodeName: node.name }),
    stop: async (signal) => await docker.stop(signal),
    start: async () => await docker.start(),
    restart: async (signal) => {
      await docker.stop(signal);
      await docker.start();
    },
    loadImages: async (images) => await docker.load(images),
    registryName: () => docker.registryName,
    nameOfServer: async (address) => address,
    kill: async (containerID) => void (await docker.api("POST", `/containers/${containerID}/kill`)),
    networks: async () => {
      const dataDir = node.paths.cniDataDir;
      const files = await Promise.all((await namesIn(dataDir)).map((network) => namesIn(join(dataDir, network))));
      const addresses = files.flat().filter((name) => /^[0-9a-f.:]+$/.test(name)); // beside lock and last address
      return [...addresses, ...(await namesIn(join(cni.cacheDir, "results")))];
    },
  };
}

async function namesIn(dir: string): Promise<string[]> {
  return await readdir(dir).catch(() => []);
}
