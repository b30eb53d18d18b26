import { describe, expect, test, vi } from "vitest";
import { silentLogger } from "../../../agent/lib/log.ts";
import { Orphans, type OrphansDeps, removalsMax, sweepPatienceMs } from "../../../agent/pods/orphans.ts";
import type { ContainerSummary, RuntimeList, SandboxSummary } from "../../../agent/runtime/port.ts";
import { containerOf, sandboxOf } from "./support.ts";
import { FakeClock, settle } from "../volumes/support.ts";
import { staticPodOf } from "./sources/support.ts";

const of = { podName: "web-node-1", podNamespace: "default" };
const fromFile = { annotations: { "kubernetes.io/config.source": "file" } };

/** One sandbox with a container for each UID. */
function runtimeWith(...sandboxes: Partial<SandboxSummary>[]): RuntimeList {
  const made = sandboxes.map((changes) =>
    sandboxOf({ ...of, ...fromFile, id: `s-${changes.podUID ?? ""}`, ...changes }),
  );
  const containers = made.map(({ podUID, id }): ContainerSummary => {
    return containerOf({ ...of, podUID, sandboxID: id, id: `c-${podUID}` });
  });
  return { sandboxes: made, containers };
}

function setUp(list: RuntimeList | Error, known: string[] = [], stuck: string[] = []) {
  const calls: string[] = [];
  const note = (what: string) => async (id: string) => {
    await Promise.resolve();
    if (stuck.includes(`${what} ${id}`)) throw new Error(`cannot ${what}`);
    calls.push(`${what} ${id}`);
  };
  const deps = {
    runtime: {
      list: async () => (list instanceof Error ? await Promise.reject(list) : await Promise.resolve(list)),
      stopContainer: note("stop"),
      removeContainer: note("remove"),
      stopPodSandbox: note("stop"),
      removePodSandbox: note("remove"),
    },
    volumes: {
      tearDown: note("tear down"),
      removePodDir: note("remove directory of"),
      podUIDsOnDisk: async () => await Promise.resolve([]),
    },
    cgroups: { destroy: note("destroy cgroup of"), podUIDsOnDisk: async () => await Promise.resolve(new Map()) },
    settings: { podLogsDir: "/nonexistent" },
    clock: new FakeClock(),
    log: silentLogger,
    userNamespaces: { release: note("release IDs of") },
  } as unknown as OrphansDeps;
  return { calls, orphans: new Orphans(deps, (uid) => known.includes(uid)) };
}

describe("what ran in the place of a static pod", () => {
  const pod = staticPodOf({}, { uid: "new" });

  test("goes, with all that belonged to it", async () => {
    const { calls, orphans } = setUp(runtimeWith({ podUID: "old" }));
    expect(await orphans.removePredecessors(pod)).toBeUndefined();
    expect(calls).toEqual([
      "stop c-old",
      "remove c-old",
      "stop s-old",
      "remove s-old",
      "tear down old",
      "destroy cgroup of old",
      "release IDs of old",
      "remove directory of old",
    ]);
  });

  const others: [what: string, sandbox: Partial<SandboxSummary>, known?: string[]][] = [
    ["the pod itself, from before a restart of the agent", { podUID: "new" }],
    ["one that somebody works on", { podUID: "old" }, ["old"]],
    ["one of another name", { podUID: "old", podName: "other-node-1" }],
    ["one of another namespace", { podUID: "old", podNamespace: "kube-system" }],
    ["one of the API server", { podUID: "old", annotations: { "kubernetes.io/config.source": "api" } }],
    ["one of which nobody knows where it is from", { podUID: "old", annotations: {} }],
  ];
  test.each(others)("is not %s", async (_what, sandbox, known) => {
    const { calls, orphans } = setUp(runtimeWith(sandbox), known);
    expect(await orphans.removePredecessors(pod)).toBeUndefined();
    expect(calls).toEqual([]);
  });

  test("may be there if the runtime does not say", async () => {
    const { calls, orphans } = setUp(new Error("no answer"));
    expect(await orphans.removePredecessors(pod)).toBe("the runtime does not say what it has: no answer");
    expect(calls).toEqual([]);
  });

  test.each(["stop c-old", "remove c-old", "stop s-old", "remove s-old"])(
    "is there after a failed %s",
    async (stuck) => {
      const { orphans } = setUp(runtimeWith({ podUID: "old" }), [], [stuck]);
      expect(await orphans.removePredecessors(pod)).toMatch(/^containers of pod old not removed: cannot /);
    },
  );

  test("does not run any more although its directory stays", async () => {
    const { orphans } = setUp(runtimeWith({ podUID: "old" }), [], ["remove directory of old"]);
    expect(await orphans.removePredecessors(pod)).toBeUndefined();
  });
});

test("a sweep tells whether all is gone that runs and belongs to no pod", async () => {
  const list = runtimeWith({ podUID: "old" }, { podUID: "mine" });
  expect(await setUp(list, ["mine"]).orphans.sweep(list)).toBe(true);
  expect(await setUp(list, ["mine"], ["stop s-old"]).orphans.sweep(list)).toBe(false);
});

describe("what is left of pods that are gone", () => {
  const nothing = { sandboxes: [], containers: [] };

  function setUpRemains(uids: string[], options: { known?: string[]; cgroups?: string[]; tearDown?: TearDown } = {}) {
    const { known = [], cgroups = [], tearDown = async () => {} } = options;
    const clock = new FakeClock();
    const removed: string[] = [];
    const gauges = { seen: -1, errors: -1 };
    const deps = {
      clock,
      volumes: {
        tearDown,
        removePodDir: async (uid: string) => void removed.push(uid),
        podUIDsOnDisk: async () => uids.filter((uid) => !removed.includes(uid)),
      },
      cgroups: {
        destroy: async () => {},
        podUIDsOnDisk: async () => new Map(cgroups.map((uid) => [uid, undefined])),
      },
      metrics: {
        cleanedVolumes: { set: (_labels: object, value: number) => void (gauges.seen = value) },
        cleanedVolumeErrors: { set: (_labels: object, value: number) => void (gauges.errors = value) },
      },
      settings: { podLogsDir: "/nonexistent" },
      log: silentLogger,
      userNamespaces: { release: async () => {} },
    } as unknown as OrphansDeps;
    return { clock, removed, gauges, known, orphans: new Orphans(deps, (uid) => known.includes(uid)) };
  }
  type TearDown = (uid: string) => Promise<void>;

  test("goes, all two hundred, a few at a time", async () => {
    const uids = Array.from({ length: 200 }, (_, i) => `old-${i}`);
    let running = 0;
    let most = 0;
    const tearDown = async () => {
      running += 1;
      most = Math.max(most, running);
      await settle();
      running -= 1;
    };
    const { orphans, removed, gauges } = setUpRemains([...uids, "mine"], { known: ["mine"], tearDown });
    await orphans.sweep(nothing);
    expect(removed.toSorted()).toEqual(uids.toSorted());
    expect(most).toBe(removalsMax);
    expect(gauges).toEqual({ seen: 200, errors: 0 });
    await orphans.sweep(nothing);
    expect(gauges).toEqual({ seen: 0, errors: 0 });
  });

  test("is counted with what could not go, which the next sweep finds again; cgroups are not counted", async () => {
    let isBusy = true;
    const tearDown = async (uid: string) => {
      if (isBusy && uid === "busy") throw new Error("cannot unmount");
    };
    const { orphans, removed, gauges } = setUpRemains(["busy", "idle"], { tearDown, cgroups: ["cgroup", "idle"] });
    await orphans.sweep(nothing);
    expect([removed.toSorted(), gauges]).toEqual([["cgroup", "idle"], { seen: 2, errors: 1 }]);
    isBusy = false;
    await orphans.sweep(nothing);
    expect([removed.includes("busy"), gauges]).toEqual([true, { seen: 1, errors: 0 }]);
  });

  test("does not hold up a sweep that it takes long, and is not begun twice", async () => {
    const { promise, resolve } = Promise.withResolvers<void>();
    const begun: string[] = [];
    const tearDown = async (uid: string) => {
      begun.push(uid);
      if (uid === "hanging") await promise;
    };
    const { orphans, clock, removed } = setUpRemains(["hanging", "other"], { tearDown });
    for (let i = 0; i < 2; i += 1) {
      const sweep = orphans.sweep(nothing);
      await clock.advance(sweepPatienceMs);
      expect(await sweep).toBe(true);
    }
    expect([begun, removed]).toEqual([["hanging", "other"], ["other"]]);
    expect(clock.pendingTimers).toBe(0);
    resolve();
    await settle();
    expect(removed).toEqual(["other", "hanging"]);
  });

  test("is waited for as long as some of it goes", async () => {
    const uids = Array.from({ length: 3 * removalsMax }, (_, i) => `old-${i}`);
    const box: { clock?: FakeClock } = {};
    const tearDown = async () => await box.clock?.sleep(0.75 * sweepPatienceMs);
    const { orphans, clock, removed } = setUpRemains(uids, { tearDown });
    box.clock = clock;
    const sweep = orphans.sweep(nothing);
    for (let round = 1; round <= 3; round += 1) {
      await clock.advance(0.75 * sweepPatienceMs);
      await vi.waitFor(() => expect(removed).toHaveLength(round * removalsMax));
      await vi.waitFor(() => expect(clock.pendingTimers).toBe(round === 3 ? 0 : removalsMax + 1));
    }
    await sweep;
  });

  test("stays if it has become a pod's before its turn", async () => {
    const { promise, resolve } = Promise.withResolvers<void>();
    const uids = [...Array.from({ length: removalsMax }, (_, i) => `old-${i}`), "came-back"];
    const { orphans, removed, known } = setUpRemains(uids, { tearDown: async () => await promise });
    const sweep = orphans.sweep(nothing);
    await settle();
    known.push("came-back");
    resolve();
    await sweep;
    expect(removed).not.toContain("came-back");
    expect(removed).toHaveLength(removalsMax);
  });
});

describe("what runs of pods that are gone", () => {
  /** A node with these pods' containers in the runtime and on disk; some of it does not end. */
  function setUpNode(uids: string[], hanging: string[] = [], until: Promise<void> = new Promise(() => {})) {
    const clock = new FakeClock();
    const list = runtimeWith(...uids.map((podUID) => ({ podUID })));
    const done: string[] = [];
    const counts = { running: 0, most: 0 };
    const note = (what: string) => async (id: string) => {
      if (hanging.includes(`${what} ${id}`)) await until;
      counts.running += 1;
      counts.most = Math.max(counts.most, counts.running);
      await settle();
      counts.running -= 1;
      done.push(`${what} ${id}`);
    };
    const gauges = { seen: -1, errors: -1 };
    const deps = {
      clock,
      runtime: {
        list: async () => await Promise.resolve(list),
        stopContainer: note("stop"),
        removeContainer: note("remove"),
        stopPodSandbox: note("stop"),
        removePodSandbox: note("remove"),
      },
      volumes: {
        tearDown: note("tear down"),
        removePodDir: note("remove directory of"),
        podUIDsOnDisk: async () => await Promise.resolve(uids),
      },
      cgroups: { destroy: async () => {}, podUIDsOnDisk: async () => await Promise.resolve(new Map()) },
      metrics: {
        orphanedPods: { inc: () => {} },
        cleanedVolumes: { set: (_labels: object, value: number) => void (gauges.seen = value) },
        cleanedVolumeErrors: { set: (_labels: object, value: number) => void (gauges.errors = value) },
      },
      settings: { podLogsDir: "/nonexistent" },
      log: silentLogger,
      userNamespaces: { release: async () => {} },
    } as unknown as OrphansDeps;
    return { clock, list, done, counts, gauges, orphans: new Orphans(deps, () => false) };
  }

  /** Lets time pass until it has ended. */
  async function patiently<T>(clock: FakeClock, work: Promise<T>): Promise<T> {
    const pending = Symbol();
    while ((await Promise.race([work, settle().then(() => pending)])) === pending) {
      await clock.advance(sweepPatienceMs / 5);
    }
    return await work;
  }

  test("is gone although its volumes hang: the sweep comes to its end", async () => {
    const { orphans, list, clock, done } = setUpNode(["hanging", "other"], ["tear down hanging"]);
    expect(await patiently(clock, orphans.sweep(list))).toBe(true);
    expect(done).toContain("remove s-hanging");
    expect(done).toContain("remove directory of other");
  });

  test("makes way for a static pod although its volumes hang", async () => {
    const { orphans, clock, done } = setUpNode(["hanging"], ["tear down hanging"]);
    const removal = orphans.removePredecessors(staticPodOf({}, { uid: "new" }));
    expect(await patiently(clock, removal)).toBeUndefined();
    expect(done).toContain("remove s-hanging");
  });

  test("goes a few pods at a time, and what is left of them is counted", async () => {
    const uids = Array.from({ length: 40 }, (_, i) => `old-${i}`);
    const { orphans, list, done, counts, gauges } = setUpNode(uids);
    expect(await orphans.sweep(list)).toBe(true);
    expect(done.filter((what) => what.startsWith("remove directory of"))).toHaveLength(40);
    expect(counts.most).toBe(removalsMax);
    expect(gauges).toEqual({ seen: 40, errors: 0 });
  });

  test("has its turn although the volumes of many others hang, sweep after sweep", async () => {
    const uids = Array.from({ length: 2 * removalsMax }, (_, i) => `old-${i}`);
    const stuck = uids.slice(0, removalsMax).map((uid) => `tear down ${uid}`);
    const { orphans, clock, done } = setUpNode(uids, stuck);
    const nothing = { sandboxes: [], containers: [] };
    for (let i = 0; i < 2; i += 1) await patiently(clock, orphans.sweep(nothing));
    expect(done.filter((what) => what.startsWith("remove directory of"))).toHaveLength(removalsMax);
  });

  test("is removed before it begins anew, also if the sweep that began it is over", async () => {
    const stuck = Promise.withResolvers<void>();
    const { orphans, list, clock, done } = setUpNode(["back"], ["stop s-back"], stuck.promise);
    expect(await patiently(clock, orphans.sweep(list))).toBe(false);
    const removal = orphans.underWay("back");
    stuck.resolve();
    await removal;
    expect(done.at(-1)).toBe("remove directory of back");
  });

  test("is looked at by the next sweep if it does not stop; nothing on disk is touched meanwhile", async () => {
    const { orphans, list, clock, done } = setUpNode(["stuck", "other"], ["stop c-stuck"]);
    for (let i = 0; i < 2; i += 1) {
      expect(await patiently(clock, orphans.sweep(list))).toBe(false);
      expect(done.filter((what) => what === "remove directory of other")).toHaveLength(i + 1);
    }
    expect(done.filter((what) => what.endsWith("stuck"))).toEqual([]);
    expect(orphans.underWay("stuck")).toBeDefined();
    expect(clock.pendingTimers).toBe(0);
  });
});
