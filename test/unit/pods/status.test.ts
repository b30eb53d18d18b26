import { describe, expect, test } from "vitest";
import type { Condition, Pod, PodStatus } from "../../../agent/kube/types.ts";
import { deadlineExceeded, type PodEnding, rejection } from "../../../agent/pods/ending.ts";
import type { StatusInputs } from "../../../agent/pods/status.ts";
import { statusPatch } from "../../../agent/pods/status-patch.ts";
import { containerOf, exited, nothing, podOf, sandboxOf, snapshot, statusOf } from "./support.ts";

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

  test("of a completed pod without init containers say that it was initialized", () => {
    const status = statusOf({ pod: never, observed: snapshot({ containers: [exited()] }) });
    expect(condition(status, "Initialized")).toMatchObject({ status: "True", reason: "PodCompleted" });
    expect(condition(status, "ContainersReady")).toMatchObject({ status: "False", reason: "PodCompleted" });
  });

  test("of a failed pod say so", () => {
    const status = statusOf({ pod: never, observed: snapshot({ containers: [exited({ exitCode: 1 })] }) });
    for (const type of ["Ready", "ContainersReady"]) {
      expect(condition(status, type)).toMatchObject({ status: "False", reason: "PodFailed" });
    }
  });

  test("name sidecars that are not ready, and are initialized once these have started", () => {
    const pod = podOf({ initContainers: [{ name: "side", image: "image:1", restartPolicy: "Always" }] });
    const observed = snapshot({ containers: [containerOf({ name: "side" })] });
    const starting = statusOf({ pod, observed, isStarted: () => false });
    expect(condition(starting, "Initialized")).toMatchObject({ message: "containers with incomplete status: [side]" });
    expect(condition(starting, "Ready")?.message).toBe("containers with unready status: [side app]");
    expect(condition(statusOf({ pod, observed }), "Initialized")?.status).toBe("True");
  });

  test("that say a pod was initialized say so for good", () => {
    const previous: PodStatus = { conditions: [{ type: "Initialized", status: "True" }] };
    const observed = snapshot({ containers: [containerOf({ name: "init" })] });
    expect(condition(statusOf({ pod: withInit, observed, previous }), "Initialized")?.status).toBe("True");
  });

  test("are about the newest generation that was seen", () => {
    expect(statusOf({ previous: { observedGeneration: 4 } }).observedGeneration).toBe(4);
    expect(
      statusOf({ pod: podOf({}, { generation: 5 }), previous: { observedGeneration: 4 } }).observedGeneration,
    ).toBe(5);
  });

  test("say that containers can start as soon as the sandbox is there", () => {
    expect(condition(statusOf({ hasSandbox: true }), "PodReadyToStartContainers")?.status).toBe("True");
    expect(condition(statusOf({ hasReadyToStart: false }), "PodReadyToStartContainers")).toBeUndefined();
  });

  const gates: [name: string, conditions: Condition[], message: string][] = [
    ["is missing", [], 'corresponding condition of pod readiness gate "example.com/gate" does not exist.'],
    [
      "is not True",
      [{ type: "example.com/gate", status: "Unknown" }],
      'the status of pod readiness gate "example.com/gate" is not "True", but Unknown',
    ],
  ];
  test.each(gates)("a readiness gate that %s keeps the pod from being ready", (_name, conditions, message) => {
    const pod = podOf({ readinessGates: [{ conditionType: "example.com/gate" }] });
    const status = statusOf({ pod, previous: { conditions }, observed: snapshot({ containers: [containerOf()] }) });
    expect(condition(status, "Ready")).toMatchObject({ status: "False", reason: "ReadinessGatesNotReady", message });
    expect(condition(status, "ContainersReady")?.status).toBe("True");
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

describe("a pod that the node ends", () => {
  const over = { isTerminated: true, observed: snapshot({ containers: [exited({ exitCode: 143 })] }) };
  const preempted: PodEnding = { reason: "Preempting", message: "Preempted", disruption: "for a critical pod" };

  test("says why, and that it was not its own doing", () => {
    const status = statusOf({ ...over, previous: { phase: "Running" }, ending: preempted });
    expect(status).toMatchObject({ phase: "Failed", reason: "Preempting", message: "Preempted" });
    expect(condition(status, "DisruptionTarget")).toMatchObject({
      status: "True",
      reason: "TerminationByKubelet",
      message: "for a critical pod",
      observedGeneration: 1,
    });
    const later = statusOf({ ...over, previous: status });
    expect(statusPatch("u1", status, later)).toBeUndefined();
  });

  test("by its deadline has failed, even if all ended well", () => {
    const observed = snapshot({ containers: [exited()] });
    const status = statusOf({ ...over, observed, previous: { phase: "Running" }, ending: deadlineExceeded });
    expect(status).toMatchObject({ phase: "Failed", reason: "DeadlineExceeded" });
    expect(condition(status, "DisruptionTarget")).toBeUndefined();
  });

  test("keeps a reason as long as its phase", () => {
    const previous: PodStatus = { phase: "Failed", reason: "Evicted", message: "no disk", containerStatuses: [] };
    expect(statusOf({ ...over, previous, ending: preempted })).toMatchObject({ reason: "Evicted", message: "no disk" });
  });

  test("before it began says nothing of containers", () => {
    const ending = rejection("OutOfcpu", "no CPU");
    const previous: PodStatus = {
      phase: "Pending",
      conditions: [
        { type: "PodScheduled", status: "True" },
        { type: "example.com/mine", status: "True" },
      ],
      containerStatuses: [],
    };
    const status = statusOf({ ending, previous });
    expect(status).toEqual({
      phase: "Failed",
      reason: "OutOfcpu",
      message: "Pod was rejected: no CPU",
      qosClass: "BestEffort",
      observedGeneration: 1,
      startTime: "2026-01-02T03:04:05Z",
    });
    expect(statusPatch("u1", previous, status)).toMatchObject({
      status: { conditions: [{ $patch: "delete", type: "PodScheduled" }], containerStatuses: null },
    });
    expect(statusOf({ previous: status, observed: nothing })).toEqual(status);
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
