import { expect, test } from "vitest";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { createVolumeMetrics } from "../../../agent/volumes/metrics.ts";
import { FakeClock } from "../kube/fake-clock.ts";
import { metricsText } from "../lib/metrics-support.ts";

const mountOf = (volume: string) =>
  ({ podUID: "u", volume, pluginName: "kubernetes.io/secret", operation: "volume_mount" }) as const;

test("operations are timed by plugin and how they went", async () => {
  const clock = new FakeClock();
  const registry = new MetricsRegistry();
  const { time } = createVolumeMetrics(registry, clock);
  const work = async () => {
    await clock.advance(300);
    return 7;
  };
  expect(await time(mountOf("a"), work)).toBe(7);
  const failing = async () => await Promise.reject(new Error("no such secret"));
  await expect(time(mountOf("b"), failing)).rejects.toThrow("no such secret");
  const shown = await metricsText(registry);
  const labels = 'migrated="false",operation_name="volume_mount",status="success",volume_plugin="kubernetes.io/secret"';
  expect(shown).toContain(`\nstorage_operation_duration_seconds_sum{${labels}} 0.3\n`);
  expect(shown).toContain(
    `\nstorage_operation_duration_seconds_count{${labels.replace("success", "fail-unknown")}} 1\n`,
  );
});

test("volumes are counted at the time of the scrape", async () => {
  const registry = new MetricsRegistry();
  const { follow } = createVolumeMetrics(registry, new FakeClock());
  expect(await metricsText(registry)).not.toContain("volume_manager_total_volumes");
  const actual: string[] = [];
  follow(() => ({ desired: ["a", "b", "a"], actual }));
  actual.push("a");
  const shown = await metricsText(registry);
  expect(shown).toContain('\nvolume_manager_total_volumes{plugin_name="a",state="desired_state_of_world"} 2\n');
  expect(shown).toContain('\nvolume_manager_total_volumes{plugin_name="b",state="desired_state_of_world"} 1\n');
  expect(shown).toContain('\nvolume_manager_total_volumes{plugin_name="a",state="actual_state_of_world"} 1\n');
});

test("an operation that takes several attempts is timed from the first one, as a whole", async () => {
  const clock = new FakeClock();
  const registry = new MetricsRegistry();
  const { time, forget } = createVolumeMetrics(registry, clock);
  const failing = async () => {
    await clock.advance(1_000);
    throw new Error("no such secret");
  };
  const working = async () => await clock.advance(1_000);
  await time(mountOf("slow"), failing).catch(() => {});
  await clock.advance(28_000);
  await time(mountOf("slow"), working);
  const labels = 'operation_name="volume_mount",plugin_name="kubernetes.io/secret"';
  expect(await metricsText(registry)).toContain(`\nvolume_operation_total_seconds_sum{${labels}} 30\n`);
  await time(mountOf("slow"), working); // the next one is another operation
  expect(await metricsText(registry)).toContain(`\nvolume_operation_total_seconds_sum{${labels}} 31\n`);
  await time(mountOf("given up"), failing).catch(() => {});
  forget("u");
  await clock.advance(100_000);
  await time(mountOf("given up"), working); // a pod of that UID again
  const shown = await metricsText(registry);
  expect(shown).toContain(`\nvolume_operation_total_seconds_sum{${labels}} 32\n`);
  expect(shown).toContain(`\nvolume_operation_total_seconds_count{${labels}} 3\n`);
});
