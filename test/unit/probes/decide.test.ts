import { describe, expect, test } from "vitest";
import {
  afterRun,
  followContainer,
  nextDue,
  type ProbeState,
  type Surroundings,
} from "../../../agent/probes/decide.ts";
import type { ProbeOutcome, SeenContainer, Verdict } from "../../../agent/probes/port.ts";
import { probesOf, probeTimeoutMs } from "../../../agent/probes/spec.ts";
import { podWith, seenOf, specOf } from "./support.ts";

const success: ProbeOutcome = { kind: "success", output: "" };
const warning: ProbeOutcome = { kind: "warning", output: "" };
const failure: ProbeOutcome = { kind: "failure", output: "" };
const error: ProbeOutcome = { kind: "error", output: "" };

// The wall clock and the one that schedules go by have nothing in common.
const around = (changes: Partial<Surroundings> = {}): Surroundings => ({
  isStarted: true,
  nowMs: 1_000_000,
  monotonicMs: 500,
  spreadMs: 0,
  ...changes,
});
const startedNow = { startedAtMs: 1_000_000 };

describe("a container instance is seen", () => {
  type Type = "Startup" | "Liveness" | "Readiness";
  const cases: {
    name: string;
    type: Type;
    delaySeconds?: number;
    state?: Partial<ProbeState>;
    seen?: Partial<SeenContainer>;
    around?: Partial<Surroundings>;
    want: { verdict: Verdict; dueMs?: number; isHeld?: boolean };
  }[] = [
    { name: "readiness: not ready, and probed at once", type: "Readiness", want: { verdict: "failure", dueMs: 500 } },
    { name: "liveness: alive, and probed at once", type: "Liveness", want: { verdict: "success", dueMs: 500 } },
    { name: "startup: not known, and probed at once", type: "Startup", want: { verdict: "unknown", dueMs: 500 } },
    {
      name: "initial delay counts from the container's start",
      type: "Readiness",
      delaySeconds: 30,
      seen: { startedAtMs: 1_000_000 - 10_000 },
      want: { verdict: "failure", dueMs: 500 + 20_000 },
    },
    {
      name: "initial delay that is over",
      type: "Readiness",
      delaySeconds: 30,
      seen: { startedAtMs: 1_000_000 - 40_000 },
      want: { verdict: "failure", dueMs: 500 },
    },
    {
      name: "a clock that was put back an hour delays no more than the initial delay",
      type: "Liveness",
      delaySeconds: 30,
      seen: { startedAtMs: 1_000_000 + 3_600_000 },
      want: { verdict: "success", dueMs: 500 + 30_000 },
    },
    {
      name: "spread after the agent's start",
      type: "Liveness",
      around: { spreadMs: 700 },
      want: { verdict: "success", dueMs: 1_200 },
    },
    {
      name: "readiness waits for startup",
      type: "Readiness",
      around: { isStarted: false },
      want: { verdict: "failure" },
    },
    {
      name: "liveness waits for startup",
      type: "Liveness",
      around: { isStarted: false },
      want: { verdict: "success" },
    },
    {
      name: "startup passed: readiness is probed at once",
      type: "Readiness",
      state: {},
      want: { verdict: "failure", dueMs: 500 },
    },
    {
      name: "startup passed, but the initial delay is not over",
      type: "Readiness",
      delaySeconds: 30,
      state: {},
      seen: { startedAtMs: 1_000_000 - 10_000 },
      want: { verdict: "failure", dueMs: 500 + 20_000 },
    },
    {
      name: "seen again: nothing changes",
      type: "Readiness",
      state: { verdict: "success", dueMs: 9_000 },
      want: { verdict: "success", dueMs: 9_000 },
    },
    {
      name: "held: no more runs",
      type: "Liveness",
      state: { verdict: "failure", isHeld: true },
      want: { verdict: "failure", isHeld: true },
    },
    {
      name: "a new instance of one that was ready is not",
      type: "Readiness",
      state: { containerID: "app-old", verdict: "success", dueMs: 9_000 },
      want: { verdict: "failure", dueMs: 500 },
    },
    {
      name: "a new instance of one that was held is alive and probed",
      type: "Liveness",
      state: { containerID: "app-old", verdict: "failure", isHeld: true },
      want: { verdict: "success", dueMs: 500 },
    },
    {
      name: "a new instance has to start up anew, whatever a status said",
      type: "Startup",
      state: { containerID: "app-old", verdict: "success", isHeld: true },
      seen: { wasStarted: true },
      want: { verdict: "unknown", dueMs: 500 },
    },
    {
      name: "an exited one is not ready and not probed",
      type: "Readiness",
      state: { verdict: "success", dueMs: 9_000 },
      seen: { isRunning: false },
      want: { verdict: "failure" },
    },
    {
      name: "one that was made but does not run yet is not taken for dead",
      type: "Liveness",
      seen: { isRunning: false },
      want: { verdict: "success" },
    },
    {
      name: "one that was made and runs now is probed",
      type: "Liveness",
      state: { verdict: "success" },
      want: { verdict: "success", dueMs: 500 },
    },
    {
      name: "first sight of one that was ready: it still is",
      type: "Readiness",
      seen: { wasReady: true, startedAtMs: 1_000_000 - 2_000 },
      want: { verdict: "success", dueMs: 500 },
    },
    {
      name: "first sight of one that was started: no startup probe any more",
      type: "Startup",
      seen: { wasStarted: true },
      want: { verdict: "success", isHeld: true },
    },
    {
      name: "first sight of one that has ended although it was ready",
      type: "Readiness",
      seen: { wasReady: true, isRunning: false },
      want: { verdict: "failure" },
    },
  ];
  test.each(cases)("$name", ({ type, delaySeconds = 0, state, seen, around: changes, want }) => {
    const spec = specOf(type, { initialDelaySeconds: delaySeconds });
    const verdict = type === "Liveness" ? "success" : type === "Readiness" ? "failure" : "unknown";
    const before: ProbeState | undefined =
      state === undefined
        ? undefined
        : { containerID: "app-0", verdict, dueMs: undefined, streak: undefined, isHeld: false, ...state };
    const { dueMs, isHeld = false } = want;
    expect(followContainer(spec, before, seenOf({ ...startedNow, ...seen }), around(changes))).toMatchObject({
      containerID: "app-0",
      verdict: want.verdict,
      dueMs,
      isHeld,
    });
  });
});

describe("outcomes", () => {
  const cases: {
    name: string;
    type: "Startup" | "Liveness" | "Readiness";
    thresholds?: [success: number, failure: number];
    from?: Verdict;
    runs: ProbeOutcome[];
    want: Verdict[];
    isHeld?: boolean;
  }[] = [
    { name: "one success is enough", type: "Readiness", runs: [success], want: ["success"] },
    { name: "a warning counts as success", type: "Readiness", runs: [warning], want: ["success"] },
    {
      name: "failures below the threshold change nothing",
      type: "Readiness",
      from: "success",
      runs: [failure, failure, failure],
      want: ["success", "success", "failure"],
    },
    {
      name: "a success between failures begins the count anew",
      type: "Liveness",
      from: "success",
      runs: [failure, failure, success, failure, failure, failure],
      want: ["success", "success", "success", "success", "success", "failure"],
      isHeld: true,
    },
    {
      name: "successThreshold 3",
      type: "Readiness",
      thresholds: [3, 3],
      runs: [success, success, failure, success, warning, success],
      want: ["failure", "failure", "failure", "failure", "failure", "success"],
    },
    {
      name: "errors neither count nor begin the count anew",
      type: "Liveness",
      from: "success",
      runs: [failure, error, failure, error, failure],
      want: ["success", "success", "success", "success", "failure"],
      isHeld: true,
    },
    { name: "readiness is never final", type: "Readiness", runs: [success], want: ["success"], isHeld: false },
    { name: "a passed startup probe is final", type: "Startup", runs: [success], want: ["success"], isHeld: true },
    {
      name: "a failed startup probe is final",
      type: "Startup",
      thresholds: [1, 2],
      runs: [failure, failure],
      want: ["unknown", "failure"],
      isHeld: true,
    },
    { name: "an alive container is probed on", type: "Liveness", from: "success", runs: [success], want: ["success"] },
  ];
  test.each(cases)("$type: $name", ({ type, thresholds: [ok, bad] = [1, 3], from, runs, want, isHeld = false }) => {
    const spec = specOf(type, { successThreshold: ok, failureThreshold: bad });
    const verdict = from ?? (type === "Startup" ? "unknown" : "failure");
    let state: ProbeState = { containerID: "app-0", verdict, dueMs: 1, streak: undefined, isHeld: false };
    const got = runs.map((outcome) => {
      state = afterRun(spec, state, outcome);
      return state.verdict;
    });
    expect(got).toEqual(want);
    expect(state.isHeld).toBe(isHeld);
    if (isHeld) expect(state).toMatchObject({ dueMs: undefined, streak: undefined });
  });
});

test.each([
  { name: "a short run", nowMs: 1_010, want: 2_000 },
  { name: "one as long as the period", nowMs: 2_000, want: 2_000 },
  { name: "a longer one is followed by the next at once", nowMs: 2_300, want: 2_000 },
  { name: "much longer: what was missed before is left out", nowMs: 4_700, want: 4_000 },
])("nextDue after $name", ({ nowMs, want }) => {
  expect(nextDue(1_000, 1_000, nowMs)).toBe(want);
});

test("probes of regular containers and sidecars, startup first, with the API's defaults", () => {
  const probe = {};
  const pod = podWith({ livenessProbe: probe, readinessProbe: probe, startupProbe: probe }, [
    { name: "init", image: "image:1" },
    { name: "sidecar", image: "image:1", restartPolicy: "Always", readinessProbe: { periodSeconds: 3 } },
  ]);
  const specs = probesOf(pod);
  expect(specs.map(({ type, container, isSidecar }) => [type, container.name, isSidecar])).toEqual([
    ["Readiness", "sidecar", true],
    ["Startup", "app", false],
    ["Liveness", "app", false],
    ["Readiness", "app", false],
  ]);
  const { initialDelayMs, periodMs, successThreshold, failureThreshold } = specs[1] ?? specOf("Startup");
  expect([initialDelayMs, periodMs, successThreshold, failureThreshold]).toEqual([0, 10_000, 1, 3]);
  expect(specs[0]?.periodMs).toBe(3_000);
  expect([{}, { timeoutSeconds: 7 }, { timeoutSeconds: -1 }].map(probeTimeoutMs)).toEqual([1_000, 7_000, 1_000]);
});

test("a regular container that always restarts is no sidecar", () => {
  const [spec] = probesOf(podWith({ restartPolicy: "Always", livenessProbe: {} }));
  expect(spec?.isSidecar).toBe(false);
});

test("numbers of a static pod that make no sense are as good as none", () => {
  const spec = specOf("Liveness", { periodSeconds: 0, failureThreshold: 0, initialDelaySeconds: -5 });
  expect(spec).toMatchObject({ periodMs: 10_000, failureThreshold: 3, initialDelayMs: 0 });
});
