import { describe, expect, test } from "vitest";
import type { Pod, PodStatus } from "../../../agent/kube/types.ts";
import { buildPodStatus, type StatusInputs } from "../../../agent/pods/status.ts";
import { statusPatch } from "../../../agent/pods/status-patch.ts";
import { containerOf, exited, nothing, podOf, sandboxOf, snapshot } from "./support.ts";

const now = Date.parse("2026-01-02T03:04:05.678Z");

function statusOf(changes: Partial<StatusInputs> = {}): PodStatus {
  return buildPodStatus(
    {
      pod: podOf(),
      observed: nothing,
      previous: {},
      waiting: new Map(),
      terminationMessages: new Map(),
      hasSandbox: true,
      podIPs: ["10.0.0.2"],
      hostIPs: ["192.168.0.1"],
      runtimeName: "containerd",
      isTerminated: false,
      replaced: new Set(),
      ending: undefined,
      isStarted: () => true,
      isReady: () => true,
      ...changes,
    },
    now,
  );
}

const condition = (status: PodStatus, type: string) => status.conditions?.find((c) => c.type === type);
const never = podOf({ restartPolicy: "Never" });
const withInit = podOf({ initContainers: [{ name: "init", image: "image:1" }] });

const phases: { name: string; inputs: Partial<StatusInputs>; want: string }[] = [
  { name: "nothing yet", inputs: {}, want: "Pending" },
  { name: "running", inputs: { observed: snapshot({ containers: [containerOf()] }) }, want: "Running" },
  {
    name: "exited, will restart",
    inputs: { observed: snapshot({ containers: [exited({ exitCode: 1 })] }) },
    want: "Running",
  },
  { name: "done", inputs: { pod: never, observed: snapshot({ containers: [exited()] }) }, want: "Succeeded" },
  {
    name: "failed",
    inputs: { pod: never, observed: snapshot({ containers: [exited({ exitCode: 3 })] }) },
    want: "Failed",
  },
  {
    name: "init container failed for good",
    inputs: {
      pod: podOf({ restartPolicy: "Never", initContainers: [{ name: "init", image: "image:1" }] }),
      observed: snapshot({ containers: [exited({ name: "init", exitCode: 1 })] }),
    },
    want: "Failed",
  },
  {
    name: "init container runs",
    inputs: { pod: withInit, observed: snapshot({ containers: [containerOf({ name: "init" })] }) },
    want: "Pending",
  },
  {
    name: "in crash backoff",
    inputs: {
      observed: snapshot({ containers: [exited({ exitCode: 1 })] }),
      waiting: new Map([["app", { reason: "CrashLoopBackOff", message: "back-off 10s" }]]),
    },
    want: "Running",
  },
  { name: "deleted before it started", inputs: { isTerminated: true }, want: "Failed" },
  {
    name: "deleted, exited with 0",
    inputs: { isTerminated: true, observed: snapshot({ containers: [exited()] }) },
    want: "Succeeded",
  },
  {
    name: "a terminal phase is never left",
    inputs: { previous: { phase: "Failed" }, observed: snapshot({ containers: [containerOf()] }) },
    want: "Failed",
  },
];

test.each(phases)("phase: $name is $want", ({ inputs, want }) => {
  expect(statusOf(inputs).phase).toBe(want);
});

describe("container statuses", () => {
  test("a running container", () => {
    const status = statusOf({ observed: snapshot({ containers: [containerOf({ attempt: 2 })] }) });
    expect(status.containerStatuses?.[0]).toMatchObject({
      name: "app",
      ready: true,
      started: true,
      restartCount: 2,
      containerID: "containerd://app-2",
      imageID: "sha256:1",
      state: { running: { startedAt: "1970-01-01T00:00:02Z" } },
    });
    expect(status).toMatchObject({
      podIP: "10.0.0.2",
      hostIP: "192.168.0.1",
      startTime: "2026-01-02T03:04:05Z",
      qosClass: "BestEffort",
    });
  });

  test("waiting containers say what for", () => {
    expect(statusOf().containerStatuses?.[0]?.state).toEqual({ waiting: { reason: "ContainerCreating" } });
    expect(statusOf({ pod: withInit }).containerStatuses?.[0]?.state).toEqual({
      waiting: { reason: "PodInitializing" },
    });
    const waiting = new Map([["app", { reason: "ErrImagePull", message: "not found" }]]);
    expect(statusOf({ waiting }).containerStatuses?.[0]?.state?.waiting).toEqual({
      reason: "ErrImagePull",
      message: "not found",
    });
  });

  test("CrashLoopBackOff moves the exit to lastState", () => {
    const waiting = new Map([["app", { reason: "CrashLoopBackOff", message: "back-off 10s" }]]);
    const status = statusOf({ waiting, observed: snapshot({ containers: [exited({ exitCode: 7 })] }) })
      .containerStatuses?.[0];
    expect(status?.state?.waiting?.reason).toBe("CrashLoopBackOff");
    expect(status?.lastState?.terminated).toMatchObject({
      exitCode: 7,
      reason: "Error",
      containerID: "containerd://app-0",
    });
    expect(status?.ready).toBe(false);
  });

  test("the instance before the running one is lastState, also after the runtime forgot it", () => {
    const observed = snapshot({ containers: [containerOf({ attempt: 1 }), exited({ exitCode: 7 })] });
    const first = statusOf({ observed });
    expect(first.containerStatuses?.[0]?.lastState?.terminated?.exitCode).toBe(7);
    const second = statusOf({ previous: first, observed: snapshot({ containers: [containerOf({ attempt: 1 })] }) });
    expect(second.containerStatuses?.[0]?.lastState?.terminated?.exitCode).toBe(7);
  });

  test("a running container that vanished counts as killed and restarted", () => {
    const previous = statusOf({ observed: snapshot({ containers: [containerOf()] }) });
    const status = statusOf({ previous, observed: snapshot() }).containerStatuses?.[0];
    expect(status?.lastState?.terminated).toMatchObject({ exitCode: 137, reason: "ContainerStatusUnknown" });
    expect(status?.restartCount).toBe(1);
    expect(
      statusOf({ previous: { containerStatuses: [status ?? never] as never }, observed: snapshot() })
        .containerStatuses?.[0]?.restartCount,
    ).toBe(1);
  });

  test("last words are shown", () => {
    const terminationMessages = new Map([["app-0", "out of cheese"]]);
    const status = statusOf({
      pod: never,
      terminationMessages,
      observed: snapshot({ containers: [exited({ exitCode: 1 })] }),
    });
    expect(status.containerStatuses?.[0]?.state?.terminated?.message).toBe("out of cheese");
  });
});

describe("conditions", () => {
  test("of a running pod are True, with the generation they are about", () => {
    const status = statusOf({ observed: snapshot({ containers: [containerOf()] }) });
    for (const type of ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]) {
      expect(condition(status, type)).toMatchObject({ status: "True", observedGeneration: 1 });
    }
  });

  test("of a starting pod name the containers that are not ready", () => {
    const status = statusOf({ pod: withInit, hasSandbox: false });
    expect(condition(status, "PodReadyToStartContainers")?.status).toBe("False");
    expect(condition(status, "Ready")).toMatchObject({
      status: "False",
      reason: "ContainersNotReady",
      message: "containers with unready status: [app]",
    });
    expect(condition(status, "Initialized")).toMatchObject({
      reason: "ContainersNotInitialized",
      message: "containers with incomplete status: [init]",
    });
  });

  test("of a completed pod say so", () => {
    const status = statusOf({ pod: never, observed: snapshot({ containers: [exited()] }) });
    expect(condition(status, "Ready")).toMatchObject({ status: "False", reason: "PodCompleted" });
  });

  test("of a pod whose init container failed say that it never came further", () => {
    const pod = podOf({ restartPolicy: "Never", initContainers: [{ name: "init", image: "image:1" }] });
    const observed = snapshot({ containers: [exited({ name: "init", exitCode: 1 })] });
    const status = statusOf({ pod, observed, isTerminated: true });
    expect(condition(status, "Initialized")).toMatchObject({ status: "False", reason: "ContainersNotInitialized" });
    expect(status.containerStatuses?.[0]?.state).toEqual({ waiting: { reason: "PodInitializing" } });
  });

  test("of others are kept, and gate readiness", () => {
    const pod: Pod = podOf({ readinessGates: [{ conditionType: "example.com/gate" }] });
    const observed = snapshot({ containers: [containerOf()] });
    expect(condition(statusOf({ pod, observed }), "Ready")).toMatchObject({
      status: "False",
      reason: "ReadinessGatesNotReady",
    });
    const previous: PodStatus = { conditions: [{ type: "example.com/gate", status: "True" }] };
    const status = statusOf({ pod, observed, previous });
    expect(condition(status, "Ready")?.status).toBe("True");
    expect(condition(status, "example.com/gate")).toEqual({ type: "example.com/gate", status: "True" });
  });

  test("keep their transition time while their status stays", () => {
    const old = statusOf({ observed: snapshot({ containers: [containerOf()] }) });
    const previous = {
      ...old,
      conditions: (old.conditions ?? []).map((c) => ({ ...c, lastTransitionTime: "2020-01-01T00:00:00Z" })),
    };
    const status = statusOf({ previous, observed: snapshot({ sandboxes: [sandboxOf()] }) });
    expect(condition(status, "PodScheduled")?.lastTransitionTime).toBe("2020-01-01T00:00:00Z");
    expect(condition(status, "Ready")?.lastTransitionTime).toBe("2026-01-02T03:04:05Z");
  });
});

test("addresses stay while the agent does not know them again yet", () => {
  const previous = statusOf({ observed: snapshot({ containers: [containerOf()] }) });
  const status = statusOf({ previous, podIPs: [], hostIPs: [], observed: snapshot({ containers: [containerOf()] }) });
  expect(statusPatch("u1", previous, status)).toBeUndefined();
});

describe("status patch", () => {
  const status = statusOf({ observed: snapshot({ containers: [containerOf()] }) });

  test("is none when the server has it, whatever nulls and order it uses", () => {
    const stored = JSON.parse(JSON.stringify(status)) as PodStatus;
    expect(statusPatch("u1", { ...stored, conditions: stored.conditions?.toReversed() ?? [] }, status)).toBeUndefined();
  });

  test("carries the UID and only what differs", () => {
    const conditions = (status.conditions ?? []).map((c) =>
      c.type === "Ready" ? { ...c, status: "False" as const } : c,
    );
    expect(statusPatch("u1", { ...status, conditions }, status)).toEqual({
      metadata: { uid: "u1" },
      status: { conditions: [{ type: "Ready", status: "True" }] },
    });
  });

  test("replaces addresses as a whole and removes what is gone", () => {
    const { podIP: _podIP, podIPs: _podIPs, ...without } = status;
    expect(statusPatch("u1", { ...without, reason: "Old" }, status)).toEqual({
      metadata: { uid: "u1" },
      status: { reason: null, podIP: "10.0.0.2", podIPs: [{ ip: "10.0.0.2" }, { $patch: "replace" }] },
    });
  });

  test("never names conditions of others that did not change", () => {
    const gate = { type: "example.com/gate", status: "True" as const };
    const wanted = { ...status, conditions: [...(status.conditions ?? []), gate] };
    expect(statusPatch("u1", { ...wanted, phase: "Pending" }, wanted)).toEqual({
      metadata: { uid: "u1" },
      status: { phase: "Running" },
    });
  });
});
