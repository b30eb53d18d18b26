import { describe, expect, test } from "vitest";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import type { PodCgroups } from "../../../agent/node/cgroups.ts";
import { createNodeStartup, instrumentCgroups } from "../../../agent/node/metrics.ts";
import { FakeClock } from "../kube/fake-clock.ts";
import { metricsText } from "../lib/metrics-support.ts";

test("work on cgroups is passed on and timed", async () => {
  const clock = new FakeClock();
  const calls: string[] = [];
  const slow = (name: string) => async () => {
    calls.push(name);
    await clock.advance(30);
    if (name === "destroy") throw new Error("busy");
  };
  const inner: PodCgroups = {
    setUp: slow("setUp"),
    parentFor: () => "/kubepods/pod1",
    limitsOf: () => ({ cpuShares: 2 }),
    setLimits: async () => {},
    ensure: slow("ensure"),
    exists: async () => true,
    destroy: slow("destroy"),
    podUIDsOnDisk: async () => new Map([["u1", "Burstable" as const]]),
    refreshQOS: slow("refreshQOS"),
  };
  const registry = new MetricsRegistry();
  const cgroups = instrumentCgroups(inner, registry, clock);
  const pod = { metadata: { name: "p" }, spec: { containers: [] } };
  await cgroups.setUp();
  await cgroups.ensure(pod);
  await cgroups.refreshQOS([pod]);
  await expect(cgroups.destroy("u1")).rejects.toThrow("busy");
  expect(calls).toEqual(["setUp", "ensure", "refreshQOS", "destroy"]);
  expect(cgroups.parentFor(pod)).toBe("/kubepods/pod1");
  expect(await cgroups.exists(pod)).toBe(true);
  expect((await cgroups.podUIDsOnDisk()).size).toBe(1);
  const shown = await metricsText(registry);
  for (const [type, sum] of [
    ["create", "0.06"],
    ["update", "0.03"],
    ["destroy", "0.03"],
  ]) {
    expect(shown).toContain(`\nkubelet_cgroup_manager_duration_seconds_sum{operation_type="${type}"} ${sum}\n`);
  }
});

describe("the first start of a new node is told in steps", () => {
  const start = async (told: ("attempted" | "registered" | "ready")[]) => {
    const clock = new FakeClock();
    const nowMs = clock.now();
    const registry = new MetricsRegistry();
    const startup = createNodeStartup(registry, clock, { bootMs: nowMs - 20_000, processStartMs: nowMs - 5_000 });
    for (const step of told) {
      startup[step]();
      await clock.advance(1_000);
    }
    const text = await metricsText(registry);
    const names = ["pre_kubelet_", "pre_registration_", "registration_", "post_registration_", ""];
    return names.map((name) =>
      Number(new RegExp(`\nkubelet_node_startup_${name}duration_seconds (.*)`).exec(text)?.[1]),
    );
  };

  test("from the machine's start to Ready", async () => {
    expect(await start(["attempted", "registered", "ready"])).toEqual([15, 5, 1, 1, 22]);
  });
  test("the first time of each counts", async () => {
    expect(await start(["attempted", "attempted", "registered", "ready", "ready", "registered"])).toEqual([
      15, 5, 2, 1, 23,
    ]);
  });
  test("nothing is said about a node that was there before", async () => {
    expect(await start(["attempted", "ready"])).toEqual([0, 0, 0, 0, 0]);
  });
});
