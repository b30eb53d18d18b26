import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { Access } from "../../../agent/kube/access.ts";
import { createApiClient, type KubeClient } from "../../../agent/kube/client.ts";
import type { TransportLimits } from "../../../agent/kube/connection.ts";
import { createEventRecorder } from "../../../agent/kube/events.ts";
import { createInformerFactory } from "../../../agent/kube/informer.ts";
import { loadKubeconfig } from "../../../agent/kube/kubeconfig.ts";
import type { Informer } from "../../../agent/kube/port.ts";
import { configMaps, events, leases } from "../../../agent/kube/resources.ts";
import { createTransport } from "../../../agent/kube/transport.ts";
import type { ConfigMap } from "../../../agent/kube/types.ts";
import { systemClock } from "../../../agent/lib/clock.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { startTestApiServer, type TestApiServer } from "../../support/apiserver/server.ts";
import { until } from "./support.ts";

// The parts together, against the test API server: what the other tests script by hand is real list and watch here.

let stack: AsyncDisposableStack;
let server: TestApiServer;
let client: KubeClient;
let access: Access;

const deps = { clock: systemClock, log: silentLogger };
const limits: Partial<TransportLimits> = { suspectMs: 50, pingIdleMs: 100, pingTimeoutMs: 100, handshakeMs: 200 };

beforeEach(async () => {
  stack = new AsyncDisposableStack();
  server = stack.use(await startTestApiServer());
  const dir = await mkdtemp(join(tmpdir(), "nodelet-kube-"));
  stack.defer(async () => rm(dir, { recursive: true }));
  await writeFile(join(dir, "kubeconfig"), server.kubeconfig("admin"));
  access = await loadKubeconfig(join(dir, "kubeconfig"), deps);
  const transport = stack.use(createTransport({ ...deps, access, userAgent: "kubelet/test", limits }));
  client = createApiClient({ ...deps, transport, userAgent: "kubelet/test", qps: -1, burst: 0, timeoutMs: 5_000 });
});
afterEach(async () => stack.disposeAsync());

function configMap(name: string, data: Record<string, string> = {}): ConfigMap {
  return { metadata: { name, namespace: "default" }, data };
}

function follow(): Informer<ConfigMap> {
  const start = createInformerFactory({ ...deps, client, limits: { backoffBaseMs: 10, backoffMaxMs: 50 } });
  const stop = new AbortController();
  const informer = start(configMaps, { namespace: "default" }, stop.signal);
  stack.defer(async () => {
    stop.abort();
    await informer.stopped;
  });
  return informer;
}

const namesIn = (informer: Informer<ConfigMap>) =>
  [...informer.store.list()]
    .map(({ metadata }) => metadata.name)
    .filter((name) => name !== "kube-root-ca.crt")
    .toSorted();

test("an object's life: create, read, update, patch, conflict, delete with a UID", async () => {
  const created = await client.create(configMaps, configMap("a", { x: "1" }));
  const { uid = "" } = created.metadata;
  const key = { namespace: "default", name: "a" };
  const updated = await client.update(configMaps, { ...created, data: { x: "2" } });
  await expect(client.update(configMaps, created)).rejects.toMatchObject({ code: "Conflict" });
  await client.patch(configMaps, key, { metadata: { uid }, data: { y: "3" } }, { type: "strategic" });
  expect((await client.get(configMaps, key)).data).toEqual({ x: "2", y: "3" });
  expect(updated.metadata.uid).toBe(uid);
  const other = client.patch(configMaps, key, { metadata: { uid: "other" }, data: {} }, { type: "merge" });
  await expect(other).rejects.toMatchObject({ code: "Conflict" });
  await expect(client.create(configMaps, configMap("a"))).rejects.toMatchObject({ code: "AlreadyExists" });
  await expect(client.delete(configMaps, key, { uid: "other" })).rejects.toMatchObject({ code: "Conflict" });
  await client.delete(configMaps, key, { uid });
  await expect(client.get(configMaps, key)).rejects.toMatchObject({ code: "NotFound" });
});

test("1 200 objects are listed in pages and by an informer", async () => {
  for (let i = 0; i < 1_200; i += 1) server.objects.create(configMaps, configMap(`c${i}`));
  const { items } = await client.list(configMaps, { namespace: "default" });
  expect(items.length).toBeGreaterThanOrEqual(1_200);
  const informer = follow();
  await informer.store.synced();
  expect(informer.store.size).toBe(items.length);
});

const faults: { name: string; fault: () => unknown }[] = [
  { name: "nothing", fault: () => {} },
  { name: "cut watches", fault: () => server.faults.cutWatches() },
  { name: "watches cut inside a line", fault: () => server.faults.cutWatches({}, { midLine: true }) },
  { name: "dropped connections", fault: () => server.faults.dropConnections() },
  {
    name: "an expired history",
    fault: () => {
      server.objects.create(configMaps, configMap("between"));
      server.objects.delete(configMaps, { namespace: "default", name: "between" });
      server.faults.compact();
      server.faults.cutWatches();
    },
  },
  {
    name: "500s in answer to watches",
    fault: () => {
      server.faults.inject({ verb: "watch" }, { kind: "respond", code: 500 }, 2);
      server.faults.cutWatches();
    },
  },
  {
    name: "a server that is away for a while",
    fault: async () => {
      await server.pause();
      await new Promise((resolve) => void setTimeout(resolve, 100));
      await server.resume();
    },
  },
  {
    name: "half-open connections for a while",
    fault: async () => {
      server.faults.setHalfOpen(true);
      await new Promise((resolve) => void setTimeout(resolve, 400));
      server.faults.setHalfOpen(false);
    },
  },
];

test.each(faults)("an informer stays right through $name", async ({ fault }) => {
  server.objects.create(configMaps, configMap("kept"));
  server.objects.create(configMaps, configMap("removed"));
  const informer = follow();
  await informer.store.synced();
  expect(namesIn(informer)).toEqual(["kept", "removed"]);
  await until(() => server.openWatches >= 1);
  const faulty = Promise.resolve(fault());
  server.objects.delete(configMaps, { namespace: "default", name: "removed" });
  server.objects.create(configMaps, configMap("new"));
  expect(informer.store.get("default/kept")).toBeDefined();
  await faulty;
  await until(() => namesIn(informer).join() === "kept,new");
});

test("a lease is renewed although the connection went half-open", async () => {
  const key = { namespace: "default", name: "n1" };
  const lease = await client.create(leases, { metadata: key });
  server.faults.setHalfOpen(true);
  const renewal = client.update(leases, { ...lease, spec: { holderIdentity: "n1" } });
  // It may have arrived, and does here once the connection is let go: not for the client to repeat.
  await expect(renewal).rejects.toMatchObject({ code: "Unavailable" });
  server.faults.setHalfOpen(false);
  const newest = await client.get(leases, key);
  const renewed = await client.update(leases, { ...newest, spec: { holderIdentity: "n1" } });
  expect(renewed.spec?.holderIdentity).toBe("n1");
});

test("a repeated event is one object with a count", async () => {
  const recorder = createEventRecorder({ ...deps, client, component: "kubelet", host: "n1", qps: -1, burst: 0 });
  const stop = new AbortController();
  const running = recorder.run(stop.signal);
  const about = { apiVersion: "v1", kind: "Pod", namespace: "default", name: "web", uid: "u1" };
  for (let i = 0; i < 3; i += 1) recorder.event(about, "Warning", "BackOff", "Back-off restarting failed container");
  stop.abort();
  await running;
  expect(server.objects.list(events).filter(({ reason }) => reason === "BackOff")).toMatchObject([
    { count: 3, type: "Warning", involvedObject: about, source: { component: "kubelet", host: "n1" } },
  ]);
});
