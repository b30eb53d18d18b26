import { once } from "node:events";
import { type AddressInfo, createServer, type Server } from "node:net";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { EventRecorder } from "../../../agent/kube/port.ts";
import type { Node } from "../../../agent/kube/types.ts";
import { type Clock, systemClock } from "../../../agent/lib/clock.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import type { FamilyStats } from "../../../agent/proxy/family.ts";
import { RunningParts } from "../../../agent/roles/parts.ts";
import { createProxyRoleMetrics, type ProxyServers, startProxyServers } from "../../../agent/roles/proxy-server.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { proxyWith } from "../config/support.ts";
import { ask } from "../server/core/support.ts";

let parts: RunningParts;
let nodes: MemoryStore<Node>;
let events: Parameters<EventRecorder["event"]>[];
let stats: Pick<FamilyStats, "family" | "startedAtMs" | "lastSyncedAtMs" | "pendingForMs">[];
let hasFailed: boolean;
let verbosity: number | undefined;
let slept: number[];
let ports: { healthz: number; metrics: number };
const taken: Server[] = [];

beforeEach(async () => {
  parts = new RunningParts(silentLogger);
  nodes = new MemoryStore<Node>().markSynced();
  [events, stats, verbosity, slept] = [[], [], undefined, []];
  hasFailed = false;
  ports = { healthz: await freePort(), metrics: await freePort() };
});

afterEach(async () => {
  await parts.stop(5_000, systemClock);
  for (const server of taken.splice(0)) server.close();
});

async function listenOn(port: number, host = "127.0.0.1"): Promise<Server> {
  const server = createServer().listen(port, host);
  await once(server, "listening");
  return server;
}

async function freePort(): Promise<number> {
  const server = await listenOn(0);
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

function start(fields = "", host = "127.0.0.1"): ProxyServers {
  const addresses = `healthzBindAddress: '${host}:${ports.healthz}'\nmetricsBindAddress: 127.0.0.1:${ports.metrics}\n`;
  const settings = proxyWith(addresses + fields).proxy;
  const { registry, restClient } = createProxyRoleMetrics(settings, { clock: systemClock, parts });
  restClient.requests.inc({ code: "200", method: "GET", host: "api" });
  return startProxyServers(
    {
      settings,
      mode: "iptables",
      syncPeriodMs: 30_000,
      nodeName: "n1",
      nodes,
      recorder: { event: (...event) => void events.push(event) },
      registry,
      setVerbosity: (value) => void (verbosity = value),
      stats: () => stats as FamilyStats[],
      hasFailed: () => hasFailed,
    },
    { clock: impatient, log: silentLogger, parts },
  );
}

/** Waits no longer than a moment, and notes how long it should have been. */
const impatient: Clock = {
  ...systemClock,
  sleep: async (ms, signal) => {
    slept.push(ms);
    await systemClock.sleep(20, signal);
  },
};

const get = (port: number, path: string, more: { method?: string; body?: string; host?: string } = {}) =>
  ask(port, path, { tls: false, as: null, ...more });
const served = (port: number, path: string) =>
  expect.poll(async () => (await get(port, path).catch(() => undefined))?.status, { timeout: 10_000 });

describe("the health port", () => {
  test("says that the proxy is not well while it cannot begin", async () => {
    hasFailed = true;
    start();
    await served(ports.healthz, "/livez").toBe(503);
    const answer = await get(ports.healthz, "/healthz");
    expect([answer.status, JSON.parse(answer.body)]).toMatchObject([503, { healthy: false }]);
  });

  test("says whether node and proxy are well, and counts what it said", async () => {
    start();
    await served(ports.healthz, "/livez").toBe(200);
    const unknown = await get(ports.healthz, "/healthz");
    expect([unknown.status, JSON.parse(unknown.body)]).toMatchObject([503, { nodeEligible: false, healthy: true }]);
    nodes.put({ metadata: { name: "other" } }, { metadata: { name: "n1" } });
    const good = await get(ports.healthz, "/healthz", { method: "POST" });
    expect(good).toMatchObject({
      status: 200,
      headers: { "content-type": "application/json", "x-content-type-options": "nosniff" },
    });
    nodes.remove("n1"); // its deletion alone says nothing
    expect(await get(ports.healthz, "/healthz")).toMatchObject({ status: 200 });
    stats = [{ family: "IPv4", startedAtMs: 0, lastSyncedAtMs: undefined, pendingForMs: 60_000 }];
    expect(await get(ports.healthz, "/healthz")).toMatchObject({ status: 503 });
    const stuck = await get(ports.healthz, "/livez");
    expect([stuck.status, JSON.parse(stuck.body)]).toMatchObject([
      503,
      { healthy: false, lastUpdated: "1970-01-01T00:00:00.000Z", status: { IPv4: { healthy: false } } },
    ]);
    expect(stuck.body).not.toContain("nodeEligible");
    expect(await get(ports.healthz, "/metrics")).toMatchObject({ status: 404 });
    stats = [];
    const { body } = await get(ports.metrics, "/metrics");
    expect(body).toContain('kubeproxy_proxy_healthz_total{code="200"} 2\n');
    expect(body).toContain('kubeproxy_proxy_healthz_total{code="503"} 2\n');
    expect(body).toContain('kubeproxy_proxy_livez_total{code="503"} 1\n');
  });

  test("with a wildcard serves both IP families", async () => {
    start("", "0.0.0.0");
    await served(ports.healthz, "/livez").toBe(200);
    expect(await get(ports.healthz, "/livez", { host: "::1" })).toMatchObject({ status: 200 });
  });
});

describe("the port for metrics", () => {
  test("serves what kube-proxy's does", async () => {
    start();
    await served(ports.metrics, "/healthz").toBe(200);
    expect(await get(ports.metrics, "/healthz")).toMatchObject({ body: "ok" });
    expect(await get(ports.metrics, "/proxyMode")).toMatchObject({
      body: "iptables",
      headers: { "content-type": "text/plain; charset=utf-8", "x-content-type-options": "nosniff" },
    });
    const configz = JSON.parse((await get(ports.metrics, "/configz")).body) as unknown;
    expect(configz).toMatchObject({
      "kubeproxy.config.k8s.io": {
        kind: "KubeProxyConfiguration",
        apiVersion: "kubeproxy.config.k8s.io/v1alpha1",
        metricsBindAddress: `127.0.0.1:${ports.metrics}`,
        iptables: { syncPeriod: "30s" },
      },
    });
    expect((await get(ports.metrics, "/statusz")).body).toMatch(/^\nkube-proxy statusz\nWarning: /);
    expect((await get(ports.metrics, "/flagz")).body).toMatch(/^config[:= ]+\/etc\/p\.yaml$/m);
    const { body } = await get(ports.metrics, "/metrics");
    expect(body).toContain('rest_client_requests_total{code="200",host="api",method="GET"} 1\n');
    expect(body).toMatch(/^kubernetes_build_info\{.*git_version="v1\.36/m);
    expect(body).toMatch(/^kubernetes_feature_enabled\{name="AllAlpha",stage="ALPHA"\} 0$/m);
    expect(body).toMatch(/^process_resident_memory_bytes \d/m);
    expect(body).not.toMatch(/^kubelet_/m);
    expect((await get(ports.metrics, "/metrics/slis")).body).toContain(
      'kubernetes_healthcheck{name="ping",type="healthz"} 1\n',
    );
    expect(await get(ports.metrics, "/metrics/slis", { method: "DELETE" })).toMatchObject({ body: "metrics reset\n" });
    for (const path of ["/debug/pprof/", "/debug/flags/v", "/livez"]) {
      expect(await get(ports.metrics, path)).toMatchObject({ status: 404 });
    }
  });

  test("serves profiles and the verbosity where that is switched on, pages where they are not switched off", async () => {
    start("enableProfiling: true\nfeatureGates: {ComponentFlagz: false, ComponentStatusz: false}\n");
    await served(ports.metrics, "/debug/pprof/").toBe(200);
    expect(await get(ports.metrics, "/debug/pprof/cmdline")).toMatchObject({ status: 200 });
    expect(await get(ports.metrics, "/debug/flags/v", { method: "PUT", body: "5" })).toMatchObject({ status: 200 });
    expect(verbosity).toBe(5);
    expect(await get(ports.metrics, "/flagz")).toMatchObject({ status: 404 });
    expect(await get(ports.metrics, "/statusz")).toMatchObject({ status: 404 });
  });
});

describe("an address that is taken", () => {
  test("is told once as an event of the node, and tried again until it is free", async () => {
    const other = await listenOn(ports.healthz);
    start();
    await expect.poll(() => events.length).toBe(1);
    expect(events[0]).toEqual([
      { kind: "Node", name: "n1", uid: "n1" },
      "Warning",
      "FailedToStartProxierHealthcheck",
      expect.stringMatching(`^failed to start proxy healthz on 127.0.0.1:${ports.healthz}: .*EADDRINUSE`) as string,
      "StartKubeProxy",
    ]);
    await served(ports.metrics, "/healthz").toBe(200); // the other server does not mind
    other.close();
    await served(ports.healthz, "/livez").toBe(200);
    expect(events).toHaveLength(1);
    expect(new Set(slept)).toEqual(new Set([5_000]));
  });

  test("ends the agent where the configuration says so, with the event", async () => {
    taken.push(await listenOn(ports.metrics));
    start("bindAddressHardFail: true\n");
    await expect(parts.failed).rejects.toThrow(
      new RegExp(`kube-proxy's metrics server: failed to start metrics server on 127.0.0.1:${ports.metrics}: `),
    );
    expect(events.map(([, , reason]) => reason)).toEqual(["FailedToStartMetricServer"]);
  });
});
