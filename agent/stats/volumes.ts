import { addAbortListener } from "node:events";
import { uidOf } from "../kube/pod-resources.ts";
import type { Pod } from "../kube/types.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import {
  isLocalEphemeral,
  type Known,
  type MeasuredVolume,
  type MeasureDeps,
  measureVolume,
} from "./volume-figures.ts";

export interface VolumeMeterDeps extends MeasureDeps {
  pods: { list(): readonly Pod[] };
  /** `volumeStatsAggPeriod`; 0 and less: volumes are not measured. */
  periodMs: number;
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

// All times here are of the monotonic clock: when a pod is due has nothing to do with the date.
interface PodResult {
  nextAtMs: number;
  volumes: MeasuredVolume[];
  unchanging: Known["unchanging"];
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
      const known: Omit<PodResult, "nextAtMs"> = results.get(uid) ?? { volumes: [], unchanging: new Map() };
      const { volumes: last, unchanging } = known;
      const volumes = await measurePod(deps, pod, { last, unchanging }, signal);
      const addedMs = Math.min(restFactor * (clock.monotonic() - begunAtMs), restAddedMsMax);
      results.set(uid, { nextAtMs: clock.monotonic() + periodMs * (1 + random()) + addedMs, volumes, unchanging });
    } catch (err) {
      if (!signal.aborted) log.warn({ podUID: uid, err: messageOf(err) }, "volumes of a pod could not be measured");
    } finally {
      underWay.delete(uid);
      loop.wake();
    }
  };

  const pass = async (signal: AbortSignal): Promise<number | undefined> => {
    if (periodMs <= 0) return undefined;
    if (clock.monotonic() - askedAtMs > idleAfterMs) {
      results.clear(); // old figures are no answer to who asks next
      return undefined;
    }
    const present = pods.list();
    const uids = new Set(present.map(uidOf));
    for (const uid of results.keys()) if (!uids.has(uid)) results.delete(uid);
    const nextAtMs = (pod: Pod) => results.get(uidOf(pod))?.nextAtMs ?? 0;
    // Those without results come first: somebody may wait for them.
    const idle = present.filter((pod) => !underWay.has(uidOf(pod))).sort((a, b) => nextAtMs(a) - nextAtMs(b));
    const due = idle.filter((pod) => nextAtMs(pod) <= clock.monotonic());
    for (const pod of due.slice(0, lanes - underWay.size)) underWay.set(uidOf(pod), measure(pod, signal));
    if (present.every((pod) => results.has(uidOf(pod)))) {
      for (const done of waiting) done();
      waiting.clear();
    }
    // The end of one that is under way is a wake of its own.
    const next = idle[due.length];
    return next === undefined ? undefined : nextAtMs(next) - clock.monotonic();
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
      askedAtMs = clock.monotonic();
      return results.get(podUID)?.volumes ?? [];
    },
    settle: async (withinMs, signal) => {
      askedAtMs = clock.monotonic();
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

/** Rejects only when `signal` aborts. */
async function measurePod(
  deps: VolumeMeterDeps,
  pod: Pod,
  known: Known,
  signal: AbortSignal,
): Promise<MeasuredVolume[]> {
  const measured: MeasuredVolume[] = [];
  for (const volume of pod.spec.volumes ?? []) {
    const limit = new AbortController();
    const timer = deps.clock.after(volumeTimeoutMs, () => limit.abort(new Error(`it took ${volumeTimeoutMs} ms`)));
    using _link = addAbortListener(signal, () => limit.abort(signal.reason));
    try {
      const stats = await measureVolume(deps, pod, volume, known, limit.signal);
      if (stats !== undefined) measured.push({ stats, isLocalEphemeral: isLocalEphemeral(volume) });
    } catch (err) {
      signal.throwIfAborted();
      const before = known.last.find(({ stats: { name } }) => name === volume.name);
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
