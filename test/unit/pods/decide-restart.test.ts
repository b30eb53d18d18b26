import { describe, expect, test } from "vitest";
import type { Container, Pod, PodSpec } from "../../../agent/kube/types.ts";
import { decide, isOver } from "../../../agent/pods/decide.ts";
import type { PodLocal } from "../../../agent/pods/local.ts";
import type { PodAction } from "../../../agent/pods/plan.ts";
import type { ProbeType, Verdict } from "../../../agent/probes/port.ts";
import type { ContainerStatus, PodSnapshot } from "../../../agent/runtime/port.ts";
import { containerOf, exited, image, localOf, podOf, sandboxOf, snapshot } from "./support.ts";

const now = 100_000;
const probe = { exec: { command: ["true"] } };
const running = { state: "running" } as const;

// What a plan wants, in a few words: "start app", "kill app 30", "hook app", "remove app-0".
function words(action: PodAction): string {
  switch (action.kind) {
    case "StartContainer":
      return `start ${action.container}`;
    case "EnsureImage":
      return `pull ${action.container}`;
    case "KillContainer":
      return `kill ${action.container} ${action.timeoutSeconds ?? action.graceSeconds}`;
    case "PreStop":
      return `hook ${action.container} ${action.graceSeconds}`;
    case "RemoveContainer":
      return `remove ${action.containerID}${action.keepsLogs === true ? ", keep logs" : ""}`;
    case "CreateSandbox":
      return `sandbox ${action.attempt}`;
    default:
      return action.kind;
  }
}

function plan(
  pod: Pod,
  containers: ContainerStatus[],
  local: Partial<PodLocal> = {},
  observed: Partial<PodSnapshot> = {},
) {
  const images = new Map(["app", "log", "side", "debug", "init"].map((name) => [name, image]));
  return decide(pod, snapshot({ containers, ...observed }), localOf({ images, ...local }), now);
}

const todo = (...args: Parameters<typeof plan>) => plan(...args).actions.map(words);
const says = (type: ProbeType, verdict: Verdict, of = "app"): Partial<PodLocal> => ({
  verdict: (container, _id, asked) => (container === of && asked === type ? verdict : undefined),
});
const probed = (spec: Partial<PodSpec> = {}, more: Partial<Container> = {}) =>
  podOf({
    containers: [{ name: "app", image: "image:1", livenessProbe: probe, startupProbe: probe, ...more }],
    ...spec,
  });
const hooked: Partial<Container> = { lifecycle: { preStop: { exec: { command: ["bye"] } } } };

describe("a probe that fails", () => {
  test.each(["Liveness", "Startup"] as const)("%s: the container is stopped to be replaced, and says why", (type) => {
    const [action] = plan(probed(), [containerOf()], says(type, "failure")).actions;
    expect(action).toMatchObject({
      kind: "KillContainer",
      graceSeconds: 30,
      replaces: true,
      why: `Container app failed ${type.toLowerCase()} probe, will be restarted`,
    });
  });
  test("says so of a sidecar, too", () => {
    const pod = podOf({
      initContainers: [{ name: "side", image: "image:1", restartPolicy: "Always", livenessProbe: probe }],
    });
    const [action] = plan(
      pod,
      [containerOf(), containerOf({ name: "side" })],
      says("Liveness", "failure", "side"),
    ).actions;
    expect(action).toMatchObject({
      why: "Init container side failed liveness probe, will be restarted",
      replaces: true,
    });
  });
  test("has a grace of its own", () => {
    const pod = probed(
      { terminationGracePeriodSeconds: 60 },
      { livenessProbe: { ...probe, terminationGracePeriodSeconds: 5 } },
    );
    expect(todo(pod, [containerOf()], says("Liveness", "failure"))).toEqual(["kill app 5"]);
    expect(todo(pod, [containerOf()], says("Startup", "failure"))).toEqual(["kill app 60"]);
  });
  test("under Never, nothing comes after it", () => {
    const [action] = plan(probed({ restartPolicy: "Never" }), [containerOf()], says("Liveness", "failure")).actions;
    expect(action).toMatchObject({ kind: "KillContainer" });
    expect(action).not.toHaveProperty("replaces");
  });
  test("of readiness stops nothing", () => {
    const pod = podOf({ containers: [{ name: "app", image: "image:1", readinessProbe: probe }] });
    expect(todo(pod, [containerOf()], says("Readiness", "failure"))).toEqual([]);
  });
  test("after it the container starts again although it exited with 0 under OnFailure", () => {
    const pod = probed({ restartPolicy: "OnFailure" });
    expect(todo(pod, [exited()], { replaced: new Set(["app-0"]) })).toEqual(["start app"]);
    expect(todo(pod, [exited()])).toEqual([]);
  });
  test("again and again it is a crash loop", () => {
    const crash = new Map([["app", { delayMs: 20_000, startedAtMs: 80_000 }]]);
    const twice = [
      exited({ attempt: 1, finishedAtMs: 99_000 }),
      exited({ attempt: 0, id: "app-0", finishedAtMs: 90_000 }),
    ];
    const waiting = plan(probed(), twice, { crash, replaced: new Set(["app-1"]) });
    expect(waiting.actions).toEqual([]);
    expect(waiting.backoff.get("app")).toEqual({ untilMs: 119_000, delayMs: 20_000 });
  });
});

describe("a new definition", () => {
  const changed = (spec: Partial<PodSpec>) => podOf({ containers: [{ name: "app", image: "image:2" }], ...spec });
  test.each(["Always", "OnFailure", "Never"] as const)("replaces the container under %s", (restartPolicy) => {
    const pod = changed({ restartPolicy });
    expect(plan(pod, [containerOf()]).actions).toMatchObject([{ kind: "KillContainer", replaces: true }]);
    expect(todo(pod, [exited({ exitCode: 143 })], { replaced: new Set(["app-0"]) })).toEqual(["pull app"]);
    expect(isOver(pod, snapshot({ containers: [exited()] }), localOf({ replaced: new Set(["app-0"]) }))).toBe(false);
  });
  test("does nothing to one that has ended for good", () => {
    expect(todo(changed({ restartPolicy: "Never" }), [exited()])).toEqual([]);
  });
  test("of an init container that runs is nobody's business any more", () => {
    const pod = podOf({ initContainers: [{ name: "init", image: "image:2" }] });
    expect(todo(pod, [containerOf({ name: "init" })])).toEqual([]);
  });
});

describe("crash backoff", () => {
  const crash = new Map([["app", { delayMs: 10_000, startedAtMs: 90_000 }]]);
  const crashed = [exited({ exitCode: 1, finishedAtMs: 95_000 })];
  test("waits from the end on", () => expect(plan(podOf(), crashed, { crash }).wakeAtMs).toBe(105_000));
  test("goes by when the end was, not by what clock it was told", () => {
    const endedAtMs = new Map([["app-0", 88_000]]);
    expect(todo(podOf(), [exited({ exitCode: 1, finishedAtMs: 3_600_000 + now })], { crash, endedAtMs })).toEqual([
      "start app",
    ]);
  });
  test("is for init containers, too", () => {
    const pod = podOf({ initContainers: [{ name: "init", image: "image:1" }] });
    const waiting = plan(pod, [exited({ name: "init", exitCode: 1, finishedAtMs: 95_000 })], {
      crash: new Map([["init", { delayMs: 10_000, startedAtMs: 90_000 }]]),
    });
    expect(waiting.actions).toEqual([]);
    expect(waiting.backoff.has("init")).toBe(true);
  });
  test("of one container holds back no other", () => {
    const pod = podOf({
      containers: [
        { name: "app", image: "image:1" },
        { name: "log", image: "image:1" },
      ],
    });
    expect(todo(pod, crashed, { crash })).toEqual(["start log"]);
  });
});

describe("a sandbox that died", () => {
  const dead = { sandboxes: [sandboxOf({ ready: false })] };
  const never = podOf({ restartPolicy: "Never" });
  const twoOf = (restartPolicy: "OnFailure" | "Never") =>
    podOf({
      restartPolicy,
      containers: [
        { name: "app", image: "image:1" },
        { name: "log", image: "image:1" },
      ],
    });
  const rows: {
    name: string;
    pod: Pod;
    containers: ContainerStatus[];
    sandboxes?: PodSnapshot["sandboxes"];
    want: string[];
  }[] = [
    { name: "first loses its containers", pod: podOf(), containers: [containerOf()], want: ["kill app 30"] },
    { name: "is replaced then", pod: podOf(), containers: [exited({ exitCode: 137 })], want: ["sandbox 1"] },
    { name: "is not replaced for a pod that ran and never restarts", pod: never, containers: [exited()], want: [] },
    { name: "is replaced for a pod that never ran", pod: never, containers: [], want: ["sandbox 1"] },
    {
      name: "is not replaced if all ended well",
      pod: twoOf("OnFailure"),
      containers: [exited(), exited({ name: "log" })],
      want: [],
    },
    {
      name: "is replaced for the one that did not",
      pod: twoOf("OnFailure"),
      containers: [exited(), exited({ name: "log", exitCode: 1 })],
      want: ["sandbox 1"],
    },
    {
      name: "is replaced for the initialization that was under way",
      pod: podOf({ restartPolicy: "OnFailure", initContainers: [{ name: "init", image: "image:1" }] }),
      containers: [exited({ name: "init", exitCode: 137 })],
      want: ["sandbox 1"],
    },
    {
      name: "is replaced if there are two",
      pod: podOf(),
      containers: [],
      sandboxes: [sandboxOf({ id: "s1", attempt: 1 }), sandboxOf()],
      want: ["StopSandbox", "StopSandbox"],
    },
    {
      name: "is replaced if it is in the wrong network",
      pod: podOf(),
      containers: [],
      sandboxes: [sandboxOf({ networkMode: "NODE" })],
      want: ["StopSandbox"],
    },
    {
      name: "is replaced if it has no address",
      pod: podOf(),
      containers: [],
      sandboxes: [sandboxOf({ ips: [] })],
      want: ["StopSandbox"],
    },
    {
      name: "needs no address on the host's network",
      pod: podOf({ hostNetwork: true }),
      containers: [containerOf()],
      sandboxes: [sandboxOf({ networkMode: "NODE", ips: [] })],
      want: [],
    },
  ];
  test.each(rows)("$name", ({ pod, containers, sandboxes, want }) => {
    expect(todo(pod, containers, {}, sandboxes === undefined ? dead : { sandboxes })).toEqual(want);
  });
  test("takes the initialization with it", () => {
    const pod = podOf({ initContainers: [{ name: "init", image: "image:1" }] });
    const sandboxes = [sandboxOf({ id: "s1", attempt: 1 })];
    const before = [exited({ exitCode: 137 }), exited({ name: "init" })]; // of the sandbox before
    expect(todo(pod, before, {}, { sandboxes })).toEqual(["start init"]);
  });
});

describe("a container that the runtime forgot", () => {
  const two = podOf({
    restartPolicy: "Never",
    containers: [
      { name: "app", image: "image:1" },
      { name: "log", image: "image:1" },
    ],
  });
  test("runs again", () => expect(todo(two, [containerOf({ name: "log" })])).toEqual(["start app"]));
  test("does not run again if it was told to have ended for good", () => {
    const finished = new Set(["app"]);
    expect(todo(two, [containerOf({ name: "log" })], { finished })).toEqual([]);
    expect(todo(two, [], { finished }, { sandboxes: [] })).toEqual(["sandbox 0"]);
    expect(todo(podOf({ restartPolicy: "Never" }), [], { finished }, { sandboxes: [] })).toEqual([]);
    expect(isOver(two, snapshot({ containers: [exited({ name: "log" })] }), { replaced: new Set(), finished })).toBe(
      true,
    );
  });
});

describe("ephemeral containers", () => {
  const pod = podOf({ ephemeralContainers: [{ name: "debug", image: "image:1", targetContainerName: "app" }] });
  test("start beside what runs", () => expect(todo(pod, [containerOf()])).toEqual(["start debug"]));
  test("never start twice", () =>
    expect(todo(pod, [exited({ name: "debug", exitCode: 1 }), containerOf()])).toEqual([]));
  test("start during initialization, too", () => {
    const early = podOf({ ...pod.spec, initContainers: [{ name: "init", image: "image:1" }] });
    expect(todo(early, [containerOf({ name: "init" })])).toEqual(["start debug"]);
  });
  test("hold up nobody while their image is pulled", () => {
    const attempts = new Map([["image/debug", running]]);
    expect(todo(pod, [exited({ exitCode: 1 })], { attempts, images: new Map([["app", image]]) })).toEqual([
      "start app",
    ]);
  });
  test("do not keep a pod that is over", () => {
    const never = podOf({ ...pod.spec, restartPolicy: "Never" });
    expect(isOver(never, snapshot({ containers: [containerOf({ name: "debug" }), exited()] }), localOf())).toBe(true);
  });
});

describe("a restart of all containers", () => {
  const watch: Container = {
    name: "watch",
    image: "image:1",
    restartPolicy: "Never",
    restartPolicyRules: [{ action: "RestartAllContainers", exitCodes: { operator: "In", values: [42] } }],
  };
  const pod = podOf({
    restartPolicy: "Never",
    initContainers: [
      { name: "init", image: "image:1" },
      { name: "side", image: "image:1", restartPolicy: "Always" },
    ],
    containers: [{ name: "app", image: "image:1", ...hooked }, watch],
  });
  const trigger = exited({ name: "watch", exitCode: 42 });
  const [app, side, init] = [containerOf(), containerOf({ name: "side" }), exited({ name: "init" })];
  test("stops all that runs at once, without hooks", () => {
    expect(todo(pod, [trigger, app, side, init])).toEqual(["kill app 0", "kill side 0"]);
  });
  test("then removes regular containers, then init ones, the one that asked last; their logs stay", () => {
    const [deadApp, deadSide] = [exited({ exitCode: 137 }), exited({ name: "side", exitCode: 137 })];
    expect(todo(pod, [trigger, deadApp, deadSide, init])).toEqual(["remove app-0, keep logs"]);
    expect(todo(pod, [trigger, deadSide, init])).toEqual(["remove side-0, keep logs", "remove init-0, keep logs"]);
    expect(todo(pod, [trigger])).toEqual(["remove watch-0, keep logs"]);
  });
  test("then begins anew in the same sandbox", () => expect(todo(pod, [])).toEqual(["start init"]));
  test("is not asked for by another exit", () => {
    expect(todo(pod, [exited({ name: "watch", exitCode: 1 }), app, side, init])).toEqual([]);
  });
  test("is not asked for by an instance that has a successor", () => {
    const later = containerOf({ name: "watch", attempt: 1 });
    expect(todo(pod, [later, trigger, app, side, init])).toEqual([]);
  });
  test("does not happen in a pod that stops", () => {
    expect(todo(pod, [trigger, app], { terminating: { sinceMs: now, graceSeconds: 30 } })).toEqual(["hook app 30"]);
  });
  test("can be asked for by an init container", () => {
    const asking = podOf({ restartPolicy: "Never", initContainers: [{ ...watch, name: "init" }] });
    expect(todo(asking, [exited({ name: "init", exitCode: 42 })])).toEqual(["remove init-0, keep logs"]);
  });
  test("is not the pod's end", () => {
    expect(isOver(pod, snapshot({ containers: [trigger, exited()] }), localOf())).toBe(false);
  });
});

describe("dead containers", () => {
  const history = [
    containerOf({ attempt: 3, id: "app-3" }),
    ...[2, 1, 0].map((n) => exited({ attempt: n, id: `app-${n}` })),
  ];
  test("beyond what is to be kept go", () => {
    expect(todo(podOf(), history)).toEqual(["remove app-1", "remove app-0"]);
    expect(todo(podOf(), history, { deadContainersMax: 2 })).toEqual(["remove app-0"]);
  });
  test("of an init container all but the newest go, whatever is to be kept of others", () => {
    const pod = podOf({ initContainers: [{ name: "init", image: "image:1" }] });
    const inits = [1, 0].map((n) => exited({ name: "init", attempt: n, id: `init-${n}` }));
    const remains = [containerOf(), ...inits];
    expect(todo(pod, remains, { deadContainersMax: 5 })).toEqual(["remove init-0"]);
  });
  test("that are condemned go, once", () => {
    const condemned = new Set(["app-2", "app-1", "app-3"]);
    expect(todo(podOf(), history, { condemned })).toEqual(["remove app-2", "remove app-1", "remove app-0"]);
  });
  test("that are condemned go from a pod that is over, too", () => {
    const over = {
      terminating: { sinceMs: 0, graceSeconds: 30 },
      areVolumesGone: true,
      isCleanedUp: true,
      condemned: new Set(["app-0"]),
    };
    expect(todo(podOf(), [exited()], over, { sandboxes: [sandboxOf({ ready: false })] })).toEqual(["remove app-0"]);
  });
});
