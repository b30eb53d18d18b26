import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { createApiClient, type KubeClient } from "../../agent/kube/client.ts";
import { createEventRecorder } from "../../agent/kube/events.ts";
import { createInformerFactory } from "../../agent/kube/informer.ts";
import { loadKubeconfig } from "../../agent/kube/kubeconfig.ts";
import { events, leases, nodes } from "../../agent/kube/resources.ts";
import type { Condition, Lease, Node } from "../../agent/kube/types.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { readNodeFacts } from "../../agent/node/facts.ts";
import { createImageCache } from "../../agent/node/images.ts";
import { createLeaseRenewer } from "../../agent/node/lease.ts";
import { createNodeAgent, type NodeAgent } from "../../agent/node/registration.ts";
import { createRuntimeHealth, type RuntimeHealth } from "../../agent/node/runtime-health.ts";
import type { RuntimeStatus } from "../../agent/runtime/port.ts";
import { startTestApiServer, type TestApiServer } from "../support/apiserver/server.ts";

const ok = { status: true, reason: "", message: "" };
const noNetwork = { status: false, reason: "NetworkPluginNotReady", message: "cni plugin not initialized" };
const clock = systemClock;
const log = silentLogger;

/** The node side of one agent, on the real client; the runtime is a stand-in whose answers the test sets. */
class TestNode {
  status: RuntimeStatus = { runtimeReady: ok, networkReady: ok, handlers: [], supplementalGroupsPolicy: false };
  readonly podCIDRs: string[] = [];
  readonly #stop = new AbortController();
  readonly #running: Promise<unknown>;
  readonly #client: KubeClient;
  readonly agent: NodeAgent;
  readonly health: RuntimeHealth;

  private constructor(client: KubeClient, facts: Awaited<ReturnType<typeof readNodeFacts>>) {
    this.#client = client;
    const nodeInformer = createInformerFactory({ client, clock, log })(
      nodes,
      { fieldSelector: "metadata.name=n1" },
      this.#stop.signal,
    );
    const recorder = createEventRecorder({ client, clock, log, component: "kubelet", host: "n1", qps: -1, burst: 100 });
    const image = {
      id: "i",
      repoTags: ["a:1"],
      repoDigests: [],
      sizeBytes: 5,
      uid: undefined,
      username: "",
      pinned: false,
    };
    const images = createImageCache({ service: { listImages: async () => [image] }, clock, log });
    const runtime = {
      status: async () => this.status,
      version: async () => ({ runtimeName: "containerd", runtimeVersion: "1.6.20", runtimeApiVersion: "v1" }),
      updateRuntimeConfig: async ({ podCIDR }: { podCIDR: string }) => void this.podCIDRs.push(podCIDR),
    };
    this.health = createRuntimeHealth({ runtime, clock, log });
    this.agent = createNodeAgent({
      settings: {
        nodeName: "n1",
        hostname: "n1",
        nodeIPs: [],
        cloudProvider: "",
        nodeLabels: {},
        registerWithTaints: [],
        providerID: "",
        enableControllerAttachDetach: true,
        registerNode: true,
        maxPods: 110,
        podsPerCore: 0,
        localStorageCapacityIsolation: true,
        reservations: { reserved: {}, evictionHard: { "memory.available": "100Mi" }, ignoreEviction: false },
        kubeletVersion: "v1.36.0",
        kubeletPort: 10250,
        statusUpdateMs: 1_000,
        statusReportMs: 300_000,
        imagesMax: 50,
        declaredFeatures: [],
        resetExtendedResources: true,
      },
      facts,
      client,
      nodeStore: nodeInformer.store,
      health: this.health,
      runtime,
      images: () => images.images,
      local: () => ({}),
      clock,
      log,
      recorder,
      readAddresses: async () => ({ localIPs: ["10.9.0.1"], resolvedIPs: ["10.9.0.1"], defaultRouteIPs: [] }),
    });
    const lease = createLeaseRenewer({ client, nodeName: "n1", durationSeconds: 4, clock, log });
    const { signal } = this.#stop;
    this.#running = Promise.all([
      nodeInformer.stopped,
      recorder.run(signal),
      images.run(signal),
      this.health.run(signal),
      this.agent.run(signal),
      this.agent.registered(signal).then(
        () => lease.run(signal),
        () => {},
      ),
    ]);
  }

  static async start(kubeconfig: string, rootDir: string): Promise<TestNode> {
    const access = await loadKubeconfig(kubeconfig);
    const client = createApiClient({ access, userAgent: "kubelet/v1.36.0", qps: -1, burst: 100, log, clock });
    return new TestNode(client, await readNodeFacts({ rootDir }));
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#running;
    await this.#client[Symbol.asyncDispose]();
  }
}

describe("a node on the test API server", () => {
  let server: TestApiServer;
  let directory: string;
  let node: TestNode | undefined;

  beforeEach(async () => {
    server = await startTestApiServer({ clusterCIDR: "10.244.0.0/16", controllers: { nodeLifecycle: true } });
    directory = await mkdtemp(join(tmpdir(), "nodelet-node-"));
    await writeFile(join(directory, "kubeconfig"), server.kubeconfig("node:n1"), { mode: 0o600 });
  });

  afterEach(async () => {
    await node?.stop();
    node = undefined;
    await server.close();
    await rm(directory, { recursive: true });
  });

  const start = async () => {
    node = await TestNode.start(join(directory, "kubeconfig"), directory);
    return node;
  };
  const stored = (): Node | undefined => server.objects.find(nodes, { name: "n1" });
  const ready = (): Condition | undefined => stored()?.status?.conditions?.find(({ type }) => type === "Ready");
  const storedLease = (): Lease | undefined =>
    server.objects.find(leases, { namespace: "kube-node-lease", name: "n1" });
  const eventReasons = () =>
    server.objects
      .list(events, { namespace: "default" })
      .map(({ reason, involvedObject }) => `${involvedObject.name} ${reason}`);
  const until = (check: () => void, timeout = 10_000) =>
    expect
      .poll(
        () => {
          check();
          return true;
        },
        { timeout, interval: 20 },
      )
      .toBe(true);

  test("is soon Ready, with its lease, and the runtime knows the pod CIDR", async () => {
    const { podCIDRs } = await start();
    await until(() => expect(ready()?.status).toBe("True"));
    await until(() => expect(storedLease()?.spec?.holderIdentity).toBe("n1"));
    expect(storedLease()?.metadata.ownerReferences?.[0]?.uid).toBe(stored()?.metadata.uid);
    await until(() => expect(podCIDRs).toEqual([stored()?.spec?.podCIDR]));
    expect(stored()?.status?.conditions?.at(-1)?.type).toBe("Ready");
    expect(stored()?.status?.addresses).toContainEqual({ type: "InternalIP", address: "10.9.0.1" });
    expect(stored()?.status?.nodeInfo?.containerRuntimeVersion).toBe("containerd://1.6.20");
    await until(() => expect(stored()?.status?.images).toEqual([{ names: ["a:1"], sizeBytes: 5 }]));
    await until(() => expect(eventReasons()).toContain("n1 Starting"));
  });

  test("an unchanged node is left alone, its lease is not", async () => {
    await start();
    await until(() => expect(storedLease()).toBeDefined());
    await until(() => expect(stored()?.status?.images).toBeDefined());
    await until(() => expect(stored()?.spec?.taints ?? []).toEqual([]));
    const before = stored()?.metadata.resourceVersion;
    const renewedBefore = storedLease()?.spec?.renewTime;
    await until(() => expect(storedLease()?.spec?.renewTime).not.toBe(renewedBefore));
    expect(stored()?.metadata.resourceVersion).toBe(before);
  });

  test("a network that goes and returns shows, with events", async () => {
    const { status, health } = await start();
    await until(() => expect(ready()?.status).toBe("True"));
    status.networkReady = noNetwork;
    health.wake();
    await until(() => expect(ready()?.status).toBe("False"));
    expect(ready()?.message).toContain("cni plugin not initialized");
    status.networkReady = ok;
    health.wake();
    await until(() => expect(ready()?.status).toBe("True"));
    await until(() => expect(eventReasons()).toEqual(expect.arrayContaining(["n1 NodeNotReady", "n1 NodeReady"])));
  });

  test("a restarted agent changes nothing that others see", async () => {
    const first = await start();
    await until(() => expect(ready()?.status).toBe("True"));
    await first.stop();
    node = undefined;
    const since = ready()?.lastTransitionTime;
    const label = server.objects.patch(
      nodes,
      { name: "n1" },
      { metadata: { labels: { team: "a" } } },
      { type: "merge" },
    );
    const second = await start();
    await expect(second.agent.registered()).resolves.toBeUndefined();
    await until(() => expect(eventReasons().filter((reason) => reason === "n1 Starting").length).toBeGreaterThan(0));
    expect(ready()).toMatchObject({ status: "True", lastTransitionTime: since });
    expect(stored()?.metadata.labels).toMatchObject({ team: "a" });
    expect(stored()?.metadata.uid).toBe(label.metadata.uid);
    expect(eventReasons()).not.toContain("n1 NodeNotReady");
  });

  test("a server that is away is waited for, at start and later", async () => {
    await server.pause();
    const { status, health } = await start();
    await new Promise((resolve) => void setTimeout(resolve, 300));
    await server.resume();
    await until(() => expect(ready()?.status).toBe("True"), 20_000);
    await server.pause();
    status.networkReady = noNetwork;
    health.wake();
    await new Promise((resolve) => void setTimeout(resolve, 300));
    await server.resume();
    await until(() => expect(ready()?.status).toBe("False"), 20_000);
  }, 60_000);
});
