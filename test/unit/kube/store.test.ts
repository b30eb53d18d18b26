import { expect, test } from "vitest";
import type { StoreChange } from "../../../agent/kube/port.ts";
import { ObjectStore } from "../../../agent/kube/store.ts";
import type { Pod } from "../../../agent/kube/types.ts";
import { pod } from "./support.ts";

function makeStore() {
  const errors: unknown[] = [];
  const store = new ObjectStore<Pod>({
    breathe: () => undefined,
    onError: (err) => errors.push(err),
    indexes: { node: (p) => (p.spec.nodeName === undefined ? [] : [p.spec.nodeName]) },
  });
  return { store, errors };
}

function mapOf(...pods: Pod[]): Map<string, Pod> {
  return new Map(pods.map((p) => [`ns/${p.metadata.name}`, p]));
}

/** `+a`, `~a`, `-a` for added, changed, deleted. */
function short({ key, old, object }: StoreChange<Pod>): string {
  return `${old === undefined ? "+" : object === undefined ? "-" : "~"}${key.slice(3)}`;
}

test.each([
  { name: "nothing new", next: [pod("a", "1"), pod("b", "1")], want: [] },
  { name: "one vanished", next: [pod("a", "1")], want: ["-b"] },
  { name: "one changed", next: [pod("a", "2"), pod("b", "1")], want: ["~a"] },
  { name: "one appeared", next: [pod("a", "1"), pod("b", "1"), pod("c", "1")], want: ["+c"] },
  {
    name: "another object of the same name",
    next: [pod("a", "2", { uid: "other" }), pod("b", "1")],
    want: ["-a", "+a"],
  },
  { name: "deletions come last", next: [pod("c", "1"), pod("a", "2")], want: ["+c", "~a", "-b"] },
  { name: "all gone", next: [], want: ["-a", "-b"] },
])("a new list tells what differs: $name", async ({ next, want }) => {
  const { store } = makeStore();
  await store.replace(mapOf(pod("a", "1"), pod("b", "1")));
  const seen: string[] = [];
  store.subscribe((change) => seen.push(short(change)));
  seen.length = 0;
  await store.replace(mapOf(...next));
  expect(seen).toEqual(want);
  expect([...store.list()].map((p) => p.metadata.name).sort()).toEqual(next.map((p) => p.metadata.name).sort());
});

test("indexes follow additions, changes and deletions", async () => {
  const { store } = makeStore();
  await store.replace(mapOf(pod("a", "1"), pod("b", "1", { nodeName: "n2" })));
  const names = (node: string) => store.byIndex("node", node).map((p) => p.metadata.name);
  expect([names("n1"), names("n2"), names("n3")]).toEqual([["a"], ["b"], []]);
  store.put(pod("a", "2", { nodeName: "n2" }));
  expect([names("n1"), names("n2")]).toEqual([[], ["b", "a"]]);
  store.delete("ns/b");
  expect(names("n2")).toEqual(["a"]);
  expect(store.byIndex("node", "n2")[0]?.metadata.resourceVersion).toBe("2");
  expect(() => store.byIndex("nodes", "n2")).toThrow("no index nodes");
});

test("who subscribes before the sync hears everything right after it, before anyone is told it is synced", async () => {
  const { store } = makeStore();
  const seen: string[] = [];
  store.subscribe((change) => seen.push(`${short(change)} ${store.hasSynced}`));
  store.put(pod("early", "1"));
  expect(seen).toEqual([]);
  const synced = store.synced().then(() => seen.push("synced"));
  await store.replace(mapOf(pod("a", "1"), pod("b", "1")));
  await synced;
  expect(seen).toEqual(["+a false", "+b false", "synced"]);
  expect(store.hasSynced).toBe(true);
});

test("who subscribes after the sync hears the present objects at once, then changes, until it unsubscribes", async () => {
  const { store } = makeStore();
  await store.replace(mapOf(pod("a", "1")));
  const seen: string[] = [];
  const unsubscribe = store.subscribe((change) => seen.push(short(change)));
  expect(seen).toEqual(["+a"]);
  store.put(pod("a", "2"));
  store.put(pod("a", "2"));
  unsubscribe();
  store.delete("ns/a");
  expect(seen).toEqual(["+a", "~a"]);
});

test("a listener or an index that throws harms nobody else", async () => {
  const errors: unknown[] = [];
  const store = new ObjectStore<Pod>({
    breathe: () => undefined,
    onError: (err) => errors.push(err),
    indexes: {
      bad: () => {
        throw new Error("index");
      },
    },
  });
  const seen: string[] = [];
  store.subscribe(() => {
    throw new Error("listener");
  });
  store.subscribe((change) => seen.push(short(change)));
  await store.replace(mapOf(pod("a", "1")));
  expect(seen).toEqual(["+a"]);
  expect(errors.map(String)).toEqual(["Error: index", "Error: listener"]);
});

test("waiting for the sync ends with the signal", async () => {
  const { store } = makeStore();
  const stop = new AbortController();
  const waiting = expect(store.synced(stop.signal)).rejects.toThrow(/abort/i);
  stop.abort();
  await waiting;
  await store.replace(new Map());
  await store.synced(AbortSignal.abort()); // synced is synced
});
