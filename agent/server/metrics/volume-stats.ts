import type { Clock } from "../../lib/clock.ts";
import type { MetricFamily, MetricsRegistry, Sample } from "../../lib/metrics.ts";
import type { FsStats, Summary } from "../../stats/port.ts";

/** One gauge for each of these, with the field of a claim's figures that it shows. */
const volumeGauges: readonly (readonly [name: string, field: Exclude<keyof FsStats, "time">, help: string])[] = [
  ["kubelet_volume_stats_capacity_bytes", "capacityBytes", "Size of a claim's volume."],
  ["kubelet_volume_stats_available_bytes", "availableBytes", "Bytes free in a claim's volume."],
  ["kubelet_volume_stats_used_bytes", "usedBytes", "Bytes used in a claim's volume."],
  ["kubelet_volume_stats_inodes", "inodes", "Inodes that a claim's volume can have."],
  ["kubelet_volume_stats_inodes_free", "inodesFree", "Inodes free in a claim's volume."],
  ["kubelet_volume_stats_inodes_used", "inodesUsed", "Inodes used in a claim's volume."],
];

const logName = "kubelet_container_log_filesystem_used_bytes";

// Volumes are measured every minute; what is this much older says nothing any more.
export const staleMs = 5 * 60_000;

/**
 * Registers what /metrics tells of disks: volumes of claims, and containers' logs. A scrape shows what the one before it
 * had measured, and begins to measure anew: it never waits for a disk or the runtime, and fails with neither.
 *
 * @param summary the summary API's figures
 */
export function registerVolumeStats(
  registry: MetricsRegistry,
  { summary, clock }: { summary: () => Promise<Summary>; clock: Pick<Clock, "monotonic"> },
): void {
  let latest: { families: MetricFamily[]; atMs: number } | undefined;
  let isMeasuring = false;
  const measure = async () => {
    isMeasuring = true;
    try {
      latest = { families: volumeFamilies(await summary()), atMs: clock.monotonic() };
    } catch {
      // The summary's own endpoint says why.
    } finally {
      isMeasuring = false;
    }
  };
  registry.collect("kubelet_volume_stats_", () => {
    const shown = latest !== undefined && clock.monotonic() - latest.atMs < staleMs ? latest.families : [];
    if (!isMeasuring) void measure();
    return shown;
  });
}

/** The families. Pure. A claim that several pods use is shown once. */
export function volumeFamilies({ pods }: Summary): MetricFamily[] {
  const claims = new Map<string, { labels: Record<string, string>; stats: FsStats }>();
  for (const { volume } of pods) {
    for (const { pvcRef, ...stats } of volume ?? []) {
      if (pvcRef === undefined) continue;
      const { namespace, name } = pvcRef;
      claims.set(`${namespace}/${name}`, { labels: { namespace, persistentvolumeclaim: name }, stats });
    }
  }
  const logs: Sample[] = pods.flatMap(({ podRef: { name: pod, namespace, uid }, containers }) =>
    (containers ?? []).flatMap(({ name: container, logs: { usedBytes } = { usedBytes: undefined } }) =>
      usedBytes === undefined ? [] : [{ labels: { container, namespace, pod, uid }, value: usedBytes }],
    ),
  );
  const gauges = volumeGauges.map(([name, field, help]): MetricFamily => {
    const samples = [...claims.values()].flatMap(({ labels, stats: { [field]: value } }) =>
      value === undefined ? [] : [{ labels, value }],
    );
    return { name, help, type: "gauge", samples };
  });
  return [
    ...gauges,
    { name: logName, help: "Bytes that a container's logs take on disk.", type: "gauge", samples: logs },
  ];
}
