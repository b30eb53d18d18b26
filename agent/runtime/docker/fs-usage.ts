import { join } from "node:path";
import type { Clock } from "../../lib/clock.ts";
import { errnoOf } from "../../lib/errno.ts";
import { isThere } from "../../lib/is-there.ts";
import type { Logger } from "../../lib/log.ts";
import type { FilesystemUsage } from "../port.ts";
import { fieldsOf, objectsIn } from "./answers.ts";
import type { DockerClient } from "./client.ts";
import type { DaemonInfo } from "./daemon.ts";
import { findImageRoot } from "./image-root.ts";
import { runningContainersFilter } from "./labels.ts";
import { SlowFigure } from "./slow-figure.ts";

/** What files in a directory take; as agent/stats measures it. */
export interface TreeUsage {
  bytes: number;
  inodes: number;
}

/** As `du -x`: follows no links, enters no other filesystem; `rest` is waited for every thousand files. */
export type MeasureTree = (directory: string, signal: AbortSignal, rest: () => Promise<void>) => Promise<TreeUsage>;

/** What Docker's data takes on its filesystem. Nothing here keeps anybody waiting for a disk. */
export interface DockerDisk {
  /** Images and writable layers, as far as they have been measured. */
  imageFs(): Promise<FilesystemUsage>;
  /** A directory on the filesystem of images and writable layers. */
  root(): Promise<string>;
  /** Measures directories of running containers' own files; by name of the directory, those that are there. */
  layers(directories: () => Iterable<string>): SlowFigure<ReadonlyMap<string, TreeUsage>>;
  /** Containers' own files where the storage driver does not keep them in a directory each; by container ID, bytes. */
  sizes(): SlowFigure<ReadonlyMap<string, number>>;
  close(): void;
}

export interface DockerDiskOptions {
  measureTree: MeasureTree;
  clock: Clock;
  log: Logger;
}

// Storage drivers whose layers are directories beneath the data root, one named as the driver.
const treeDrivers: readonly string[] = ["overlay2", "overlay", "fuse-overlayfs", "vfs", "aufs"];

// Between two thousand files: half of the time is left to others, on a slow disk more.
const treeRestMs = 20;

// `docker system df` looks at every file of every volume, too: minutes on a large disk.
const dfTimeoutMs = 300_000;

export function createDockerDisk(client: DockerClient, options: DockerDiskOptions): DockerDisk {
  const { measureTree, clock, log } = options;
  const root = rootFinder(client, log);
  const figures: { close(): void }[] = [];
  const keep = <T>(what: string, measure: (signal: AbortSignal) => Promise<T>): SlowFigure<T> => {
    const figure = new SlowFigure({ what, measure, clock, log });
    figures.push(figure);
    return figure;
  };
  const tree = async (directory: string, signal: AbortSignal) =>
    await measureTree(directory, signal, async () => await clock.sleep(treeRestMs, signal));

  const images = keep("space of Docker's images", async (signal): Promise<{ bytes: number; inodes?: number }> => {
    const { rootDir, storageDriver, containerdStore } = client.daemon;
    const directory = join(rootDir, storageDriver);
    const isTree = containerdStore === undefined && treeDrivers.includes(storageDriver);
    if (isTree && (await isThere(directory))) return await tree(directory, signal);
    return { bytes: await layersSize(client, signal) };
  });

  return {
    root,

    imageFs: async () => {
      const [figure, mountpoint] = await Promise.all([images.latest(), root()]);
      if (figure === undefined) return { timestampMs: clock.now(), mountpoint };
      const { bytes, inodes } = figure.value;
      return {
        timestampMs: figure.atMs,
        mountpoint,
        usedBytes: bytes,
        ...(inodes === undefined ? {} : { inodesUsed: inodes }),
      };
    },

    layers: (directories) =>
      keep("containers' own files", async (signal) => {
        const found = new Map<string, TreeUsage>();
        for (const directory of directories()) {
          const usage = await tree(directory, signal).catch((err: unknown) => {
            if (errnoOf(err) === "ENOENT") return undefined; // the container went meanwhile
            throw err;
          });
          if (usage !== undefined) found.set(directory, usage);
        }
        return found;
      }),

    sizes: () => keep("sizes of containers' own files", async (signal) => await containerSizes(client, signal)),

    close: () => {
      for (const figure of figures) figure.close();
    },
  };
}

/** Looks once for each daemon: after a restart it may be one that keeps things elsewhere. */
function rootFinder(client: DockerClient, log: Logger): () => Promise<string> {
  let known: { daemon: DaemonInfo; root: Promise<string | undefined> } | undefined;
  const find = async (daemon: DaemonInfo) => {
    const root = await findImageRoot(daemon);
    if (root === undefined) {
      const message =
        "containerd keeps Docker's images where it cannot be seen: disk pressure and image garbage collection watch Docker's data root";
      log.warn({ storageDriver: daemon.storageDriver, rootDir: daemon.rootDir }, message);
    }
    return root;
  };
  return async () => {
    const { daemon } = client;
    if (known?.daemon !== daemon) known = { daemon, root: find(daemon) };
    return (await known.root) ?? daemon.rootDir;
  };
}

/** dockerode's, whose types know nothing of its options. */
interface DockerDF {
  df(options: { abortSignal: AbortSignal }): Promise<unknown>;
}

/** Bytes of all layers, as the daemon adds them up. */
async function layersSize(client: DockerClient, signal: AbortSignal): Promise<number> {
  const answer: unknown = await client.call(
    "disk usage",
    async (abortSignal) => await (client.docker as DockerDF).df({ abortSignal }),
    { timeoutMs: dfTimeoutMs, signal },
  );
  const bytes = layersSizeOf(answer);
  if (bytes === undefined) throw new Error("the daemon does not tell the size of its layers");
  return bytes;
}

/** From Engine 29 on a size of 0 is left out. Undefined if an answer tells of no images at all. */
export function layersSizeOf(answer: unknown): number | undefined {
  const { LayersSize, Images } = fieldsOf(answer);
  if (typeof LayersSize === "number") return LayersSize;
  return Array.isArray(Images) ? 0 : undefined;
}

async function containerSizes(client: DockerClient, signal: AbortSignal): Promise<Map<string, number>> {
  const answer: unknown = await client.call(
    "sizes of containers",
    async (abortSignal) =>
      (await client.docker.listContainers({
        size: true,
        filters: runningContainersFilter(),
        abortSignal,
      } as object)) as unknown,
    { timeoutMs: dfTimeoutMs, signal },
  );
  const sizes = new Map<string, number>();
  for (const { Id, SizeRw = 0 } of objectsIn(answer, "sizes of containers")) {
    // What is 0 is left out of the answer.
    if (typeof Id === "string" && typeof SizeRw === "number") sizes.set(Id, SizeRw);
  }
  return sizes;
}
