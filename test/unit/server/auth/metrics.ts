import type { MetricsRegistry } from "../../../../agent/lib/metrics.ts";

/** The value of one series, or a histogram's count of it; undefined if it is not there. */
export async function valueOf(
  registry: MetricsRegistry,
  name: string,
  labels: Record<string, string> = {},
): Promise<number | undefined> {
  const family = (await registry.families()).find((one) => one.name === name);
  const samples = [...(family?.samples ?? [])].filter(
    ({ suffix, labels: own }) =>
      (suffix === undefined || suffix === "_count") &&
      Object.entries(labels).every(([label, value]) => own[label] === value),
  );
  return samples[0]?.value;
}
