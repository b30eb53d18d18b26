import { describe, expect, test } from "vitest";
import type { ContainerStatus } from "../../../../agent/runtime/port.ts";
import { rfc3339 } from "../../../../agent/lib/rfc3339.ts";
import {
  inProgressState,
  pendingState,
  reportedStates,
  resizeConditions,
  resizeMessage,
} from "../../../../agent/pods/resize/conditions.ts";
import { statusPatch } from "../../../../agent/pods/status-patch.ts";
import { containerOf, podOf, snapshot, statusOf } from "../support.ts";
import { both, requests, sized, sizedPod } from "./support.ts";

const at = (minute: number) => Date.UTC(2026, 0, 1, 0, minute);
const state = (reason: string, message: string, generation: number, minute: number) => ({
  reason,
  message,
  generation,
  sinceMs: at(minute),
});
const started = state("", "", 2, 1);

describe("a resize under way", () => {
  test("begins with the generation that asks for it", () => {
    expect(inProgressState(undefined, { reason: "", message: "", generation: 2 }, at(1))).toEqual(started);
  });

  test("is of that generation until it ends", () => {
    expect(inProgressState(started, { reason: "", message: "", generation: 5 }, at(2))).toBe(started);
  });

  test("has its error until it ends, and the time of its first", () => {
    const failed = inProgressState(started, { reason: "Error", message: "no", generation: 3 }, at(2));
    expect(failed).toEqual(state("Error", "no", 2, 2));
    expect(inProgressState(failed, { reason: "", message: "", generation: 3 }, at(3))).toBe(failed);
    expect(inProgressState(failed, { reason: "Error", message: "no, again", generation: 3 }, at(4))).toEqual(
      state("Error", "no, again", 2, 2),
    );
  });
});

test("a resize that waits has the time of its reason, and says what is new", () => {
  const deferred = pendingState(undefined, { reason: "Deferred", message: "full", generation: 2 }, at(1));
  expect(deferred).toEqual(state("Deferred", "full", 2, 1));
  expect(pendingState(deferred, { reason: "Deferred", message: "full", generation: 2 }, at(2))).toBe(deferred);
  expect(pendingState(deferred, { reason: "Deferred", message: "fuller", generation: 3 }, at(2))).toEqual(
    state("Deferred", "fuller", 3, 1),
  );
  expect(pendingState(deferred, { reason: "Infeasible", message: "never", generation: 3 }, at(2))).toEqual(
    state("Infeasible", "never", 3, 2),
  );
});

describe("conditions", () => {
  const pending = state("Deferred", "full", 3, 1);
  const shown = resizeConditions({ pending, inProgress: started }, rfc3339);

  test("are there while something is to be said", () => {
    expect(resizeConditions({}, rfc3339)).toEqual([]);
    expect(shown).toEqual([
      {
        type: "PodResizePending",
        status: "True",
        reason: "Deferred",
        message: "full",
        observedGeneration: 3,
        lastProbeTime: null,
        lastTransitionTime: "2026-01-01T00:01:00Z",
      },
      {
        type: "PodResizeInProgress",
        status: "True",
        observedGeneration: 2,
        lastProbeTime: null,
        lastTransitionTime: "2026-01-01T00:01:00Z",
      },
    ]);
  });

  test("are read back by the next agent", () => {
    expect(reportedStates({ ...podOf(), status: { conditions: shown } })).toEqual({ pending, inProgress: started });
    expect(reportedStates(podOf())).toEqual({});
  });

  test("are in the status, and leave it with a patch; what older agents said is removed", () => {
    const resize = { actual: undefined, states: { pending } };
    const before = statusOf({ resize });
    expect(before.conditions).toContainEqual(shown[0]);
    const after = statusOf({ previous: before, resize: { actual: undefined, states: {} } });
    expect(statusPatch("u1", { ...before, resize: "Proposed" }, after)).toMatchObject({
      status: { conditions: [{ $patch: "delete", type: "PodResizePending" }], resize: null },
    });
    expect(statusOf({ resize, isTerminated: true }).conditions?.map(({ type }) => type)).not.toContain(
      "PodResizePending",
    );
  });
});

test("the status of a pod with resources of its own tells what was given and what it has", () => {
  const pod = sizedPod("web", {}, { resources: both("2", "2Gi") });
  const resize = { actual: { containers: {}, pod: both("1", "1Gi") }, states: {} };
  expect(statusOf({ pod, resize })).toMatchObject({
    resources: both("1", "1Gi"),
    allocatedResources: { cpu: "2", memory: "2Gi" },
  });
  expect(statusOf({ pod })).toMatchObject({ resources: both("2", "2Gi") });
  expect(statusOf()).not.toHaveProperty("resources");
});

test("messages of events name the resources", () => {
  expect(resizeMessage("started", sizedPod("web", requests("1", "1Gi")), 2)).toBe(
    'Pod resize started: {"containers":[{"name":"app","resources":{"requests":{"cpu":"1","memory":"1Gi"}}}],"generation":2}',
  );
  const pod = podOf({ containers: [sized("app", {})], initContainers: [sized("init", {})] });
  expect(resizeMessage("Deferred", pod, 3, "full")).toBe(
    'Pod resize Deferred: {"initContainers":[{"name":"init","resources":{}}],"containers":[{"name":"app","resources":{}}],"generation":3,"error":"full"}',
  );
});

describe("what a container has, where the runtime does not say", () => {
  const pod = sizedPod("web", both("2", "2Gi"));
  const shown = (changes: Partial<ContainerStatus>, actual?: ReturnType<typeof both>) => {
    const containers = actual === undefined ? {} : { app: actual };
    const observed = snapshot({ containers: [containerOf(changes)] });
    const [status] =
      statusOf({ pod, observed, resize: { actual: { containers }, states: {} } }).containerStatuses ?? [];
    return status;
  };

  test("is what it was last told while it runs", () => {
    expect(shown({}, both("1", "1Gi"))).toMatchObject({
      resources: both("1", "1Gi"),
      allocatedResources: { cpu: "2", memory: "2Gi" },
    });
  });

  test("is what the runtime says, where it does", () => {
    const resources = { cpuShares: 1536, cpuQuota: 150_000, cpuPeriod: 100_000, memoryLimitBytes: 3 << 29 };
    expect(shown({ resources }, both("1", "1Gi"))?.resources).toEqual({
      requests: { cpu: "1500m", memory: "1Gi" },
      limits: { cpu: "1500m", memory: "1536Mi" },
    });
  });

  test("is what it was given when it does not run, or nobody knows", () => {
    expect(shown({ state: "exited" }, both("1", "1Gi"))?.resources).toEqual(both("2", "2Gi"));
    expect(shown({})?.resources).toEqual(both("2", "2Gi"));
  });
});
