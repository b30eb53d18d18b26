import type { Clock } from "../../lib/clock.ts";
import type { MetricFamily, MetricsRegistry, Sample } from "../../lib/metrics.ts";
import type { FsStats, Summary, VolumeStats } from "../../stats/port.ts";

/** One gauge for each of these, with the field of a claim's figures that it shows. */
const volumeGauges: readonly (readonly [name: string, field: Exclude<keyof FsStats, "time">, help: string])[] = [
  ["kubelet_volume_stats_capacity_bytes", "capacityBytes", "Size of a claim's volume."],
  ["kubelet_volume_stats_available_bytes", "availableBytes", "Bytes free in a claim's volume."],
  ["kubelet_volume_stats_used_bytes", "usedBytes", "Bytes used in a claim's volume."],
  ["kubelet_volume_stats_inodes", "inodes", "Inodes that a claim's volume can have."],
  ["kubelet_volume_stats_inodes_free", "inodesFree", "Inodes free in a claim's volume."],
  ["kubelet_volume_stats_inodes_used", "inodesUsed", "Inodes used in a claim's volume."],
];

const healthName = "kubelet_volume_stats_health_status_abnormal";
const logName = "kubelet_container_log_filesystem_used_bytes";

// Volumes are measured every minute: a scrape shows what is younger at once, and measures for the next one.
export const freshMs = 60_000;
// What is this much older says nothing any more.
export const staleMs = 5 * 60_000;
// Scrapers wait 10 s. A first measurement takes 2 s for its second sample of CPU time; one that takes longer than this hangs.
export const waitMs = 3_000;

/**
 * Registers what /metrics tells of disks: volumes of claims, and containers' logs. Without fresh figures a scrape waits for
 * the measurement under way, {@link waitMs} from its beginning at most, so that no disk or runtime holds it up for longer;
 * and it fails with neither.
 *
 * @param summary the summary API's figures
 */
export function registerVolumeStats(
  registry: MetricsRegistry,
  { summary, clock }: { summary: () => Promise<Summary>; clock: Pick<Clock, "monotonic" | "after"> },
): void {
  let latest: { families: MetricFamily[]; atMs: number } | undefined;
  /** Resolves when the measurement under way has ended, or has taken too long to be waited for. */
  let underWay: Promise<void> | undefined;
  const measure = async () => {
    try {
      latest = { families: volumeFamilies(await summary()), atMs: clock.monotonic() };
    } catch {
      // The summary's own endpoint says why.
    } finally {
      underWay = undefined;
    }
  };
  const begin = () => {
    const { promise, resolve } = Promise.withResolvers<void>();
    const late = clock.after(waitMs, resolve);
    underWay = promise;
    void measure().then(() => {
      late.cancel();
      resolve();
    });
    return promise;
  };
  const isYounger = (ms: number) => latest !== undefined && clock.monotonic() - latest.atMs < ms;
  registry.collect("kubelet_volume_stats_", async () => {
    const waiting = underWay ?? begin();
    if (!isYounger(freshMs)) await waiting;
    return latest !== undefined && isYounger(staleMs) ? latest.families : [];
  });
}

/** The families. Pure. A claim that several pods use is shown once. */
export function volumeFamilies({ pods }: Summary): MetricFamily[] {
  const claims = new Map<
    string,
    { labels: Record<string, string>; stats: FsStats; health: VolumeStats["volumeHealthStats"] }
  >();
  for (const { volume } of pods) {
    for (const { pvcRef, volumeHealthStats: health, ...stats } of volume ?? []) {
      if (pvcRef === undefined) continue;
      const { namespace, name } = pvcRef;
      claims.set(`${namespace}/${name}`, { labels: { namespace, persistentvolumeclaim: name }, stats, health });
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
  const health = [...claims.values()].flatMap(({ labels, health: is }) =>
    is === undefined ? [] : [{ labels, value: is.abnormal ? 1 : 0 }],
  );
  return [
    ...gauges,
    {
      name: healthName,
      help: "1 if the driver calls a claim's volume abnormal, else 0.",
      type: "gauge",
      samples: health,
    },
    { name: logName, help: "Bytes that a container's logs take on disk.", type: "gauge", samples: logs },
  ];
}
