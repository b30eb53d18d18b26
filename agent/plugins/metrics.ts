import type { MetricsRegistry } from "../lib/metrics.ts";
import type { PluginManager } from "./manager.ts";

/** Registers `plugin_manager_total_plugins`, read from `manager` at the time of a scrape. */
export function registerPluginMetrics(registry: MetricsRegistry, manager: Pick<PluginManager, "sockets">): void {
  const name = "plugin_manager_total_plugins";
  const help = "Registration sockets of plugins that are there (desired) and registered (actual).";
  registry.collect(name, () => {
    const { seen, registered } = manager.sockets();
    const rows = (paths: readonly string[], state: string) =>
      paths.map((path) => ({ labels: { socket_path: path, state }, value: 1 }));
    const samples = [...rows(seen, "desired_state_of_world"), ...rows(registered, "actual_state_of_world")];
    return [{ name, help, type: "gauge", samples }];
  });
}
