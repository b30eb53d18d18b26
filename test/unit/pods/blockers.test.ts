import { describe, expect, test } from "vitest";
import type { PodSpec } from "../../../agent/kube/types.ts";
import { type Blocker, blockersMax, blockersOf } from "../../../agent/pods/blockers.ts";
import type { PodFacts } from "../../../agent/pods/explain.ts";
import type { Attempt } from "../../../agent/pods/local.ts";
import type { TimelineEntry } from "../../../agent/pods/timeline.ts";
import { containerOf, exited, localOf, nothing, podOf, snapshot } from "./support.ts";
import type { Awaited } from "../../../agent/volumes/awaits.ts";

const now = 100_000;

function entry(what: string, subject: string, changes: Partial<TimelineEntry> = {}): TimelineEntry {
  return { what, subject, atMs: 90_000, lastAtMs: 90_000, state: "failed", detail: "", times: 1, ...changes };
}

function failed(message: string, changes: Partial<Attempt & { state: "failed" }> = {}): Attempt {
  return { state: "failed", reason: "ContainerCreating", message, retryAtMs: 104_000, failures: 3, ...changes };
}

function factsOf(changes: Partial<PodFacts> & { spec?: Partial<PodSpec>; entries?: TimelineEntry[] } = {}): PodFacts {
  const { spec, entries = [], ...rest } = changes;
  return {
    pod: podOf(spec),
    status: { phase: "Pending" },
    state: undefined,
    observed: snapshot(),
    local: localOf({ images: new Map() }),
    lastWords: new Map(),
    networkProblem: "",
    timeline: { entries, omitted: 0 },
    ...rest,
  };
}

const attempts = (...pairs: [string, Attempt][]) => new Map(pairs);
const running: Attempt = { state: "running" };
const probed = { exec: { command: ["true"] }, periodSeconds: 3 };

interface Case {
  name: string;
  facts: PodFacts;
  /** The first blocker. */
  want: Blocker | undefined;
}

const volumeAdvice: { name: string; detail: string; awaited?: Awaited; next: string }[] = [
  {
    name: "a claim that is not bound",
    detail: "error processing PVC ns/big: PVC is not bound",
    awaited: "binding",
    next: "see why it is not bound: kubectl describe pvc -n ns big",
  },
  {
    name: "a claim that is not there",
    detail: 'error processing PVC ns/big: failed to fetch PVC from API server: persistentvolumeclaims "big" not found',
    awaited: "claim",
    next: "somebody has to make the claim: kubectl get pvc -n ns big",
  },
  {
    name: "a volume that is not attached",
    detail:
      "waiting for the attach/detach controller: the volume is not attached yet according to the status of node n1",
    awaited: "attachment",
    next: "tried again at once when it is attached: kubectl describe volumeattachments",
  },
  {
    name: "a driver that has not registered",
    detail: "driver name disk.example not found in the list of registered CSI drivers",
    awaited: "driver",
    next: "tried again at once when the driver registers: look at its pod on this node",
  },
  {
    name: "a volume that another pod has for itself",
    detail: "volume uses the ReadWriteOncePod access mode and is already in use by another pod",
    awaited: "other pod",
    next: "the other pod on this node has to go first",
  },
  {
    name: "a claim that goes away",
    detail: "PVC is being deleted",
    awaited: "new claim",
    next: "the claim has to be made anew",
  },
  { name: "a claim with another error", detail: "mkfs failed: PVC is not bound", next: "" },
];

const cases: Case[] = [
  {
    name: "admission",
    facts: factsOf({ local: undefined, observed: undefined }),
    want: {
      what: "admission",
      why: "the node has not decided yet whether it takes the pod",
      next: "decided as soon as the API server has told all pods of the node; a critical pod may first make room",
    },
  },
  {
    name: "a pod of its name that has not ended",
    facts: factsOf({ local: undefined, observed: undefined, isQueued: true }),
    want: { what: "pod", why: "waits until the one of its name that was here before is gone" },
  },
  {
    name: "what ran in its place before",
    facts: factsOf({
      local: undefined,
      observed: undefined,
      isQueued: true,
      obstacle: { message: "containers of pod u0 not removed: busy", retryAtMs: 104_000, failures: 3 },
    }),
    want: {
      what: "pod",
      why: "waits for what ran in its place: containers of pod u0 not removed: busy",
      nextTryMs: 104_000,
      tries: 3,
    },
  },
  {
    name: "a runtime that is down",
    facts: factsOf({ local: localOf({ isRuntimeReady: false }) }),
    want: {
      what: "container runtime",
      why: "does not answer, or says that it is not ready",
      next: "goes on by itself when the runtime does: look at its service and log",
    },
  },
  {
    name: "a runtime that hangs",
    facts: factsOf({ observed: undefined, entries: [entry("admitted", "", { state: "done", atMs: 95_000 })] }),
    want: { what: "container runtime", why: "has not said yet what it has of this pod", sinceMs: 95_000 },
  },
  {
    name: "a runtime that answers with errors",
    facts: factsOf({ observed: undefined, entries: [entry("look", "", { detail: "list containers: oops" })] }),
    want: {
      what: "container runtime",
      why: "has not said yet what it has of this pod: list containers: oops",
      sinceMs: 90_000,
    },
  },
  {
    name: "the network plugin",
    facts: factsOf({ local: localOf({ isNetworkReady: false }), networkProblem: "cni plugin not initialized" }),
    want: {
      what: "network",
      why: "cni plugin not initialized",
      next: "goes on by itself when the network plugin is there (see the runtime's CNI configuration directory)",
    },
  },
  {
    name: "not the network plugin, with the host's network",
    facts: factsOf({
      spec: { hostNetwork: true },
      local: localOf({ isNetworkReady: false, attempts: attempts(["sandbox", running]) }),
      observed: nothing,
    }),
    want: { what: "sandbox", why: "the runtime makes the pod's sandbox and its network" },
  },
  {
    name: "a ConfigMap",
    facts: factsOf({
      spec: { volumes: [{ name: "config", configMap: { name: "app" } }] },
      local: localOf({ volumes: "unknown", attempts: attempts(["volumes", failed("MountVolume …")]) }),
      entries: [entry("volume", "config", { detail: 'configmap "app" not found', awaited: "object", times: 4 })],
    }),
    want: {
      what: "volume config (configMap)",
      why: 'configmap "app" not found',
      next: "tried again at once when it appears",
      sinceMs: 90_000,
      nextTryMs: 104_000,
      tries: 4,
    },
  },
  {
    name: "a volume that takes its time, while others are there",
    facts: factsOf({
      spec: { volumes: [{ name: "disk", csi: { driver: "slow" } }] },
      local: localOf({ volumes: "unknown", attempts: attempts(["volumes", running]) }),
      entries: [entry("volume", "token", { state: "done" }), entry("volume", "disk", { state: "running" })],
    }),
    want: { what: "volume disk (csi)", why: "is being set up", sinceMs: 90_000 },
  },
  {
    name: "a volume that is tried again",
    facts: factsOf({
      spec: { volumes: [{ name: "disk", csi: { driver: "slow" } }] },
      local: localOf({ volumes: "unknown", attempts: attempts(["volumes", running]) }),
      entries: [
        entry("volume", "disk", { detail: "no such image" }),
        entry("volume", "disk", { state: "running", atMs: 95_000, lastAtMs: 95_000 }),
      ],
    }),
    want: {
      what: "volume disk (csi)",
      why: "is being set up; the try before failed: no such image",
      sinceMs: 95_000,
    },
  },
  {
    name: "a mount that hangs",
    facts: factsOf({
      spec: { volumes: [{ name: "share", nfs: { server: "10.0.0.9", path: "/srv" } }] },
      local: localOf({ volumes: "unknown", attempts: attempts(["volumes", running]) }),
      entries: [entry("volume", "share", { state: "running", atMs: 40_000, lastAtMs: 40_000 })],
    }),
    want: {
      what: "volume share (nfs)",
      why: "hangs: NFS server 10.0.0.9 has not answered to the mount of /srv",
      next: "goes on by itself when it answers; other pods do not wait",
      sinceMs: 40_000,
    },
  },
  ...volumeAdvice.map(({ name, detail, awaited, next }): Case => {
    return {
      name,
      facts: factsOf({
        spec: { volumes: [{ name: "data", persistentVolumeClaim: { claimName: "big" } }] },
        local: localOf({ volumes: "unknown", attempts: attempts(["volumes", failed("MountVolume …")]) }),
        entries: [entry("volume", "data", { detail, times: 2, ...(awaited === undefined ? {} : { awaited }) })],
      }),
      want: { what: "volume data (claim big)", why: detail, next, sinceMs: 90_000, nextTryMs: 104_000, tries: 2 },
    };
  }),
  {
    name: "volumes of which none could be begun",
    facts: factsOf({
      local: localOf({ volumes: "unknown", attempts: attempts(["volumes", failed("no space left")]) }),
    }),
    want: { what: "volumes", why: "no space left", nextTryMs: 104_000 },
  },
  {
    name: "the CNI plugin's ADD",
    facts: factsOf({
      observed: nothing,
      local: localOf({ attempts: attempts(["sandbox", failed("plugin ptp failed (add): no free address")]) }),
    }),
    want: { what: "sandbox", why: "plugin ptp failed (add): no free address", nextTryMs: 104_000, tries: 3 },
  },
  {
    name: "a sandbox under way",
    facts: factsOf({
      observed: nothing,
      local: localOf({ attempts: attempts(["sandbox", running]) }),
      entries: [entry("sandbox", "", { state: "running", atMs: 86_000 })],
    }),
    want: { what: "sandbox", why: "the runtime makes the pod's sandbox and its network", sinceMs: 86_000 },
  },
  {
    name: "a sandbox under way, of which the runtime says what it is at",
    facts: factsOf({
      observed: nothing,
      local: localOf({ attempts: attempts(["sandbox", running]) }),
      entries: [entry("sandbox", "", { state: "running", atMs: 86_000, detail: "set up its network" })],
    }),
    want: {
      what: "sandbox",
      why: "the runtime makes the pod's sandbox and its network (set up its network)",
      sinceMs: 86_000,
    },
  },
  {
    name: "a pull under way",
    facts: factsOf({
      local: localOf({ attempts: attempts(["image/app", running]) }),
      entries: [entry("image", "app", { state: "running", detail: 'Pulling image "image:1"' })],
    }),
    want: { what: "container app", why: 'Pulling image "image:1"', sinceMs: 90_000 },
  },
  {
    name: "an image in backoff: the try that really pulls counts",
    facts: factsOf({
      local: localOf({
        attempts: attempts(["image/app", failed("Back-off pulling: 401 Unauthorized", { reason: "ImagePullBackOff" })]),
      }),
      entries: [
        entry("image", "app", { detail: "401 Unauthorized", atMs: 80_000, lastAtMs: 80_000, retryAtMs: 95_000 }),
        entry("image", "app", { detail: "Back-off pulling: 401 Unauthorized", retryAtMs: 120_000 }),
      ],
    }),
    want: {
      what: "container app",
      why: "ImagePullBackOff: Back-off pulling: 401 Unauthorized",
      nextTryMs: 120_000,
      sinceMs: 80_000,
    },
  },
  {
    name: "a key that a Secret lacks",
    facts: factsOf({
      local: localOf({
        attempts: attempts([
          "start/app",
          failed("couldn't find key k in Secret ns/s", { reason: "CreateContainerConfigError", awaited: "object" }),
        ]),
      }),
      entries: [entry("create", "app")],
    }),
    want: {
      what: "container app",
      why: "CreateContainerConfigError: couldn't find key k in Secret ns/s",
      next: "tried again at once when it appears",
      sinceMs: 90_000,
      nextTryMs: 104_000,
      tries: 3,
    },
  },
  {
    name: "a postStart hook",
    facts: factsOf({
      observed: snapshot({ containers: [containerOf()] }),
      local: localOf({ attempts: attempts(["start/app", running]) }),
      entries: [entry("start", "app", { state: "done" }), entry("postStart", "app", { state: "running" })],
    }),
    want: { what: "container app", why: "its postStart hook has not ended yet", sinceMs: 90_000 },
  },
  {
    name: "a container in CrashLoopBackOff",
    facts: factsOf({
      observed: snapshot({ containers: [exited({ exitCode: 3, finishedAtMs: 95_000 })] }),
      local: localOf({ crash: new Map([["app", { delayMs: 20_000, startedAtMs: 94_000 }]]) }),
      status: {
        phase: "Running",
        containerStatuses: [{ name: "app", ready: false, restartCount: 2, image: "", imageID: "" }],
      },
      lastWords: new Map([["app-0", "starting\nno database\n"]]),
    }),
    want: {
      what: "container app",
      why: 'crashed: exit code 3 (Error), "no database"; restarted 2 times',
      next: "kubectl logs -n ns web -c app --previous",
      sinceMs: 95_000,
      nextTryMs: 115_000,
    },
  },
  {
    name: "an init container that runs",
    facts: factsOf({
      spec: { initContainers: [{ name: "one" }, { name: "two" }] },
      observed: snapshot({ containers: [containerOf({ name: "two", startedAtMs: 97_000 }), exited({ name: "one" })] }),
    }),
    want: { what: "init container two", why: "runs (2 of 2); the pod begins when it has ended", sinceMs: 97_000 },
  },
  {
    name: "a startup probe without an outcome yet",
    facts: factsOf({
      spec: { containers: [{ name: "app", image: "image:1", startupProbe: probed, readinessProbe: probed }] },
      observed: snapshot({ containers: [containerOf({ startedAtMs: 97_000 })] }),
      local: localOf({ verdict: () => "unknown" }),
    }),
    want: {
      what: "container app",
      why: "its startup probe has not passed yet",
      next: "probed every 3 s",
      sinceMs: 97_000,
    },
  },
  {
    name: "a readiness probe, in its own words",
    facts: factsOf({
      spec: { containers: [{ name: "app", image: "image:1", startupProbe: probed, readinessProbe: probed }] },
      observed: snapshot({ containers: [containerOf()] }),
      local: localOf({ verdict: (_name, _id, type) => (type === "Startup" ? "success" : "failure") }),
      entries: [entry("readiness probe", "app", { detail: "Readiness probe failed: 503", times: 7 })],
    }),
    want: {
      what: "container app",
      why: "Readiness probe failed: 503",
      next: "probed every 3 s",
      sinceMs: 90_000,
      tries: 7,
    },
  },
  {
    name: "a readiness gate that somebody else has to open",
    facts: factsOf({
      observed: snapshot({ containers: [containerOf()] }),
      status: {
        phase: "Running",
        conditions: [
          { type: "Ready", status: "False", reason: "ReadinessGatesNotReady", message: 'gate "lb" does not exist.' },
        ],
      },
    }),
    want: { what: "pod", why: 'ReadinessGatesNotReady: gate "lb" does not exist.' },
  },
  {
    name: "an API server that refuses its status",
    facts: factsOf({
      observed: snapshot({ containers: [containerOf()] }),
      entries: [
        entry("status", "", { state: "done", atMs: 80_000, lastAtMs: 80_000 }),
        entry("status", "", { detail: "connection refused", times: 5, lastAtMs: 99_000 }),
      ],
    }),
    want: {
      what: "API server",
      why: "has not taken the pod's status: connection refused",
      next: "sent again until it does",
      sinceMs: 90_000,
      tries: 5,
    },
  },
  {
    name: "an API server that does not answer",
    facts: factsOf({
      observed: snapshot({ containers: [containerOf()] }),
      entries: [entry("status", "", { state: "running" })],
    }),
    want: { what: "API server", why: "has not answered to the pod's status yet", sinceMs: 90_000 },
  },
  {
    name: "nothing, when it runs",
    facts: factsOf({ observed: snapshot({ containers: [containerOf()] }) }),
    want: undefined,
  },
  {
    name: "room for a resize",
    facts: factsOf({
      observed: snapshot({ containers: [containerOf()] }),
      status: {
        phase: "Running",
        conditions: [{ type: "PodResizePending", status: "True", reason: "Deferred", message: "no cpu" }],
      },
    }),
    want: { what: "resize", why: "not made yet: Deferred: no cpu" },
  },
  {
    name: "nothing, when the API server has the pod no more",
    facts: factsOf({
      observed: snapshot({ containers: [containerOf()] }),
      local: localOf({ isGone: true }),
      entries: [entry("status", "", { detail: 'pods "web" not found' })],
    }),
    want: undefined,
  },
  { name: "nothing, when it has ended", facts: factsOf({ status: { phase: "Succeeded" } }), want: undefined },
];

describe("a pod waits for", () => {
  test.each(cases)("$name", ({ facts, want }) => {
    expect(blockersOf(facts, now)[0]).toEqual(want);
  });

  test("several things at once: all are told, up to a screenful", () => {
    const names = Array.from({ length: blockersMax + 5 }, (_, i) => `c${i}`);
    const facts = factsOf({
      spec: { containers: names.map((name) => ({ name, image: "image:1" })) },
      local: localOf({ attempts: attempts(...names.map((name) => [`image/${name}`, running] as [string, Attempt])) }),
    });
    const found = blockersOf(facts, now);
    expect(found.slice(0, 2).map(({ what }) => what)).toEqual(["container c0", "container c1"]);
    expect(found).toHaveLength(blockersMax);
  });

  test("what it waits for although somebody has set the clock back by an hour", () => {
    const hourMs = 3_600_000;
    const facts = factsOf({
      observed: nothing,
      local: localOf({ attempts: attempts(["sandbox", failed("no", { retryAtMs: now + hourMs + 4_000 })]) }),
      nowMs: now + hourMs,
    });
    expect(blockersOf(facts, now)[0]).toMatchObject({ nextTryMs: 104_000 });
  });
});

const ending = { sinceMs: 95_000, graceSeconds: 30 };
const alive = snapshot({ containers: [containerOf()] });
const deleted = { metadata: { ...podOf().metadata, deletionTimestamp: "2026-01-01T00:00:00Z" }, spec: podOf().spec };

const endings: Case[] = [
  {
    name: "its preStop hook",
    facts: factsOf({
      observed: alive,
      local: localOf({ terminating: ending, attempts: attempts(["prestop/app-0", running]) }),
      entries: [entry("preStop", "app", { state: "running", atMs: 95_000 })],
    }),
    want: {
      what: "container app",
      why: "its preStop hook has not ended yet",
      next: "killed in 25s at the latest",
      sinceMs: 95_000,
    },
  },
  {
    name: "a container that ignores SIGTERM",
    facts: factsOf({
      observed: alive,
      local: localOf({ terminating: ending, attempts: attempts(["kill/app-0/30", running]) }),
      entries: [entry("stop", "app", { state: "running", atMs: 96_000 })],
    }),
    want: {
      what: "container app",
      why: "has its stop signal and has not ended yet",
      next: "killed in 25s at the latest",
      sinceMs: 96_000,
    },
  },
  {
    name: "a runtime that cannot stop a container",
    facts: factsOf({
      observed: alive,
      local: localOf({
        terminating: { ...ending, sinceMs: 0 },
        attempts: attempts(["kill/app-0/30", failed("stuck in D state")]),
      }),
    }),
    want: {
      what: "container app",
      why: "not stopped: stuck in D state",
      next: "its grace is over",
      nextTryMs: 104_000,
      tries: 3,
    },
  },
  {
    name: "the containers that a sidecar outlives",
    facts: factsOf({ observed: alive, local: localOf({ terminating: ending }) }),
    want: {
      what: "container app",
      why: "stops after the others",
      next: "killed in 25s at the latest",
      sinceMs: 95_000,
    },
  },
  {
    name: "a mount that is busy",
    facts: factsOf({
      local: localOf({ terminating: ending, attempts: attempts(["teardown", failed("umount: target is busy")]) }),
    }),
    want: { what: "pod", why: "umount: target is busy", nextTryMs: 104_000, tries: 3 },
  },
  {
    name: "its network's removal",
    facts: factsOf({
      local: localOf({ terminating: ending, attempts: attempts(["stop/s0", running]) }),
      entries: [entry("sandbox stop", "", { state: "running" })],
    }),
    want: { what: "pod", why: "its sandbox and network are being removed", sinceMs: 90_000 },
  },
  {
    name: "its volumes' removal, which takes longer than the sandbox's",
    facts: factsOf({
      local: localOf({ terminating: ending, attempts: attempts(["teardown", running]) }),
      entries: [entry("sandbox stop", ""), entry("volume tear-down", "", { state: "running" })],
    }),
    want: { what: "pod", why: "its volumes are being removed", sinceMs: 90_000 },
  },
  {
    name: "somebody's finalizer",
    facts: factsOf({
      pod: { ...deleted, metadata: { ...deleted.metadata, finalizers: ["example.com/backup"] } },
      local: localOf({ terminating: ending, isCleanedUp: true }),
    }),
    want: {
      what: "API server",
      why: "nothing is left on the node; others hold the object by finalizers: example.com/backup",
    },
  },
  {
    name: "nothing, when the node has done its part for good",
    facts: factsOf({ status: { phase: "Succeeded" }, local: localOf({ terminating: ending, isCleanedUp: true }) }),
    want: undefined,
  },
];

describe("a pod that ends waits for", () => {
  test.each(endings)("$name", ({ facts, want }) => {
    expect(blockersOf(facts, now)[0]).toEqual(want);
  });
});
