import { expect, test } from "vitest";
import { isStaticPod } from "../../../../agent/kube/pod-resources.ts";
import type { Pod } from "../../../../agent/kube/types.ts";
import { PodSources } from "../../../../agent/pods/sources/pod-sources.ts";
import type { PodSourceName } from "../../../../agent/pods/sources/static-pod.ts";
import { MemoryStore } from "../../../support/memory-store.ts";
import { FakeClock } from "../../kube/fake-clock.ts";
import { podOf } from "../support.ts";
import { staticPodOf } from "./support.ts";

const never = new AbortController().signal;
const settle = async () => await new Promise((resolve) => setImmediate(resolve));

function setUp(...sources: PodSourceName[]) {
  const duplicates: string[] = [];
  const set = new PodSources({
    sources,
    clock: new FakeClock(),
    onDuplicate: (_pod, message) => duplicates.push(message),
  });
  const changes: string[] = [];
  set.subscribe(({ old, object }) => changes.push(`${old?.metadata.uid ?? "-"} → ${object?.metadata.uid ?? "-"}`));
  return { set, changes, duplicates, file: set.receiver("file"), http: set.receiver("http") };
}

const versionOf = (uid: string, name = "web") => staticPodOf({}, { uid, name });
const mirrorOf = (pod: Pod, uid: string): Pod => ({
  ...pod,
  metadata: { ...pod.metadata, uid, annotations: { "kubernetes.io/config.mirror": pod.metadata.uid ?? "" } },
});

test("each delivery is the complete set of its source: what is not in it is gone, first of all", () => {
  const { set, changes, file, http } = setUp("file", "http");
  file([versionOf("a"), versionOf("b", "other")]);
  http([versionOf("c", "third")]);
  expect(changes.splice(0)).toEqual(["- → a", "- → b", "- → c"]);
  file([versionOf("a2"), versionOf("b", "other")]);
  expect(changes.splice(0)).toEqual(["a → -", "- → a2"]);
  file([]);
  expect(changes.splice(0)).toEqual(["a2 → -", "b → -"]);
  expect([...set.list()].map(({ metadata }) => metadata.uid)).toEqual(["c"]);
});

test("what is the same is no change, and was first seen when it was", () => {
  const { set, changes, file } = setUp("file");
  const seen = (pod: Pod | undefined) => pod?.metadata.annotations?.["kubernetes.io/config.seen"];
  const pod = staticPodOf();
  const later = {
    ...pod,
    metadata: { ...pod.metadata, annotations: { ...pod.metadata.annotations, "kubernetes.io/config.seen": "later" } },
  };
  file([pod]);
  file([later]);
  expect(changes).toHaveLength(1);
  expect(seen(set.byUID(pod.metadata.uid ?? ""))).toBe(seen(pod));
  // A UID that the manifest names stays when its content changes.
  file([versionOf("fixed")]);
  file([staticPodOf({ hostNetwork: true }, { uid: "fixed" })]);
  expect(changes.at(-1)).toBe("fixed → fixed");
});

test("two pods of one name, or of one UID: the later one is left out and told about", () => {
  const { set, duplicates, file } = setUp("file");
  file([versionOf("a"), versionOf("b"), versionOf("a", "other")]);
  expect([...set.list()]).toHaveLength(1);
  expect(duplicates).toEqual([
    "static pod web-node-1_default(b) is left out: another manifest has the same name default/web-node-1",
    "static pod other-node-1_default(a) is left out: another manifest has the same UID a",
  ]);
});

test("all sources have told what they have once each of them did, also if that is nothing", async () => {
  const { set, file, http } = setUp("api", "file", "http");
  const store = new MemoryStore<Pod>();
  set.follow(store);
  let isSynced = false;
  const synced = set.synced(never).then(() => (isSynced = true));
  file([]);
  store.markSynced();
  await settle();
  expect([set.hasSynced, isSynced]).toEqual([false, false]);
  http([]);
  await synced;
  expect(set.hasSynced).toBe(true);
  expect(setUp().set.hasSynced).toBe(true);
});

test("the API server has told what it has whatever other sources say; where there is none, at once", async () => {
  const { set } = setUp("api", "file", "http");
  const store = new MemoryStore<Pod>();
  set.follow(store);
  let isSynced = false;
  const synced = set.apiSynced(never).then(() => (isSynced = true));
  await settle();
  expect(isSynced).toBe(false);
  store.markSynced();
  await synced;
  expect(set.hasSynced).toBe(false);
  await setUp("http").set.apiSynced(never);
});

test("waiting for it ends with the agent", async () => {
  const stop = new AbortController();
  const { set } = setUp("api");
  const waiting = set.synced(stop.signal);
  stop.abort();
  await expect(waiting).rejects.toThrow("aborted");
  await expect(set.mirrors.synced(stop.signal)).rejects.toThrow("aborted");
});

test("static pods are told about before the API server has answered", () => {
  const { set, changes, file } = setUp("api", "file");
  set.follow(new MemoryStore<Pod>());
  file([versionOf("a")]);
  expect(changes).toEqual(["- → a"]);
  expect(set.hasSynced).toBe(false);
});

test("mirror pods are none of the node's pods: they are kept apart", async () => {
  const { set, changes, file } = setUp("api", "file");
  const pod = versionOf("a");
  const mirror = mirrorOf(pod, "m");
  const store = new MemoryStore<Pod>().put(mirror, podOf({}, { uid: "u1" })).markSynced();
  const seen: string[] = [];
  set.mirrors.subscribe(({ key, object }) => seen.push(`${key} ${object?.metadata.uid ?? "gone"}`));
  const end = set.follow(store);
  file([pod]);
  await set.mirrors.synced(never);
  expect(changes).toEqual(["- → u1", "- → a"]);
  expect(set.mirrors.get("default/web-node-1")).toBe(mirror);
  expect([...set.mirrors.list()]).toEqual([mirror]);
  expect(set.find("default", "web-node-1")).toBe(pod);
  expect(set.find("ns", "web")?.metadata.uid).toBe("u1");
  store.remove("default/web-node-1");
  expect(seen).toEqual(["default/web-node-1 m", "default/web-node-1 gone"]);
  store.remove("ns/web");
  expect(changes.at(-1)).toBe("u1 → -");
  end();
  store.put(podOf({}, { uid: "u2" }));
  expect(set.byUID("u2")).toBeUndefined();
});

test("a pod of the API server says where it comes from and since when it is here, whatever it claims itself", () => {
  const { set } = setUp("api");
  const store = new MemoryStore<Pod>();
  set.follow(store);
  const annotations = {
    mine: "1",
    "kubernetes.io/config.source": "file",
    "kubernetes.io/config.seen": "long ago",
  };
  store.put(podOf({}, { annotations })).markSynced();
  const shown = () => set.byUID("u1")?.metadata.annotations;
  expect(shown()).toEqual({
    mine: "1",
    "kubernetes.io/config.source": "api",
    "kubernetes.io/config.seen": expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$/),
  });
  const pod = set.byUID("u1");
  expect(pod !== undefined && isStaticPod(pod)).toBe(false);
  const seen = shown()?.["kubernetes.io/config.seen"];
  store.put(podOf({}, { annotations: { mine: "2" } }));
  expect(shown()).toEqual({ mine: "2", "kubernetes.io/config.source": "api", "kubernetes.io/config.seen": seen });
});
