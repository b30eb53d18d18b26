import type { Clock } from "../lib/clock.ts";
import type { MetricsRegistry, Sample } from "../lib/metrics.ts";

/** Volumes that pods use and have, by plugin name; each counts once for each pod. */
export interface VolumeCounts {
  desired: Iterable<string>;
  actual: Iterable<string>;
}

/** One operation on one volume of a pod. */
export interface VolumeOperation {
  podUID: string;
  /** The volume's name in the pod. */
  volume: string;
  pluginName: string;
  operation: "volume_mount" | "volume_unmount";
}

/** Volumes on disk of pods of which this run of the agent knew nothing, and what became of them in one attempt to take them away. */
export interface FoundVolumes {
  /** There was something on disk. */
  found: number;
  /** What is on disk did not do to take them away as their kind does. */
  notUnderstood: number;
  /** Unmounted nevertheless, without knowing what they are, or at least tried. */
  forced: number;
  /** Still there after that. */
  left: number;
}

/** What is measured of volumes. */
export interface VolumeMetrics {
  /** Times one attempt, and the way from the first attempt to success. Passes on what `work` gives or throws. */
  time<T>(of: VolumeOperation, work: () => Promise<T>): Promise<T>;
  /** The pod has no volumes any more: operations on them that have not succeeded will not. */
  forget(podUID: string): void;
  foundOnDisk(volumes: FoundVolumes): void;
  /** Counts are read from `counts` at the time of a scrape. */
  follow(counts: () => VolumeCounts): void;
}

// The reference's, in seconds.
const operationBuckets = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600];

/** Registers the families about volumes that are not one driver's. */
export function createVolumeMetrics(registry: MetricsRegistry, clock: Clock): VolumeMetrics {
  let counts = (): VolumeCounts => ({ desired: [], actual: [] });
  const seconds = registry.histogram(
    "storage_operation_duration_seconds",
    "Time to mount or unmount a volume.",
    operationBuckets,
    ["volume_plugin", "operation_name", "status", "migrated"],
  );
  const untilDone = registry.histogram(
    "volume_operation_total_seconds",
    "Time from the first attempt to mount or unmount a volume until it has succeeded.",
    operationBuckets,
    ["plugin_name", "operation_name"],
  );
  /** Times of first attempts by pod, then by operation and volume. */
  const begun = new Map<string, Map<string, number>>();
  const counter = (name: string, help: string) => registry.counter(name, help);
  const rebuilt = counter(
    "reconstruct_volume_operations_total",
    "Volumes of pods that are gone since an earlier run, told by what is on disk.",
  );
  const notRebuilt = counter(
    "reconstruct_volume_operations_errors_total",
    "Of those, volumes of which what is on disk does not tell enough.",
  );
  const forced = counter(
    "force_cleaned_failed_volume_operations_total",
    "Of those, volumes that were unmounted without knowing what they are.",
  );
  const notForced = counter(
    "force_cleaned_failed_volume_operation_errors_total",
    "Of those, volumes that are there nevertheless; tried again later.",
  );
  const name = "volume_manager_total_volumes";
  const help = "Volumes that pods are to have (desired) and that are there (actual).";
  registry.collect(name, () => {
    const { desired, actual } = counts();
    const samples = [...rows(desired, "desired_state_of_world"), ...rows(actual, "actual_state_of_world")];
    return [{ name, help, type: "gauge", samples }];
  });
  return {
    time: async ({ podUID, volume, pluginName, operation }, work) => {
      const startedAtMs = clock.monotonic();
      const ofPod = begun.get(podUID) ?? new Map<string, number>();
      begun.set(podUID, ofPod);
      const key = `${operation} ${volume}`;
      const firstAtMs = ofPod.get(key) ?? startedAtMs;
      ofPod.set(key, firstAtMs);
      const labels = { volume_plugin: pluginName, operation_name: operation, migrated: "false" };
      const note = (status: string) =>
        seconds.observe({ ...labels, status }, (clock.monotonic() - startedAtMs) / 1_000);
      try {
        const result = await work();
        note("success");
        const seconds = (clock.monotonic() - firstAtMs) / 1_000;
        untilDone.observe({ plugin_name: pluginName, operation_name: operation }, seconds);
        ofPod.delete(key);
        if (ofPod.size === 0) begun.delete(podUID);
        return result;
      } catch (err) {
        note("fail-unknown");
        throw err;
      }
    },
    forget: (podUID) => void begun.delete(podUID),
    foundOnDisk: (volumes) => {
      rebuilt.inc({}, volumes.found);
      notRebuilt.inc({}, volumes.notUnderstood);
      forced.inc({}, volumes.forced);
      notForced.inc({}, volumes.left);
    },
    follow: (followed) => {
      counts = followed;
    },
  };
}

function rows(pluginNames: Iterable<string>, state: string): Sample[] {
  const counts = new Map<string, number>();
  for (const name of pluginNames) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].map(([plugin_name, value]) => ({ labels: { plugin_name, state }, value }));
}
