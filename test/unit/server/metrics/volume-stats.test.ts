import { expect, test } from "vitest";
import { MetricsRegistry } from "../../../../agent/lib/metrics.ts";
import { freshMs, registerVolumeStats, staleMs, waitMs } from "../../../../agent/server/metrics/volume-stats.ts";
import type { PodStats, Summary } from "../../../../agent/stats/port.ts";
import { FakeClock, settle } from "../../kube/fake-clock.ts";
import { metricsText } from "../../lib/metrics-support.ts";

const time = "2026-01-01T00:00:00Z";

function podStats(name: string, more: Partial<PodStats> = {}): PodStats {
  return { podRef: { name, namespace: "ns", uid: `uid-${name}` }, startTime: time, containers: [], ...more };
}

function setUp(summary: () => Promise<Summary>) {
  const clock = new FakeClock();
  const registry = new MetricsRegistry();
  registerVolumeStats(registry, { summary, clock });
  return { clock, scrape: () => metricsText(registry) };
}

/** What the first scrape shows. */
const shown = async (summary: () => Promise<Summary>): Promise<string> => await setUp(summary).scrape();

test("volumes of claims are shown once for each claim, and nothing else's", async () => {
  const claim = {
    name: "data",
    pvcRef: { name: "claim", namespace: "ns" },
    time,
    capacityBytes: 2_000_000,
    availableBytes: 5,
    usedBytes: 7,
    inodes: 10,
    inodesFree: 6,
  };
  const volume = [claim, { name: "scratch", time, capacityBytes: 1 }];
  const text = await shown(async () => ({
    node: { nodeName: "n", startTime: time },
    pods: [podStats("a", { volume }), podStats("b", { volume }), podStats("c", { containers: null })],
  }));
  const labels = '{namespace="ns",persistentvolumeclaim="claim"}';
  expect(text).toContain(`\nkubelet_volume_stats_capacity_bytes${labels} 2e+06\n`);
  expect(text).toContain(`\nkubelet_volume_stats_available_bytes${labels} 5\n`);
  expect(text).toContain(`\nkubelet_volume_stats_used_bytes${labels} 7\n`);
  expect(text).toContain(`\nkubelet_volume_stats_inodes${labels} 10\n`);
  expect(text).toContain(`\nkubelet_volume_stats_inodes_free${labels} 6\n`);
  expect(text).not.toContain("inodes_used");
  expect(text.match(/^kubelet_volume_stats_capacity_bytes/gm)).toHaveLength(1);
});

test("a claim's health is shown if its driver tells it", async () => {
  const claim = (name: string, more: object) => {
    return { name, time, pvcRef: { name, namespace: "ns" }, ...more };
  };
  const volume = [
    claim("good", { volumeHealthStats: { abnormal: false } }),
    claim("bad", { volumeHealthStats: { abnormal: true } }),
    claim("silent", {}),
  ];
  const text = await shown(async () => ({
    node: { nodeName: "n", startTime: time },
    pods: [podStats("a", { volume })],
  }));
  const lines = text.split("\n").filter((line) => line.startsWith("kubelet_volume_stats_health_status_abnormal"));
  expect(lines).toEqual([
    'kubelet_volume_stats_health_status_abnormal{namespace="ns",persistentvolumeclaim="good"} 0',
    'kubelet_volume_stats_health_status_abnormal{namespace="ns",persistentvolumeclaim="bad"} 1',
  ]);
});

test("containers' logs are shown where their size is known", async () => {
  const containers = [
    { name: "app", startTime: time, logs: { time, usedBytes: 4096 } },
    { name: "new", startTime: time, logs: { time } },
    { name: "none", startTime: time },
  ];
  const text = await shown(async () => ({
    node: { nodeName: "n", startTime: time },
    pods: [podStats("a", { containers })],
  }));
  const lines = text.split("\n").filter((line) => line.startsWith("kubelet_container_log"));
  expect(lines).toEqual([
    'kubelet_container_log_filesystem_used_bytes{container="app",namespace="ns",pod="a",uid="uid-a"} 4096',
  ]);
});

test("a summary that cannot be had leaves the other metrics alone", async () => {
  expect(await shown(async () => await Promise.reject(new Error("runtime is away")))).toBe("\n");
});

const containers = [{ name: "app", startTime: time, logs: { time, usedBytes: 4096 } }];
const answer: Summary = { node: { nodeName: "n", startTime: time }, pods: [podStats("a", { containers })] };

test("rare scrapes show what is now, frequent ones do not wait", async () => {
  let usedBytes = 0;
  const { clock, scrape } = setUp(async () => {
    usedBytes += 1;
    const logs = { time, usedBytes };
    return { ...answer, pods: [podStats("a", { containers: [{ name: "app", startTime: time, logs }] })] };
  });
  expect(await scrape()).toMatch(/ 1\n$/);
  expect(await scrape()).toMatch(/ 1\n$/);
  await settle();
  expect(await scrape()).toMatch(/ 2\n$/);
  await settle();
  await clock.advance(2 * staleMs);
  expect(await scrape()).toMatch(/ 4\n$/);
  expect(clock.waiting).toBe(0);
});

test("a disk that hangs is waited for once, and old figures are not shown for ever", async () => {
  let asked = 0;
  const { clock, scrape } = setUp(async () => {
    asked += 1;
    if (asked > 1) await new Promise(() => {});
    return answer;
  });
  expect(await scrape()).toContain(" 4096\n");
  for (let i = 0; i < 3; i += 1) expect(await scrape()).toContain(" 4096\n");
  expect(asked).toBe(2); // one at a time
  await clock.advance(freshMs);
  expect(await scrape()).toContain(" 4096\n"); // it began long ago
  await clock.advance(staleMs);
  expect(await scrape()).toBe("\n");
});

test("the wait has an end", async () => {
  const { clock, scrape } = setUp(async () => await new Promise(() => {}));
  const scraped = scrape();
  await clock.advance(waitMs);
  expect(await scraped).toBe("\n");
  expect(clock.waiting).toBe(0);
});
