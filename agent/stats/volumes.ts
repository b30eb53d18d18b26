import { addAbortListener } from "node:events";
import type { Pod, Volume } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import { podDirOf, volumeDirOf } from "../volumes/pod-dirs.ts";
import { directoryUsage } from "./directory-usage.ts";
import { type FilesystemFigures, filesystemOf } from "./filesystem.ts";
import type { VolumeStats } from "./port.ts";
import type { RemoteFilesystems } from "./remote-filesystem.ts";
import { rfc3339 } from "../lib/rfc3339.ts";

/** One measured volume of a pod. */
export interface MeasuredVolume {
  stats: VolumeStats;
  /** Lies on the node's own disk and goes with the pod: part of the pod's ephemeral storage. */
  isLocalEphemeral: boolean;
}

export interface VolumeMeterDeps {
  pods: { list(): readonly Pod[] };
  rootDir: string;
  /** `volumeStatsAggPeriod`; 0 and less: volumes are not measured. */
  periodMs: number;
  /** Where a volume of a claim, or one that others mount, is on the node; undefined: not mounted. */
  mountedAt: (pod: Pod, volume: Volume) => string | undefined;
  filesystems: RemoteFilesystems;
  /** Default: {@link measureTree}. */
  measure?: typeof measureTree;
  clock: Clock;
  log: Logger;
  random?: () => number;
}

/** Measures volumes in the background while somebody reads the results. */
export interface VolumeMeter {
  run(signal: AbortSignal): Promise<void>;
  /** The latest results of the pod, none before the first. Keeps the measuring going. */
  of(podUID: string): readonly MeasuredVolume[];
  /** Has pods that have no results measured; waits only if no pod has any, and no longer than `withinMs`. */
  settle(withinMs: number, signal: AbortSignal): Promise<void>;
}

// Nobody has asked for this long: stop measuring. Monitoring asks each few minutes at most.
export const idleAfterMs = 10 * 60_000;

// Pods measured at a time: one with huge volumes does not hold up the others, and the disk has other work.
export const lanes = 3;
// Walking a tree of a million files takes this long. A volume that takes longer, or grows while it is walked, keeps its
// last figures.
export const volumeTimeoutMs = 30_000;
// A pod rests at least so many times as long as its measuring took, as far as that is no age: pods with endless volumes
// take a tenth of a lane.
const restFactor = 9;
const restAddedMsMax = 10 * 60_000;
// After each thousand entries of a tree.
const restMs = 5;

interface PodResult {
  nextAtMs: number;
  volumes: MeasuredVolume[];
  /** Figures of volumes that only the agent writes, by volume name. */
  unchanging: Map<string, VolumeStats>;
}

/**
 * Each pod is measured once a period, lengthened by up to the period itself, so that pods spread over time;
 * {@link lanes} at a time.
 */
export function createVolumeMeter(deps: VolumeMeterDeps): VolumeMeter {
  const { pods, periodMs, clock, log, random = Math.random } = deps;
  const results = new Map<string, PodResult>();
  let askedAtMs = Number.NEGATIVE_INFINITY;
  const waiting = new Set<() => void>();
  const underWay = new Map<string, Promise<void>>();

  /** Never rejects. */
  const measure = async (pod: Pod, signal: AbortSignal): Promise<void> => {
    const uid = uidOf(pod);
    const begunAtMs = clock.monotonic();
    try {
      const { volumes: last = [], unchanging = new Map<string, VolumeStats>() } = results.get(uid) ?? {};
      const volumes = await measurePod(deps, pod, { last, unchanging }, signal);
      const addedMs = Math.min(restFactor * (clock.monotonic() - begunAtMs), restAddedMsMax);
      results.set(uid, { nextAtMs: clock.now() + periodMs * (1 + random()) + addedMs, volumes, unchanging });
    } catch (err) {
      if (!signal.aborted) log.warn({ podUID: uid, err: messageOf(err) }, "volumes of a pod could not be measured");
    } finally {
      underWay.delete(uid);
      loop.wake();
    }
  };

  const pass = async (signal: AbortSignal): Promise<number | undefined> => {
    if (periodMs <= 0) return undefined;
    if (clock.now() - askedAtMs > idleAfterMs) {
      results.clear(); // old figures are no answer to who asks next
      return undefined;
    }
    const present = pods.list();
    const uids = new Set(present.map(uidOf));
    for (const uid of results.keys()) if (!uids.has(uid)) results.delete(uid);
    const nextAtMs = (pod: Pod) => results.get(uidOf(pod))?.nextAtMs ?? 0;
    // Those without results come first: somebody may wait for them.
    const idle = present.filter((pod) => !underWay.has(uidOf(pod))).sort((a, b) => nextAtMs(a) - nextAtMs(b));
    const due = idle.filter((pod) => nextAtMs(pod) <= clock.now());
    for (const pod of due.slice(0, lanes - underWay.size)) underWay.set(uidOf(pod), measure(pod, signal));
    if (present.every((pod) => results.has(uidOf(pod)))) {
      for (const done of waiting) done();
      waiting.clear();
    }
    // The end of one that is under way is a wake of its own.
    const next = idle[due.length];
    return next === undefined ? undefined : nextAtMs(next) - clock.now();
  };

  const loop = new Loop({
    clock,
    pass,
    onError: (err) => log.warn({ err: messageOf(err) }, "volumes could not be measured, trying again in a minute"),
    retryMs: () => 60_000,
    resyncMs: Math.max(periodMs, 1_000),
  });

  return {
    run: async (signal) => {
      await loop.run(signal);
      await Promise.all(underWay.values());
    },
    of: (podUID) => {
      askedAtMs = clock.now();
      return results.get(podUID)?.volumes ?? [];
    },
    settle: async (withinMs, signal) => {
      askedAtMs = clock.now();
      const isMissing = pods.list().some((pod) => !results.has(uidOf(pod)));
      if (periodMs <= 0 || !isMissing) return;
      if (results.size > 0) {
        loop.wake();
        return;
      }
      const settled = new Promise<void>((resolve) => waiting.add(resolve));
      loop.wake();
      const enough = new AbortController();
      try {
        await Promise.race([settled, clock.sleep(withinMs, AbortSignal.any([signal, enough.signal]))]);
      } finally {
        enough.abort();
      }
    },
  };
}

function uidOf({ metadata: { uid } }: Pod): string {
  return uid ?? "";
}

/** What is known of a pod's volumes from before. */
type Known = { last: readonly MeasuredVolume[] } & Pick<PodResult, "unchanging">;

/** Rejects only when `signal` aborts. */
async function measurePod(
  deps: VolumeMeterDeps,
  pod: Pod,
  { last, unchanging }: Known,
  signal: AbortSignal,
): Promise<MeasuredVolume[]> {
  const measured: MeasuredVolume[] = [];
  for (const volume of pod.spec.volumes ?? []) {
    const limit = new AbortController();
    const timer = deps.clock.after(volumeTimeoutMs, () => limit.abort(new Error(`it took ${volumeTimeoutMs} ms`)));
    using _link = addAbortListener(signal, () => limit.abort(signal.reason));
    try {
      const stats = await measureVolume(deps, pod, volume, unchanging, limit.signal);
      if (stats !== undefined) measured.push({ stats, isLocalEphemeral: isLocalEphemeral(volume) });
    } catch (err) {
      signal.throwIfAborted();
      const before = last.find(({ stats: { name } }) => name === volume.name);
      if (limit.signal.aborted && before !== undefined) measured.push(before);
      const { name, namespace } = pod.metadata;
      // Too large, not mounted yet, or just removed.
      deps.log.debug({ pod: `${namespace}/${name}`, volume: volume.name, err: messageOf(err) }, "volume not measured");
    } finally {
      timer.cancel();
    }
  }
  return measured;
}

/** Undefined for kinds without figures: hostPath and image volumes belong to others. */
async function measureVolume(
  deps: VolumeMeterDeps,
  pod: Pod,
  volume: Volume,
  unchanging: PodResult["unchanging"],
  signal: AbortSignal,
): Promise<VolumeStats | undefined> {
  const kind = measuredKinds.find(({ field }) => volume[field] !== undefined && volume[field] !== null);
  const { clock, rootDir, filesystems } = deps;
  if (kind !== undefined) {
    const directory = volumeDirOf(podDirOf(rootDir, uidOf(pod)), kind.plugin, volume.name);
    const before = unchanging.get(volume.name);
    if (before !== undefined) return before;
    const stats = await duStats(volume.name, directory, deps, signal);
    if (kind.isUnchanging) unchanging.set(volume.name, stats);
    return stats;
  }
  const directory = deps.mountedAt(pod, volume);
  if (directory === undefined) return undefined;
  const stats = statfsStats(volume.name, await filesystems.ask(directory, signal), clock.now());
  const claim = claimOf(pod, volume);
  return claim === undefined ? stats : { ...stats, pvcRef: { name: claim, namespace: pod.metadata.namespace ?? "" } };
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
  { clock, measure = measureTree }: Pick<VolumeMeterDeps, "clock" | "measure">,
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

/** Name of the claim behind a volume: the one it names, or the one that was made for it. */
function claimOf(pod: Pod, volume: Volume): string | undefined {
  const { persistentVolumeClaim: claim } = volume;
  if (typeof claim === "object" && claim !== null && "claimName" in claim && typeof claim.claimName === "string") {
    return claim.claimName;
  }
  return volume.ephemeral === undefined ? undefined : `${pod.metadata.name}-${volume.name}`;
}

function isLocalEphemeral(volume: Volume): boolean {
  if (volume.emptyDir !== undefined) return (volume.emptyDir.medium ?? "") === "";
  return volume.configMap !== undefined || volume.gitRepo !== undefined;
}
