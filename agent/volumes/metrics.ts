import type { Clock } from "../lib/clock.ts";
import type { MetricsRegistry, Sample } from "../lib/metrics.ts";

/** Volumes that pods use and have, by plugin name; each counts once for each pod. */
export interface VolumeCounts {
  desired: Iterable<string>;
  actual: Iterable<string>;
}

/** What is measured of volumes. */
export interface VolumeMetrics {
  /** Times one operation on one volume. Passes on what `work` gives or throws. */
  time<T>(pluginName: string, operation: "volume_mount" | "volume_unmount", work: () => Promise<T>): Promise<T>;
  /** Counts are read from `counts` at the time of a scrape. */
  follow(counts: () => VolumeCounts): void;
}

// The reference's, in seconds.
const operationBuckets = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600];

/** Registers `storage_operation_duration_seconds` and `volume_manager_total_volumes`. */
export function createVolumeMetrics(registry: MetricsRegistry, clock: Clock): VolumeMetrics {
  let counts = (): VolumeCounts => ({ desired: [], actual: [] });
  const seconds = registry.histogram(
    "storage_operation_duration_seconds",
    "Time to mount or unmount a volume.",
    operationBuckets,
    ["volume_plugin", "operation_name", "status", "migrated"],
  );
  const name = "volume_manager_total_volumes";
  const help = "Volumes that pods are to have (desired) and that are there (actual).";
  registry.collect(name, () => {
    const { desired, actual } = counts();
    const samples = [...rows(desired, "desired_state_of_world"), ...rows(actual, "actual_state_of_world")];
    return [{ name, help, type: "gauge", samples }];
  });
  return {
    time: async (pluginName, operation, work) => {
      const startedAtMs = clock.monotonic();
      const labels = { volume_plugin: pluginName, operation_name: operation, migrated: "false" };
      const note = (status: string) =>
        seconds.observe({ ...labels, status }, (clock.monotonic() - startedAtMs) / 1_000);
      try {
        const result = await work();
        note("success");
        return result;
      } catch (err) {
        note("fail-unknown");
        throw err;
      }
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
