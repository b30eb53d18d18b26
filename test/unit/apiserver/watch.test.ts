import { connect } from "node:http2";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import { configMaps } from "../../../agent/kube/resources.ts";
import { objectAt, objectsAt, stringAt } from "../../support/apiserver/json.ts";
import { startTestApiServer, type TestApiServer } from "../../support/apiserver/server.ts";
import { Client, type Watch, type WatchEvent } from "./client.ts";

let server: TestApiServer;
let client: Client;
const watches: Watch[] = [];
const base = "/api/v1/namespaces/default/configmaps";

beforeAll(async () => {
  server = await startTestApiServer({
    bookmarkIntervalMs: 40,
    historyMax: 20,
    controllers: { serviceAccounts: false },
  });
  client = new Client(server);
});
afterEach(async () => {
  for (const watch of watches.splice(0)) watch.close();
  await vi.waitUntil(() => server.openWatches === 0);
  for (const { metadata } of server.objects.list(configMaps, { namespace: "default" })) {
    server.objects.delete(configMaps, { namespace: "default", name: metadata.name });
  }
});
afterAll(async () => {
  client.close();
  await server.close();
});

const create = (name: string, labels: Record<string, string> = {}) =>
  server.objects.create(configMaps, { metadata: { name, namespace: "default", labels } });
const revision = async () => stringAt((await client.get(`${base}?limit=1`)).body, "metadata", "resourceVersion");
const watch = (query: string, headers = {}) => {
  const opened = client.watch(`${base}?watch=true&${query}`, headers);
  watches.push(opened);
  return opened;
};
const brief = (events: WatchEvent[]) => events.map((e) => `${e.type} ${stringAt(e.object, "metadata", "name")}`);

describe("list", () => {
  test("comes in pages of one state, whatever happens between them", async () => {
    for (const name of ["a", "b", "c", "d"]) create(name);
    const first = await client.get(`${base}?limit=2`);
    expect(objectAt(first.body, "metadata")["remainingItemCount"]).toBe(2);
    server.objects.delete(configMaps, { namespace: "default", name: "c" });
    create("cc");
    const token = stringAt(first.body, "metadata", "continue");
    const second = await client.get(`${base}?limit=2&continue=${token}`);
    const names = [first, second].flatMap((p) =>
      objectsAt(p.body, "items").map((o) => stringAt(o, "metadata", "name")),
    );
    expect(names).toEqual(["a", "b", "c", "d"]);
    expect(stringAt(second.body, "metadata", "resourceVersion")).toBe(
      stringAt(first.body, "metadata", "resourceVersion"),
    );
    expect(stringAt(second.body, "metadata", "continue")).toBe("");
  });

  test("a page from before the history's end is 410 Expired", async () => {
    for (const name of ["a", "b"]) create(name);
    const first = await client.get(`${base}?limit=1`);
    create("c");
    server.faults.compact();
    const answer = await client.get(`${base}?limit=1&continue=${stringAt(first.body, "metadata", "continue")}`);
    expect([answer.code, answer.body["reason"]]).toEqual([410, "Expired"]);
  });

  test("items say no kind, the list does", async () => {
    create("a");
    const { body } = await client.get(base);
    expect(body["kind"]).toBe("ConfigMapList");
    expect(objectsAt(body, "items")[0]).not.toHaveProperty("kind");
  });

  test("a future version is a timeout, an exact past one is answered", async () => {
    create("a");
    const before = await revision();
    create("b");
    const exact = await client.get(`${base}?resourceVersion=${before}&resourceVersionMatch=Exact`);
    expect(objectsAt(exact.body, "items")).toHaveLength(1);
    expect((await client.get(`${base}?resourceVersion=${Number(before) + 1000}`)).code).toBe(504);
  });
});

describe("watch", () => {
  test("from a version gets what happened since, in order", async () => {
    const since = await revision();
    create("a");
    server.objects.patch(configMaps, { namespace: "default", name: "a" }, { data: { x: "y" } });
    const opened = watch(`resourceVersion=${since}`);
    expect(brief(await opened.take(2))).toEqual(["ADDED a", "MODIFIED a"]);
    server.objects.delete(configMaps, { namespace: "default", name: "a" });
    const [last] = await opened.take(1);
    expect(last?.type).toBe("DELETED");
    expect(objectAt(last?.object, "data")).toEqual({ x: "y" });
    expect(Number(stringAt(last?.object, "metadata", "resourceVersion"))).toBeGreaterThan(Number(since) + 2);
  });

  test("without a version begins with what there is", async () => {
    create("a");
    expect(brief(await watch("").take(1))).toEqual(["ADDED a"]);
  });

  test("sendInitialEvents ends the beginning with a marked bookmark", async () => {
    create("a");
    const query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    const [first, second] = await watch(query).take(2);
    expect(first?.type).toBe("ADDED");
    expect(second).toMatchObject({
      type: "BOOKMARK",
      object: { kind: "ConfigMap", metadata: { annotations: { "k8s.io/initial-events-end": "true" } } },
    });
    expect((await client.get(`${base}?watch=true&sendInitialEvents=true`)).code).toBe(422);
  });

  test("sends its headers at once, or with the first event where they are held", async () => {
    await watch(`resourceVersion=${await revision()}`).opened;
    const holding = await startTestApiServer({ holdWatchHeaders: true });
    const other = new Client(holding);
    try {
      const { body } = await other.get(base);
      const opened = other.watch(`${base}?watch=1&resourceVersion=${stringAt(body, "metadata", "resourceVersion")}`);
      let hasHeaders = false;
      void opened.opened.then(() => (hasHeaders = true));
      await expect.poll(() => holding.openWatches).toBe(1);
      await delay(20);
      expect(hasHeaders).toBe(false);
      holding.objects.create(configMaps, { metadata: { name: "a", namespace: "default" } });
      expect((await opened.next())?.type).toBe("ADDED");
      opened.close();
    } finally {
      other.close();
      await holding.close();
    }
  });

  test("bookmarks come when asked for, with the newest version", async () => {
    const opened = watch(`resourceVersion=${await revision()}&allowWatchBookmarks=true`);
    const event = await opened.next();
    expect([event?.type, stringAt(event?.object, "metadata", "resourceVersion")]).toEqual([
      "BOOKMARK",
      await revision(),
    ]);
  });

  test("an object that leaves the selection is deleted for this watch, one that enters is added", async () => {
    create("a", { on: "1" });
    const opened = watch(`labelSelector=on&resourceVersion=${await revision()}`);
    const key = { namespace: "default", name: "a" };
    await expect.poll(() => server.openWatches).toBe(1);
    server.objects.patch(configMaps, key, { metadata: { labels: { on: null } } });
    server.objects.patch(configMaps, key, { metadata: { labels: { on: "2" } } });
    server.objects.patch(configMaps, key, { metadata: { labels: { on: "3" } } });
    expect(brief(await opened.take(3))).toEqual(["DELETED a", "ADDED a", "MODIFIED a"]);
  });

  test("from a forgotten version is an ERROR event with 410, then the end", async () => {
    const since = await revision();
    create("a");
    server.faults.compact();
    const opened = watch(`resourceVersion=${since}`);
    expect(await opened.next()).toMatchObject({
      type: "ERROR",
      object: { kind: "Status", code: 410, reason: "Expired" },
    });
    expect(await opened.next()).toBeUndefined();
  });

  test("the history window is bounded", async () => {
    const since = await revision();
    for (let i = 0; i < 60; i++) create(`x${i}`);
    expect((await watch(`resourceVersion=${since}`).next())?.type).toBe("ERROR");
  });

  test("ends cleanly after timeoutSeconds", async () => {
    const opened = watch(`resourceVersion=${await revision()}&timeoutSeconds=1`);
    expect(await opened.next()).toBeUndefined();
  });

  test("shows tables, with the columns in the first only", async () => {
    create("a");
    create("b");
    const [first, second] = await watch("", { accept: "application/json;as=Table;v=v1;g=meta.k8s.io" }).take(2);
    expect(objectsAt(first?.object, "columnDefinitions").map((c) => c["name"])).toEqual(["Name", "Data", "Age"]);
    expect(objectsAt(first?.object, "rows")[0]?.["cells"]).toEqual(["a", 0, "0s"]);
    expect(second?.object["columnDefinitions"]).toBeNull();
  });

  test("shows metadata alone when asked", async () => {
    create("a");
    const accept = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
    expect(await watch("", { accept }).next()).toMatchObject({
      object: { kind: "PartialObjectMetadata", metadata: { name: "a" } },
    });
  });
});

test("HTTP/2: many watches and calls share one connection", async () => {
  const { certificate, key } = server.issueCertificate({
    commonName: "h2",
    organizations: ["system:masters"],
    usage: "client",
  });
  const session = connect(server.url, { ca: server.caCertificate, cert: certificate, key });
  try {
    const streams = [0, 1, 2].map(() => session.request({ ":path": `${base}?watch=1&resourceVersion=0` }));
    const lines = streams.map(
      (stream) =>
        new Promise<string>((resolve, reject) => {
          stream.once("data", (chunk: Buffer) => resolve(chunk.toString()));
          stream.once("error", reject);
        }),
    );
    create("a");
    for (const line of await Promise.all(lines)) expect(JSON.parse(line)).toMatchObject({ type: "ADDED" });
    for (const stream of streams) stream.close();
    await expect.poll(() => server.openWatches).toBe(0);
    expect(server.requests.filter({ user: "h2" }).map((r) => r.httpVersion)).toEqual(["2.0", "2.0", "2.0"]);
  } finally {
    session.destroy();
  }
});
