import { describe, expect, test } from "vitest";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { renderMetrics } from "../../../agent/lib/metrics-text.ts";
import type { FamilyStats } from "../../../agent/proxy/family.ts";
import { createProxyMetrics } from "../../../agent/proxy/metrics.ts";
import { ServiceModel } from "../../../agent/proxy/model.ts";
import { ServiceNotes } from "../../../agent/proxy/service-notes.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";

const stats = (family: FamilyStats["family"], more: Partial<FamilyStats> = {}): FamilyStats => ({
  family,
  startedAtMs: 1_000,
  lastSyncedAtMs: 2_500,
  lastQueuedAtMs: 2_000,
  pendingSinceMs: undefined,
  pendingForMs: undefined,
  pendingServices: 0,
  changes: { services: 5, slices: 4, pendingServices: 2, pendingSlices: 3 },
  noLocal: { internal: 1, external: 2 },
  syncs: 1,
  fullSyncs: 1,
  failures: 3,
  partialFailures: 2,
  backend: {},
  ...more,
});

async function scrape(registry: MetricsRegistry): Promise<string[]> {
  const text = [...renderMetrics(await registry.families())].join("");
  return text.split("\n").filter((line) => line.startsWith("kubeproxy_"));
}

test("the figures of both families stand beside each other, or are summed where they have no label", async () => {
  const registry = new MetricsRegistry();
  const rules = { nat: { owned: 50, written: 7 }, filter: { owned: 9, written: 0 } };
  const families = [stats("IPv4", { backend: { rules } }), stats("IPv6", { lastSyncedAtMs: undefined, failures: 0 })];
  createProxyMetrics(registry, "iptables", () => families);
  expect(await scrape(registry)).toEqual([
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending 6",
    "kubeproxy_sync_proxy_rules_endpoint_changes_total 8",
    'kubeproxy_sync_proxy_rules_iptables_last{ip_family="IPv4",table="nat"} 7',
    'kubeproxy_sync_proxy_rules_iptables_last{ip_family="IPv4",table="filter"} 0',
    'kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family="IPv4"} 2',
    'kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family="IPv6"} 2',
    'kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv4"} 3',
    'kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv6"} 0',
    'kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv4",table="nat"} 50',
    'kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv4",table="filter"} 9',
    'kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"} 2',
    'kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv6"} 2',
    'kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 2.5',
    'kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 1',
    'kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 2',
    'kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="internal"} 1',
    'kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="external"} 2',
    "kubeproxy_sync_proxy_rules_service_changes_pending 2",
    "kubeproxy_sync_proxy_rules_service_changes_total 10",
  ]);
});

test("packets that rules counted are summed over the families, and absent where none counts them", async () => {
  const registry = new MetricsRegistry();
  createProxyMetrics(registry, "iptables", () => [
    stats("IPv4", { backend: { packets: async () => ({ invalidDropped: 3 }) } }),
    stats("IPv6", { backend: { packets: async () => ({ invalidDropped: 4 }) } }),
  ]);
  expect((await scrape(registry)).filter((line) => line.includes("packets"))).toEqual([
    "kubeproxy_iptables_ct_state_invalid_dropped_packets_total 7",
  ]);
});

test("nftables mode has its own failures, and none of iptables'", async () => {
  const registry = new MetricsRegistry();
  createProxyMetrics(registry, "nftables", () => [stats("IPv4", { backend: { cleanupFailures: 4 } })]);
  const lines = await scrape(registry);
  expect(lines).toContain('kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv4"} 3');
  expect(lines).toContain('kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family="IPv4"} 4');
  expect(lines.filter((line) => line.includes("iptables"))).toEqual([]);
});

test("syncs are timed, in the reference's buckets", async () => {
  const registry = new MetricsRegistry();
  const { observer } = createProxyMetrics(registry, "iptables", () => []);
  const event = { family: "IPv4", isOk: true, durationMs: 20, programmingLatenciesMs: [] } as const;
  observer.synced({ ...event, isFull: true, programmingLatenciesMs: [700, 400_000] });
  observer.synced({ ...event, isFull: false });
  observer.flowsCleaned({ family: "IPv6", durationMs: 2, removed: 5 });
  const lines = await scrape(registry);
  const bounds = (name: string) =>
    lines.flatMap((line) => {
      const found = new RegExp(`^kubeproxy_${name}_bucket.*le="([^"]+)"`).exec(line)?.[1];
      return found === undefined ? [] : [Number(found.replace("+Inf", "Infinity"))];
    });
  expect(lines).toContain('kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 2');
  expect(lines).toContain('kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1');
  expect(lines).toContain('kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1');
  expect(lines).toContain('kubeproxy_network_programming_duration_seconds_sum{ip_family="IPv4"} 400.7');
  expect(lines).toContain('kubeproxy_conntrack_reconciler_sync_duration_seconds_sum{ip_family="IPv6"} 0.002');
  expect(lines).toContain('kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv6"} 5');
  const seconds = bounds("sync_proxy_rules_duration_seconds");
  expect([seconds.length, seconds[0], seconds.at(-2)]).toEqual([16, 0.001, 16.384]);
  const programming = bounds("network_programming_duration_seconds");
  expect(programming.slice(0, 4)).toEqual([0.25, 0.5, 1, 2]);
  expect(programming.slice(60, 64)).toEqual([59, 60, 65, 70]);
  expect(programming.slice(-9)).toEqual([115, 120, 150, 180, 210, 240, 270, 300, Number.POSITIVE_INFINITY]);
});

test("answers of the health port are counted by status", async () => {
  const registry = new MetricsRegistry();
  const { healthAsked } = createProxyMetrics(registry, "iptables", () => []);
  healthAsked("healthz", 503);
  healthAsked("healthz", 200);
  healthAsked("livez", 200);
  const lines = (await scrape(registry)).filter((line) => line.includes("_proxy_"));
  expect(lines.filter((line) => line.includes("z_total"))).toEqual([
    'kubeproxy_proxy_healthz_total{code="503"} 1',
    'kubeproxy_proxy_healthz_total{code="200"} 1',
    'kubeproxy_proxy_livez_total{code="200"} 1',
  ]);
});

describe("changes are counted", () => {
  test("until they are settled; what came meanwhile goes on waiting", () => {
    const model = new ServiceModel("IPv4", { name: "n1", zone: undefined, ips: [] });
    model.setService("ns1/web", makeService("web"));
    model.setService("ns1/web", makeService("web", { type: "NodePort" }));
    model.setSlice("ns1/web-a", makeSlice("web", ["10.244.1.5"]));
    model.setService("ns1/db", makeService("db"));
    expect(model.changes()).toEqual({ services: 3, slices: 1, pendingServices: 2, pendingSlices: 1 });
    const pending = model.pending();
    model.setSlice("ns1/web-a", makeSlice("web", ["10.244.1.6"]));
    model.settle(pending);
    expect(model.changes()).toEqual({ services: 3, slices: 2, pendingServices: 1, pendingSlices: 2 });
    model.settle(model.pending());
    expect(model.changes()).toEqual({ services: 3, slices: 2, pendingServices: 0, pendingSlices: 0 });
  });
});

describe("notes of services", () => {
  const model = new ServiceModel("IPv4", { name: "n1", zone: undefined, ips: [] });
  const elsewhere = { address: "10.244.2.5", nodeName: "n2" };
  const here = { address: "10.244.1.5", nodeName: "n1" };
  const note = (notes: ServiceNotes, spec: object, endpoints: Parameters<typeof makeSlice>[1]) => {
    model.setService("ns1/web", makeService("web", spec));
    model.setSlice("ns1/web-a", makeSlice("web", endpoints));
    notes.note(model.describe("ns1/web"));
  };
  const loadBalancer = { type: "LoadBalancer", externalTrafficPolicy: "Local", healthCheckNodePort: 31_000 };
  const nodePort = { ports: [{ name: "p80", port: 80, nodePort: 30_080 }] };

  test("count ready endpoints of this node once for each address", () => {
    const notes = new ServiceNotes();
    const ports = ["p80", "p81"].map((name, i) => ({ name, port: 80 + i }));
    model.setSlice(
      "ns1/web-b",
      makeSlice("web", [here, { address: "10.244.1.6", nodeName: "n1" }], {
        ports: ports.map(({ name, port }) => ({ name, port, protocol: "TCP" as const })),
        suffix: "b",
      }),
    );
    note(notes, { ...loadBalancer, ports }, [
      here,
      elsewhere,
      { address: "10.244.1.7", nodeName: "n1", conditions: { ready: false } },
      { address: "10.244.1.8", nodeName: "n1", conditions: { ready: true, terminating: true } },
    ]);
    notes.settle(false);
    expect([...notes.healthChecks()]).toEqual([["ns1/web", { port: 31_000, localReady: 2 }]]);
    model.setSlice("ns1/web-b", undefined);
  });

  const cases: { name: string; spec: object; endpoints: object[]; want: [internal: number, external: number] }[] = [
    {
      name: "no endpoint at all is no matter of locality",
      spec: { internalTrafficPolicy: "Local" },
      endpoints: [],
      want: [0, 0],
    },
    {
      name: "only elsewhere, internal policy Local",
      spec: { internalTrafficPolicy: "Local" },
      endpoints: [elsewhere],
      want: [1, 0],
    },
    {
      name: "only elsewhere, external policy Local",
      spec: { type: "NodePort", externalTrafficPolicy: "Local", ...nodePort },
      endpoints: [elsewhere],
      want: [0, 1],
    },
    {
      name: "only elsewhere, both policies Local",
      spec: { type: "NodePort", internalTrafficPolicy: "Local", externalTrafficPolicy: "Local", ...nodePort },
      endpoints: [elsewhere],
      want: [1, 1],
    },
    {
      name: "one here",
      spec: { type: "NodePort", internalTrafficPolicy: "Local", externalTrafficPolicy: "Local", ...nodePort },
      endpoints: [elsewhere, here],
      want: [0, 0],
    },
    { name: "policies Cluster", spec: {}, endpoints: [elsewhere], want: [0, 0] },
  ];
  test.each(cases)("service ports without local endpoints: $name", ({ spec, endpoints, want }) => {
    const notes = new ServiceNotes();
    note(notes, spec, endpoints as Parameters<typeof makeSlice>[1]);
    notes.settle(false);
    expect(notes.noLocal).toEqual({ internal: want[0], external: want[1] });
  });

  test("count with the sync that succeeds, and go with the service", () => {
    const notes = new ServiceNotes();
    note(notes, { ...loadBalancer, ...nodePort }, [elsewhere]);
    expect(notes.healthChecks().size).toBe(0);
    notes.reset(); // that sync failed
    notes.settle(false);
    expect(notes.healthChecks().size).toBe(0);
    note(notes, { ...loadBalancer, ...nodePort }, [elsewhere]);
    notes.settle(false);
    expect([notes.healthChecks().size, notes.noLocal.external]).toEqual([1, 1]);
    notes.settle(true); // a full sync in which it was no more
    expect([notes.healthChecks().size, notes.noLocal.external]).toEqual([0, 0]);
  });
});
