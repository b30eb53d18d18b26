import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { endpointSlices, events, nodes, services } from "../../agent/kube/resources.ts";
import type { Service } from "../../agent/kube/types.ts";
import { startTestApiServer, type TestApiServer } from "../support/apiserver/server.ts";
import { askFromNode } from "../support/cluster/ask.ts";
import { projectRoot } from "../support/cluster/local-cluster.ts";
import type { NodeProcess } from "../support/node/containerd.ts";
import { createTestNode, type TestNode } from "../support/node/node.ts";
import { makeSlice } from "../support/service-objects.ts";

// The agent starts within a second; a busy machine takes its time.
const timeout = 30_000;

let node: TestNode;
let server: TestApiServer;
let agent: NodeProcess;

beforeAll(async () => {
  node = await createTestNode({ containerd: false, name: "n1" });
  server = await startTestApiServer({ listen: [{ host: node.network.hostIP, port: 0 }] });
  await mkdir(join(node.dir, "etc"), { recursive: true });
  await writeFile(join(node.dir, "etc/kubeconfig"), server.kubeconfig("admin"), { mode: 0o600 });
  server.objects.create(nodes, {
    metadata: { name: "n1" },
    status: { addresses: [{ type: "InternalIP", address: node.nodeIP }] },
  });
  agent = await startProxy("first", {});
}, 60_000);

afterAll(async () => {
  await node?.destroy();
  await server?.close();
});

async function startProxy(name: string, fields: object): Promise<NodeProcess> {
  const file = join(node.dir, "etc", `${name}.yaml`);
  const config = {
    apiVersion: "kubeproxy.config.k8s.io/v1alpha1",
    kind: "KubeProxyConfiguration",
    hostnameOverride: "n1",
    clusterCIDR: node.podCIDR,
    clientConnection: { kubeconfig: join(node.dir, "etc/kubeconfig") },
    conntrack: { maxPerCore: 0 },
    oomScoreAdj: 0,
    ...fields,
  };
  await writeFile(file, JSON.stringify(config));
  return await node.start(join(projectRoot, "dist/nodelet"), ["proxy", "--config", file], { name });
}

/** The answer of a port of the node, as somebody outside gets it. */
async function ask(port: number, path: string): Promise<{ status: number; weight: string | null; body: string }> {
  const response = await fetch(`http://${node.nodeIP}:${port}${path}`, { signal: AbortSignal.timeout(5_000) });
  const weight = response.headers.get("X-Load-Balancing-Endpoint-Weight");
  return { status: response.status, weight, body: await response.text() };
}

const poll = <T>(read: () => Promise<T>) => expect.poll(() => read().catch((err: unknown) => String(err)), { timeout });
const metric = async (name: string): Promise<string | undefined> => {
  const text = await askFromNode(node, "http://127.0.0.1:10249/metrics");
  return text.split("\n").find((line) => line.startsWith(`${name} `) || line.startsWith(`${name}{`));
};
const reasons = () =>
  server.objects.list(events, { namespace: "default" }).map(({ reason, action }) => `${reason} ${action}`);

const web = { namespace: "default", name: "web" };

/** @returns its healthCheckNodePort */
function createLoadBalancer(): number {
  const service: Service = {
    metadata: web,
    spec: {
      type: "LoadBalancer",
      externalTrafficPolicy: "Local",
      ports: [{ name: "p80", port: 80, protocol: "TCP" }],
    },
  };
  return server.objects.create(services, service).spec?.healthCheckNodePort ?? expect.fail("it has no such port");
}

/** Two endpoints on the node, and one elsewhere. */
function createSlice(): void {
  const conditions = { ready: true };
  const here = ["10.99.0.5", "10.99.0.6"].map((address) => ({ address, nodeName: "n1", conditions }));
  const slice = makeSlice("web", [...here, { address: "10.99.1.5", nodeName: "n2", conditions }]);
  server.objects.create(endpointSlices, { ...slice, metadata: { ...slice.metadata, namespace: "default" } });
}

describe("the proxy's own process", () => {
  test("tells outside that it is well, and load balancers to stay away from a node that is about to go", async () => {
    await poll(async () => JSON.parse((await ask(10256, "/healthz")).body) as unknown).toMatchObject({
      nodeEligible: true,
      healthy: true,
      status: { IPv4: { healthy: true } },
    });
    expect((await ask(10256, "/healthz")).status).toBe(200);
    expect(JSON.parse(await askFromNode(node, "http://[::1]:10256/livez"))).toMatchObject({ healthy: true });
    await poll(async () => reasons()).toContain("Starting StartKubeProxy");

    const { spec, ...rest } = server.objects.get(nodes, { name: "n1" });
    const taints = [{ key: "ToBeDeletedByClusterAutoscaler", effect: "NoSchedule" as const }];
    server.objects.update(nodes, { ...rest, spec: { ...spec, taints } });
    await poll(() => ask(10256, "/healthz")).toMatchObject({ status: 503 });
    expect(await ask(10256, "/livez")).toMatchObject({ status: 200 });
    server.objects.update(nodes, { ...server.objects.get(nodes, { name: "n1" }), spec: { ...spec, taints: [] } });
    await poll(() => ask(10256, "/healthz")).toMatchObject({ status: 200 });
  });

  test("asks for what it programs only", () => {
    const asked = (resource: string) => server.requests.filter({ resource }).map(({ url }) => decodeURIComponent(url));
    expect(asked("services").length).toBeGreaterThan(0);
    for (const url of asked("services")) {
      expect(url).toContain("labelSelector=!service.kubernetes.io/service-proxy-name");
      expect(url).toContain("fieldSelector=spec.clusterIP!=None");
    }
    for (const url of asked("endpointslices")) {
      expect(url).toContain("labelSelector=!service.kubernetes.io/headless");
    }
  });

  test("shows its metrics on the node alone, and what it wrote into the kernel", async () => {
    await expect(ask(10249, "/metrics")).rejects.toThrow();
    expect(await askFromNode(node, "http://127.0.0.1:10249/proxyMode")).toBe("iptables");
    const syncs = 'kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"}';
    await poll(() => metric(syncs)).toMatch(/ [1-9]/);
    await poll(() => metric('kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv4",table="nat"}')).toMatch(
      / [1-9]/,
    );
    expect(await metric('kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv4"}')).toMatch(/ 0$/);
    expect(await metric("rest_client_requests_total")).toMatch(/code="\d+".* [1-9]\d*$/);
    // As many rules as the kernel has in our chains; the jumps into them are not counted.
    const count = async (table: string) => {
      const { stdout } = await node.exec("iptables-save", ["-t", table]);
      return stdout.split("\n").filter((line) => line.startsWith("-A KUBE-")).length;
    };
    for (const table of ["nat", "filter"]) {
      const name = `kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv4",table="${table}"}`;
      await poll(() => metric(name)).toBe(`${name} ${await count(table)}`);
    }
  });

  test("answers health checks of a Service by the endpoints on this node", async () => {
    const healthCheckNodePort = createLoadBalancer();
    await poll(() => ask(healthCheckNodePort, "/")).toMatchObject({ status: 503, weight: "0" });
    createSlice();
    await poll(() => ask(healthCheckNodePort, "/anything")).toMatchObject({ status: 200, weight: "2" });
    const { body } = await ask(healthCheckNodePort, "/");
    expect(JSON.parse(body)).toEqual({
      service: web,
      localEndpoints: 2,
      serviceProxyHealthy: true,
    });
    const name = 'kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"}';
    expect(await metric(name)).toBe(`${name} 0`);
    server.objects.delete(services, web);
    server.objects.delete(endpointSlices, { namespace: "default", name: "web-a" });
    await poll(
      async () =>
        await ask(healthCheckNodePort, "/").then(
          () => "answers",
          () => "refused",
        ),
    ).toBe("refused");
  });

  test("ends where its port is taken and that is not to be borne, and says so in an event", async () => {
    const second = await startProxy("second", { bindAddressHardFail: true, metricsBindAddress: "127.0.0.1:10250" });
    expect(await second.exited).toBe(1);
    const log = await readFile(join(node.paths.logDir, "second.log"), "utf8");
    expect(log).toMatch(/failed to start proxy healthz on 0\.0\.0\.0:10256: .*EADDRINUSE/);
    await poll(async () => reasons()).toContain("FailedToStartProxierHealthcheck StartKubeProxy");
    expect((await ask(10256, "/livez")).status).toBe(200);
  });

  test("closes its ports when it ends", async () => {
    await agent.stop();
    expect(await agent.exited).toBe(0);
    await expect(ask(10256, "/livez")).rejects.toThrow();
  });

  test("in nftables mode has that mode's metrics, and health checks on the node's primary address", async () => {
    await startProxy("nftables", { mode: "nftables" });
    const name = 'kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv4"}';
    await poll(() => metric(name)).toBe(`${name} 0`);
    expect(await askFromNode(node, "http://127.0.0.1:10249/proxyMode")).toBe("nftables");
    expect(await metric('kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv4",table="nat"}')).toBeUndefined();
    const port = createLoadBalancer();
    createSlice();
    await poll(() => ask(port, "/")).toMatchObject({ status: 200, weight: "2" });
    await expect(askFromNode(node, `http://127.0.0.1:${port}/`)).rejects.toThrow();
  });
});
