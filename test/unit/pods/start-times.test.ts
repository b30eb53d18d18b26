import { describe, expect, test } from "vitest";
import type { Pod, PodStatus } from "../../../agent/kube/types.ts";
import { StartTimes } from "../../../agent/pods/start-times.ts";
import { FakeClock } from "../kube/fake-clock.ts";
import { podOf } from "./support.ts";

// The fake clock begins at 2026-01-01T00:00:00Z.
const creationTimestamp = "2025-12-31T23:59:58Z";
const running: PodStatus = {
  phase: "Running",
  startTime: creationTimestamp,
  containerStatuses: [
    {
      name: "app",
      state: { running: { startedAt: "2026-01-01T00:00:01Z" } },
      ready: true,
      restartCount: 0,
      image: "",
      imageID: "",
    },
  ],
};

function setUp() {
  const clock = new FakeClock();
  const measured: unknown[] = [];
  const starts = new StartTimes(clock, {
    begun: (seconds) => measured.push(["begun", seconds]),
    running: (seconds) => measured.push(["running", seconds]),
    shown: (_, total, own) => measured.push(["shown", total, own]),
  });
  return { clock, starts, measured };
}

const created = (spec: Partial<Pod["spec"]> = {}, status?: PodStatus): Pod => ({
  ...podOf(spec, { creationTimestamp }),
  ...(status === undefined ? {} : { status }),
});

test("a pod's start is measured once, step by step", async () => {
  const { clock, starts, measured } = setUp();
  expect(starts.seen(created())).toBe(true);
  await clock.advance(100);
  starts.begins("u1");
  starts.begins("u1");
  await clock.advance(400);
  starts.statusWanted("u1", { phase: "Pending" });
  starts.statusWanted("u1", running);
  starts.statusWanted("u1", running);
  await clock.advance(500);
  expect(starts.seen(created({}, running))).toBe(false);
  starts.seen(created({}, running));
  expect(measured).toEqual([
    ["begun", 0.1],
    ["running", 0.5],
    ["shown", 3, 3],
  ]);
});

test("time of pulls is not the node's, and pulls beside each other count once", async () => {
  const { clock, starts, measured } = setUp();
  starts.seen(created());
  starts.pull("u1", "began");
  await clock.advance(1_000);
  starts.pull("u1", "began");
  await clock.advance(1_000);
  starts.pull("u1", "ended");
  await clock.advance(1_000);
  starts.pull("u1", "ended");
  await clock.advance(500);
  starts.pull("u1", "began");
  await clock.advance(100);
  starts.pull("u1", "ended");
  starts.seen(created({}, running));
  expect(measured).toEqual([["shown", 5.6, expect.closeTo(2.5, 6)]]);
});

test("nor is that of init containers; sidecars run on", async () => {
  const { clock, starts, measured } = setUp();
  const initContainers = [{ name: "init" }, { name: "proxy", restartPolicy: "Always" as const }];
  starts.seen(created({ initContainers }));
  await clock.advance(2_000);
  const over = (name: string) => ({
    name,
    state: {
      terminated: { exitCode: 0, startedAt: "2026-01-01T00:00:00Z", finishedAt: "2026-01-01T00:00:01Z" },
    },
    ready: true,
    restartCount: 0,
    image: "",
    imageID: "",
  });
  starts.seen(created({ initContainers }, { ...running, initContainerStatuses: [over("init"), over("proxy")] }));
  expect(measured).toEqual([["shown", 4, 3]]);
});

describe("pods whose start says nothing about the node are left out", () => {
  const conditions = [{ type: "PodScheduled", status: "False" as const, reason: "Unschedulable" }];
  const cases: { name: string; first: Pod; later?: Pod }[] = [
    { name: "begun by an earlier agent", first: created({}, { startTime: creationTimestamp }) },
    { name: "running already", first: created({}, running) },
    { name: "ended already", first: created({}, { phase: "Failed" }) },
    { name: "ended at once", first: created(), later: created({}, { ...running, phase: "Succeeded" }) },
    { name: "had to wait for a place", first: created(), later: created({}, { ...running, conditions }) },
    { name: "without a creation time", first: podOf(), later: { ...podOf(), status: running } },
    {
      name: "not all containers run",
      first: created(),
      later: created({ containers: [{ name: "a" }, { name: "b" }] }, running),
    },
  ];
  for (const { name, first, later } of cases) {
    test(name, () => {
      const { starts, measured } = setUp();
      starts.seen(first);
      starts.seen(later ?? created({}, running));
      expect(measured).toEqual([]);
    });
  }
});

test("a pod with volumes that may take any time has a total, but no time of its own", () => {
  const cases: [string, object, boolean][] = [
    ["token", { projected: {} }, true],
    ["scratch", { emptyDir: {} }, true],
    ["claim", { persistentVolumeClaim: { claimName: "c" } }, false],
    ["host", { hostPath: { path: "/" } }, false],
  ];
  for (const [name, source, isQuick] of cases) {
    const { starts, measured } = setUp();
    const volumes = [{ name, ...source }];
    starts.seen(created({ volumes }));
    starts.seen(created({ volumes }, running));
    expect(measured).toEqual([["shown", 2, isQuick ? 2 : undefined]]);
  }
});

test("a pod that goes is forgotten, and may come again", () => {
  const { starts, measured } = setUp();
  starts.seen(created());
  starts.gone("u1");
  starts.begins("u1");
  starts.pull("u1", "ended");
  starts.statusWanted("u1", running);
  expect(measured).toEqual([]);
  expect(starts.seen(created())).toBe(true);
});
