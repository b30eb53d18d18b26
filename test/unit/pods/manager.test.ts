import { mkdtemp, readdir, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, onTestFinished, test } from "vitest";
import { uidOf } from "../../../agent/kube/pod-resources.ts";
import type { Pod } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { createPodManager, type PodManager } from "../../../agent/pods/manager.ts";
import type { PodDeps } from "../../../agent/pods/port.ts";
import { clearRetry } from "../../../agent/pods/predecessors.ts";
import { PodSources } from "../../../agent/pods/sources/pod-sources.ts";
import type { PodSourceName } from "../../../agent/pods/sources/static-pod.ts";
import type { RuntimeList } from "../../../agent/runtime/port.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";
import { staticPodOf } from "./sources/support.ts";
import { containerOf, podOf, sandboxOf } from "./support.ts";

let end: () => Promise<void> = async () => {};
/** Whether the runtime is ready when the manager begins. */
let isReadyAtFirst = true;
/** With links to logs; undefined: nobody looks for any, which the disk would take its time for. */
let containerLogsDir: string | undefined;
afterEach(async () => {
  isReadyAtFirst = true;
  containerLogsDir = undefined;
  await end();
});

/** A manager whose runtime has nothing, and says of pods nothing at all: they come as far as their worker. */
async function setUp(...sources: PodSourceName[]) {
  const clock = new FakeClock();
  const set = new PodSources({ sources, clock, onDuplicate: () => {} });
  const store = new MemoryStore<Pod>();
  set.follow(store);
  const events: string[] = [];
  const removed: string[] = [];
  const runtime = {
    isReady: isReadyAtFirst,
    list: async (): Promise<RuntimeList> => await Promise.resolve({ sandboxes: [], containers: [] }),
    stopPodSandbox: async () => await Promise.resolve(),
    drain: async () => await Promise.resolve(),
  };
  const deps = {
    clock,
    log: silentLogger,
    client: {},
    recorder: { event: (_about: unknown, _type: string, reason: string) => void events.push(reason) },
    pods: set,
    objects: { onChange: () => () => {}, register: () => {} },
    volumes: {
      onChange: () => () => {},
      podUIDsOnDisk: async () => await Promise.resolve([]),
      tearDown: async () => await Promise.resolve(),
      removePodDir: async (uid: string) => void removed.push(await Promise.resolve(uid)),
    },
    cgroups: {
      podUIDsOnDisk: async () => await Promise.resolve(new Map()),
      destroy: async () => await Promise.resolve(),
    },
    runtime: {
      list: async () => await runtime.list(),
      events: async () => await Promise.resolve(),
      stopContainer: async () => await Promise.resolve(),
      removeContainer: async () => await Promise.resolve(),
      stopPodSandbox: async () => await runtime.stopPodSandbox(),
      drain: async () => await runtime.drain(),
      removePodSandbox: async () => await Promise.resolve(),
      podSnapshot: async () => await Promise.reject(new Error("it says nothing")),
    },
    node: {
      nodeName: "node-1",
      subscribe: () => () => {},
      isRuntimeReady: () => runtime.isReady,
      isNetworkReady: () => true,
      networkProblem: () => "",
      hostIPs: () => [],
    },
    probeMetrics: new MetricsRegistry(),
    admission: () => ({
      node: { metadata: { name: "node-1" }, status: { allocatable: { cpu: "2", memory: "1Gi", pods: "10" } } },
      pressures: [],
      allowedUnsafeSysctls: [],
      kernelVersion: "6.1.0",
      isAppArmorEnabled: false,
      declaredFeatures: [],
      isShuttingDown: false,
    }),
    settings: {
      rootDir: "/nonexistent",
      podLogsDir: "/nonexistent",
      containerLogsDir,
      staticPolicies: {},
      resources: { cgroupVersion: 2, swapControllerAvailable: false, swapBehavior: "NoSwap" },
      crashBackoff: { initialMs: 10_000, maxMs: 300_000 },
      deadContainers: { perContainer: 1, total: -1, ageMsMin: 0 },
    },
  } as unknown as PodDeps;
  const manager = createPodManager(deps);
  const stop = new AbortController();
  const ended = manager.run(stop.signal);
  end = async () => {
    stop.abort();
    await clock.advance(0);
    await ended;
  };
  await until(() => clock.waiting > 0); // it has read its files, and rests
  return { set, store, clock, runtime, manager, events, removed };
}

/** Some of what happens waits for the disk. */
async function until(isTrue: () => boolean): Promise<void> {
  const deadline = performance.now() + 4_000;
  while (!isTrue() && performance.now() < deadline) await settle();
  expect(isTrue()).toBe(true);
}

/** What each pod waits for: "admission", "others", or nothing, as it has a worker. */
const waiting = ({ held }: PodManager) =>
  Object.fromEntries(
    held
      .facts()
      .map(({ pod, isQueued }) => [
        pod.metadata.name,
        isQueued === undefined ? "nothing" : isQueued ? "others" : "admission",
      ]),
  );

test("pods of the API server do not wait for a manifest that is out of reach", async () => {
  const { set, store, manager } = await setUp("api", "http");
  store.put(podOf()).markSynced();
  await until(() => waiting(manager)["web"] === "nothing");
  expect(set.hasSynced).toBe(false);
});

test("a change of a pod that needs what the node does not declare is told to people, once", async () => {
  const { store, manager, events } = await setUp("api");
  const pod = (generation: number, cpu: string) =>
    podOf({ resources: { requests: { cpu } } }, { generation, resourceVersion: String(generation) });
  store.put(pod(1, "1")).markSynced();
  await until(() => waiting(manager)["web"] === "nothing");
  store.put(pod(2, "2"));
  store.put({ ...pod(2, "2"), status: { phase: "Running" } });
  await settle();
  expect(events.filter((reason) => reason === "FailedNodeDeclaredFeaturesCheck")).toHaveLength(1);
});

test("a list of pods is complete once every source has told what it has", async () => {
  const { set, store, manager } = await setUp("api", "file");
  store.markSynced();
  await settle();
  expect(manager.held.isComplete()).toBe(false);
  set.receiver("file")([]);
  expect(manager.held.isComplete()).toBe(true);
});

const formerly = { podUID: "old", podName: "web-node-1", podNamespace: "default" };
const runsFormer = async (): Promise<RuntimeList> => {
  const sandbox = sandboxOf({ ...formerly, annotations: { "kubernetes.io/config.source": "file" } });
  return await Promise.resolve({ sandboxes: [sandbox], containers: [containerOf(formerly)] });
};
const fails = async () => await Promise.reject(new Error("it is stuck"));
const static1 = staticPodOf({}, { uid: "new" });

test("a static pod is not begun beside what ran in its place, whether sources are all known or not", async () => {
  for (const sources of [["file"], ["api", "file"]] as const) {
    const { set, runtime, clock, manager } = await setUp(...sources);
    [runtime.list, runtime.stopPodSandbox] = [runsFormer, fails];
    set.receiver("file")([static1]);
    await clock.advance(60_000);
    expect(waiting(manager)).toEqual({ "web-node-1": "others" });
    expect(manager.held.facts()[0]?.obstacle?.message).toBe("containers of pod old not removed: it is stuck");
    runtime.stopPodSandbox = async () => await Promise.resolve();
    await clock.advance(clearRetry.maxMs);
    await until(() => waiting(manager)["web-node-1"] === "nothing");
    await end();
  }
});

test("a static pod that goes while it waits leaves its turn to the next one", async () => {
  const { set, runtime, clock, manager } = await setUp("file");
  [runtime.list, runtime.stopPodSandbox] = [runsFormer, fails];
  set.receiver("file")([static1]);
  await clock.advance(60_000);
  set.receiver("file")([staticPodOf({}, { uid: "newer" })]);
  const seen = () => manager.held.facts().map(({ pod, isQueued }) => `${uidOf(pod)} ${isQueued}`);
  await clock.advance(60_000);
  expect(seen()).toEqual(["newer true"]);
  runtime.stopPodSandbox = async () => await Promise.resolve();
  await clock.advance(clearRetry.maxMs);
  await until(() => seen().join() === "newer undefined");
});

test("a static pod that is there again while its remains are being removed begins when they are", async () => {
  const { set, runtime, clock, manager, removed } = await setUp("file");
  const stuck = Promise.withResolvers<void>();
  [runtime.list, runtime.stopPodSandbox] = [runsFormer, async () => await stuck.promise];
  set.receiver("file")([]); // all is known: what runs is nobody's
  await clock.advance(10_000);
  set.receiver("file")([staticPodOf({}, { uid: formerly.podUID })]);
  await clock.advance(60_000);
  expect(waiting(manager)).toEqual({ "web-node-1": "others" });
  expect(removed).toEqual([]);
  runtime.list = async () => await Promise.resolve({ sandboxes: [], containers: [] });
  stuck.resolve();
  await until(() => waiting(manager)["web-node-1"] === "nothing");
  await clock.advance(60_000);
  expect(removed).toEqual([formerly.podUID]);
});

test("a static pod that goes again meanwhile leaves nothing behind", async () => {
  const { set, runtime, clock, manager } = await setUp("file");
  const stuck = Promise.withResolvers<void>();
  [runtime.list, runtime.stopPodSandbox] = [runsFormer, async () => await stuck.promise];
  set.receiver("file")([]);
  await clock.advance(10_000);
  set.receiver("file")([staticPodOf({}, { uid: formerly.podUID })]);
  set.receiver("file")([]);
  stuck.resolve();
  await clock.advance(60_000);
  expect(waiting(manager)).toEqual({});
});

test("the agent's stop has the runtime end what it runs, and does not wait for that to end by itself", async () => {
  const { set, runtime, clock } = await setUp("file");
  const plugin = Promise.withResolvers<void>();
  const asked: string[] = [];
  runtime.list = runsFormer;
  runtime.stopPodSandbox = async () => {
    asked.push("stop");
    await plugin.promise;
  };
  runtime.drain = async () => {
    asked.push("drain");
    plugin.reject(new AgentError("Canceled", "the agent stops"));
    await Promise.resolve();
  };
  set.receiver("file")([]);
  await clock.advance(10_000);
  await end();
  expect(asked).toEqual(["stop", "drain"]);
});

test("a runtime that does not tell what it has is told of on the node, once a minute", async () => {
  const { set, runtime, clock, events } = await setUp("file");
  runtime.list = fails;
  set.receiver("file")([]);
  const told = () => events.filter((reason) => reason === "ContainerGCFailed").length;
  await clock.advance(50_000);
  expect(told()).toBeLessThanOrEqual(1);
  await clock.advance(120_000);
  expect(told()).toBe(3);
});

test("nor can containers be collected while the runtime is down; one that has not answered yet is none of that", async () => {
  isReadyAtFirst = false;
  const { set, runtime, clock, events } = await setUp("file");
  const told = () => events.filter((reason) => reason === "ContainerGCFailed").length;
  set.receiver("file")([]);
  await clock.advance(60_000);
  expect(told()).toBe(0);
  runtime.isReady = true;
  await clock.advance(10_000);
  await until(() => clock.waiting > 0); // it has looked at directories
  runtime.isReady = false;
  await clock.advance(180_000);
  expect(told()).toBe(3);
  runtime.isReady = true;
  await clock.advance(120_000);
  expect(told()).toBe(3);
});

test("links to logs that are gone go once all pods are known, and again a minute later", async () => {
  containerLogsDir = await mkdtemp(join(tmpdir(), "nodelet-manager-"));
  const dir = containerLogsDir;
  onTestFinished(async () => await rm(dir, { recursive: true, force: true }));
  const leave = async () =>
    await symlink("/nonexistent/default_web_u1/app/0.log", join(dir, "web_default_app-gone.log"));
  await leave();
  const { set, clock } = await setUp("file");
  expect(await readdir(dir)).toHaveLength(1);
  set.receiver("file")([]);
  const isClean = async () => {
    await clock.advance(10_000); // between which it looks at directories
    return (await readdir(dir)).length === 0;
  };
  await expect.poll(isClean).toBe(true);
  await leave();
  await expect.poll(isClean).toBe(true);
});
