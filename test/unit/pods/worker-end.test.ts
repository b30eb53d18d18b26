import { describe, expect, test } from "vitest";
import type { Container } from "../../../agent/kube/types.ts";
import { deletionRetry } from "../../../agent/pods/object-deletion.ts";
import { patchesInFlightMax } from "../../../agent/pods/status-writer.ts";
import { settle } from "../kube/fake-clock.ts";
import { ScriptedNode } from "./scripted-node.ts";
import { podOf } from "./support.ts";

const second = 1_000;
const hour = 3_600_000;
const hook = { lifecycle: { preStop: { exec: { command: ["bye"] } } } };
const withHook = (spec: object = {}) => podOf({ containers: [{ name: "app", image: "image:1", ...hook }], ...spec });
const sidecar: Container = { name: "side", image: "image:1", restartPolicy: "Always" };

describe("the end", () => {
  test("comes when everything has stopped, and the object goes", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    await node.delete("web", 30);
    await settle();
    expect(node.calls).toEqual(["start app", "stop app 30"]);
    expect(node.isOver()).toBe(true);
  });

  test("of a container that ignores SIGTERM comes with its grace", async () => {
    await using node = new ScriptedNode();
    node.stubborn.add("app");
    await node.start(podOf());
    await node.delete("web", 3);
    await node.clock.advance(2_900);
    expect(node.isRunning("app")).toBe(true);
    await node.clock.advance(200);
    expect(node.isOver()).toBe(true);
  });

  test("a shorter grace is taken at once", async () => {
    await using node = new ScriptedNode();
    node.stubborn.add("app");
    await node.start(podOf());
    await node.delete("web", 600);
    await node.clock.advance(10 * second);
    await node.delete("web", 2);
    await node.clock.advance(2 * second);
    expect(node.isRunning("app")).toBe(false);
  });

  test("a longer one is not", async () => {
    await using node = new ScriptedNode();
    node.stubborn.add("app");
    await node.start(podOf());
    await node.delete("web", 2);
    await node.delete("web", 600);
    await node.clock.advance(2 * second);
    expect(node.isRunning("app")).toBe(false);
  });

  test("a hook that hangs is given up when a shorter grace is over", async () => {
    await using node = new ScriptedNode();
    node.hookMs.set("app", hour);
    await node.start(withHook());
    await node.delete("web", 600);
    await node.clock.advance(10 * second);
    expect(node.isRunning("app")).toBe(true);
    await node.delete("web", 2);
    await node.clock.advance(2 * second);
    expect(node.calls.slice(1)).toEqual(["hook app", "stop app 0"]);
    expect(node.isRunning("app")).toBe(false);
  });

  test.each([-hour, hour])("a hook has its time when the clock jumps by %d ms", async (jumpMs) => {
    await using node = new ScriptedNode();
    node.hookMs.set("app", hour);
    await node.start(withHook());
    await node.delete("web", 30);
    await node.clock.advance(5 * second);
    node.clock.skewMs += jumpMs;
    node.workers.get("u1")?.worker.wake();
    await node.clock.advance(24 * second);
    expect(node.isRunning("app")).toBe(true);
    await node.clock.advance(2 * second);
    expect(node.isRunning("app")).toBe(false);
  });

  test.each([-hour, hour])("a sidecar waits for the others when the clock jumps by %d ms", async (jumpMs) => {
    await using node = new ScriptedNode();
    node.stubborn.add("app");
    await node.start(podOf({ initContainers: [sidecar] }));
    await node.delete("web", 10);
    node.clock.skewMs += jumpMs;
    node.workers.get("u1")?.worker.wake();
    await node.clock.advance(9 * second);
    expect(node.isRunning("side")).toBe(true);
    await node.clock.advance(2 * second);
    expect(node.calls.at(-1)).toBe("stop side 0");
    expect(node.isOver()).toBe(true);
  });

  test("of 200 pods at once comes for all, a bounded number of writes at a time", async () => {
    await using node = new ScriptedNode();
    node.delay("patch", 20);
    const names = Array.from({ length: 200 }, (_, i) => `web-${i}`);
    for (const name of names) await node.start(podOf({}, { name, uid: name }));
    await node.clock.advance(5 * second);
    expect(names.every((name) => node.status(name).phase === "Running")).toBe(true);
    await Promise.all(names.map(async (name) => await node.delete(name, 30)));
    await node.clock.advance(5 * second);
    expect(node.api.size).toBe(0);
    expect(node.workers.size).toBe(0);
    expect(node.containers()).toEqual([]);
    expect(node.patchesInFlightMost).toBe(patchesInFlightMax);
  });

  test("by its deadline is told as that", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf({ activeDeadlineSeconds: 5 }));
    await node.clock.advance(4 * second);
    expect(node.isRunning("app")).toBe(true);
    await node.clock.advance(2 * second);
    expect(node.calls.at(-1)).toBe("stop app 30");
    expect(node.status()).toMatchObject({
      phase: "Failed",
      reason: "DeadlineExceeded",
      message: "Pod was active on the node longer than the specified deadline",
    });
    expect(node.events).toContain("Normal DeadlineExceeded");
  });

  test("is not told before the last container has stopped", async () => {
    await using node = new ScriptedNode();
    node.stubborn.add("app");
    await node.start(podOf({ activeDeadlineSeconds: 5, terminationGracePeriodSeconds: 20 }));
    await node.clock.advance(10 * second);
    expect(node.status()).toMatchObject({ phase: "Running" });
    expect(node.status().reason).toBeUndefined();
    await node.clock.advance(20 * second);
    expect(node.status()).toMatchObject({ phase: "Failed", reason: "DeadlineExceeded" });
  });
});

test("the removal of an object that the API server refuses is tried at growing intervals", async () => {
  await using node = new ScriptedNode();
  await node.start(podOf());
  node.fail("delete", 8);
  await node.delete("web", 30);
  await node.clock.advance(120 * second);
  expect(node.isOver()).toBe(true);
  const rests = node.deletionsMs.slice(1).map((ms, i) => ms - (node.deletionsMs[i] ?? 0));
  const { baseMs, maxMs, jitter } = deletionRetry;
  rests.forEach((rest, i) => {
    const most = Math.min(maxMs, baseMs * 2 ** i);
    expect(rest).toBeGreaterThanOrEqual(Math.floor(most * (1 - jitter)));
    expect(rest).toBeLessThanOrEqual(Math.ceil(most));
  });
  expect(rests).toHaveLength(8);
});

test("people are told once why a container stops, although its grace shrinks and a stop fails", async () => {
  await using node = new ScriptedNode();
  node.stubborn.add("app");
  await node.start(podOf());
  await node.delete("web", 600);
  await node.clock.advance(10 * second);
  node.fail("KillContainer");
  await node.delete("web", 20);
  await node.clock.advance(10 * second);
  await node.delete("web", 2);
  await node.clock.advance(10 * second);
  expect(node.isOver()).toBe(true);
  expect(node.killings).toEqual(["Stopping container app"]);
});

test("probes that ended with the pod stay so when something of it comes to life again", async () => {
  await using node = new ScriptedNode();
  await node.start(podOf());
  node.fail("delete", 1_000);
  await node.delete("web", 30);
  await settle();
  node.delay("StopSandbox", second);
  await node.reviveSandbox("u1");
  expect(node.stoppedProbes.has("u1")).toBe(true);
});

describe("what a pod leaves", () => {
  test("volumes go while the sandbox still stops, the cgroup and the object after both", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    node.delay("StopSandbox", 5 * second);
    node.delay("TearDownVolumes", second);
    await node.delete("web", 30);
    await node.clock.advance(2 * second);
    expect(node.removals).toEqual(["volumes"]);
    expect(node.api.has("web")).toBe(true);
    await node.clock.advance(4 * second);
    expect(node.removals).toEqual(["volumes", "sandbox", "cgroup"]);
    expect(node.isOver()).toBe(true);
  });

  test("the object waits for a volume that does not let go, and so does the cgroup", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    node.delay("TearDownVolumes", 10 * second);
    await node.delete("web", 30);
    await node.clock.advance(9 * second);
    expect(node.removals).toEqual(["sandbox"]);
    expect(node.status().phase).toBe("Failed");
    expect(node.api.has("web")).toBe(true);
    await node.clock.advance(2 * second);
    expect(node.isOver()).toBe(true);
  });

  test("a volume that the sandbox held goes as soon as that has stopped", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    node.fail("TearDownVolumes");
    node.delay("StopSandbox", second / 10);
    await node.delete("web", 30);
    await node.clock.advance(second / 5);
    expect(node.removals).toEqual(["sandbox", "volumes", "cgroup"]);
    expect(node.isOver()).toBe(true);
  });

  test("volumes go after the sandbox where containers may be more than processes of the node", async () => {
    await using node = new ScriptedNode();
    node.hasPlainContainers = false;
    await node.start(podOf());
    node.delay("StopSandbox", 5 * second);
    await node.delete("web", 30);
    await node.clock.advance(4 * second);
    expect(node.removals).toEqual([]);
    await node.clock.advance(2 * second);
    expect(node.removals).toEqual(["sandbox", "volumes", "cgroup"]);
    expect(node.isOver()).toBe(true);
  });

  test("volumes are torn down once more if a container came to life without them", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    node.delay("StopSandbox", 5 * second);
    await node.delete("web", 30);
    expect(node.removals).toEqual(["volumes"]);
    await node.reviveContainer("app");
    expect(node.isRunning("app")).toBe(false);
    await node.clock.advance(6 * second);
    expect(node.removals).toEqual(["volumes", "volumes", "sandbox", "cgroup"]);
    expect(node.isOver()).toBe(true);
  });

  test("all of it goes once more if a sandbox came to life after the end, which may hold what the first did", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    node.fail("delete", 1_000);
    await node.delete("web", 30);
    await settle();
    const all = ["sandbox", "volumes", "cgroup"];
    expect(node.removals).toEqual(all);
    await node.reviveSandbox("u1");
    expect(node.removals).toEqual([...all, ...all]);
  });
});
