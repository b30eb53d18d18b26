import { readlink } from "node:fs/promises";
import { join } from "node:path";
import { claimNameOf } from "../kube/pod-resources.ts";
import type { Pod, Volume } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { ignoreErrno } from "../lib/errno.ts";
import { AgentError } from "../lib/errors.ts";
import { rfc3339 } from "../lib/rfc3339.ts";
import { abortable } from "../lib/abortable.ts";
import { dataLink } from "../volumes/atomic-writer.ts";
import type { VolumeMeasure } from "../volumes/port.ts";
import { directoryUsage } from "./directory-usage.ts";
import { blockBytes, type FilesystemFigures, filesystemOf } from "./filesystem.ts";
import type { VolumeStats } from "./port.ts";
import type { RemoteFilesystems } from "./remote-filesystem.ts";
import { podDirOf, volumeDirOf } from "../volumes/pod-paths.ts";

/** One measured volume of a pod. */
export interface MeasuredVolume {
  stats: VolumeStats;
  /** Lies on the node's own disk and goes with the pod: part of the pod's ephemeral storage. */
  isLocalEphemeral: boolean;
}

/**
 * How a volume of a pod, by its name in the pod, can be measured; drivers are asked for their figures by this.
 *
 * @returns undefined: it is not mounted, or cannot be measured
 * Rejects with the driver's error, and when `signal` aborts.
 */
export type StatsOfVolume = (podUID: string, volume: string, signal: AbortSignal) => Promise<VolumeMeasure | undefined>;

/** What measuring one volume needs. */
export interface MeasureDeps {
  rootDir: string;
  statsOf: StatsOfVolume;
  filesystems: RemoteFilesystems;
  /** Told how long measuring took, by "du" or the name of the driver that was asked. */
  onMeasured?(source: string, seconds: number): void;
  /** Called when a volume turns out abnormal; undefined: what drivers say of their volumes' health is not told. */
  onAbnormal?(pod: Pod, volume: string, message: string): void;
  /** Default: {@link measureTree}. */
  measure?: typeof measureTree;
  clock: Clock;
}

/** What is known of a pod's volumes from before. */
export interface Known {
  last: readonly MeasuredVolume[];
  /** Figures of volumes that only the agent writes, by volume name, and what was published there when they were taken. */
  unchanging: Map<string, { published: string; stats: VolumeStats }>;
}

// After each thousand entries of a tree.
const restMs = 5;

/** Undefined for kinds without figures: hostPath and image volumes belong to others. */
export async function measureVolume(
  deps: MeasureDeps,
  pod: Pod,
  volume: Volume,
  { last, unchanging }: Known,
  signal: AbortSignal,
): Promise<VolumeStats | undefined> {
  const kind = measuredKinds.find(({ field }) => volume[field] !== undefined && volume[field] !== null);
  const { uid = "" } = pod.metadata;
  const begunAtMs = deps.clock.monotonic();
  const onMeasured = (source: string) => deps.onMeasured?.(source, (deps.clock.monotonic() - begunAtMs) / 1_000);
  if (kind !== undefined) {
    const directory = volumeDirOf(podDirOf(deps.rootDir, uid), kind.plugin, volume.name);
    const published = kind.isUnchanging ? await publishedIn(directory) : undefined;
    const before = unchanging.get(volume.name);
    if (before !== undefined && before.published === published) return before.stats;
    const stats = await duStats(volume.name, directory, deps, signal);
    // A volume that has nothing yet is measured again: what it will have is not known.
    if (published !== undefined) unchanging.set(volume.name, { published, stats });
    onMeasured("du");
    return stats;
  }
  const measure = await abortable(deps.statsOf(uid, volume.name, signal), signal);
  if (measure === undefined) return undefined;
  const stats = await measuredStats(measure, volume.name, deps, signal);
  if (measure.kind === "driver") {
    onMeasured(measure.driver);
    noteHealth(measure, stats, { pod, last, onAbnormal: deps.onAbnormal });
  }
  const claim = claimNameOf(pod, volume);
  return claim === undefined ? stats : { ...stats, pvcRef: { name: claim, namespace: pod.metadata.namespace ?? "" } };
}

async function measuredStats(
  measure: VolumeMeasure,
  name: string,
  { clock, filesystems }: Pick<MeasureDeps, "clock" | "filesystems">,
  signal: AbortSignal,
): Promise<VolumeStats> {
  switch (measure.kind) {
    case "filesystem":
      return statfsStats(name, await filesystems.ask(measure.path, signal), clock.now());
    case "block":
      return { name, time: rfc3339(clock.now()), ...noFigures, capacityBytes: await blockBytes(measure.path) };
    case "driver":
      return { name, time: rfc3339(clock.now()), ...driverFigures(measure) };
  }
}

// As the reference shows what nobody knows.
const noFigures = {
  availableBytes: 0,
  capacityBytes: 0,
  usedBytes: 0,
  inodesFree: 0,
  inodes: 0,
  inodesUsed: 0,
};

/** What a driver counted, in the summary's words. Pure. Rejects with Invalid for an answer without any figures. */
export function driverFigures({ driver, usage }: VolumeMeasure & { kind: "driver" }): typeof noFigures {
  if (usage.length === 0) throw new AgentError("Invalid", `driver ${driver} told no usage of the volume`);
  const bytes = usage.findLast(({ unit }) => unit === "BYTES");
  const inodes = usage.findLast(({ unit }) => unit === "INODES");
  return {
    availableBytes: bytes?.available ?? 0,
    capacityBytes: bytes?.total ?? 0,
    usedBytes: bytes?.used ?? 0,
    inodesFree: inodes?.available ?? 0,
    inodes: inodes?.total ?? 0,
    inodesUsed: inodes?.used ?? 0,
  };
}

function noteHealth(
  { condition }: VolumeMeasure & { kind: "driver" },
  stats: VolumeStats,
  { pod, last, onAbnormal }: { pod: Pod; last: Known["last"]; onAbnormal: MeasureDeps["onAbnormal"] | undefined },
): void {
  if (onAbnormal === undefined || condition === undefined) return;
  const { isAbnormal: abnormal, message } = condition;
  stats.volumeHealthStats = { abnormal };
  const before = last.find(({ stats: { name } }) => name === stats.name)?.stats.volumeHealthStats?.abnormal ?? false;
  if (abnormal && !before) onAbnormal(pod, stats.name, message);
}

const measuredKinds: readonly {
  field: string;
  plugin: string;
  /** Written by us alone: its size moves so little that once is enough. */
  isUnchanging: boolean;
}[] = [
  { field: "emptyDir", plugin: "kubernetes.io/empty-dir", isUnchanging: false },
  { field: "configMap", plugin: "kubernetes.io/configmap", isUnchanging: true },
  { field: "secret", plugin: "kubernetes.io/secret", isUnchanging: true },
  { field: "downwardAPI", plugin: "kubernetes.io/downward-api", isUnchanging: true },
  { field: "projected", plugin: "kubernetes.io/projected", isUnchanging: true },
];

/** What a directory's tree takes, and the filesystem that it lies on. Rejects as {@link directoryUsage} does. */
async function measureTree(directory: string, signal: AbortSignal, rest: () => Promise<void>) {
  const [usage, filesystem] = await Promise.all([directoryUsage(directory, signal, rest), filesystemOf(directory)]);
  return { usage, filesystem };
}

async function duStats(
  name: string,
  directory: string,
  { clock, measure = measureTree }: Pick<MeasureDeps, "clock" | "measure">,
  signal: AbortSignal,
): Promise<VolumeStats> {
  const { usage, filesystem } = await measure(directory, signal, async () => await clock.sleep(restMs, signal));
  return {
    name,
    time: rfc3339(clock.now()),
    availableBytes: filesystem.availableBytes,
    capacityBytes: filesystem.capacityBytes,
    usedBytes: usage.bytes,
    inodesFree: filesystem.inodesFree,
    inodes: filesystem.inodes,
    inodesUsed: usage.inodes,
  };
}

function statfsStats(name: string, figures: FilesystemFigures, nowMs: number): VolumeStats {
  const { capacityBytes, availableBytes, usedBytes, inodes, inodesFree } = figures;
  const time = rfc3339(nowMs);
  return { name, time, availableBytes, capacityBytes, usedBytes, inodesFree, inodes, inodesUsed: inodes - inodesFree };
}

/** What names the version of a config volume's files; undefined: none was ever published. */
async function publishedIn(directory: string): Promise<string | undefined> {
  return await readlink(join(directory, dataLink)).catch(ignoreErrno("ENOENT"));
}

/** True for what lies on the node's own disk and goes with the pod. */
export function isLocalEphemeral(volume: Volume): boolean {
  if (volume.emptyDir !== undefined) return (volume.emptyDir.medium ?? "") === "";
  return volume.configMap !== undefined || volume.gitRepo !== undefined;
}
