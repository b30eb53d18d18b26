import { expect, test } from "vitest";
import type { Pod } from "../../../agent/kube/types.ts";
import { decide, isOver } from "../../../agent/pods/decide.ts";
import type { Attempt, PodLocal } from "../../../agent/pods/local.ts";
import { actionKey, type PodAction } from "../../../agent/pods/plan.ts";
import type { PodSnapshot } from "../../../agent/runtime/port.ts";
import { containerOf, exited, image, localOf, nothing, podOf, sandboxOf, snapshot } from "./support.ts";

const now = 10_000;
const running: Attempt = { state: "running" };
const rests: Attempt = { state: "failed", reason: "ErrImagePull", message: "no", retryAtMs: 15_000, failures: 1 };
const two = podOf({
  containers: [
    { name: "app", image: "image:1" },
    { name: "log", image: "image:1" },
  ],
});
const withInits = podOf({
  initContainers: [
    { name: "first", image: "image:1" },
    { name: "proxy", image: "image:1", restartPolicy: "Always" },
    { name: "last", image: "image:1" },
  ],
});
const never = podOf({ restartPolicy: "Never" });
const start = (container: string, createdID?: string): PodAction => ({
  kind: "StartContainer",
  container,
  sandboxID: "s0",
  createdID,
});
const pull = (container: string): PodAction => ({ kind: "EnsureImage", container });
const kill = (container: string, graceSeconds = 30, why = `Stopping container ${container}`) => ({
  kind: "KillContainer" as const,
  containerID: `${container}-0`,
  container,
  graceSeconds,
  why,
});
const images = (...names: string[]) => new Map(names.map((name) => [name, image]));
const stopping = { sinceMs: 9_000, graceSeconds: 30 };

interface Case {
  name: string;
  pod?: Pod;
  observed: PodSnapshot;
  local?: Partial<PodLocal>;
  want: PodAction[];
  wakeAtMs?: number;
}

const cases: Case[] = [
  {
    name: "a new pod gets volumes, sandbox and image at once",
    observed: nothing,
    local: { volumes: "unknown" },
    want: [{ kind: "SetUpVolumes" }, { kind: "CreateSandbox", attempt: 0 }, pull("app")],
  },
  {
    name: "nothing is begun twice",
    observed: nothing,
    local: {
      volumes: "unknown",
      attempts: new Map([
        ["volumes", running],
        ["sandbox", running],
        ["image/app", running],
      ]),
    },
    want: [],
  },
  {
    name: "without a network only the host's pods begin",
    observed: nothing,
    local: { isNetworkReady: false },
    want: [],
  },
  {
    name: "host network needs no network of pods",
    pod: podOf({ hostNetwork: true }),
    observed: nothing,
    local: { isNetworkReady: false },
    want: [{ kind: "CreateSandbox", attempt: 0 }, pull("app")],
  },
  { name: "nothing begins while the runtime is down", observed: nothing, local: { isRuntimeReady: false }, want: [] },
  {
    name: "a container starts once its image is there",
    observed: snapshot(),
    local: { images: images("app") },
    want: [start("app")],
  },
  {
    name: "a container does not start before the volumes are there",
    observed: snapshot(),
    local: { images: images("app"), volumes: "unknown" },
    want: [{ kind: "SetUpVolumes" }],
  },
  {
    name: "who debugs a pod waits for a volume that nobody used before; the others do not",
    pod: podOf({
      containers: [{ name: "app", image: "image:1" }],
      ephemeralContainers: [{ name: "debug", image: "image:1", volumeMounts: [{ name: "tools", mountPath: "/t" }] }],
      volumes: [{ name: "tools", emptyDir: {} }],
    }),
    observed: snapshot({ containers: [exited({ exitCode: 1 })] }),
    local: { images: images("app", "debug"), volumes: "stale", awaitedVolumes: new Set(["tools"]) },
    want: [{ kind: "SetUpVolumes" }, start("app")],
  },
  {
    name: "an image is not asked for again while its container starts",
    observed: snapshot(),
    local: { attempts: new Map([["start/app", running]]) },
    want: [],
  },
  {
    name: "containers start in order, their images are pulled together",
    pod: two,
    observed: snapshot(),
    local: { images: images("log") },
    want: [pull("app")],
  },
  {
    name: "a container that rests holds nobody back",
    pod: two,
    observed: snapshot(),
    local: { images: images("log"), attempts: new Map([["image/app", rests]]) },
    want: [start("log")],
    wakeAtMs: 15_000,
  },
  {
    name: "an instance that was made but not started is started, not made again",
    observed: snapshot({ containers: [containerOf({ state: "created" })] }),
    want: [start("app", "app-0")],
  },
  { name: "a running pod needs nothing", observed: snapshot({ containers: [containerOf()] }), want: [] },
  {
    name: "a crashed container restarts at once the first time",
    observed: snapshot({ containers: [exited({ exitCode: 1 })] }),
    local: { images: images("app") },
    want: [start("app")],
  },
  {
    name: "a crashed container waits out its backoff before anything is pulled",
    observed: snapshot({ containers: [exited({ exitCode: 1, finishedAtMs: 9_000 })] }),
    local: { crash: new Map([["app", { delayMs: 10_000, startedAtMs: 5_000 }]]) },
    want: [],
    wakeAtMs: 19_000,
  },
  {
    name: "Never does not restart",
    pod: never,
    observed: snapshot({ containers: [exited({ exitCode: 1 })] }),
    want: [],
  },
  {
    name: "OnFailure restarts a failure only",
    pod: podOf({ restartPolicy: "OnFailure", containers: two.spec.containers }),
    observed: snapshot({ containers: [exited({ exitCode: 0 }), exited({ name: "log", exitCode: 2 })] }),
    want: [pull("log")],
  },
  {
    name: "a container with another image is stopped",
    pod: podOf({ containers: [{ name: "app", image: "image:2" }] }),
    observed: snapshot({ containers: [containerOf()] }),
    want: [{ ...kill("app", 30, "Container app definition changed, will be restarted"), replaces: true }],
  },
  {
    name: "of each container one dead instance is kept",
    observed: snapshot({
      containers: [
        containerOf({ attempt: 3, id: "app-3" }),
        exited({ attempt: 2, id: "app-2" }),
        exited({ attempt: 1, id: "app-1" }),
      ],
    }),
    want: [{ kind: "RemoveContainer", containerID: "app-1" }],
  },
  {
    name: "one that was made and never ran goes when it has a successor",
    observed: snapshot({
      containers: [
        containerOf({ attempt: 1, id: "app-1" }),
        containerOf({ attempt: 0, id: "app-0", state: "created", sandboxID: "lost" }),
      ],
    }),
    want: [{ kind: "RemoveContainer", containerID: "app-0" }],
  },
  {
    name: "a dead sandbox is replaced, after its containers have stopped",
    observed: snapshot({ sandboxes: [sandboxOf({ ready: false })], containers: [containerOf()] }),
    want: [kill("app")],
  },
  {
    name: "a dead sandbox without running containers is replaced",
    observed: snapshot({ sandboxes: [sandboxOf({ ready: false })] }),
    want: [{ kind: "CreateSandbox", attempt: 1 }, pull("app")],
  },
  {
    name: "with Never a pod that ran gets no second sandbox",
    pod: never,
    observed: snapshot({ sandboxes: [sandboxOf({ ready: false })], containers: [exited({ exitCode: 137 })] }),
    want: [],
  },
  { name: "the first init container comes first", pod: withInits, observed: snapshot(), want: [pull("first")] },
  {
    name: "a running init container is waited for",
    pod: withInits,
    observed: snapshot({ containers: [containerOf({ name: "first" })] }),
    want: [],
  },
  {
    name: "a running sidecar lets the next one start",
    pod: withInits,
    observed: snapshot({ containers: [containerOf({ name: "proxy" }), exited({ name: "first" })] }),
    want: [pull("last")],
  },
  {
    name: "regular containers start after the last init container",
    pod: withInits,
    observed: snapshot({
      containers: [exited({ name: "last" }), containerOf({ name: "proxy" }), exited({ name: "first" })],
    }),
    want: [pull("app")],
  },
  {
    name: "a failed init container is tried again",
    pod: withInits,
    observed: snapshot({ containers: [exited({ name: "first", exitCode: 1 })] }),
    want: [pull("first")],
  },
  {
    name: "a sidecar that died is started again",
    pod: withInits,
    observed: snapshot({
      containers: [
        containerOf(),
        exited({ name: "last" }),
        exited({ name: "proxy", exitCode: 1 }),
        exited({ name: "first" }),
      ],
    }),
    want: [pull("proxy")],
  },
  {
    name: "stopping: regular containers first",
    pod: withInits,
    observed: snapshot({ containers: [containerOf(), containerOf({ name: "proxy" })] }),
    local: { terminating: stopping },
    want: [kill("app")],
    wakeAtMs: 39_000,
  },
  {
    name: "stopping: then sidecars",
    pod: withInits,
    observed: snapshot({ containers: [exited(), containerOf({ name: "proxy" })] }),
    local: { terminating: stopping },
    want: [{ ...kill("proxy"), timeoutSeconds: 29 }],
    wakeAtMs: 39_000,
  },
  {
    name: "stopping: volumes are not torn down while they are set up",
    observed: snapshot({ sandboxes: [sandboxOf({ ready: false })] }),
    local: { terminating: stopping, attempts: new Map([["volumes", running]]) },
    want: [],
  },
  {
    name: "an image that was ensured for another spec does not count",
    pod: podOf({ containers: [{ name: "app", image: "image:2" }] }),
    observed: snapshot(),
    local: { images: images("app") },
    want: [pull("app")],
  },
  {
    name: "an init container in unknown state is killed before another starts",
    pod: withInits,
    observed: snapshot({ containers: [containerOf({ name: "first", state: "unknown" })] }),
    want: [kill("first", 30, 'Container first is in "unknown" state, try killing it before restart')],
  },
  {
    name: "stopping: a start under way is waited for",
    observed: snapshot(),
    local: { terminating: stopping, attempts: new Map([["start/app", running]]) },
    want: [],
  },
  {
    name: "stopping: then the sandbox, and the volumes that nothing uses any more",
    observed: snapshot({ containers: [exited()] }),
    local: { terminating: stopping },
    want: [{ kind: "StopSandbox", sandboxID: "s0" }, { kind: "TearDownVolumes" }],
  },
  {
    name: "stopping: volumes wait for no sandbox, the cgroup does",
    observed: snapshot({ containers: [exited()] }),
    local: { terminating: stopping, attempts: new Map([["stop/s0", running]]), areVolumesGone: true },
    want: [],
  },
  {
    name: "stopping: volumes are torn down once",
    observed: snapshot({ containers: [exited()] }),
    local: {
      terminating: stopping,
      attempts: new Map([
        ["stop/s0", running],
        ["teardown", running],
      ]),
    },
    want: [],
  },
  {
    name: "stopping: what is made but may yet be started keeps the volumes until the sandbox has stopped",
    observed: snapshot({ containers: [exited(), containerOf({ name: "log", state: "created" })] }),
    local: { terminating: stopping },
    want: [{ kind: "StopSandbox", sandboxID: "s0" }],
  },
  {
    name: "stopping: a shared PID namespace may hold processes of containers that have ended",
    pod: podOf({ shareProcessNamespace: true }),
    observed: snapshot({ containers: [exited()] }),
    local: { terminating: stopping },
    want: [{ kind: "StopSandbox", sandboxID: "s0" }],
  },
  {
    name: "stopping: so may what a container began in the node's PID namespace",
    pod: podOf({ hostPID: true }),
    observed: snapshot({ containers: [exited()] }),
    local: { terminating: stopping },
    want: [{ kind: "StopSandbox", sandboxID: "s0" }],
  },
  {
    name: "stopping: a sandbox of which it is not known that it is an ordinary one may hold the volumes itself",
    observed: snapshot({ containers: [exited()] }),
    local: { terminating: stopping, hasPlainContainers: false },
    want: [{ kind: "StopSandbox", sandboxID: "s0" }],
  },
  {
    name: "stopping: a sandbox of a class of its own may hold the volumes itself",
    pod: podOf({ runtimeClassName: "kata" }),
    observed: snapshot({ containers: [exited()] }),
    local: { terminating: stopping },
    want: [{ kind: "StopSandbox", sandboxID: "s0" }],
  },
  {
    name: "stopping: volumes that waited for the sandbox go after it",
    pod: podOf({ shareProcessNamespace: true, runtimeClassName: "kata" }),
    observed: snapshot({ sandboxes: [sandboxOf({ ready: false })], containers: [exited()] }),
    local: { terminating: stopping },
    want: [{ kind: "TearDownVolumes" }],
  },
  {
    name: "stopping: the cgroup goes last",
    observed: snapshot({ sandboxes: [sandboxOf({ ready: false })], containers: [exited()] }),
    local: { terminating: stopping, areVolumesGone: true },
    want: [{ kind: "CleanUp" }],
  },
  {
    name: "stopping: the cgroup stays while a volume does not let go",
    observed: snapshot({ sandboxes: [sandboxOf({ ready: false })], containers: [exited()] }),
    local: { terminating: stopping, attempts: new Map([["teardown", rests]]) },
    want: [],
    wakeAtMs: 15_000,
  },
  {
    name: "stopped: its containers stay for their logs while the object is there",
    observed: snapshot({ sandboxes: [sandboxOf({ ready: false })], containers: [exited()] }),
    local: { terminating: stopping, areVolumesGone: true, isCleanedUp: true },
    want: [],
  },
  {
    name: "stopped: of its sandboxes the newest stays, and those of containers",
    observed: snapshot({
      sandboxes: ["s3", "s2", "s1"].map((id) => sandboxOf({ id, ready: false })),
      containers: [exited({ sandboxID: "s1" })],
    }),
    local: {
      terminating: stopping,
      areVolumesGone: true,
      isCleanedUp: true,
      stoppedSandboxes: new Set(["s1", "s2", "s3"]),
    },
    want: [{ kind: "RemoveSandbox", sandboxID: "s2" }],
  },
  {
    name: "gone: containers are removed, then the sandbox",
    observed: snapshot({ sandboxes: [sandboxOf({ ready: false })], containers: [exited()] }),
    local: { terminating: stopping, areVolumesGone: true, isCleanedUp: true, isGone: true },
    want: [{ kind: "RemoveContainer", containerID: "app-0" }],
  },
  {
    name: "gone: the sandbox last",
    observed: snapshot({ sandboxes: [sandboxOf({ ready: false })] }),
    local: { terminating: stopping, areVolumesGone: true, isCleanedUp: true, isGone: true },
    want: [{ kind: "RemoveSandbox", sandboxID: "s0" }],
  },
];

for (const { name, pod = podOf(), observed, local = {}, want, wakeAtMs } of cases) {
  test(`decide: ${name}`, () => {
    const plan = decide(pod, observed, localOf(local), now);
    expect(plan.actions).toEqual(want);
    expect(plan.wakeAtMs).toBe(wakeAtMs);
    expect(plan.isFinished).toBe(false);
  });
}

test("decide: a pod of which nothing is left is finished", () => {
  const local = localOf({ terminating: stopping, areVolumesGone: true, isCleanedUp: true, isGone: true });
  expect(decide(podOf(), nothing, local, now).isFinished).toBe(true);
});

test.each([
  [
    "a running sidecar does not keep a finished pod",
    podOf({ ...withInits.spec, restartPolicy: "Never" }),
    [exited(), containerOf({ name: "proxy" })],
    true,
  ],
  ["a pod that restarts goes on", withInits, [exited(), containerOf({ name: "proxy" })], false],
  ["a container that never ran is not over", never, [], false],
] as const)("isOver: %s", (_name, pod, containers, want) => {
  expect(isOver(pod, snapshot({ containers: [...containers] }), localOf())).toBe(want);
});

test("a shorter grace is another kill than the one under way", () => {
  expect(actionKey(kill("app", 5))).not.toBe(actionKey(kill("app", 30)));
});

test.each([podOf(), two, withInits, podOf({ hostNetwork: true })])(
  "from any kill point a pod converges (%#)",
  (pod) => {
    for (let stopAfter = 0; stopAfter < 40; stopAfter++) {
      const end = converge(pod, stopAfter);
      expect(
        end
          .filter(({ state }) => state === "running")
          .map(({ name }) => name)
          .sort(),
      ).toEqual(
        [...pod.spec.containers, ...(pod.spec.initContainers ?? []).filter((c) => c.restartPolicy === "Always")]
          .map(({ name }) => name)
          .sort(),
      );
    }
  },
);

// Applies the plan to a model of the runtime; the agent dies after `stopAfter` steps and begins again from observation.
function converge(pod: Pod, stopAfter: number): PodSnapshot["containers"] {
  let observed = nothing;
  let ready = new Set<string>();
  let volumes: PodLocal["volumes"] = "unknown";
  const inits = new Set((pod.spec.initContainers ?? []).filter((c) => c.restartPolicy !== "Always").map((c) => c.name));
  for (let step = 0; step < 60; step++) {
    if (step === stopAfter) {
      ready = new Set();
      volumes = "unknown";
    }
    const [action] = decide(pod, observed, localOf({ volumes, images: images(...ready) }), now).actions;
    if (action === undefined) return observed.containers;
    if (action.kind === "SetUpVolumes") volumes = "ready";
    else if (action.kind === "EnsureImage") ready.add(action.container);
    else if (action.kind === "CreateSandbox") {
      const networkMode = pod.spec.hostNetwork === true ? "NODE" : "POD";
      observed = snapshot({ sandboxes: [sandboxOf({ networkMode, attempt: action.attempt })] });
    } else if (action.kind === "StartContainer") {
      ready.delete(action.container);
      const make = inits.has(action.container) ? exited : containerOf;
      observed = { ...observed, containers: [make({ name: action.container }), ...observed.containers] };
    } else throw new Error(`unexpected ${action.kind}`);
  }
  throw new Error("does not converge");
}
