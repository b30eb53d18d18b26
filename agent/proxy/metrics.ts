import type { Collector, MetricFamily, MetricsRegistry, Sample } from "../lib/metrics.ts";
import type { PacketFigures } from "./backend.ts";
import type { FamilyStats, SyncObserver } from "./family.ts";
import type { ProxyOptions } from "./options.ts";

// The reference's: 1 ms doubling to 16 s, and for the way from a pod to the rules up to five minutes.
const syncBuckets = Array.from({ length: 15 }, (_, n) => 0.001 * 2 ** n);
const programmingBuckets = [
  0.25,
  0.5,
  ...Array.from({ length: 59 }, (_, n) => n + 1),
  ...Array.from({ length: 12 }, (_, n) => 60 + n * 5),
  ...Array.from({ length: 7 }, (_, n) => 120 + n * 30),
];

/** What the proxy's servers count. */
export interface ProxyMetrics {
  /** For the proxy: hears of syncs. */
  readonly observer: Required<SyncObserver>;
  /** A request for its health was answered. */
  healthAsked(path: "healthz" | "livez", status: number): void;
}

/**
 * Registers `kubeproxy_*`, under the reference's names; those of other modes are left out.
 *
 * @param stats of each IP family, asked for at each scrape
 */
export function createProxyMetrics(
  registry: MetricsRegistry,
  mode: ProxyOptions["mode"],
  stats: () => readonly FamilyStats[],
): ProxyMetrics {
  for (const { name, help, type, read } of [...commonFigures, ...figuresOfMode[mode]]) {
    registry.collect(name, collectorOf({ name, help, type, samples: async () => await read(stats()) }));
  }
  const seconds = (name: string, help: string, buckets = syncBuckets) =>
    registry.histogram(`kubeproxy_${name}`, help, buckets, ["ip_family"]);
  const syncs = seconds("sync_proxy_rules_duration_seconds", "Time of a sync, full or not.");
  const full = seconds("sync_full_proxy_rules_duration_seconds", "Time of a sync of everything.");
  const partial = seconds("sync_partial_proxy_rules_duration_seconds", "Time of a sync of what changed.");
  const programming = seconds(
    "network_programming_duration_seconds",
    "From the change of a pod or Service, as far as its endpoint slice says when that was, to its rules in the kernel.",
    programmingBuckets,
  );
  const cleanings = seconds("conntrack_reconciler_sync_duration_seconds", "Time to look for stale flows.");
  const flows = registry.counter("kubeproxy_conntrack_reconciler_deleted_entries_total", "Stale flows removed.", [
    "ip_family",
  ]);
  const asked = {
    healthz: registry.counter("kubeproxy_proxy_healthz_total", "Answers of /healthz, by status.", ["code"]),
    livez: registry.counter("kubeproxy_proxy_livez_total", "Answers of /livez, by status.", ["code"]),
  };
  return {
    observer: {
      synced: ({ family, isFull, durationMs, programmingLatenciesMs }) => {
        const of = { ip_family: family };
        syncs.observe(of, durationMs / 1_000);
        (isFull ? full : partial).observe(of, durationMs / 1_000);
        for (const latencyMs of programmingLatenciesMs) programming.observe(of, latencyMs / 1_000);
      },
      flowsCleaned: ({ family, durationMs, removed }) => {
        cleanings.observe({ ip_family: family }, durationMs / 1_000);
        flows.inc({ ip_family: family }, removed);
      },
    },
    healthAsked: (path, status) => asked[path].inc({ code: String(status) }),
  };
}

/** A family whose values are what the proxy knows at the time of the scrape. */
interface Figure {
  readonly name: string;
  readonly help: string;
  readonly type: "counter" | "gauge";
  readonly read: (stats: readonly FamilyStats[]) => Sample[] | Promise<Sample[]>;
}

const commonFigures: readonly Figure[] = [
  perFamily(
    "sync_proxy_rules_last_timestamp_seconds",
    "gauge",
    "Unix time of the last good sync.",
    ({ lastSyncedAtMs: at }) => (at === undefined ? undefined : at / 1_000),
  ),
  perFamily(
    "sync_proxy_rules_last_queued_timestamp_seconds",
    "gauge",
    "Unix time at which a sync was asked for last.",
    ({ lastQueuedAtMs: at }) => (at === undefined ? undefined : at / 1_000),
  ),
  // All families see each Service.
  whole(
    "sync_proxy_rules_service_changes_pending",
    "gauge",
    "Services whose change is not in the kernel yet.",
    (stats) => Math.max(0, ...stats.map(({ changes }) => changes.pendingServices)),
  ),
  whole("sync_proxy_rules_service_changes_total", "counter", "Changes of Services, for each IP family.", (stats) =>
    sum(stats, ({ changes }) => changes.services),
  ),
  whole("sync_proxy_rules_endpoint_changes_pending", "gauge", "Changes of slices not in the kernel yet.", (stats) =>
    sum(stats, ({ changes }) => changes.pendingSlices),
  ),
  whole("sync_proxy_rules_endpoint_changes_total", "counter", "Changes of endpoint slices.", (stats) =>
    sum(stats, ({ changes }) => changes.slices),
  ),
  {
    name: "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
    help: "Service ports that have endpoints, but none on this node where their traffic policy is Local.",
    type: "gauge",
    read: (stats) =>
      stats.flatMap(({ family, noLocal }) =>
        (["internal", "external"] as const).map((traffic) => ({
          labels: { ip_family: family, traffic_policy: traffic },
          value: noLocal[traffic],
        })),
      ),
  },
];

const figuresOfMode: Readonly<Record<ProxyOptions["mode"], readonly Figure[]>> = {
  iptables: [
    perTable("sync_proxy_rules_iptables_total", "Rules of the proxy, by table.", "owned"),
    perTable("sync_proxy_rules_iptables_last", "Rules that the last sync wrote, by table.", "written"),
    packets(
      "iptables_ct_state_invalid_dropped_packets_total",
      "Packets dropped because they belong to no known connection.",
      "invalidDropped",
    ),
    packets(
      "iptables_localhost_nodeports_accepted_packets_total",
      "Connections to node ports on loopback.",
      "localhostNodePorts",
    ),
    perFamily(
      "sync_proxy_rules_iptables_restore_failures_total",
      "counter",
      "Syncs that failed.",
      ({ failures }) => failures,
    ),
    perFamily(
      "sync_proxy_rules_iptables_partial_restore_failures_total",
      "counter",
      "Syncs of what changed that failed; a sync of everything follows.",
      ({ partialFailures }) => partialFailures,
    ),
  ],
  nftables: [
    perFamily(
      "sync_proxy_rules_nftables_sync_failures_total",
      "counter",
      "Syncs that failed.",
      ({ failures }) => failures,
    ),
    perFamily(
      "sync_proxy_rules_nftables_cleanup_failures_total",
      "counter",
      "Attempts to delete empty chains that failed.",
      ({ backend }) => backend.cleanupFailures,
    ),
  ],
};

function perFamily(
  name: string,
  type: Figure["type"],
  help: string,
  read: (stats: FamilyStats) => number | undefined,
): Figure {
  const samplesOf = (one: FamilyStats): Sample[] => {
    const value = read(one);
    return value === undefined ? [] : [{ labels: { ip_family: one.family }, value }];
  };
  return { name: `kubeproxy_${name}`, help, type, read: (stats) => stats.flatMap(samplesOf) };
}

function whole(
  name: string,
  type: Figure["type"],
  help: string,
  read: (stats: readonly FamilyStats[]) => number,
): Figure {
  return { name: `kubeproxy_${name}`, help, type, read: (stats) => [{ labels: {}, value: read(stats) }] };
}

function perTable(name: string, help: string, which: "owned" | "written"): Figure {
  const samplesOf = ({ family, backend }: FamilyStats): Sample[] =>
    Object.entries(backend.rules ?? {}).map(([table, counts]) => ({
      labels: { ip_family: family, table },
      value: counts[which],
    }));
  return { name: `kubeproxy_${name}`, help, type: "gauge", read: (stats) => stats.flatMap(samplesOf) };
}

/** Of all families; absent where none of them counts. */
function packets(name: string, help: string, which: keyof PacketFigures): Figure {
  const read = async (stats: readonly FamilyStats[]): Promise<Sample[]> => {
    const all = await Promise.all(stats.map(async ({ backend }) => (await backend.packets?.())?.[which]));
    const known = all.filter((value) => value !== undefined);
    return known.length === 0 ? [] : [{ labels: {}, value: known.reduce((total, value) => total + value, 0) }];
  };
  return { name: `kubeproxy_${name}`, help, type: "counter", read };
}

function sum(stats: readonly FamilyStats[], read: (stats: FamilyStats) => number): number {
  return stats.reduce((total, one) => total + read(one), 0);
}

function collectorOf({
  samples,
  ...family
}: Omit<MetricFamily, "samples"> & { samples: () => Promise<Sample[]> }): Collector {
  return async () => [{ ...family, samples: await samples() }];
}
