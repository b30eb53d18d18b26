import { afterEach, beforeEach, expect, test } from "vitest";
import { createLogger } from "../../../agent/lib/log.ts";
import { untilAborted } from "../../../agent/lib/loop.ts";
import type { Backend, SyncRequest } from "../../../agent/proxy/backend.ts";
import { type FlowsEvent, FamilyProxy, type SyncEvent } from "../../../agent/proxy/family.ts";
import { judgeProxyHealth } from "../../../agent/proxy/health.ts";
import { proxyOptionsDefault } from "../../../agent/proxy/options.ts";
import { ended, FakeCommands } from "../../support/fake-commands.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";

const options = { ...proxyOptionsDefault, nodeName: "n1", nodeIPs: ["192.0.2.1"] };
const { syncPeriodMs, minSyncPeriodMs } = options;

let clock: FakeClock;
let commands: FakeCommands;
let syncs: SyncEvent[];
let cleanings: FlowsEvent[];
let checked: ReadonlyMap<string, { port: number; localReady: number }>[];
/** What the next syncs do. */
let during: (request: SyncRequest) => Promise<void>;
let warned: string[];
let stop: AbortController;
let done: Promise<void> | undefined;
let family: FamilyProxy;

beforeEach(() => {
  clock = new FakeClock();
  commands = new FakeCommands();
  [syncs, cleanings, checked, warned] = [[], [], [], []];
  during = async () => {};
  stop = new AbortController();
  done = undefined;
  family = familyOf(options);
});

function familyOf(given: typeof options): FamilyProxy {
  const backend: Backend = {
    family: "IPv4",
    needsFull: false,
    sync: async (request) => {
      for (const key of request.keys) request.describe(key);
      await during(request);
      return {};
    },
    findDamage: async () => undefined,
  };
  return new FamilyProxy({
    family: "IPv4",
    options: given,
    backend,
    commands,
    clock,
    log: createLogger({ level: "warn", stream: { write: (line) => void warned.push(line) } }),
    observer: { synced: (event) => void syncs.push(event), flowsCleaned: (event) => void cleanings.push(event) },
    localIPs: () => ["192.0.2.1"],
    healthChecks: { update: (services) => void checked.push(services) },
  });
}

afterEach(async () => {
  stop.abort();
  await settle();
  await done;
});

async function run(): Promise<void> {
  done = family.run(stop.signal);
  await settle();
}

const isHealthy = () => judgeProxyHealth([family.stats()], syncPeriodMs).isHealthy;

test("a cluster that never rests is no reason to call the proxy stuck", async () => {
  let n = 0;
  during = async () => {
    n += 1;
    family.setSlice("ns1/web-a", makeSlice("web", [`10.244.1.${n}`]));
  };
  await run();
  for (let passed = 0; passed < 3 * syncPeriodMs; passed += minSyncPeriodMs) {
    await clock.advance(minSyncPeriodMs);
    expect(isHealthy()).toBe(true);
  }
  expect(n).toBeGreaterThan(60);
  expect(family.stats().pendingForMs).toBe(0); // since the sync during which the last change came
});

test("what fails again and again makes it unhealthy after two periods, the first good sync healthy", async () => {
  await run();
  await clock.advance(minSyncPeriodMs);
  during = () => Promise.reject(new Error("somebody holds the lock"));
  family.setService("ns1/web", makeService("web"));
  await settle();
  await clock.advance(2 * syncPeriodMs - 1_000);
  expect(isHealthy()).toBe(true);
  await clock.advance(1_000);
  expect(isHealthy()).toBe(false);
  expect(family.stats()).toMatchObject({ partialFailures: 1, changes: { pendingServices: 1 } });
  expect(family.stats().failures).toBeGreaterThan(2);
  during = async () => {};
  await clock.advance(syncPeriodMs);
  expect(isHealthy()).toBe(true);
  expect(family.stats()).toMatchObject({ pendingSinceMs: undefined, changes: { pendingServices: 0 } });
});

test("a sync that hangs makes it unhealthy, too", async () => {
  during = () => untilAborted(stop.signal);
  await run();
  await clock.advance(2 * syncPeriodMs);
  expect(isHealthy()).toBe(false);
});

test("changes from before our start are not counted as slow", async () => {
  const slice = (atMs: number) => {
    const made = makeSlice("web", ["10.244.1.5"]);
    const at = new Date(atMs).toISOString();
    made.metadata.annotations = { "endpoints.kubernetes.io/last-change-trigger-time": at };
    return made;
  };
  family.setService("ns1/web", makeService("web"));
  family.setSlice("ns1/web-a", slice(clock.now() - 86_400_000));
  await run();
  expect(syncs.map((one) => one.programmingLatenciesMs)).toEqual([[]]);
  await clock.advance(minSyncPeriodMs);
  family.setSlice("ns1/web-a", slice(clock.now() - 400));
  await settle();
  expect(syncs.at(-1)?.programmingLatenciesMs).toEqual([400]);
  // The controller's clock may be ahead of ours.
  await clock.advance(minSyncPeriodMs);
  family.setSlice("ns1/web-a", slice(clock.now() + 5_000));
  await settle();
  expect(syncs.at(-1)?.programmingLatenciesMs).toEqual([0]);
});

test("health check ports hear of endpoints with the sync that programs them, and not of one that fails", async () => {
  const loadBalancer = { type: "LoadBalancer", externalTrafficPolicy: "Local", healthCheckNodePort: 31_000 } as const;
  family.setService("ns1/web", makeService("web", loadBalancer));
  family.setSlice("ns1/web-a", makeSlice("web", [{ address: "10.244.1.5", nodeName: "n1" }]));
  await run();
  expect(checked.at(-1)).toEqual(new Map([["ns1/web", { port: 31_000, localReady: 1 }]]));
  await clock.advance(minSyncPeriodMs);
  const told = checked.length;
  during = () => Promise.reject(new Error("refused"));
  family.setSlice("ns1/web-a", makeSlice("web", []));
  await settle();
  expect(checked).toHaveLength(told);
  during = async () => {};
  await clock.advance(syncPeriodMs);
  expect(checked.at(-1)).toEqual(new Map([["ns1/web", { port: 31_000, localReady: 0 }]]));
});

test("each look at stale flows is told, with how many went", async () => {
  const ports = [{ name: "dns", port: 53, protocol: "UDP" as const }];
  commands.flows = ["udp", "udp"].map(
    (name, i) =>
      `${name} 17 29 src=10.244.1.9 dst=10.96.0.10 sport=${4000 + i} dport=53 src=10.244.1.${7 + i} dst=10.244.1.9 sport=53 dport=${4000 + i} mark=0 use=1`,
  );
  family.setService("ns1/dns", makeService("dns", { ports }));
  family.setSlice("ns1/dns-a", makeSlice("dns", ["10.244.1.5"], { ports }));
  await run();
  expect(cleanings).toEqual([{ family: "IPv4", durationMs: 0, removed: 2 }]);
});

const dnsPorts = [{ name: "dns", port: 53, protocol: "UDP" as const }];
const staleFlow =
  "udp 17 29 src=10.244.1.9 dst=10.96.0.10 sport=4000 dport=53 src=10.244.1.7 dst=10.244.1.9 sport=53 dport=4000 mark=0 use=1";

test("removals of flows that take long hold up no sync", async () => {
  const { run: runCommand } = commands;
  let asked = 0;
  Object.assign(commands, {
    run: async (...[file, args, about]: Parameters<FakeCommands["run"]>) => {
      if (args[0] === "-D") {
        asked += 1;
        await untilAborted(stop.signal);
      }
      return await runCommand(file, args, about);
    },
  });
  commands.flows = [staleFlow];
  family.setService("ns1/dns", makeService("dns", { ports: dnsPorts }));
  family.setSlice("ns1/dns-a", makeSlice("dns", ["10.244.1.5"], { ports: dnsPorts }));
  await run();
  expect(asked).toBe(1);
  const before = syncs.length;
  family.setService("ns1/web", makeService("web"));
  await clock.advance(minSyncPeriodMs);
  expect(syncs).toHaveLength(before + 1);
});

test("flows are looked at once what they depend on is in the kernel, and after trouble again, told once", async () => {
  const { lines } = commands;
  let looks = 0;
  Object.assign(commands, {
    lines: async (...args: Parameters<FakeCommands["lines"]>) => {
      looks += 1;
      return looks < 4 ? ended(1, "", "conntrack v1.4.7: Operation failed: not permitted") : await lines(...args);
    },
  });
  during = () => Promise.reject(new Error("refused"));
  family.setService("ns1/dns", makeService("dns", { ports: dnsPorts }));
  family.setSlice("ns1/dns-a", makeSlice("dns", ["10.244.1.5"], { ports: dnsPorts }));
  commands.flows = [staleFlow];
  await run();
  expect(looks).toBe(0);
  during = async () => {};
  await clock.advance(syncPeriodMs);
  expect(looks).toBeGreaterThan(0);
  await clock.advance(5 * syncPeriodMs);
  expect(cleanings.map(({ removed }) => removed)).toEqual([1]);
  expect(warned.filter((line) => line.includes("stale flows"))).toHaveLength(1);
});

test("after failures, changes wait for the retry, ten seconds at most", async () => {
  let passes = 0;
  during = () => {
    passes += 1;
    return Promise.reject(new Error("refused"));
  };
  await run();
  for (let n = 0; n < 300; n += 1) {
    family.setSlice("ns1/web-a", makeSlice("web", [`10.244.1.${n % 200}`]));
    await clock.advance(1_000);
  }
  expect(passes).toBeGreaterThan(29);
  expect(passes).toBeLessThan(35);
});

test("after failures, changes wait no longer than the sync period", async () => {
  family = familyOf({ ...options, syncPeriodMs: 2_000 });
  during = () => Promise.reject(new Error("somebody holds the lock"));
  await run();
  await clock.advance(20_000);
  expect(family.stats().failures).toBeGreaterThanOrEqual(10);
});
