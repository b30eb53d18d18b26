import { describe, expect, test } from "vitest";
import type { Container, Pod } from "../../../agent/kube/types.ts";
import { deletionRetry } from "../../../agent/pods/object-deletion.ts";
import type { PodAction } from "../../../agent/pods/plan.ts";
import { patchesInFlightMax } from "../../../agent/pods/status-writer.ts";
import { settle } from "../kube/fake-clock.ts";
import { ScriptedNode } from "./scripted-node.ts";
import { podOf } from "./support.ts";

const second = 1_000;
const hour = 3_600_000;
const never = podOf({ restartPolicy: "Never" });
const probe = { exec: { command: ["true"] } };
const hook = { lifecycle: { preStop: { exec: { command: ["bye"] } } } };
const withHook = (spec: object = {}) => podOf({ containers: [{ name: "app", image: "image:1", ...hook }], ...spec });
const sidecar: Container = { name: "side", image: "image:1", restartPolicy: "Always" };

const starts = (node: ScriptedNode, name = "app") => node.calls.filter((call) => call === `start ${name}`).length;
const restarts = (node: ScriptedNode) => node.status().containerStatuses?.[0]?.restartCount;
const isOver = (node: ScriptedNode) =>
  !node.api.has("web") && node.workers.size === 0 && node.containers().length === 0;

test("a pod starts and says so", async () => {
  await using node = new ScriptedNode();
  await node.start(podOf({ initContainers: [{ name: "init", image: "image:1" }, sidecar] }));
  await node.exit("init", 0);
  expect(node.calls).toEqual(["start init", "start side", "start app"]);
  expect(node.status()).toMatchObject({ phase: "Running", podIP: "10.0.0.2", startTime: "2026-01-01T00:00:00Z" });
  expect(node.status().containerStatuses?.[0]).toMatchObject({ ready: true, restartCount: 0 });
});

describe("a runtime with faults", () => {
  const kinds: PodAction["kind"][] = ["SetUpVolumes", "CreateSandbox", "EnsureImage", "StartContainer"];
  test.each([...kinds, "podSnapshot", "patch"] as const)(
    "%s fails once: the pod starts all the same, once",
    async (kind) => {
      await using node = new ScriptedNode();
      node.fail(kind);
      await node.start(podOf());
      await node.clock.advance(3 * second);
      expect(node.status().phase).toBe("Running");
      expect(starts(node)).toBe(1);
    },
  );

  test.each([
    "KillContainer",
    "StopSandbox",
    "TearDownVolumes",
    "CleanUp",
    "RemoveContainer",
    "RemoveSandbox",
    "delete",
  ] as const)("%s fails once: the pod ends all the same", async (kind) => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    node.fail(kind);
    await node.delete("web", 30);
    await node.clock.advance(5 * second);
    expect(isOver(node)).toBe(true);
  });

  test("that answers late holds up nothing but itself", async () => {
    await using node = new ScriptedNode();
    for (const kind of [...kinds, "podSnapshot"] as const) node.delay(kind, 5 * second);
    await node.start(podOf());
    await node.clock.advance(60 * second);
    expect(node.status().phase).toBe("Running");
    expect(starts(node)).toBe(1);
  });

  test("that does not tell of an exit is believed when it is asked again", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    node.losesEvents = true;
    await node.exit("app", 1);
    expect(starts(node)).toBe(1);
    node.workers.get("u1")?.worker.runtimeChanged(); // as after a relist that shows something else
    await settle();
    expect(starts(node)).toBe(2);
  });

  test("that tells everything ten times changes nothing", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    await node.exit("app", 1);
    for (let i = 0; i < 10; i++) node.workers.get("u1")?.worker.runtimeChanged();
    await settle();
    expect(starts(node)).toBe(2);
    expect(restarts(node)).toBe(1);
  });

  test("that forgets a container gets another one", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    await node.forget("app");
    await settle();
    expect(node.isRunning("app")).toBe(true);
    expect(node.status().containerStatuses?.[0]).toMatchObject({
      restartCount: 1,
      lastState: { terminated: { exitCode: 137, reason: "ContainerStatusUnknown" } },
    });
  });

  test("that forgets a container which ended for good gets none in its place", async () => {
    await using node = new ScriptedNode();
    await node.start(
      podOf({
        restartPolicy: "Never",
        containers: [
          { name: "app", image: "image:1" },
          { name: "log", image: "image:1" },
        ],
      }),
    );
    await node.exit("app", 0);
    await node.forget("app");
    await settle();
    expect(starts(node)).toBe(1);
    expect(node.status().containerStatuses?.[0]?.state?.terminated?.exitCode).toBe(0);
    await node.exit("log", 0);
    expect(node.status().phase).toBe("Succeeded");
  });

  test("that loses a sandbox gets another one", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    await node.killSandbox();
    await node.clock.advance(second);
    expect(node.isRunning("app")).toBe(true);
    expect(node.containers("app")[0]?.sandboxID).toBe("u1-s1");
  });
});

describe("a node without room for another volume", () => {
  const reason = "VolumeAttachmentLimitExceeded";

  test("turns the pod away, so that it can run elsewhere", async () => {
    await using node = new ScriptedNode();
    node.fail("SetUpVolumes", 10, reason);
    await node.start(podOf({ restartPolicy: "Never" }));
    await node.clock.advance(5 * second);
    const message = "Pod was rejected: SetUpVolumes: as the script says";
    expect(node.status()).toMatchObject({ phase: "Failed", reason, message });
    expect(node.status()).not.toHaveProperty("containerStatuses");
    expect(node.events.filter((event) => event === `Warning ${reason}`)).toHaveLength(1);
    expect(starts(node)).toBe(0);
    await node.delete("web", 30);
    await node.clock.advance(5 * second);
    await settle();
    expect(isOver(node)).toBe(true);
  });

  test("keeps a pod that runs, whatever is said of its volumes later", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    node.fail("SetUpVolumes", 1, reason);
    await node.restart("web");
    await node.clock.advance(60 * second);
    expect(node.status().phase).toBe("Running");
    expect(starts(node)).toBe(1);
  });
});

describe("people are told once", () => {
  const told = (node: ScriptedNode, event: string) =>
    node.events.filter((other) => other === `Warning ${event}`).length;

  test("that a pod waits for the network, each time it has to", async () => {
    await using node = new ScriptedNode();
    node.isNetworkReady = false;
    await node.start(podOf());
    const look = async () => {
      node.workers.get("u1")?.worker.wake();
      await settle();
    };
    await look();
    expect(told(node, "NetworkNotReady")).toBe(1);
    node.isNetworkReady = true;
    await look();
    node.isNetworkReady = false;
    await look();
    expect(told(node, "NetworkNotReady")).toBe(2);
  });

  test("that a new sandbox cannot be looked at, at once", async () => {
    await using node = new ScriptedNode();
    node.delay("CreateSandbox", second);
    await node.start(podOf());
    node.fail("podSnapshot", 2);
    await node.clock.advance(5 * second);
    expect(told(node, "FailedPodSandBoxStatus")).toBe(1);
    expect(told(node, "FailedSync")).toBe(0);
    expect(node.status().phase).toBe("Running");
  });

  test("that nothing can be learnt of a pod, unless the whole runtime is away", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    const fail = async () => {
      node.fail("podSnapshot", 8);
      node.workers.get("u1")?.worker.runtimeChanged();
      await settle();
      await node.clock.advance(60 * second);
    };
    node.isRuntimeReady = false;
    await fail();
    expect(told(node, "FailedSync")).toBe(0);
    node.isRuntimeReady = true;
    await fail();
    expect(told(node, "FailedSync")).toBe(1);
    expect(told(node, "FailedPodSandBoxStatus")).toBe(0);
  });

  test("that the node's address is of another family now", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    const move = async (...hostIPs: string[]) => {
      node.hostIPs = hostIPs;
      node.workers.get("u1")?.worker.wake();
      await settle();
    };
    await move("192.168.0.2");
    await move();
    await move("192.168.0.2", "fd00::1");
    expect(told(node, "HostIPsIPFamilyMismatch")).toBe(0);
    await move("fd00::1", "192.168.0.2");
    await move("fd00::1");
    expect(told(node, "HostIPsIPFamilyMismatch")).toBe(1);
    expect(node.status().hostIP).toBe("fd00::1");
  });
});

describe("crash loops", () => {
  test("restart at once, then after 10 s, then after 20 s", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    await node.exit("app", 1);
    expect(starts(node)).toBe(2);
    for (const waitMs of [10 * second, 20 * second]) {
      const before = starts(node);
      await node.exit("app", 1);
      expect(node.status().containerStatuses?.[0]?.state?.waiting?.reason).toBe("CrashLoopBackOff");
      await node.clock.advance(waitMs - 1);
      expect(starts(node)).toBe(before);
      await node.clock.advance(1);
      expect(starts(node)).toBe(before + 1);
    }
    expect(node.events.filter((event) => event === "Warning BackOff")).toHaveLength(2);
  });

  test.each([-hour, hour])("wait as long as ever when the clock jumps by %d ms", async (jumpMs) => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    await node.exit("app", 1);
    await node.exit("app", 1);
    node.clock.skewMs += jumpMs;
    await node.clock.advance(9 * second);
    expect(starts(node)).toBe(2);
    await node.clock.advance(second);
    expect(starts(node)).toBe(3);
    expect(node.isRunning("app")).toBe(true);
    // The instance that is newer by its number is the present one, although its time says otherwise.
    await node.clock.advance(60 * second);
    expect(starts(node)).toBe(3);
    expect(node.status().containerStatuses?.[0]?.restartCount).toBe(2);
  });

  test("of a liveness probe come to a backoff, too", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf({ containers: [{ name: "app", image: "image:1", livenessProbe: probe }] }));
    const unhealthy = async () => {
      node.verdicts.set(`${node.containers("app")[0]?.id}/Liveness`, "failure");
      node.workers.get("u1")?.worker.wake();
      await settle();
    };
    await unhealthy();
    expect(starts(node)).toBe(2);
    await unhealthy();
    expect(starts(node)).toBe(3);
    await unhealthy();
    await settle();
    expect(node.status().containerStatuses?.[0]?.state?.waiting?.reason).toBe("CrashLoopBackOff");
    await node.clock.advance(10 * second);
    expect(starts(node)).toBe(4);
  });

  test("start from zero with another image", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    await node.exit("app", 1);
    await node.exit("app", 1);
    const pod = node.pod("web");
    const resources = { limits: { memory: "1Gi" } };
    await node.update({ ...pod, spec: { ...pod.spec, containers: [{ name: "app", image: "image:1", resources }] } });
    await settle();
    expect(starts(node)).toBe(3);
  });
});

describe("the end", () => {
  test("comes when everything has stopped, and the object goes", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    await node.delete("web", 30);
    await settle();
    expect(node.calls).toEqual(["start app", "stop app 30"]);
    expect(isOver(node)).toBe(true);
  });

  test("of a container that ignores SIGTERM comes with its grace", async () => {
    await using node = new ScriptedNode();
    node.stubborn.add("app");
    await node.start(podOf());
    await node.delete("web", 3);
    await node.clock.advance(2_900);
    expect(node.isRunning("app")).toBe(true);
    await node.clock.advance(200);
    expect(isOver(node)).toBe(true);
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
    expect(isOver(node)).toBe(true);
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

describe("after the agent's own restart", () => {
  test("what runs is left alone", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    await node.restart("web");
    expect(starts(node)).toBe(1);
    expect(node.status()).toMatchObject({ phase: "Running" });
  });

  test("what ended meanwhile is told and not started again", async () => {
    await using node = new ScriptedNode();
    await node.start(never);
    await node.end("u1");
    await node.exit("app", 0);
    await node.restart("web");
    expect(starts(node)).toBe(1);
    expect(node.status()).toMatchObject({ phase: "Succeeded" });
    expect(node.status().containerStatuses?.[0]?.state?.terminated).toMatchObject({ exitCode: 0 });
  });

  test("a pod that is over stays so, and what runs of it stops", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    await node.end("u1");
    const pod = node.pod("web");
    node.api.set("web", { ...pod, status: { ...pod.status, phase: "Failed", reason: "Evicted" } });
    await node.restart("web");
    await settle();
    expect(node.isRunning("app")).toBe(false);
    expect(node.status()).toMatchObject({ phase: "Failed", reason: "Evicted" });
  });

  test("an end under way goes on", async () => {
    await using node = new ScriptedNode();
    node.stubborn.add("app");
    await node.start(podOf());
    await node.delete("web", 3_600);
    node.workers.get("u1")?.stop.abort();
    node.workers.delete("u1");
    await node.start(node.pod("web"));
    await node.delete("web", 1);
    await node.clock.advance(2 * second);
    expect(node.isRunning("app")).toBe(false);
  });
});

describe("an object that changes", () => {
  const volumes = [{ name: "settings", configMap: { name: "settings" } }];

  test("lets a pod that refers to it try again at once, and no other", async () => {
    await using node = new ScriptedNode();
    node.fail("SetUpVolumes", 100);
    await node.start(podOf({ volumes }));
    await node.clock.advance(40 * second);
    const { worker } = node.workers.get("u1") ?? {};
    const isResting = () => worker?.facts.local?.attempts.get("volumes")?.state === "failed";
    expect(isResting()).toBe(true);
    worker?.objectChanged({ kind: "ConfigMap", name: "other" });
    worker?.objectChanged({ kind: "Secret", name: "settings" });
    await settle();
    expect(isResting()).toBe(true);
    node.fail("SetUpVolumes", 0);
    worker?.objectChanged({ kind: "ConfigMap", name: "settings" });
    await settle();
    expect(node.status().phase).toBe("Running");
  });

  test("does not hurry what has nothing to do with it", async () => {
    await using node = new ScriptedNode();
    node.fail("CreateSandbox", 100);
    await node.start(podOf({ volumes }));
    await node.clock.advance(40 * second);
    const { worker } = node.workers.get("u1") ?? {};
    const before = worker?.facts.local?.attempts.get("sandbox");
    expect(before?.state).toBe("failed");
    worker?.objectChanged({ kind: "ConfigMap", name: "settings" });
    worker?.contentChanged();
    await settle();
    expect(worker?.facts.local?.attempts.get("sandbox")).toBe(before);
  });
});

describe("an ephemeral container with a volume of its own", () => {
  const volumes = [{ name: "tools", configMap: { name: "tools" } }];
  const debug = { name: "debug", image: "image:1", volumeMounts: [{ name: "tools", mountPath: "/tools" }] };
  const withDebugger = (pod: Pod): Pod => ({
    metadata: { ...pod.metadata, generation: 2 },
    spec: { ...pod.spec, ephemeralContainers: [debug] },
  });

  test("starts once that was set up", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf({ volumes }));
    node.delay("SetUpVolumes", 3 * second);
    await node.update(withDebugger(node.pod("web")));
    await node.clock.advance(2 * second);
    expect([node.isRunning("app"), node.isRunning("debug")]).toEqual([true, false]);
    await node.clock.advance(2 * second);
    expect(node.isRunning("debug")).toBe(true);
    expect(node.calls.filter((call) => call === "start debug")).toHaveLength(1);
  });

  test("holds up nobody whose volumes are there", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf({ volumes }));
    node.fail("SetUpVolumes", 100);
    await node.update(withDebugger(node.pod("web")));
    await node.clock.advance(2 * second);
    await node.exit("app", 1);
    await node.clock.advance(20 * second);
    expect([node.isRunning("app"), node.isRunning("debug")]).toEqual([true, false]);
    node.fail("SetUpVolumes", 0);
    await node.clock.advance(20 * second);
    expect(node.isRunning("debug")).toBe(true);
  });
});

test("the removal of an object that the API server refuses is tried at growing intervals", async () => {
  await using node = new ScriptedNode();
  await node.start(podOf());
  node.fail("delete", 8);
  await node.delete("web", 30);
  await node.clock.advance(120 * second);
  expect(isOver(node)).toBe(true);
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
  expect(isOver(node)).toBe(true);
  expect(node.killings).toEqual(["Stopping container app"]);
});

test("a failure is forgotten with the instance that it was about", async () => {
  await using node = new ScriptedNode();
  await node.start(podOf());
  node.fail("RemoveContainer", 2);
  for (let i = 0; i < 3; i++) {
    await node.exit("app", 1);
    await node.clock.advance(30 * second);
  }
  await node.forget("app");
  await node.clock.advance(10 * second);
  const attempts = node.workers.get("u1")?.worker.facts.local?.attempts ?? new Map<string, unknown>();
  expect([...attempts.keys()]).toEqual([]);
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
    expect(isOver(node)).toBe(true);
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
    expect(isOver(node)).toBe(true);
  });

  test("a volume that the sandbox held goes as soon as that has stopped", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    node.fail("TearDownVolumes");
    node.delay("StopSandbox", second / 10);
    await node.delete("web", 30);
    await node.clock.advance(second / 5);
    expect(node.removals).toEqual(["sandbox", "volumes", "cgroup"]);
    expect(isOver(node)).toBe(true);
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
    expect(isOver(node)).toBe(true);
  });
});

describe("a container that is replaced", () => {
  const onFailure = podOf({ restartPolicy: "OnFailure" });
  const withImage = (image: string) => ({ ...onFailure.spec, containers: [{ name: "app", image }] });

  test("starts although the agent was killed between its end and the next start", async () => {
    await using node = new ScriptedNode();
    await node.start(onFailure);
    node.hash("app", "of another image");
    node.delay("KillContainer", second);
    node.workers.get("u1")?.worker.wake();
    await settle();
    expect(node.isRunning("app")).toBe(true);
    const ending = node.end("u1");
    await node.exit("app", 0); // it takes SIGTERM well
    await ending;
    await node.restart("web");
    expect(starts(node)).toBe(2);
    expect(node.isRunning("app")).toBe(true);
    expect(node.status().phase).toBe("Running");
  });

  test("is not taken for one that ended by itself with the image of before", async () => {
    await using node = new ScriptedNode();
    await node.start(onFailure);
    const pod = node.pod("web");
    await node.end("u1");
    await node.exit("app", 0);
    node.api.set("web", { ...pod, spec: withImage("image:2") });
    await node.restart("web");
    expect(starts(node)).toBe(1);
    expect(node.status().phase).toBe("Succeeded");
  });
});

test("dead containers that are condemned go", async () => {
  await using node = new ScriptedNode();
  await node.start(podOf());
  await node.exit("app", 1);
  expect(node.containers("app").map(({ state }) => state)).toEqual(["running", "exited"]);
  const { worker } = node.workers.get("u1") ?? {};
  expect(worker?.remainsUse).toBe("needed");
  worker?.condemn(node.containers("app").map(({ id }) => id));
  await settle();
  expect(node.containers("app").map(({ state }) => state)).toEqual(["running"]);
});
