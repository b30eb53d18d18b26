import { type Counter, type Gauge, type MetricFamily, MetricsRegistry } from "../../lib/metrics.ts";

/** How the checks behind `/healthz` went, for /metrics/slis. Updated only when /healthz as a whole is asked for. */
export class HealthSLIs {
  #state = newState();

  /** @param name as in `/healthz/NAME` */
  record(name: string, isHealthy: boolean): void {
    const { healthcheck, total } = this.#state;
    const of = { name, type: "healthz" };
    healthcheck.set(of, isHealthy ? 1 : 0);
    total.inc({ ...of, status: isHealthy ? "success" : "error" });
  }

  /** Forgets everything. */
  reset(): void {
    this.#state = newState();
  }

  async families(): Promise<MetricFamily[]> {
    return await this.#state.registry.families();
  }
}

function newState(): {
  registry: MetricsRegistry;
  healthcheck: Gauge<"name" | "type">;
  total: Counter<"name" | "type" | "status">;
} {
  const registry = new MetricsRegistry();
  const healthcheck = registry.gauge("kubernetes_healthcheck", "1 if the check passed when last made.", [
    "name",
    "type",
  ]);
  const help = "Checks made, by how they went.";
  const total = registry.counter("kubernetes_healthchecks_total", help, ["name", "type", "status"]);
  return { registry, healthcheck, total };
}
