import { describe, expect, test } from "vitest";
import { silentLogger } from "../../../agent/lib/log.ts";
import { Orphans } from "../../../agent/pods/orphans.ts";
import type { PodDeps } from "../../../agent/pods/port.ts";
import type { ContainerSummary, RuntimeList, SandboxSummary } from "../../../agent/runtime/port.ts";
import { containerOf, sandboxOf } from "./support.ts";
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
    log: silentLogger,
  } as unknown as PodDeps;
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
