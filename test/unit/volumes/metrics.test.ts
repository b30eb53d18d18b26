import { expect, test } from "vitest";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { createVolumeMetrics } from "../../../agent/volumes/metrics.ts";
import { FakeClock } from "../kube/fake-clock.ts";
import { metricsText } from "../lib/metrics-support.ts";

test("operations are timed by plugin and how they went", async () => {
  const clock = new FakeClock();
  const registry = new MetricsRegistry();
  const { time } = createVolumeMetrics(registry, clock);
  const work = async () => {
    await clock.advance(300);
    return 7;
  };
  expect(await time("kubernetes.io/secret", "volume_mount", work)).toBe(7);
  const failing = async () => await Promise.reject(new Error("no such secret"));
  await expect(time("kubernetes.io/secret", "volume_mount", failing)).rejects.toThrow("no such secret");
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
