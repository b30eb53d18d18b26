import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { configMaps, events, nodes, pods } from "../../agent/kube/resources.ts";
import { isFinished, isReady, until } from "./support/cluster.ts";
import { type BreakableCluster, openBreakableCluster } from "./support/local.ts";
import { jobOf } from "./support/pods.ts";

// Nodes that ask for objects instead of watching them, and one whose DNS is not as it should be.

const isLocal = inject("isLocal");
// From the moment at which the pod is looked at again.
const followMs = 20_000;

/** A pod that ends once its configMap says `new`; its variable A is of the moment of its start. */
function follower(name: string) {
  const volumes = [{ name: "config", configMap: { name } }];
  const main = {
    volumeMounts: [{ name: "config", mountPath: "/config" }],
    env: [{ name: "A", valueFrom: { configMapKeyRef: { name, key: "a" } } }],
  };
  return jobOf(name, "until grep -q new /config/a; do sleep 0.2; done; echo $A", { volumes }, main);
}

async function startFollower({ cluster }: BreakableCluster, name: string): Promise<void> {
  await cluster.create(configMaps, { metadata: { name }, data: { a: "old" } });
  await cluster.createPod(follower(name));
  await cluster.waitForPod(name, "ready", isReady);
}

/** Changes the object, and the pod so that it is looked at. */
async function change({ cluster }: BreakableCluster, name: string): Promise<void> {
  const { client, namespace } = cluster;
  await client.patch(configMaps, { namespace, name }, { data: { a: "new" } }, { type: "merge" });
  await client.patch(pods, { namespace, name }, { metadata: { annotations: { look: "again" } } }, { type: "merge" });
}

describe.skipIf(!isLocal)("a node that asks for each object every time, without a cluster DNS", () => {
  let env: BreakableCluster;
  let dir: string;

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), "nodelet-dns-"));
    const searches = Array.from({ length: 33 }, (_, i) => `s${i}.example`).join(" ");
    const resolvConf = join(dir, "resolv.conf");
    await writeFile(resolvConf, `nameserver 192.0.2.53\nsearch ${searches}\noptions timeout:3\n`);
    env = await openBreakableCluster({
      configMapAndSecretChangeDetectionStrategy: "Get",
      clusterDNS: [],
      resolvConf,
    });
  });
  afterAll(async () => {
    await env?.[Symbol.asyncDispose]();
    await rm(dir, { recursive: true, force: true });
  });

  const aboutNode = async (reason: string) => {
    const { items } = await env.cluster.client.list(events, {});
    return items.find((event) => event.reason === reason && event.involvedObject.kind === "Node");
  };

  test("follows an object when the pod is looked at", async () => {
    await startFollower(env, "asked");
    await change(env, "asked");
    const { status } = await env.cluster.waitForPod("asked", "finished", isFinished, followMs);
    expect(status?.containerStatuses?.[0]?.state?.terminated?.message).toBe("old\n");
  });

  test("says at its start that its resolv.conf is too much for pods", async () => {
    const event = await until("an event", async () => await aboutNode("CheckLimitsForResolvConf"));
    expect(event).toMatchObject({ type: "Warning", message: "resolv.conf has 33 search domains, pods can use 29" });
  });

  test("gives pods its own DNS instead, as far as it goes, and tells pod and node", async () => {
    const { cluster } = env;
    const { output } = await cluster.run(
      jobOf("no-dns", "grep -v '^search' /etc/resolv.conf; grep -o s31.example /etc/resolv.conf"),
    );
    expect(output).toBe("nameserver 192.0.2.53\noptions timeout:3\ns31.example\n");
    const about = await until("events", async () => {
      const warnings = (await cluster.eventsOf("no-dns")).filter(({ type }) => type === "Warning");
      return warnings.length >= 2 ? warnings : undefined;
    });
    expect(new Set(about.map(({ reason }) => reason))).toEqual(new Set(["DNSConfigForming", "MissingClusterDNS"]));
    const event = await until("an event", async () => await aboutNode("MissingClusterDNS"));
    expect(event.message).toMatch(/^kubelet does not have ClusterDNS IP configured/);
  });
});

describe.skipIf(!isLocal)("a node that keeps objects for a while, and has no resolv.conf", () => {
  let env: BreakableCluster;

  beforeAll(async () => {
    env = await openBreakableCluster({ configMapAndSecretChangeDetectionStrategy: "Cache", resolvConf: "" });
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  test("follows an object when the pod is looked at, once the node's annotation lets it", async () => {
    const { cluster } = env;
    const [node] = await cluster.readyNodes();
    const key = { name: node?.metadata.name ?? "" };
    await startFollower(env, "cached");
    const ttl = { metadata: { annotations: { "node.alpha.kubernetes.io/ttl": "0" } } };
    await cluster.client.patch(nodes, key, ttl, { type: "merge" });
    await change(env, "cached");
    // The node hears of its annotation and of the pod in any order: whichever is last has the pod looked at again.
    const again = async (n: number) => {
      const look = { metadata: { annotations: { look: String(n) } } };
      await cluster.client.patch(pods, { namespace: cluster.namespace, name: "cached" }, look, { type: "merge" });
    };
    for (let n = 0; n < 5; n += 1) {
      await again(n);
      const done = await cluster.waitForPod("cached", "finished", isFinished, 2_000).catch(() => undefined);
      if (done !== undefined) break;
    }
    const { status } = await cluster.getPod("cached");
    expect(status?.phase).toBe("Succeeded");
  });

  test("gives pods with policy Default a resolv.conf that leads to nobody but their own machine", async () => {
    const { output } = await env.cluster.run(jobOf("empty-dns", "cat /etc/resolv.conf", { dnsPolicy: "Default" }));
    expect(output).toContain("nameserver 127.0.0.1\n");
    expect(output).toMatch(/^search \.$/m);
  });

  test("leaves the cluster's DNS as it is", async () => {
    const { namespace } = env.cluster;
    const { output } = await env.cluster.run(jobOf("cluster-dns", "cat /etc/resolv.conf"));
    expect(output).toContain(`search ${namespace}.svc.cluster.local svc.cluster.local cluster.local\n`);
    expect(output).toContain("nameserver 10.96.0.10\n");
  });
});
