import { afterEach, describe, expect, test } from "vitest";
import type { Container, Pod, Probe } from "../../../agent/kube/types.ts";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { createProbeManager, type ProbeManager } from "../../../agent/probes/manager.ts";
import type { ProbeOutcome, ProbeTarget, SeenContainer } from "../../../agent/probes/port.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";
import { podWith, seenOf } from "./support.ts";

const success: ProbeOutcome = { kind: "success", output: "" };
const failure: ProbeOutcome = { kind: "failure", output: "no" };

interface Run {
  atMs: number;
  probe: Probe;
  target: ProbeTarget;
  signal: AbortSignal;
  /** Ends it, if it hangs. */
  answer(outcome: ProbeOutcome): void;
}

let managers: ProbeManager[] = [];
afterEach(async () => {
  for (const manager of managers) await manager.close();
  managers = [];
});

/** A manager whose probes come to `outcome`, which may change; "hang": until the test answers. */
function setUp(outcome: ProbeOutcome | "hang" = success, random = 0) {
  const clock = new FakeClock();
  const beganMs = clock.now();
  const metrics = new MetricsRegistry();
  const runs: Run[] = [];
  const events: string[] = [];
  const changes: string[] = [];
  const script = { outcome };
  const manager = createProbeManager({
    clock,
    metrics,
    prober: async (probe, target, signal) => {
      const { promise, resolve } = Promise.withResolvers<ProbeOutcome>();
      runs.push({ atMs: clock.now() - beganMs, probe, target, signal, answer: resolve });
      signal.addEventListener("abort", () => resolve({ kind: "error", output: "aborted" }), { once: true });
      return script.outcome === "hang" ? await promise : script.outcome;
    },
    onEvent: (_pod, container, reason, message) => events.push(`${container} ${reason} ${message}`),
    onChange: (uid, type) => changes.push(`${uid} ${type}`),
    random: () => random,
  });
  managers.push(manager);
  /** Lets `pod` be seen with `app` as described; by default a container that starts now. */
  const see = (pod: Pod, app: Partial<SeenContainer> = {}, podIP = "10.0.0.2") => {
    const containers = [seenOf({ startedAtMs: clock.now(), ...app })];
    manager.observe("u1", { pod, podIP, containers });
  };
  const verdict = (type: "Startup" | "Liveness" | "Readiness", containerID = "app-0", container = "app") =>
    manager.verdict("u1", container, containerID, type);
  const times = () => runs.map(({ atMs }) => atMs);
  const samples = async (name: string) => {
    const family = (await metrics.families()).find((candidate) => candidate.name === name);
    return [...(family?.samples ?? [])];
  };
  return { clock, manager, runs, events, changes, script, see, verdict, times, samples };
}

const everySecond: Probe = { periodSeconds: 1 };
const readiness = (probe: Probe = {}): Pod => podWith({ readinessProbe: { ...everySecond, ...probe } });
const liveness = (probe: Probe = {}): Pod => podWith({ livenessProbe: { ...everySecond, ...probe } });

describe("the schedule", () => {
  test("first at once, then each period", async () => {
    const { clock, see, times, verdict, changes } = setUp();
    see(readiness());
    expect(verdict("Readiness")).toBe("failure");
    await clock.advance(0);
    expect(verdict("Readiness")).toBe("success");
    expect(changes).toEqual(["u1 Readiness"]);
    await clock.advance(3_500);
    expect(times()).toEqual([0, 1_000, 2_000, 3_000]);
    expect(changes).toEqual(["u1 Readiness"]);
  });

  test("first after the initial delay, counted from the container's start", async () => {
    const { clock, see, times } = setUp();
    await clock.advance(60_000);
    see(readiness({ initialDelaySeconds: 10 }), { startedAtMs: clock.now() - 4_000 });
    await clock.advance(7_500);
    expect(times()).toEqual([66_000, 67_000]);
  });

  test("passes of the pod in between change nothing", async () => {
    const { clock, see, times } = setUp();
    for (let i = 0; i < 29; i += 1) {
      see(readiness(), { startedAtMs: 0 });
      await clock.advance(100);
    }
    expect(times()).toEqual([0, 1_000, 2_000]);
  });

  test("a run that takes longer than the period is followed by the next at once, and never doubled", async () => {
    const { clock, see, runs, times } = setUp("hang");
    see(liveness());
    await clock.advance(2_300);
    expect(times()).toEqual([0]);
    see(liveness(), { startedAtMs: 0 });
    await clock.advance(0);
    expect(times()).toEqual([0]);
    runs[0]?.answer(success);
    await settle();
    await clock.advance(0);
    expect(times()).toEqual([0, 2_300]);
    runs[1]?.answer(success);
    await settle();
    await clock.advance(1_000);
    expect(times()).toEqual([0, 2_300, 3_000]);
  });

  test("goes on when the wall clock jumps an hour, in either direction", async () => {
    for (const jumpMs of [3_600_000, -3_600_000]) {
      const { clock, see, runs } = setUp();
      let offsetMs = 0;
      const now = clock.now;
      clock.now = () => now() + offsetMs;
      see(readiness());
      await clock.advance(1_500);
      offsetMs = jumpMs;
      see(readiness(), { startedAtMs: now() - 1_500 });
      await clock.advance(2_000);
      expect(runs).toHaveLength(4);
    }
  });

  test("one probe that hangs holds up no other", async () => {
    const { clock, see, runs, script } = setUp("hang");
    see(podWith({ livenessProbe: everySecond, readinessProbe: { periodSeconds: 1, timeoutSeconds: 9 } }));
    await clock.advance(0);
    script.outcome = success;
    runs.find(({ probe }) => probe.timeoutSeconds === undefined)?.answer(success);
    await settle();
    await clock.advance(3_000);
    expect(runs.map(({ probe }) => probe.timeoutSeconds)).toEqual([undefined, 9, undefined, undefined, undefined]);
  });

  test("right after the agent's start, containers from before are probed at random times of the first period", async () => {
    const { clock, see, times } = setUp(success, 0.25);
    see(readiness({ periodSeconds: 8 }), { startedAtMs: clock.now() - 100_000, wasReady: true });
    await clock.advance(20_000);
    expect(times()).toEqual([2_000, 10_000, 18_000]);
  });

  test("containers that start then are not made to wait, and neither is anything later", async () => {
    const fresh = setUp(success, 0.25);
    fresh.see(readiness({ periodSeconds: 8 }));
    await fresh.clock.advance(0);
    expect(fresh.times()).toEqual([0]);
    const late = setUp(success, 0.25);
    await late.clock.advance(8_000);
    late.see(readiness({ periodSeconds: 8 }), { startedAtMs: late.clock.now() - 100_000 });
    await late.clock.advance(0);
    expect(late.times()).toEqual([8_000]);
  });
});

describe("a startup probe", () => {
  const pod = podWith({ startupProbe: everySecond, livenessProbe: everySecond, readinessProbe: everySecond });

  test("holds back the others until it passes, and runs no more then", async () => {
    const { clock, see, runs, script, verdict, changes } = setUp(failure);
    see(pod);
    await clock.advance(1_500);
    expect(runs).toHaveLength(2);
    expect([verdict("Startup"), verdict("Liveness"), verdict("Readiness")]).toEqual(["unknown", "success", "failure"]);
    script.outcome = success;
    await clock.advance(500);
    expect([verdict("Startup"), verdict("Readiness")]).toEqual(["success", "success"]);
    expect(changes).toEqual(["u1 Startup", "u1 Readiness"]);
    expect(runs).toHaveLength(5); // the others' first runs came at once
    await clock.advance(1_000);
    expect(runs).toHaveLength(7);
  });

  test("that fails for good runs no more, and the others never begin", async () => {
    const { clock, see, runs, verdict, changes } = setUp(failure);
    see(pod);
    await clock.advance(10_000);
    expect(runs).toHaveLength(3);
    expect(verdict("Startup")).toBe("failure");
    expect(changes).toEqual(["u1 Startup"]);
  });

  test("begins anew with each instance of the container", async () => {
    const { clock, see, verdict, runs } = setUp();
    see(pod);
    await clock.advance(0);
    expect(runs).toHaveLength(3);
    see(pod, { containerID: "app-1" });
    expect([verdict("Startup", "app-1"), verdict("Readiness", "app-1")]).toEqual(["unknown", "failure"]);
    await clock.advance(0);
    expect([verdict("Startup", "app-1"), verdict("Readiness", "app-1")]).toEqual(["success", "success"]);
    expect(verdict("Readiness", "app-0")).toBeUndefined();
  });
});

describe("a new instance of the container", () => {
  test("does not inherit an outcome of the old one that comes late, nor waits for it", async () => {
    const { clock, see, runs, script, verdict, events } = setUp("hang");
    see(liveness({ failureThreshold: 1 }));
    await clock.advance(0);
    script.outcome = success;
    see(liveness({ failureThreshold: 1 }), { containerID: "app-1" });
    expect(runs[0]?.signal.aborted).toBe(true);
    runs[0]?.answer(failure);
    await settle();
    await clock.advance(0);
    expect(runs.map(({ target }) => target.containerID)).toEqual(["app-0", "app-1"]);
    expect(verdict("Liveness", "app-1")).toBe("success");
    expect(events).toEqual([]);
  });

  test("counts its failures from zero, and is probed although the old one was given up", async () => {
    const { clock, see, runs, verdict } = setUp(failure);
    see(liveness({ failureThreshold: 3 }));
    await clock.advance(5_000);
    expect(verdict("Liveness")).toBe("failure");
    expect(runs).toHaveLength(3);
    see(liveness({ failureThreshold: 3 }), { containerID: "app-1" });
    expect(verdict("Liveness", "app-1")).toBe("success");
    await clock.advance(1_500);
    expect(verdict("Liveness", "app-1")).toBe("success");
    await clock.advance(500);
    expect(verdict("Liveness", "app-1")).toBe("failure");
  });

  test("is not killed for having been seen before it ran", async () => {
    const { see, verdict } = setUp();
    see(liveness(), { isRunning: false, startedAtMs: 0 });
    see(liveness());
    expect(verdict("Liveness")).toBe("success");
  });

  test("an exited one is not ready, and is not probed", async () => {
    const { clock, see, verdict, runs } = setUp();
    see(readiness());
    await clock.advance(0);
    see(readiness(), { isRunning: false });
    expect(verdict("Readiness")).toBe("failure");
    await clock.advance(5_000);
    expect(runs).toHaveLength(1);
  });
});

describe("after a restart of the agent", () => {
  test("a container that was ready stays ready, also while its first probes fail", async () => {
    const { clock, see, verdict, changes } = setUp(failure);
    see(readiness({ failureThreshold: 3 }), { startedAtMs: clock.now() - 3_000, wasReady: true, wasStarted: true });
    expect(verdict("Readiness")).toBe("success");
    await clock.advance(1_000);
    expect(verdict("Readiness")).toBe("success");
    await clock.advance(1_500);
    expect(verdict("Readiness")).toBe("failure");
    expect(changes).toEqual(["u1 Readiness"]);
  });

  test("one that had started up is not asked again, and its other probes run", async () => {
    const { clock, see, verdict, runs } = setUp();
    const pod = podWith({ startupProbe: { periodSeconds: 1, timeoutSeconds: 5 }, livenessProbe: everySecond });
    see(pod, { wasStarted: true, wasReady: true, startedAtMs: 0 });
    expect(verdict("Startup")).toBe("success");
    await clock.advance(1_500);
    expect(runs.map(({ probe }) => probe.timeoutSeconds)).toEqual([undefined, undefined]);
  });
});

describe("a pod that stops", () => {
  const app: Partial<Container> = { livenessProbe: everySecond, startupProbe: everySecond };
  const sidecar: Container = { name: "side", image: "image:1", restartPolicy: "Always", livenessProbe: everySecond };
  const pod = podWith({ ...app, readinessProbe: { periodSeconds: 1, timeoutSeconds: 2 } }, [sidecar]);
  const both = (startedAtMs: number): SeenContainer[] => [
    seenOf({ name: "side", containerID: "side-0", startedAtMs }),
    seenOf({ startedAtMs, wasStarted: true }),
  ];

  test("is probed for readiness only; its sidecars for everything", async () => {
    const { clock, manager, runs } = setUp();
    const observe = () => manager.observe("u1", { pod, podIP: "10.0.0.2", containers: both(clock.now()) });
    observe();
    await clock.advance(500);
    manager.stopLiveness("u1");
    observe();
    runs.length = 0;
    await clock.advance(1_000);
    expect(runs.map(({ target, probe }) => [target.container.name, probe.timeoutSeconds])).toEqual([
      ["side", undefined],
      ["app", 2],
    ]);
    manager.remove("u1");
    runs.length = 0;
    await clock.advance(5_000);
    expect(runs).toEqual([]);
    expect(manager.verdict("u1", "app", "app-0", "Readiness")).toBeUndefined();
  });

  test("that had started up and was ready stays so when the agent comes only then, and is looked at", async () => {
    const { clock, manager, see, verdict, runs } = setUp();
    manager.stopLiveness("u1");
    see(podWith({ startupProbe: everySecond, readinessProbe: { ...everySecond, timeoutSeconds: 2 } }), {
      wasStarted: true,
      wasReady: true,
    });
    expect([verdict("Startup"), verdict("Readiness")]).toEqual(["success", "success"]);
    await clock.advance(1_500);
    expect(runs.map(({ probe }) => probe.timeoutSeconds)).toEqual([2, 2]);
  });

  test("also if it is seen only then", async () => {
    const { clock, manager, runs } = setUp();
    manager.stopLiveness("u1");
    manager.observe("u1", { pod: liveness(), podIP: "", containers: [seenOf()] });
    await clock.advance(5_000);
    expect(runs).toEqual([]);
    manager.remove("u1");
    manager.observe("u1", { pod: liveness(), podIP: "", containers: [seenOf({ startedAtMs: clock.now() })] });
    await clock.advance(0);
    expect(runs).toHaveLength(1);
  });
});

describe("what people are told", () => {
  const cases: { outcome: ProbeOutcome; events: string[]; result: string; isMeasured: boolean }[] = [
    { outcome: success, events: [], result: "successful", isMeasured: true },
    {
      outcome: { kind: "warning", output: "moved" },
      events: ["app ProbeWarning Readiness probe warning: moved"],
      result: "successful",
      isMeasured: true,
    },
    {
      outcome: { kind: "failure", output: "HTTP probe failed with statuscode: 500" },
      events: ["app Unhealthy Readiness probe failed: HTTP probe failed with statuscode: 500"],
      result: "failed",
      isMeasured: false,
    },
    {
      outcome: { kind: "error", output: "no such port" },
      events: ["app Unhealthy Readiness probe errored and resulted in unknown state: no such port"],
      result: "unknown",
      isMeasured: false,
    },
  ];
  test.each(cases)("$outcome.kind, on every run", async ({ outcome, events: want, result, isMeasured }) => {
    const { clock, see, events, samples } = setUp(outcome);
    see(readiness());
    await clock.advance(1_500);
    expect(events).toEqual([...want, ...want]);
    expect(await samples("prober_probe_total")).toEqual([
      {
        labels: { container: "app", namespace: "ns", pod: "web", pod_uid: "u1", probe_type: "Readiness", result },
        value: 2,
      },
    ]);
    const counts = (await samples("prober_probe_duration_seconds")).filter(({ suffix }) => suffix === "_count");
    expect(counts.map(({ value }) => value)).toEqual(isMeasured ? [2] : []);
  });

  test("series go with the pod, and what ends later brings none back", async () => {
    const { clock, see, runs, script, manager, samples } = setUp();
    see(readiness());
    await clock.advance(0);
    expect(await samples("prober_probe_total")).toHaveLength(1);
    script.outcome = "hang";
    await clock.advance(1_000);
    manager.remove("u1");
    runs.at(-1)?.answer(success);
    await settle();
    expect(await samples("prober_probe_total")).toEqual([]);
    expect(await samples("prober_probe_duration_seconds")).toEqual([]);
  });

  test("series of a pod's name stay when its namesake, gone for long, is removed again", async () => {
    const { clock, see, manager, samples } = setUp();
    see(readiness());
    await clock.advance(0);
    manager.remove("u1");
    manager.observe("u2", { pod: readiness(), podIP: "10.0.0.3", containers: [seenOf({ startedAtMs: clock.now() })] });
    await clock.advance(0);
    manager.remove("u1");
    expect(await samples("prober_probe_duration_seconds")).not.toEqual([]);
  });

  test("the process's start is not ours to tell: it began before there were probes", async () => {
    const { samples } = setUp();
    expect(await samples("process_start_time_seconds")).toEqual([]);
  });
});

test("probes are those of the pod as first seen; what they aim at is the newest", async () => {
  const { clock, see, runs } = setUp();
  see(readiness({ tcpSocket: { port: 1 } }));
  await clock.advance(0);
  see(readiness({ tcpSocket: { port: 2 }, periodSeconds: 60 }), { startedAtMs: 0 }, "10.0.0.9");
  await clock.advance(1_000);
  expect(runs.map(({ probe, target }) => [probe.tcpSocket?.port, target.podIP])).toEqual([
    [1, "10.0.0.2"],
    [1, "10.0.0.9"],
  ]);
});

test("pods without probes cost nothing, and have no verdicts", async () => {
  const { clock, see, verdict, manager } = setUp();
  see(podWith({}));
  expect(clock.waiting).toBe(0);
  expect(verdict("Readiness")).toBeUndefined();
  manager.remove("u1");
});

test("close ends everything under way, and leaves no timer", async () => {
  const { clock, see, runs, manager, events } = setUp("hang");
  see(podWith({ livenessProbe: everySecond, readinessProbe: everySecond }));
  await clock.advance(0);
  await manager.close();
  expect(runs.map(({ signal }) => signal.aborted)).toEqual([true, true]);
  expect(clock.waiting).toBe(0);
  expect(events).toEqual([]);
});
