import { afterEach, beforeEach, expect, test } from "vitest";
import { clientCertificateMetrics } from "../../../agent/kube/certificates/metrics.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { renderMetrics } from "../../../agent/lib/metrics-text.ts";
import type { PodCgroups } from "../../../agent/node/cgroups.ts";
import { instrumentCgroups } from "../../../agent/node/metrics.ts";
import type { Surroundings } from "../../../agent/roles/cluster.ts";
import { createKubeletMetrics, registerNodeMetrics } from "../../../agent/roles/kubelet-metrics.ts";
import { openProjectedKind, type ProjectedKindOptions } from "../../../agent/roles/kubelet-projected.ts";
import { RunningParts } from "../../../agent/roles/parts.ts";
import { instrumentPLEG, instrumentRuntime } from "../../../agent/runtime/instrumented.ts";
import type { Runtime } from "../../../agent/runtime/port.ts";
import { createRequestMetrics } from "../../../agent/server/request-metrics.ts";
import type { Stats } from "../../../agent/stats/port.ts";
import { FakeClock } from "../kube/fake-clock.ts";

let parts: RunningParts;
let clock: FakeClock;
beforeEach(() => {
  parts = new RunningParts(silentLogger);
  clock = new FakeClock();
});
afterEach(async () => {
  await parts.stop(1_000, clock);
});

function everything() {
  const { registry } = createKubeletMetrics({ clock, parts });
  const methods: unknown = new Proxy({}, { get: (_, name) => (name === "images" ? methods : async () => {}) });
  instrumentPLEG(instrumentRuntime(methods as Runtime, registry, clock), registry, clock); // nothing is called
  instrumentCgroups(methods as PodCgroups, registry, clock);
  createRequestMetrics(registry, clock);
  clientCertificateMetrics(registry, () => ({ current: () => undefined, subscribe: () => () => {} }), clock);
  const stats = { summary: async () => await Promise.resolve({ node: {}, pods: [] }) } as unknown as Stats;
  registerNodeMetrics(registry, clock, { nodeName: "n1", cgroupVersion: 2, gates: {}, stats });
  const surroundings: unknown = { clock, log: silentLogger, parts };
  const projected: unknown = { featureGates: { PodCertificateRequest: true }, cluster: {}, nodeName: "n1", registry };
  openProjectedKind(projected as ProjectedKindOptions, surroundings as Surroundings); // nothing is asked yet
  return registry;
}

// What kube-prometheus' rules, alerts and dashboards for kubelets ask for, as far as the features are there.
const asked = `
  go_goroutines process_cpu_seconds_total process_resident_memory_bytes
  kubelet_certificate_manager_client_expiration_renew_errors kubelet_certificate_manager_client_ttl_seconds
  kubelet_cgroup_manager_duration_seconds kubelet_node_name kubelet_pleg_relist_duration_seconds
  kubelet_pleg_relist_interval_seconds kubelet_pod_start_duration_seconds kubelet_pod_start_sli_duration_seconds
  kubelet_pod_worker_duration_seconds kubelet_running_containers kubelet_running_pods
  kubelet_runtime_operations_duration_seconds kubelet_runtime_operations_errors_total kubelet_runtime_operations_total
  kubelet_volume_stats_available_bytes kubelet_volume_stats_capacity_bytes kubelet_volume_stats_inodes
  kubelet_volume_stats_inodes_free kubelet_volume_stats_inodes_used kubelet_volume_stats_used_bytes
  kubelet_http_requests_total kubernetes_build_info kubernetes_feature_enabled
  rest_client_request_duration_seconds rest_client_requests_total
  storage_operation_duration_seconds volume_manager_total_volumes
`;

test("families that dashboards and alerts ask for are there, each once", async () => {
  const registry = everything();
  await registry.families(); // figures of volumes come with the second scrape
  await new Promise((resolve) => void setImmediate(resolve));
  const families = await registry.families();
  const names = families.map(({ name }) => name);
  expect(new Set(names).size).toBe(names.length);
  for (const name of asked.trim().split(/\s+/)) expect(names, name).toContain(name);
});

test("every family says what it means, under a name that Prometheus takes", async () => {
  // What libraries count, and what is said of volumes and plugins, has no "kubelet_" in the reference either.
  const own =
    /^(?:kubelet|nodelet|go|process|kubernetes|registered|hidden|disabled|rest_client|storage|volume|csi|plugin|force_cleaned|reconstruct)_/;
  for (const { name, help, type } of await everything().families()) {
    expect(name).toMatch(/^[a-z_][a-z0-9_]*$/);
    expect(name).toMatch(own);
    expect(help, name).toMatch(/\.$/);
    if (type !== "counter") expect(name).not.toMatch(/_total$/);
  }
});

test("a scrape of an idle agent is small", async () => {
  const text = [...renderMetrics(await everything().families())].join("");
  expect(text.length).toBeLessThan(64_000);
});
