import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { configMaps } from "../../../agent/kube/resources.ts";
import { stringAt } from "../../support/apiserver/json.ts";
import { startTestApiServer, type TestApiServer } from "../../support/apiserver/server.ts";
import { Client, type Watch } from "./client.ts";

let server: TestApiServer;
let client: Client;
const watches: Watch[] = [];
const base = "/api/v1/namespaces/default/configmaps";

beforeAll(async () => {
  server = await startTestApiServer();
  client = new Client(server);
});
afterEach(async () => {
  server.faults.clear();
  for (const watch of watches.splice(0)) watch.close();
  await vi.waitUntil(() => server.openWatches === 0);
});
afterAll(async () => {
  client.close();
  await server.close();
});

let count = 0;
const create = () => server.objects.create(configMaps, { metadata: { name: `c${++count}`, namespace: "default" } });
const openWatch = async () => {
  const before = server.openWatches;
  const { body } = await client.get(base);
  const watch = client.watch(`${base}?watch=1&resourceVersion=${stringAt(body, "metadata", "resourceVersion")}`);
  watches.push(watch);
  await expect.poll(() => server.openWatches).toBe(before + 1);
  return watch;
};

test("the next matching requests are refused, others and later ones are not", async () => {
  const fault = server.faults.inject(
    { verb: "list", resource: "configmaps" },
    { kind: "respond", code: 429, retryAfterSeconds: 2 },
    2,
  );
  const refused = await client.get(base);
  expect([refused.code, refused.headers["retry-after"], refused.body["reason"]]).toEqual([429, "2", "TooManyRequests"]);
  expect((await client.get("/api/v1/pods")).code).toBe(200);
  expect((await client.get(base)).code).toBe(429);
  expect((await client.get(base)).code).toBe(200);
  expect(fault.hits).toBe(2);
});

test.each([
  [500, "InternalError"],
  [503, "ServiceUnavailable"],
  [410, "Expired"],
] as const)("answers %d %s", async (code, reason) => {
  server.faults.inject({ path: /configmaps/ }, { kind: "respond", code }, 1);
  const { body } = await client.get(base);
  expect(body).toMatchObject({ code, reason });
});

test("a dropped request does nothing; a dropped answer leaves its work done", async () => {
  server.faults.inject({ method: "POST" }, { kind: "drop" }, 1);
  await expect(client.post(base, { metadata: { name: "lost" } })).rejects.toThrow();
  expect((await client.get(`${base}/lost`)).code).toBe(404);
  server.faults.inject({ method: "POST" }, { kind: "dropAnswer" }, 1);
  await expect(client.post(base, { metadata: { name: "done" } })).rejects.toThrow();
  expect((await client.get(`${base}/done`)).code).toBe(200);
});

test("a delayed request is answered late, a hanging one never", async () => {
  server.faults.inject({}, { kind: "delay", ms: 60 }, 1);
  const start = performance.now();
  expect((await client.get(base)).code).toBe(200);
  expect(performance.now() - start).toBeGreaterThan(55);
  server.faults.inject({}, { kind: "hang" }, 1);
  const signal = AbortSignal.timeout(40);
  await expect(client.call("GET", base, { signal })).rejects.toThrow(/abort/i);
});

test("a slow body arrives in pieces, a cut one breaks off", async () => {
  server.faults.inject({}, { kind: "slowBody", chunkBytes: 500, intervalMs: 1 }, 1);
  expect((await client.get(base)).body["kind"]).toBe("ConfigMapList");
  server.faults.inject({}, { kind: "slowBody", chunkBytes: 10, intervalMs: 1, cutAfterBytes: 30 }, 1);
  await expect(client.get(base)).rejects.toThrow();
});

test("watches are cut, also in the middle of a line", async () => {
  const first = await openWatch();
  create();
  await first.next();
  expect(server.faults.cutWatches({ resource: "configmaps" })).toBe(1);
  await expect(first.next()).rejects.toThrow();
  const second = await openWatch();
  expect(server.faults.cutWatches({}, { midLine: true })).toBe(1);
  expect(await second.next()).toBeUndefined();
  expect(second.partial).toContain('{"type":"MODIFIED"');
});

test("silent watches deliver nothing until they are let speak", async () => {
  const watch = await openWatch();
  server.faults.silenceWatches({ resource: "configmaps" });
  const { metadata } = create();
  const event = watch.next();
  expect(await Promise.race([event, delay(30, "nothing")])).toBe("nothing");
  server.faults.silenceWatches({}, false);
  expect(stringAt((await event)?.object, "metadata", "name")).toBe(metadata.name);
});

test("half-open: open connections fall silent, new ones are never answered, then all flows again", async () => {
  const watch = await openWatch();
  server.faults.setHalfOpen(true);
  const { metadata } = create();
  const event = watch.next();
  const fresh = new Client(server);
  const answer = fresh.get("/healthz");
  expect(await Promise.race([event, answer, delay(40, "nothing")])).toBe("nothing");
  server.faults.setHalfOpen(false);
  expect(stringAt((await event)?.object, "metadata", "name")).toBe(metadata.name);
  expect((await answer).text).toBe("ok");
  fresh.close();
});

test("dropped connections break what is open; the next request works", async () => {
  const watch = await openWatch();
  server.faults.dropConnections();
  await expect(watch.next()).rejects.toThrow();
  expect((await client.get(base)).code).toBe(200);
});

test("pause and resume: gone for everyone, and back at the same address with all it knew", async () => {
  const { metadata } = create();
  const { url } = server;
  await server.pause();
  const fresh = new Client(server);
  await expect(fresh.get(base)).rejects.toThrow(/ECONNREFUSED/);
  fresh.close();
  create();
  await server.resume();
  expect(server.url).toBe(url);
  expect((await client.get(`${base}/${metadata.name}`)).code).toBe(200);
});

test("as a process of its own: keeps keys and address in its directory, takes faults over the network, ends on SIGTERM", async () => {
  const dir = await mkdtemp(join(tmpdir(), "apiserver-main-"));
  const main = new URL("../../support/apiserver/main.ts", import.meta.url).pathname;
  const start = async () => {
    const child = spawn(process.execPath, [main, "--dir", dir], { stdio: ["ignore", "pipe", "inherit"] });
    const [line] = (await once(child.stdout, "data")) as [Buffer];
    return { child, url: /https:\S+:\d+/.exec(line.toString())?.[0] };
  };
  const stop = async ({ child }: Awaited<ReturnType<typeof start>>) => {
    child.kill("SIGTERM");
    const [code] = (await once(child, "exit")) as [number | null];
    return code;
  };
  try {
    const first = await start();
    const kept = JSON.parse(await readFile(join(dir, "server.json"), "utf8")) as { keys: TestApiServer["keys"] };
    expect((await stat(join(dir, "admin.kubeconfig"))).mode & 0o777).toBe(0o600);
    expect(await readFile(join(dir, "node.kubeconfig"), "utf8")).toContain("name: system:node:node");
    expect(await stop(first)).toBe(0);
    const second = await start();
    expect(second.url).toBe(first.url);
    // A client of the first server's authority is known to the second.
    const same = await startTestApiServer({ keys: kept.keys });
    const remote = new Client(
      { ...same, url: second.url ?? "" },
      same.issueCertificate({ commonName: "a", organizations: ["system:masters"], usage: "client" }),
    );
    await same.close();
    const match = { path: "^/api/v1/nodes" };
    expect(
      (await remote.post("/test/faults", { inject: { match, action: { kind: "respond", code: 503 }, times: 1 } })).code,
    ).toBe(200);
    expect((await remote.get("/api/v1/nodes")).code).toBe(503);
    expect((await remote.get("/api/v1/nodes")).code).toBe(200);
    remote.close();
    expect(await stop(second)).toBe(0);
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
});
