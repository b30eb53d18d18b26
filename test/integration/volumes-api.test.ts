import { randomBytes } from "node:crypto";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "vitest";
import { createApiClient, type KubeClient } from "../../agent/kube/client.ts";
import { createInformerFactory } from "../../agent/kube/informer.ts";
import { loadKubeconfig } from "../../agent/kube/kubeconfig.ts";
import type { StartInformer } from "../../agent/kube/port.ts";
import { configMaps, nodes, pods, secrets } from "../../agent/kube/resources.ts";
import type { Pod } from "../../agent/kube/types.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { listMountsUnder, unmountAllUnder } from "../../agent/lib/mount.ts";
import { buildEnv } from "../../agent/pods/env.ts";
import { createPodVolumes, type VolumeManager } from "../../agent/volumes/manager.ts";
import { watchSecondsMin } from "../../agent/volumes/object-readers.ts";
import { createObjectSource, type OwnedObjectSource } from "../../agent/volumes/object-source.ts";
import { startTestApiServer, type TestApiServer } from "../support/apiserver/server.ts";

// Volumes and environment with the real client, real watches, and a server that hands out tokens.

const deps = { clock: systemClock, log: silentLogger };
const never = new AbortController().signal;
const namespace = "default";

let stack: AsyncDisposableStack;
let server: TestApiServer;
let client: KubeClient;
let objects: OwnedObjectSource;
let volumes: VolumeManager;
let startInformer: StartInformer;
let root: string;

beforeEach(async () => {
  stack = new AsyncDisposableStack();
  const base = await mkdtemp(join(tmpdir(), "nodelet-vol-"));
  stack.defer(async () => {
    await unmountAllUnder(base);
    await rm(base, { recursive: true, force: true });
  });
  root = join(base, "kubelet");
  server = stack.use(await startTestApiServer());
  await writeFile(join(base, "kubeconfig"), server.kubeconfig("node:n1"));
  const access = await loadKubeconfig(join(base, "kubeconfig"), deps);
  client = stack.use(createApiClient({ ...deps, access, userAgent: "kubelet/test", qps: -1, burst: 0 }));
  startInformer = createInformerFactory({ ...deps, client });
  objects = createObjectSource({ ...deps, client, startInformer, strategy: "Watch" });
  stack.defer(async () => objects.close());
  await mkdir(root);
  const options = { rootDir: root, client, objects, nodeAllocatable: () => ({ memory: "1Gi" }), selinuxEnabled: false };
  volumes = createPodVolumes({ ...deps, ...options });
  stack.defer(() => volumes.close());
  server.objects.create(nodes, { metadata: { name: "n1" } });
});
afterEach(async () => stack.disposeAsync());

/** A pod as the server makes it: with defaults, UID and its service account's volume. */
async function createPod(spec: Partial<Pod["spec"]>): Promise<Pod> {
  const containers = [{ name: "app", image: "app:1" }];
  const pod: Pod = { metadata: { name: "web", namespace }, spec: { nodeName: "n1", containers, ...spec } };
  await expect.poll(() => tryCreate(pod), { timeout: 5_000 }).toBeDefined();
  return server.objects.get(pods, { namespace, name: "web" });
}

/** Refused until the controllers have made the default service account. */
function tryCreate(pod: Pod): Pod | undefined {
  try {
    return server.objects.create(pods, pod);
  } catch {
    return undefined;
  }
}

const withSettings = (): Partial<Pod["spec"]> => ({
  volumes: [
    { name: "settings", configMap: { name: "settings" } },
    { name: "login", secret: { secretName: "login" } },
  ],
  containers: [
    {
      name: "app",
      image: "app:1",
      env: [{ name: "COLOR", valueFrom: { configMapKeyRef: { name: "settings", key: "color" } } }],
      volumeMounts: [
        { name: "settings", mountPath: "/settings" },
        { name: "login", mountPath: "/login" },
      ],
    },
  ],
});

function createObjects(): void {
  server.objects.create(configMaps, { metadata: { name: "settings", namespace }, data: { color: "blue" } });
  const data = { user: Buffer.from("joe").toString("base64") };
  server.objects.create(secrets, { metadata: { name: "login", namespace }, data });
}

/** Host path of each mount of the first container, by container path. */
async function mountsOf(pod: Pod): Promise<Record<string, string>> {
  const [container] = pod.spec.containers;
  const context = { podIPs: [], recursiveReadOnlySupported: false, userns: undefined };
  const mounts = container === undefined ? [] : await volumes.mounts(pod, container, new Map(), context);
  return Object.fromEntries(mounts.map(({ containerPath, hostPath }) => [containerPath, hostPath]));
}

test("a pod as the API server makes it gets a token, the cluster's CA, its volumes and its environment", async () => {
  createObjects();
  const pod = await createPod(withSettings());
  objects.register(pod);
  await volumes.setUp(pod, never);
  const paths = await mountsOf(pod);
  const account = paths["/var/run/secrets/kubernetes.io/serviceaccount"] ?? "";
  expect((await readFile(join(account, "token"), "utf8")).split(".")).toHaveLength(3);
  expect(await readFile(join(account, "ca.crt"), "utf8")).toContain("BEGIN CERTIFICATE");
  expect(await readFile(join(account, "namespace"), "utf8")).toBe(namespace);
  expect(await readFile(join(paths["/settings"] ?? "", "color"), "utf8")).toBe("blue");
  expect(await readFile(join(paths["/login"] ?? "", "user"), "utf8")).toBe("joe");

  const [container] = pod.spec.containers;
  const env = await buildEnv(pod, container!, {
    objects,
    services: undefined,
    podIPs: [],
    hostIPs: [],
    nodeAllocatable: {},
    readVolumeFile: (volume, path) => volumes.readVolumeFile(pod.metadata.uid ?? "", volume, path),
  });
  expect(env).toEqual([{ key: "COLOR", value: "blue" }]);
});

test("a change reaches the files as soon as the server tells, and unregistering ends the watches", async () => {
  createObjects();
  const pod = await createPod(withSettings());
  objects.register(pod);
  await volumes.setUp(pod, never);
  const file = join((await mountsOf(pod))["/settings"] ?? "", "color");
  const { promise: woken, resolve } = Promise.withResolvers<string>();
  volumes.onChange(resolve);
  const present = server.objects.get(configMaps, { namespace, name: "settings" });
  server.objects.update(configMaps, { ...present, data: { color: "red" } });
  expect(await Promise.race([woken, delay(10_000, "nothing heard")])).toBe(pod.metadata.uid);
  await volumes.setUp(pod, never);
  expect(await readFile(file, "utf8")).toBe("red");

  await volumes.tearDown(pod.metadata.uid ?? "");
  objects.unregister(pod.metadata.uid ?? "");
  await expect.poll(() => server.openWatches, { timeout: 5_000 }).toBe(0);
  await volumes.removePodDir(pod.metadata.uid ?? "");
  expect(await listMountsUnder(root)).toEqual([]);
});

test("a pod that waits for an object starts the moment it appears", async () => {
  const pod = await createPod(withSettings());
  objects.register(pod);
  await expect(volumes.setUp(pod, never)).rejects.toThrow(
    /MountVolume.SetUp failed for volume "settings" : configmap "settings" not found; .*secret "login" not found/,
  );
  let wakes = 0;
  volumes.onChange(() => {
    wakes += 1;
  });
  createObjects();
  await expect.poll(() => wakes, { timeout: 10_000 }).toBeGreaterThan(0);
  await expect.poll(() => volumes.setUp(pod, never).then(() => "ready"), { timeout: 10_000 }).toBe("ready");
});

test("while the server is away, what is there stays; a watch that cannot start costs one GET", async () => {
  createObjects();
  server.faults.inject({ verb: "watch" }, { kind: "hang" });
  server.faults.inject({ verb: "list", resource: "configmaps" }, { kind: "hang" });
  const pod = await createPod(withSettings());
  objects.register(pod);
  await expect.poll(() => volumes.setUp(pod, never).then(() => "ready"), { timeout: 10_000 }).toBe("ready");
  const gets = server.requests.filter({ verb: "get" }).map(({ url }) => url.split("/").at(-1));
  expect(new Set(gets)).toEqual(new Set(["kube-root-ca.crt", "login", "settings"]));
  expect(gets).toHaveLength(3);

  await server.pause();
  await volumes.setUp(pod, never);
  expect(await readFile(join((await mountsOf(pod))["/login"] ?? "", "user"), "utf8")).toBe("joe");
  await server.resume();
});

/** What the server was asked about the one ConfigMap. */
const asked = () => server.requests.filter({ resource: "configmaps" }).map(({ verb, url }) => ({ verb, url }));

test("strategy Watch asks once, by a long watch of the one object, until it is immutable", async () => {
  createObjects();
  const pod = await createPod(withSettings());
  objects.register(pod);
  await expect.poll(() => server.openWatches, { timeout: 5_000 }).toBeGreaterThanOrEqual(2);
  const key = { namespace, name: "settings" };
  await expect
    .poll(async () => (await objects.configMap(namespace, key.name)).data, { timeout: 5_000 })
    .toEqual({
      color: "blue",
    });
  const [watch] = asked().filter(({ verb }) => verb === "watch");
  const query = new URLSearchParams(watch?.url.split("?")[1]);
  expect(query.get("fieldSelector")).toBe("metadata.name=settings");
  expect(Number(query.get("timeoutSeconds"))).toBeGreaterThanOrEqual(watchSecondsMin);

  const before = server.openWatches;
  server.objects.update(configMaps, { ...server.objects.get(configMaps, key), immutable: true });
  await expect
    .poll(async () => (await objects.configMap(namespace, key.name)).immutable, { timeout: 5_000 })
    .toBe(true);
  await expect.poll(() => server.openWatches, { timeout: 5_000 }).toBe(before - 1);
  server.objects.delete(configMaps, key);
  expect((await objects.configMap(namespace, key.name)).data).toEqual({ color: "blue" });
});

test("what is watched can be read while the server is away, and what changed meanwhile is told when it is back", async () => {
  createObjects();
  const pod = await createPod(withSettings());
  objects.register(pod);
  const read = async () => (await objects.configMap(namespace, "settings")).data;
  const change = (color: string) => {
    const present = server.objects.get(configMaps, { namespace, name: "settings" });
    server.objects.update(configMaps, { ...present, data: { color } });
  };
  let told = 0;
  objects.onChange(() => {
    told += 1;
  });
  await expect.poll(read, { timeout: 5_000 }).toEqual({ color: "blue" });
  change("green");
  await expect.poll(() => told, { timeout: 5_000 }).toBe(1);
  expect(await read()).toEqual({ color: "green" });
  await server.pause();
  expect(await read()).toEqual({ color: "green" });
  change("red");
  await server.resume();
  await expect.poll(() => told, { timeout: 20_000 }).toBe(2);
  expect(await read()).toEqual({ color: "red" });
});

test.each([
  { strategy: "Cache" as const, ttlMs: 60_000, urls: [""] },
  { strategy: "Cache" as const, ttlMs: 0, urls: ["", "?resourceVersion=0"] },
  { strategy: "Get" as const, ttlMs: 60_000, urls: ["", ""] },
])(
  "strategy $strategy with a lifetime of $ttlMs ms sends a GET per read that needs one",
  async ({ strategy, ttlMs, urls }) => {
    createObjects();
    const pod = await createPod(withSettings());
    const own = createObjectSource({ ...deps, client, startInformer, strategy, ttlMs: () => ttlMs });
    stack.defer(async () => own.close());
    own.register(pod);
    server.requests.clear();
    for (let reads = 0; reads < 2; reads += 1) {
      expect((await own.configMap(namespace, "settings")).data).toEqual({ color: "blue" });
    }
    const path = `/api/v1/namespaces/${namespace}/configmaps/settings`;
    expect(asked()).toEqual(urls.map((query) => ({ verb: "get", url: path + query })));
  },
);

test("a server that does not answer is given up after a second, in words that people search for", async () => {
  createObjects();
  const pod = await createPod(withSettings());
  server.faults.inject({ resource: "configmaps" }, { kind: "hang" });
  objects.register(pod);
  await expect(objects.configMap(namespace, "settings")).rejects.toMatchObject({
    code: "Unavailable",
    message: "failed to sync configmap cache: timed out waiting for the condition",
  });
});

test("as much as an object can hold arrives byte for byte", async () => {
  createObjects();
  const pod = await createPod(withSettings());
  const bytes = randomBytes(1 << 20);
  const key = { namespace, name: "login" };
  const data = { user: bytes.toString("base64") };
  server.objects.update(secrets, { ...server.objects.get(secrets, key), data });
  objects.register(pod);
  await volumes.setUp(pod, never);
  expect((await readFile(join((await mountsOf(pod))["/login"] ?? "", "user"))).equals(bytes)).toBe(true);
});

test.each(["../evil", "a/../../evil", "/evil", "..data", ""])(
  "a key %j, which no real API server lets through, writes nothing anywhere",
  async (key) => {
    createObjects();
    const pod = await createPod(withSettings());
    const settings = { namespace, name: "settings" };
    const present = server.objects.get(configMaps, settings);
    server.objects.update(configMaps, { ...present, data: { [key]: "evil" } });
    objects.register(pod);
    await expect(volumes.setUp(pod, never)).rejects.toThrow('MountVolume.SetUp failed for volume "settings"');
    const files = await readdir(root, { recursive: true });
    expect(files.filter((name) => name.endsWith("evil"))).toEqual([]);
  },
);
