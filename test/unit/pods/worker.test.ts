import { describe, expect, test } from "vitest";
import type { Container, Pod } from "../../../agent/kube/types.ts";
import type { PodAction } from "../../../agent/pods/plan.ts";
import type { RuntimeEvent } from "../../../agent/runtime/port.ts";
import { settle } from "../kube/fake-clock.ts";
import { ScriptedNode } from "./scripted-node.ts";
import { podOf } from "./support.ts";

const second = 1_000;
const hour = 3_600_000;
const never = podOf({ restartPolicy: "Never" });
const probe = { exec: { command: ["true"] } };
const sidecar: Container = { name: "side", image: "image:1", restartPolicy: "Always" };

const starts = (node: ScriptedNode, name = "app") => node.calls.filter((call) => call === `start ${name}`).length;
const restarts = (node: ScriptedNode) => node.status().containerStatuses?.[0]?.restartCount;

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
    expect(node.isOver()).toBe(true);
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

  test("is looked at once more for what it tells, but not for an end that was seen", async () => {
    await using node = new ScriptedNode();
    await node.start(podOf());
    await node.exit("app", 1);
    const ended = node.containers("app")[1]?.id;
    const looksFor = async (kind: RuntimeEvent["kind"], containerID: string | undefined) => {
      const before = node.looks;
      node.workers.get("u1")?.worker.runtimeChanged({ kind, podUID: "u1", containerID });
      await settle();
      return node.looks - before;
    };
    expect(await looksFor("exited", ended)).toBe(0);
    expect(await looksFor("exited", node.containers("app")[0]?.id)).toBe(1);
    expect(await looksFor("started", ended)).toBe(1);
  });

  test("that tells of nothing is looked at when a step has changed something there", async () => {
    await using node = new ScriptedNode();
    node.losesEvents = true;
    for (const kind of kinds) node.delay(kind, second);
    await node.start(podOf());
    await node.clock.advance(10 * second);
    expect(node.status().phase).toBe("Running");
    expect(starts(node)).toBe(1);
    await node.delete("web", 30);
    await node.clock.advance(10 * second);
    expect(node.isOver()).toBe(true);
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
    expect(node.isOver()).toBe(true);
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
