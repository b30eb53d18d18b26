import { describe, expect, test } from "vitest";
import type { Container, ContainerStatus, Pod, PodStatus } from "../../../agent/kube/types.ts";
import type { StatusInputs } from "../../../agent/pods/status.ts";
import { withoutPostStart } from "../../../agent/pods/status-inputs.ts";
import type { LinuxResources, MountedImage } from "../../../agent/runtime/port.ts";
import { containerOf, exited, nothing, podOf, sandboxOf, snapshot, statusOf } from "./support.ts";

const appOf = (changes: Partial<StatusInputs> = {}) => statusOf(changes).containerStatuses?.[0];
const initOf = (changes: Partial<StatusInputs> = {}) => statusOf(changes).initContainerStatuses?.[0];
const withInit = podOf({ initContainers: [{ name: "init", image: "image:1" }] });
const withSidecar = podOf({ initContainers: [{ name: "init", image: "image:1", restartPolicy: "Always" }] });
const never = podOf({ restartPolicy: "Never" });
const waitingFor = (reason: string) => new Map([["app", { reason, message: "why" }]]);
const said = (status: Partial<ContainerStatus>): PodStatus => ({
  phase: "Running",
  containerStatuses: [{ name: "app", ready: true, restartCount: 0, image: "image:1", imageID: "sha256:1", ...status }],
});
const saidRunning = said({
  state: { running: { startedAt: "1970-01-01T00:00:02Z" } },
  containerID: "containerd://app-0",
});

describe("states", () => {
  const rows: { name: string; inputs: Partial<StatusInputs>; want: Partial<ContainerStatus> }[] = [
    {
      name: "not made yet",
      inputs: {},
      want: { state: { waiting: { reason: "ContainerCreating" } }, restartCount: 0 },
    },
    {
      name: "not made yet, with init containers",
      inputs: { pod: withInit },
      want: { state: { waiting: { reason: "PodInitializing" } } },
    },
    {
      name: "made, not started",
      inputs: { observed: snapshot({ containers: [containerOf({ state: "created" })] }) },
      want: { state: { waiting: {} }, started: false, ready: false },
    },
    {
      name: "running",
      inputs: { observed: snapshot({ containers: [containerOf()] }) },
      want: { state: { running: { startedAt: "1970-01-01T00:00:02Z" } }, started: true, ready: true },
    },
    {
      name: "not started as its probe says",
      inputs: { observed: snapshot({ containers: [containerOf()] }), isStarted: () => false },
      want: { started: false, ready: false },
    },
    {
      name: "not ready as its probe says",
      inputs: { observed: snapshot({ containers: [containerOf()] }), isReady: () => false },
      want: { started: true, ready: false },
    },
    {
      name: "ended",
      inputs: { pod: never, observed: snapshot({ containers: [exited({ exitCode: 3, reason: "OOMKilled" })] }) },
      want: {
        state: {
          terminated: {
            exitCode: 3,
            reason: "OOMKilled",
            startedAt: "1970-01-01T00:00:02Z",
            finishedAt: "1970-01-01T00:00:03Z",
            containerID: "containerd://app-0",
          },
        },
        ready: false,
      },
    },
    {
      name: "could not be started, and is not tried again",
      inputs: {
        pod: never,
        observed: snapshot({
          containers: [exited({ exitCode: 128, reason: "StartError", message: "no such file", startedAtMs: 0 })],
        }),
        waiting: waitingFor("RunContainerError"),
      },
      want: {
        state: {
          terminated: {
            exitCode: 128,
            reason: "StartError",
            message: "no such file",
            startedAt: null,
            finishedAt: "1970-01-01T00:00:03Z",
            containerID: "containerd://app-0",
          },
        },
      },
    },
    {
      name: "could not be started, and is tried again",
      inputs: {
        observed: snapshot({ containers: [exited({ exitCode: 128, reason: "ContainerCannotRun" })] }),
        waiting: waitingFor("RunContainerError"),
      },
      want: {
        state: { waiting: { reason: "RunContainerError", message: "why" } },
        lastState: { terminated: expect.objectContaining({ exitCode: 128, reason: "ContainerCannotRun" }) as never },
      },
    },
    {
      name: "a reason to wait says nothing about one that runs",
      inputs: { observed: snapshot({ containers: [containerOf()] }), waiting: waitingFor("ImagePullBackOff") },
      want: { state: { running: { startedAt: "1970-01-01T00:00:02Z" } } },
    },
    {
      name: "a pod that is deleted restarts nothing",
      inputs: {
        pod: podOf({}, { deletionTimestamp: "2026-01-01T00:00:00Z" }),
        observed: snapshot({ containers: [exited({ exitCode: 1 })] }),
        waiting: waitingFor("CrashLoopBackOff"),
      },
      want: { state: { terminated: expect.objectContaining({ exitCode: 1 }) as never } },
    },
    {
      name: "on its way to the one that replaces it, although the pod never restarts",
      inputs: {
        pod: never,
        replaced: new Set(["app"]),
        observed: snapshot({ containers: [exited({ exitCode: 143 })] }),
      },
      want: {
        state: { waiting: { reason: "ContainerCreating" } },
        lastState: { terminated: expect.objectContaining({ exitCode: 143 }) as never },
      },
    },
    {
      name: "who it runs as",
      inputs: {
        observed: snapshot({ containers: [containerOf({ user: { uid: 1, gid: 2, supplementalGroups: [2, 3] } })] }),
      },
      want: { user: { linux: { uid: 1, gid: 2, supplementalGroups: [2, 3] } } },
    },
  ];
  test.each(rows)("$name", ({ inputs, want }) => expect(appOf(inputs)).toMatchObject(want));

  test("by which signal it is stopped is told behind a gate", () => {
    const observed = snapshot({ containers: [containerOf({ stopSignal: "SIGUSR1" })] });
    expect(appOf({ observed })).not.toHaveProperty("stopSignal");
    expect(appOf({ observed, hasStopSignals: true })).toMatchObject({ stopSignal: "SIGUSR1" });
    const silent = snapshot({ containers: [containerOf()] });
    expect(appOf({ observed: silent, hasStopSignals: true })).not.toHaveProperty("stopSignal");
  });
  test("init containers stand in the order of the spec, others by name", () => {
    const pod = podOf({
      initContainers: [{ name: "z" }, { name: "a" }],
      containers: [{ name: "y" }, { name: "b" }],
      ephemeralContainers: [{ name: "x" }, { name: "c" }],
    });
    const {
      initContainerStatuses: inits,
      containerStatuses: regular,
      ephemeralContainerStatuses: debug,
    } = statusOf({ pod });
    expect([inits, regular, debug].map((list) => list?.map(({ name }) => name))).toEqual([
      ["z", "a"],
      ["b", "y"],
      ["c", "x"],
    ]);
  });

  test("an ephemeral container is neither started nor ready, and stays as it ended", () => {
    const pod = podOf({ ephemeralContainers: [{ name: "debug" }] });
    const running = snapshot({ containers: [containerOf({ name: "debug" }), containerOf()] });
    const [status] = statusOf({ pod, observed: running }).ephemeralContainerStatuses ?? [];
    expect(status).toMatchObject({ state: { running: {} }, ready: false });
    expect(status).not.toHaveProperty("started");
  });
});

describe("init containers", () => {
  const ran = (changes: object = {}) => exited({ name: "init", ...changes });
  const rows: { name: string; inputs: Partial<StatusInputs>; want: Partial<ContainerStatus> }[] = [
    {
      name: "running",
      inputs: { pod: withInit, observed: snapshot({ containers: [containerOf({ name: "init" })] }) },
      want: { ready: false },
    },
    {
      name: "done",
      inputs: { pod: withInit, observed: snapshot({ containers: [ran()] }) },
      want: { ready: true, started: false },
    },
    {
      name: "done, and nothing to wait for",
      inputs: {
        pod: withInit,
        observed: snapshot({ containers: [ran()] }),
        waiting: new Map([["init", { reason: "CrashLoopBackOff", message: "" }]]),
      },
      want: { state: { terminated: expect.objectContaining({ exitCode: 0 }) as never } },
    },
    {
      name: "gone from the runtime, but what comes after it is there",
      inputs: { pod: withInit, observed: snapshot({ containers: [containerOf()] }) },
      want: {
        state: { terminated: expect.objectContaining({ exitCode: 0, reason: "Completed" }) as never },
        ready: true,
      },
    },
    {
      name: "a sidecar that is gone waits",
      inputs: { pod: withSidecar, observed: snapshot({ containers: [containerOf()] }) },
      want: { state: { waiting: { reason: "PodInitializing" } } },
    },
    {
      name: "a sidecar is ready as regular ones are",
      inputs: { pod: withSidecar, observed: snapshot({ containers: [containerOf({ name: "init" })] }) },
      want: { ready: true, started: true },
    },
  ];
  test.each(rows)("$name", ({ inputs, want }) => expect(initOf(inputs)).toMatchObject(want));
});

describe("what the runtime forgot", () => {
  const rows: { name: string; inputs: Partial<StatusInputs>; want: Partial<ContainerStatus> }[] = [
    {
      name: "ran: it was killed, and is restarted",
      inputs: { previous: saidRunning, observed: snapshot() },
      want: {
        state: { waiting: { reason: "ContainerCreating" } },
        lastState: {
          terminated: expect.objectContaining({ exitCode: 137, reason: "ContainerStatusUnknown" }) as never,
        },
        restartCount: 1,
      },
    },
    {
      name: "ran, and the pod is deleted: it was killed",
      inputs: {
        previous: saidRunning,
        observed: snapshot(),
        pod: podOf({}, { deletionTimestamp: "2026-01-01T00:00:00Z" }),
      },
      want: { lastState: { terminated: expect.objectContaining({ exitCode: 137 }) as never }, restartCount: 0 },
    },
    {
      name: "had ended: that stays",
      inputs: { previous: said({ state: { terminated: { exitCode: 5 } }, restartCount: 4 }), observed: snapshot() },
      want: { state: { terminated: { exitCode: 5 } }, restartCount: 4 },
    },
    {
      name: "waited after a crash: that stays, too",
      inputs: {
        previous: said({
          state: { waiting: { reason: "CrashLoopBackOff" } },
          lastState: { terminated: { exitCode: 5 } },
          restartCount: 4,
        }),
        observed: snapshot(),
      },
      want: {
        state: { waiting: { reason: "ContainerCreating" } },
        lastState: { terminated: { exitCode: 5 } },
        restartCount: 4,
      },
    },
    {
      name: "it lost track of one that ran",
      inputs: { previous: saidRunning, observed: snapshot({ containers: [containerOf({ state: "unknown" })] }) },
      want: {
        state: { terminated: expect.objectContaining({ exitCode: 137, reason: "ContainerStatusUnknown" }) as never },
        restartCount: 1,
      },
    },
    {
      name: "it lost track of one of which nothing was said",
      inputs: { observed: snapshot({ containers: [containerOf({ state: "unknown" })] }) },
      want: { state: { waiting: {} } },
    },
  ];
  test.each(rows)("$name", ({ inputs, want }) => expect(appOf(inputs)).toMatchObject(want));
});

describe("an end that was told", () => {
  const done: PodStatus = {
    initContainerStatuses: [
      {
        name: "init",
        ready: true,
        restartCount: 0,
        image: "image:1",
        imageID: "",
        state: { terminated: { exitCode: 0 } },
      },
    ],
  };
  const again = snapshot({ containers: [containerOf({ name: "init", attempt: 1 })] });
  const stateUnder = (restartPolicy: "Always" | "OnFailure" | "Never", exitCode = 0) => {
    const [init] = done.initContainerStatuses ?? [];
    const previous: PodStatus = {
      initContainerStatuses: init === undefined ? [] : [{ ...init, state: { terminated: { exitCode } } }],
    };
    const pod = podOf({ ...withInit.spec, restartPolicy });
    return Object.keys(initOf({ pod, previous, observed: again })?.state ?? {})[0];
  };
  test("stays where the API server would not take it back", () => {
    expect(stateUnder("OnFailure")).toBe("terminated");
    expect(stateUnder("Never")).toBe("terminated");
    expect(stateUnder("Never", 1)).toBe("terminated");
  });
  test("is followed by what comes where it would", () => {
    expect(stateUnder("Always")).toBe("running");
    expect(stateUnder("OnFailure", 1)).toBe("running");
  });
  test("is followed by the next end", () => {
    const observed = snapshot({ containers: [exited({ name: "init", attempt: 1, exitCode: 5 })] });
    const pod = podOf({ ...withInit.spec, restartPolicy: "OnFailure" });
    expect(initOf({ pod, previous: done, observed })).toMatchObject({
      restartCount: 1,
      state: { terminated: { exitCode: 5 } },
    });
  });
});

describe("restart counts", () => {
  const counted = (attempt: number, previous: PodStatus = {}) =>
    appOf({ previous, observed: snapshot({ containers: [containerOf({ attempt, id: `new-${attempt}` })] }) })
      ?.restartCount;
  test("come from the instance", () => expect(counted(3)).toBe(3));
  test("never fall", () => expect(counted(0, said({ restartCount: 7, state: { waiting: {} } }))).toBe(7));
  test("rise with an instance that does not know of the one before", () => {
    const previous = said({ restartCount: 2, state: { terminated: { exitCode: 1 } }, containerID: "containerd://old" });
    expect(counted(0, previous)).toBe(3);
  });
  test("do not rise twice", () => {
    const previous = said({ restartCount: 3, state: { running: {} }, containerID: "containerd://new-0" });
    expect(counted(0, previous)).toBe(3);
  });
});

describe("at the end", () => {
  const unknown = expect.objectContaining({ exitCode: 137, reason: "ContainerStatusUnknown" }) as never;
  const over = { isTerminated: true };
  const two = podOf({ initContainers: [{ name: "init" }, { name: "late" }] });
  test("containers of which nothing is known are taken for killed", () => {
    expect(appOf(over)?.state).toEqual({ terminated: unknown });
  });
  test("one that waited for its restart is shown as it ended", () => {
    const observed = snapshot({ containers: [exited({ exitCode: 9 })] });
    const status = appOf({ ...over, observed, waiting: waitingFor("CrashLoopBackOff") });
    expect(status).toMatchObject({
      state: { terminated: { exitCode: 9 } },
      lastState: {},
      ready: false,
      started: false,
    });
  });
  test("those of a pod that never came so far wait for ever", () => {
    const observed = snapshot({ containers: [exited({ name: "init", exitCode: 1 })] });
    const status = statusOf({ ...over, pod: two, observed });
    expect(status.containerStatuses?.[0]?.state).toEqual({ waiting: { reason: "PodInitializing" } });
    expect(status.initContainerStatuses?.map(({ state }) => state?.terminated?.exitCode)).toEqual([1, undefined]);
    expect(status.phase).toBe("Failed");
  });
  test("init containers before the last that ran are taken for killed, too", () => {
    const observed = snapshot({ containers: [exited({ name: "late", exitCode: 1 })] });
    const status = statusOf({ ...over, pod: two, observed });
    expect(status.initContainerStatuses?.map(({ state }) => state?.terminated?.exitCode)).toEqual([137, 1]);
  });
});

describe("a restart of all containers", () => {
  const trigger: Container = {
    name: "watch",
    image: "image:1",
    restartPolicy: "Never",
    restartPolicyRules: [{ action: "RestartAllContainers", exitCodes: { operator: "In", values: [42] } }],
  };
  const pod: Pod = podOf({
    restartPolicy: "Never",
    initContainers: [{ name: "init", image: "image:1" }],
    containers: [{ name: "app", image: "image:1" }, trigger],
  });
  const all = [exited({ name: "watch", exitCode: 42 }), containerOf(), exited({ name: "init" })];
  const condition = ({ conditions }: PodStatus, type: string) => conditions?.find((c) => c.type === type);
  const step = (containers: typeof all, previous: PodStatus = {}) =>
    statusOf({ pod, previous, observed: snapshot({ containers }) });
  const summary = ({ initContainerStatuses = [], containerStatuses = [] }: PodStatus) =>
    Object.fromEntries(
      [...initContainerStatuses, ...containerStatuses].map(({ name, state, lastState, restartCount }) => [
        name,
        [state?.waiting?.reason ?? Object.keys(state ?? {})[0], lastState?.terminated?.reason, restartCount],
      ]),
    );
  const removed = ["RestartingAllContainers", "RestartingAllContainers", 1];

  test("is told step by step, and the pod stays what it was", () => {
    const before = step([containerOf({ name: "watch" }), containerOf(), exited({ name: "init" })]);
    const begun = step(all, before);
    expect(condition(begun, "AllContainersRestarting")).toMatchObject({
      status: "True",
      reason: "RestartAllContainersStarted",
    });
    expect(summary(begun)).toEqual({
      init: ["terminated", undefined, 0],
      app: ["running", undefined, 0],
      watch: ["terminated", undefined, 0],
    });

    const half = step(all.slice(0, 1), begun);
    expect(summary(half)).toEqual({ init: removed, app: removed, watch: ["terminated", undefined, 0] });
    const empty = step([], half);
    expect(summary(empty)).toEqual({ init: removed, app: removed, watch: removed });
    expect(condition(empty, "AllContainersRestarting")?.status).toBe("False");
    expect(condition(empty, "Initialized")?.status).toBe("True");
    expect(empty.phase).toBe("Running");

    const initAgain = step([containerOf({ name: "init", attempt: 1 })], empty);
    expect(summary(initAgain)["init"]).toEqual(["running", "RestartingAllContainers", 1]);
    expect(summary(initAgain)["app"]).toEqual(["PodInitializing", "RestartingAllContainers", 1]);
    expect(condition(initAgain, "Initialized")?.status).toBe("True");
  });

  test("that another agent finished is told all the same", () => {
    const before = step([containerOf({ name: "watch" }), containerOf(), exited({ name: "init" })]);
    const begun = step(all, before);
    expect(summary(step([], begun))).toEqual({ init: removed, app: removed, watch: removed });
  });

  test("is over with the pod", () => {
    const observed = snapshot({ containers: all });
    const status = statusOf({ pod, observed, isTerminated: true });
    expect(condition(status, "AllContainersRestarting")).toMatchObject({ status: "False", reason: "PodFailed" });
  });
});

describe("mounts", () => {
  const pod = podOf({
    containers: [
      {
        name: "app",
        volumeMounts: [
          { name: "data", mountPath: "/data" },
          { name: "fixed", mountPath: "/fixed", readOnly: true },
          { name: "deep", mountPath: "/deep", readOnly: true, recursiveReadOnly: "IfPossible" },
        ],
      },
    ],
  });
  test("are named, and read-only as deep as the runtime can", () => {
    expect(appOf({ pod })?.volumeMounts).toEqual([
      { name: "data", mountPath: "/data" },
      { name: "fixed", mountPath: "/fixed", readOnly: true, recursiveReadOnly: "Disabled" },
      { name: "deep", mountPath: "/deep", readOnly: true, recursiveReadOnly: "Disabled" },
    ]);
    const hasRecursiveReadOnly = (handler: string) => handler === "able";
    const observed = snapshot({ sandboxes: [sandboxOf({ runtimeHandler: "able" })] });
    expect(appOf({ pod, observed, hasRecursiveReadOnly })?.volumeMounts?.at(-1)?.recursiveReadOnly).toBe("Enabled");
  });
  test("stay as first said", () => {
    const volumeMounts = [{ name: "old", mountPath: "/old" }];
    expect(appOf({ pod, previous: said({ volumeMounts }) })?.volumeMounts).toEqual(volumeMounts);
  });
  test("tell the image of an image volume once the runtime does, behind its gate", () => {
    const image: MountedImage = {
      image: "sha256:1",
      userSpecifiedImage: "model:1",
      runtimeHandler: "",
      annotations: {},
    };
    const shape = { hostPath: "", readonly: true, selinuxRelabel: false, recursiveReadOnly: false };
    const mounts = [{ ...shape, containerPath: "/data", propagation: "PRIVATE" as const, image }];
    const seen = (changes: Partial<StatusInputs>) =>
      appOf({ pod, ...changes })?.volumeMounts?.map((m) => m.volumeStatus);
    const observed = snapshot({ containers: [containerOf({ mounts })] });
    expect(seen({ observed })).toEqual([undefined, undefined, undefined]);
    expect(seen({ observed: snapshot(), hasVolumeImages: true })).toEqual([undefined, undefined, undefined]);
    expect(seen({ observed, hasVolumeImages: true })).toEqual([
      { image: { imageRef: "sha256:1" } },
      undefined,
      undefined,
    ]);
    const withDigest = mounts.map((mount) => ({ ...mount, image: { ...image, imageRef: "model@sha256:2" } }));
    const later = snapshot({ containers: [containerOf({ mounts: withDigest })] });
    expect(seen({ observed: later, hasVolumeImages: true })?.[0]).toEqual({ image: { imageRef: "model@sha256:2" } });
  });
  test("are nothing if there are none", () => expect(appOf()).not.toHaveProperty("volumeMounts"));
});

describe("resources", () => {
  const given = { requests: { cpu: "250m", memory: "64Mi" }, limits: { cpu: "500m", memory: "128Mi" } };
  const podWith = (resources: Container["resources"]) =>
    podOf({ containers: [{ name: "app", image: "image:1", ...(resources === undefined ? {} : { resources }) }] });
  const shown = (
    actual: LinuxResources | undefined,
    resources: Container["resources"] = given,
    previous: PodStatus = {},
  ) =>
    appOf({
      pod: podWith(resources),
      previous,
      observed: snapshot({ containers: [containerOf({ resources: actual })] }),
    })?.resources;
  const as = { cpuShares: 256, cpuQuota: 50_000, cpuPeriod: 100_000, memoryLimitBytes: 128 * 2 ** 20 };

  test("are what was given as long as the runtime says the same", () => expect(shown(as)).toEqual(given));
  test("are what the runtime says", () => {
    expect(shown({ cpuShares: 512, cpuQuota: 100_000, cpuPeriod: 100_000, memoryLimitBytes: 256 * 2 ** 20 })).toEqual({
      requests: { cpu: "500m", memory: "64Mi" },
      limits: { cpu: "1", memory: "256Mi" },
    });
  });
  test("of a runtime that says nothing are what was given", () => expect(shown(undefined)).toEqual(given));
  test("of a runtime that says nothing any more stay", () => {
    const resources = { requests: { cpu: "100m", memory: "64Mi" }, limits: { cpu: "200m", memory: "96Mi" } };
    const previous = said({ state: { running: {} }, containerID: "containerd://app-0", resources });
    expect(shown(undefined, given, previous)).toEqual(resources);
    const other = said({ state: { running: {} }, containerID: "containerd://app-9", resources });
    expect(shown(undefined, given, other)).toEqual(given);
  });
  test("below what the kernel can tell apart are what was given", () => {
    const tiny = { requests: { cpu: "1m" }, limits: { cpu: "5m" } };
    expect(shown({ cpuShares: 2, cpuQuota: 1_000, cpuPeriod: 100_000 }, tiny)).toEqual(tiny);
  });
  test("that nobody asked for are not shown", () => expect(shown(as, {})).toEqual({}));
  test("of a container that ended are what was given", () => {
    const observed = snapshot({ containers: [exited({ resources: { cpuShares: 9_999 } })] });
    expect(appOf({ pod: podWith(given), observed })?.resources).toEqual(given);
  });
  test("that are allocated are the requests", () => {
    const observed = snapshot({ containers: [containerOf()] });
    expect(appOf({ pod: podWith(given), observed })?.allocatedResources).toEqual(given.requests);
    expect(appOf({ observed })).not.toHaveProperty("allocatedResources");
    expect(appOf({ observed: nothing, pod: podWith(given) })).not.toHaveProperty("allocatedResources");
  });
});

describe("last words", () => {
  const lastWords = (text: string, pod = never) =>
    appOf({ pod, observed: snapshot({ containers: [exited()] }), terminationMessages: new Map([["app-0", text]]) })
      ?.state?.terminated?.message ?? "";
  test("are shared out among a pod's containers", () => {
    expect(lastWords("x".repeat(20_000))).toHaveLength(12_288);
    const three = podOf({ ...never.spec, initContainers: [{ name: "i" }, { name: "j" }] });
    expect(lastWords("x".repeat(20_000), three)).toHaveLength(4_096);
  });
  test("end with a whole character", () => {
    const text = `x${"ä".repeat(10_000)}`;
    expect(lastWords(text)).toBe(`x${"ä".repeat(6_143)}`);
  });
});

test("an instance counts once, whatever is seen of it before its postStart hook has ended", () => {
  const lifecycle = { postStart: { sleep: { seconds: 1 } } };
  const pod = podOf({ containers: [{ name: "app", image: "image:1", lifecycle }] });
  const before = exited({ exitCode: 1 });
  const starting = new Map([["start/app", { state: "running" as const }]]);
  const looks = [
    { containers: [before], attempts: new Map() },
    { containers: [containerOf({ attempt: 1, state: "created" }), before], attempts: starting },
    { containers: [containerOf({ attempt: 1 }), before], attempts: starting },
    { containers: [containerOf({ attempt: 1 }), before], attempts: new Map() },
  ];
  let previous: PodStatus = { phase: "Pending" };
  const counts = looks.map(({ containers, attempts }) => {
    const observed = withoutPostStart(pod, snapshot({ containers }), attempts);
    previous = statusOf({ pod, observed, previous });
    return previous.containerStatuses?.[0]?.restartCount;
  });
  expect(counts).toEqual([0, 0, 0, 1]);
});
