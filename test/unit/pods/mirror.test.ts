import { describe, expect, test } from "vitest";
import type { Node, Pod } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import {
  buildMirrorPod,
  callsInFlightMax,
  decideMirror,
  hashOf,
  mirrorRetry,
  type MirrorDeps,
  Mirrors,
} from "../../../agent/pods/mirror.ts";
import { PodSources } from "../../../agent/pods/sources/pod-sources.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";
import { staticPodOf } from "./sources/support.ts";

const node: Node = { metadata: { name: "node-1", uid: "n1" } };
const pod = staticPodOf({}, { uid: "s1", labels: { app: "web" } });
const stored = (changes: Partial<Pod["metadata"]> = {}): Pod => {
  const mirror = buildMirrorPod(pod, node);
  return { ...mirror, metadata: { ...mirror.metadata, uid: "m1", ...changes } };
};

test("a mirror pod is the static pod, owned by the node", () => {
  expect(buildMirrorPod(pod, node)).toEqual({
    apiVersion: "v1",
    kind: "Pod",
    metadata: {
      name: "web-node-1",
      namespace: "default",
      labels: { app: "web" },
      annotations: { ...pod.metadata.annotations, "kubernetes.io/config.mirror": "s1" },
      ownerReferences: [{ apiVersion: "v1", kind: "Node", name: "node-1", uid: "n1", controller: true }],
    },
    spec: pod.spec,
  });
  expect(hashOf(buildMirrorPod(pod, node))).toBe("s1");
});

describe("decideMirror", () => {
  const going = { deletionTimestamp: "2026-01-01T00:00:00Z" };
  const cases: [
    what: string,
    wanted: Pod | "keep" | undefined,
    mirror: Pod | undefined,
    node: Node | undefined,
    kind: string,
  ][] = [
    ["there is none", pod, undefined, node, "create"],
    ["it is right", pod, stored(), node, "none"],
    ["it stands for another version", staticPodOf({}, { uid: "s2" }), stored(), node, "delete"],
    ["somebody deletes it", pod, stored(going), node, "delete"],
    ["its static pod is gone", undefined, stored(), node, "delete"],
    ["its static pod is ending", "keep", stored(), node, "none"],
    ["nobody wants one", undefined, undefined, node, "none"],
    ["the node is not registered yet", pod, undefined, undefined, "none"],
    ["the node is being deleted", pod, undefined, { metadata: { ...node.metadata, ...going } }, "none"],
  ];
  test.each(cases)("%s", (_what, wanted, mirror, ownNode, kind) => {
    expect(decideMirror(wanted, mirror, ownNode).kind).toBe(kind);
  });
});

/** A server that keeps mirror pods, whose watch is immediate unless held back, and that can fail. */
function setUp(wanted: () => Map<string, Pod>) {
  const clock = new FakeClock();
  const store = new MemoryStore<Pod>();
  const ownNode = new MemoryStore<Node>().put(node).markSynced();
  const calls: string[] = [];
  const created: Pod[] = [];
  const state = {
    failure: undefined as AgentError | undefined,
    /** Has it, although the watch does not show it. */
    hidden: undefined as Pod | undefined,
    isHeldBack: false,
    inFlight: 0,
    inFlightMax: 0,
  };
  const sources = new PodSources({ sources: ["api"], clock: new FakeClock(), onDuplicate: () => {} });
  sources.follow(store);
  const call = async (text: string) => {
    calls.push(text);
    state.inFlight += 1;
    state.inFlightMax = Math.max(state.inFlightMax, state.inFlight);
    await settle();
    state.inFlight -= 1;
    if (state.failure !== undefined) throw state.failure;
  };
  let uids = 0;
  const client = {
    create: async (_resource: unknown, object: Pod) => {
      await call(`create ${object.metadata.name} for ${hashOf(object) ?? ""}`);
      if (state.hidden !== undefined) throw new AgentError("AlreadyExists", "it is there");
      uids += 1;
      const answer = { ...object, metadata: { ...object.metadata, uid: `m${uids}` } };
      if (!state.isHeldBack) store.put(answer);
      return answer;
    },
    get: async (_resource: unknown, { name }: { name: string }) => {
      await call(`get ${name}`);
      return state.hidden;
    },
    delete: async (_resource: unknown, { namespace, name }: { namespace: string; name: string }, options: object) => {
      await call(`delete ${name} ${JSON.stringify({ ...options, signal: undefined })}`);
      store.remove(`${namespace}/${name}`);
    },
  } as unknown as MirrorDeps["client"];
  const mirrors = new Mirrors({
    client,
    mirrors: sources.mirrors,
    ownNode,
    nodeName: "node-1",
    names: () => wanted().keys(),
    wanted: (key) => wanted().get(key),
    onCreated: (mirror) => created.push(mirror),
    clock,
    log: silentLogger,
  });
  const stop = new AbortController();
  const ended = mirrors.run(stop.signal);
  const end = async () => {
    stop.abort();
    await ended;
    expect(clock.waiting).toBe(0);
  };
  return { clock, store, ownNode, calls, created, state, mirrors, end };
}

const key = "default/web-node-1";
const rest = async () => {
  for (let i = 0; i < 10; i += 1) await settle();
};

test("nothing is done before the API server has shown what there is", async () => {
  const { calls, store, created, end } = setUp(() => new Map([[key, pod]]));
  await rest();
  expect(calls).toEqual([]);
  store.markSynced();
  await rest();
  expect(calls).toEqual(["create web-node-1 for s1"]);
  expect(created.map(hashOf)).toEqual(["s1"]);
  await end();
});

test("deleted by somebody: it is gone at once, and there again", async () => {
  const { calls, store, end } = setUp(() => new Map([[key, pod]]));
  store.put(stored()).markSynced();
  await rest();
  expect(calls).toEqual([]);
  store.put(stored({ deletionTimestamp: "2026-01-01T00:00:00Z" }));
  await rest();
  expect(calls).toEqual(['delete web-node-1 {"gracePeriodSeconds":0,"uid":"m1"}', "create web-node-1 for s1"]);
  await end();
});

test("one that the watch has not shown yet is not made twice", async () => {
  const { calls, store, state, mirrors, end } = setUp(() => new Map([[key, pod]]));
  state.isHeldBack = true;
  store.markSynced();
  await rest();
  mirrors.wake(key);
  await rest();
  expect(calls).toHaveLength(1);
  await end();
});

test("without its Node there is none; with it, at once", async () => {
  const { calls, store, ownNode, end } = setUp(() => new Map([[key, pod]]));
  ownNode.remove("node-1");
  store.markSynced();
  await rest();
  expect(calls).toEqual([]);
  ownNode.put(node);
  await rest();
  expect(calls).toHaveLength(1);
  // Its heartbeats are nobody's business here.
  ownNode.put({ ...node, status: {} });
  await rest();
  expect(calls).toHaveLength(1);
  await end();
});

test("a call that fails is repeated, ever more rarely", async () => {
  const { calls, store, state, clock, end } = setUp(() => new Map([[key, pod]]));
  state.failure = new AgentError("NotFound", 'namespaces "default" not found');
  store.markSynced();
  await rest();
  await clock.advance(mirrorRetry.baseMs * 1.3);
  await rest();
  expect(calls).toHaveLength(2);
  await clock.advance(mirrorRetry.baseMs * 1.3);
  await rest();
  expect(calls).toHaveLength(2);
  state.failure = undefined;
  await clock.advance(mirrorRetry.maxMs);
  await rest();
  expect(calls).toHaveLength(3);
  await end();
});

test("many are made beside each other, within a limit", async () => {
  const many = new Map(
    Array.from({ length: 50 }, (_, i) => {
      const each = staticPodOf({}, { name: `p${i}`, uid: `s${i}` });
      return [`default/${each.metadata.name}`, each] as const;
    }),
  );
  const { store, state, calls, end } = setUp(() => many);
  store.markSynced();
  for (let i = 0; i < 10; i += 1) await rest();
  expect(calls).toHaveLength(50);
  expect(state.inFlightMax).toBe(callsInFlightMax);
  await end();
});

test("mirror pods that stand for nothing are removed", async () => {
  const { calls, store, end } = setUp(() => new Map());
  store.put(stored()).markSynced();
  await rest();
  expect(calls).toEqual(['delete web-node-1 {"gracePeriodSeconds":0,"uid":"m1"}']);
  await end();
});

test("one that is there although its creation was not answered counts as created", async () => {
  const { calls, store, state, created, clock, end } = setUp(() => new Map([[key, pod]]));
  state.hidden = stored();
  store.markSynced();
  await rest();
  await clock.advance(mirrorRetry.maxMs);
  await rest();
  expect(calls).toEqual(["create web-node-1 for s1", "get web-node-1"]);
  expect(created).toEqual([stored()]);
  await end();
});

test.each([
  ["another version", { annotations: { "kubernetes.io/config.mirror": "s0" } }],
  ["one that is being deleted", { deletionTimestamp: "2026-01-01T00:00:00Z" }],
])("%s of that name does not count", async (_what, changes) => {
  const { calls, store, state, created, clock, end } = setUp(() => new Map([[key, pod]]));
  state.hidden = stored(changes);
  store.markSynced();
  await rest();
  expect(created).toEqual([]);
  state.hidden = undefined;
  await clock.advance(mirrorRetry.baseMs);
  await rest();
  expect(calls).toEqual(["create web-node-1 for s1", "get web-node-1", "create web-node-1 for s1"]);
  expect(created).toHaveLength(1);
  await end();
});
