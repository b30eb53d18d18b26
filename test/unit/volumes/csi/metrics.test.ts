import { expect, test } from "vitest";
import { MetricsRegistry } from "../../../../agent/lib/metrics.ts";
import { registerPluginMetrics } from "../../../../agent/plugins/metrics.ts";
import { createCSIMetrics } from "../../../../agent/volumes/csi/metrics.ts";

const linesOf = async (registry: MetricsRegistry, name: string) => {
  const families = await registry.families();
  return [...(families.find((family) => family.name === name)?.samples ?? [])];
};

test("calls to drivers are timed by driver, method and outcome", async () => {
  const registry = new MetricsRegistry();
  const observe = createCSIMetrics(registry);
  observe({ driver: "a.test", method: "/csi.v1.Node/NodeGetInfo", status: "OK", seconds: 0.2 });
  observe({ driver: "a.test", method: "/csi.v1.Node/NodeGetInfo", status: "Unavailable", seconds: 3 });
  const samples = (await linesOf(registry, "csi_operations_seconds")).filter(({ suffix }) => suffix === "_count");
  expect(samples.map(({ labels }) => labels)).toEqual([
    {
      driver_name: "a.test",
      method_name: "/csi.v1.Node/NodeGetInfo",
      grpc_status_code: "OK",
      migrated: "false",
    },
    {
      driver_name: "a.test",
      method_name: "/csi.v1.Node/NodeGetInfo",
      grpc_status_code: "Unavailable",
      migrated: "false",
    },
  ]);
});

test("plugins' sockets are counted as wanted and as registered", async () => {
  const registry = new MetricsRegistry();
  registerPluginMetrics(registry, { sockets: () => ({ seen: ["/a", "/b"], registered: ["/b"] }) });
  expect(await linesOf(registry, "plugin_manager_total_plugins")).toEqual([
    { labels: { socket_path: "/a", state: "desired_state_of_world" }, value: 1 },
    { labels: { socket_path: "/b", state: "desired_state_of_world" }, value: 1 },
    { labels: { socket_path: "/b", state: "actual_state_of_world" }, value: 1 },
  ]);
});
