import type { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { renderMetrics } from "../../../agent/lib/metrics-text.ts";

/** What a scrape of the registry shows, a line break before the first line. */
export async function metricsText(registry: MetricsRegistry): Promise<string> {
  return `\n${[...renderMetrics(await registry.families())].join("")}`;
}
