import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { EndpointSlice, Node, Service } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { createLogger } from "../../../agent/lib/log.ts";
import { matchFamilies } from "../../../agent/proxy/address-families.ts";
import { rangeSetName } from "../../../agent/proxy/iptables/set-names.ts";
import { syncBurst, type SyncEvent } from "../../../agent/proxy/family.ts";
import { hostIPs } from "../../../agent/node/addresses.ts";
import type { Family } from "../../../agent/proxy/ip.ts";
import { type ProxyOptions, proxyOptionsDefault } from "../../../agent/proxy/options.ts";
import { cleanup, createProxy, type Proxy } from "../../../agent/proxy/proxy.ts";
import type { Sysctls } from "../../../agent/proxy/sysctl.ts";
import { ended, FakeCommands } from "../../support/fake-commands.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";

const options: ProxyOptions = {
  ...proxyOptionsDefault,
  nodeName: "n1",
  nodeIPs: ["192.0.2.1"],
  families: ["IPv4"],
  iptablesFlavour: "nft",
};

let commands: FakeCommands;
let clock: FakeClock;
let services: MemoryStore<Service>;
let endpointSlices: MemoryStore<EndpointSlice>;
let nodes: MemoryStore<Node>;
let events: SyncEvent[];
let lines: { level: string; msg: string }[];
let sysctls: Sysctls;
let stop: AbortController;
let done: Promise<void> | undefined;

beforeEach(() => {
  commands = new FakeCommands();
  clock = new FakeClock();
  services = new MemoryStore<Service>();
  endpointSlices = new MemoryStore<EndpointSlice>();
  nodes = new MemoryStore<Node>().markSynced();
  events = [];
  lines = [];
  sysctls = { read: async () => "0", write: async () => {} };
  stop = new AbortController();
  done = undefined;
});

afterEach(async () => {
  stop.abort();
  await clock.advance(0);
  await done?.catch(() => {});
  if (clock.waiting > 0) throw new Error(`${clock.waiting} timers are left`);
});

const log = () =>
  createLogger({
    level: "debug",
    stream: { write: (line) => void lines.push(JSON.parse(line) as (typeof lines)[number]) },
  });
const warnings = () => lines.filter(({ level }) => level === "warn").map(({ msg }) => msg);
const rules = () => commands.tables.iptables.dump();
const restores = () => commands.tables.iptables.texts.length;

async function start(more: Partial<ProxyOptions> = {}): Promise<Proxy> {
  const proxy = createProxy(
    { ...options, ...more },
    {
      services,
      endpointSlices,
      nodes,
      clock,
      commands,
      log: log(),
      sysctls,
      nodeIPsOf: hostIPs,
      localIPs: () => ["192.0.2.1"],
      observer: { synced: (event) => events.push(event) },
    },
  );
  done = proxy.run(stop.signal);
  done.catch(() => {});
  await quiet();
  return proxy;
}

/** Lets everything run that waits for neither time nor tests. */
async function quiet(): Promise<void> {
  for (let n = 0; n < 20; n++) await settle();
}

describe("a start", () => {
  test("writes nothing before both lists are complete, then all of it", async () => {
    const proxy = await start();
    services.put(makeService("web")).markSynced();
    await quiet();
    expect(restores()).toBe(0);
    endpointSlices.put(makeSlice("web", ["10.244.1.5"])).markSynced();
    await quiet();
    expect(rules()).toContain("--to-destination 10.244.1.5:8080");
    expect([...(commands.sets.get("KUBE-SERVICE-IPS") ?? [])]).toEqual(["10.96.0.10,tcp:80"]);
    expect(proxy.stats()).toMatchObject([{ family: "IPv4", syncs: 1, fullSyncs: 1, pendingSinceMs: undefined }]);
  });

  test("without leave for external IPs programs all else of their services", async () => {
    await start({ allowsExternalIPs: false });
    services.put(makeService("web", { externalIPs: ["198.51.100.9"] })).markSynced();
    endpointSlices.put(makeSlice("web", ["10.244.1.5"])).markSynced();
    await quiet();
    expect([...(commands.sets.get("KUBE-SERVICE-IPS") ?? [])]).toEqual(["10.96.0.10,tcp:80"]);
    expect(rules()).not.toContain("198.51.100.9");
  });

  test("without ipset says so once and goes on", async () => {
    commands.missing.add("ipset");
    services.put(makeService("web")).markSynced();
    endpointSlices.put(makeSlice("web", ["10.244.1.5"])).markSynced();
    await start();
    expect(warnings().filter((msg) => msg.includes("ipset"))).toHaveLength(1);
    expect(rules()).toContain("--to-destination 10.244.1.5:8080");
    expect(rules()).not.toContain("--match-set");
  });

  test("without iptables for the primary family ends with an error that says so", async () => {
    commands.missing.add("iptables-nft");
    await start();
    await expect(done).rejects.toThrow(/IPv4 services cannot be programmed/);
  });

  test("without iptables for the other family goes on with one", async () => {
    commands.missing.add("ip6tables-nft");
    const proxy = await start({ families: ["IPv4", "IPv6"] });
    expect(proxy.stats().map(({ family }) => family)).toEqual(["IPv4"]);
  });

  test("tries the other family again if it is only held up", async () => {
    commands.failures.set("ip6tables-nft", ended(4, "", "Another app is currently holding the xtables lock."));
    services.put(makeService("web6", { clusterIP: "fd00:10:96::10", ipFamilies: ["IPv6"] })).markSynced();
    endpointSlices.put(makeSlice("web6", ["fd00:10:244::5"], { addressType: "IPv6" })).markSynced();
    const proxy = await start({ families: ["IPv4", "IPv6"] });
    expect(proxy.stats().map(({ family }) => family)).toEqual(["IPv4"]);
    expect(warnings().join()).toMatch(/family cannot be programmed yet/);
    commands.failures.clear();
    await clock.advance(10_000);
    await quiet();
    expect(proxy.stats().map(({ family }) => family)).toEqual(["IPv4", "IPv6"]);
    expect(commands.tables.ip6tables.dump()).toContain("--to-destination [fd00:10:244::5]:8080");
  });

  test("sets what only the rules bring into the kernel, and tells what is missing even then", async () => {
    const path = "net/netfilter/nf_conntrack_max";
    const values = new Map<string, string>();
    sysctls = {
      read: async (name) => {
        const hasRules = restores() > 0 && name === path;
        if (hasRules || !name.includes("nf_conntrack")) return values.get(name) ?? "0";
        throw Object.assign(new Error("not there"), { code: "ENOENT" });
      },
      write: async (name, value) => void values.set(name, value),
    };
    services.put(makeService("web")).markSynced();
    endpointSlices.put(makeSlice("web", ["10.244.1.5"])).markSynced();
    await start();
    expect(Number(values.get(path))).toBeGreaterThanOrEqual(131_072);
    const told = lines.filter(({ msg }) => msg.includes("connection tracking"));
    expect(told).toHaveLength(1);
    expect(told[0]).toMatchObject({
      level: "warn",
      sysctls: expect.arrayContaining(["/sys/module/nf_conntrack/parameters/hashsize"]),
    });
    expect(JSON.stringify(told)).not.toContain(path);
  });

  test("removes what the other mode left, family by family, until it is gone", async () => {
    commands.missing.add("ip6tables-nft");
    commands.failures.set("nft", ended(1, "", "Error: Device or resource busy"));
    const removals = () => commands.log.filter((line) => line.startsWith("nft delete table"));
    services.markSynced();
    endpointSlices.markSynced();
    await start({ families: ["IPv4", "IPv6"] });
    expect(removals()).toEqual(["nft delete table ip kube-proxy"]);
    await clock.advance(60_000);
    expect(removals().length).toBeGreaterThan(1);
    expect(warnings().filter((msg) => msg.includes("another proxy mode"))).toHaveLength(1);
    commands.failures.clear();
    await clock.advance(600_000);
    const before = removals().length;
    await clock.advance(600_000);
    expect(removals()).toHaveLength(before);
  });

  test("in NodeCIDR mode waits for the node's CIDRs", async () => {
    services.put(makeService("web")).markSynced();
    endpointSlices.put(makeSlice("web", ["10.244.1.5"])).markSynced();
    await start({ detectLocal: { ...options.detectLocal, mode: "NodeCIDR" } });
    expect(restores()).toBe(0);
    expect(lines.map(({ msg }) => msg)).toContain("waiting for the Node to have pod CIDRs");
    nodes.put({ metadata: { name: "n1" }, spec: { podCIDRs: ["10.244.1.0/24"] } });
    await quiet();
    expect(rules()).toContain("! -s 10.244.1.0/24 -m set --match-set KUBE-CLUSTER-IPS dst,dst -j KUBE-MARK-MASQ");
  });
});

describe("ranges of another IP family than the machine's", () => {
  const withCIDRs = (...cidrs: string[]) => ({ detectLocal: { ...options.detectLocal, cidrs } });
  beforeEach(() => {
    services.put(makeService("web")).markSynced();
    endpointSlices.put(makeSlice("web", ["10.244.1.5"])).markSynced();
  });

  test("end the start before a rule is written, for all pods would be strangers", async () => {
    await start(withCIDRs("fd00:10:244::/56"));
    await expect(done).rejects.toThrow(
      "clusterCIDR fd00:10:244::/56 has no IPv4 range, and only IPv4 services can be programmed on this machine",
    );
    expect(restores()).toBe(0);
  });

  test("are warned about where another family has its range", async () => {
    await start({ ...withCIDRs("fd00:10:244::/56"), families: ["IPv4", "IPv6"] });
    expect(warnings().join()).toContain("has no range of the node's primary family IPv4");
    expect(rules()).toContain("--to-destination 10.244.1.5:8080");
  });

  test("that a node port answers on too many addresses is told", async () => {
    await start({ nodePortAddresses: ["192.0.2.0/24"], families: ["IPv4", "IPv6"] });
    expect(warnings().join()).toContain("nodePortAddresses has no IPv6 range");
    expect(warnings().join()).not.toContain("nodePortAddresses is not set");
  });

  const cases: {
    name: string;
    given: Partial<ProxyOptions>;
    families?: Family[];
    fatal?: RegExp;
    warned?: RegExp[];
  }[] = [
    { name: "nothing is configured", given: {}, warned: [/nodePortAddresses is not set/] },
    { name: "nftables answers on the node's own address by default", given: { mode: "nftables" } },
    { name: "the one word", given: { nodePortAddresses: ["primary"] } },
    {
      name: "both families, two ranges",
      given: { nodePortAddresses: ["primary"], ...withCIDRs("10.0.0.0/8", "fd00::/48") },
    },
    {
      name: "a range of everything",
      given: { nodePortAddresses: ["primary"], ...withCIDRs("0.0.0.0/0") },
      warned: [/^clusterCIDR 0\.0\.0\.0\/0 takes in every address/],
    },
    {
      name: "two ranges where one family works",
      given: { nodePortAddresses: ["primary"], ...withCIDRs("10.0.0.0/8", "fd00::/48") },
      families: ["IPv4"],
    },
    {
      name: "a node whose pod CIDRs are all of the other family",
      given: {
        nodePortAddresses: ["primary"],
        detectLocal: { ...options.detectLocal, mode: "NodeCIDR", cidrs: ["fd00::/64"] },
      },
      fatal: /^the pod CIDRs fd00::\/64 of node n1 have none of its primary family IPv4$/,
    },
    {
      name: "ranges that no interface mode asks for",
      given: {
        nodePortAddresses: ["primary"],
        detectLocal: { ...options.detectLocal, mode: "BridgeInterface", cidrs: ["fd00::/64"] },
      },
      families: ["IPv4"],
    },
  ];
  test.each(cases)("$name", ({ given, families = ["IPv4", "IPv6"], fatal, warned = [] }) => {
    const match = matchFamilies({ ...options, ...given }, families, "IPv4");
    if (fatal === undefined) expect(match.fatal).toBeUndefined();
    else expect(match.fatal).toMatch(fatal);
    expect(match.warnings).toHaveLength(warned.length);
    for (const [at, text] of warned.entries()) expect(match.warnings[at]).toMatch(text);
  });
});

describe("changes", () => {
  beforeEach(async () => {
    services.put(makeService("web")).markSynced();
    endpointSlices.put(makeSlice("web", ["10.244.1.5"])).markSynced();
    await start();
    await clock.advance(options.minSyncPeriodMs);
  });

  test("after quiet are applied at once, a handful of them too, a storm together after the minimum period", async () => {
    for (let n = 0; n <= syncBurst; n++) {
      endpointSlices.put(makeSlice("web", [n % 2 === 0 ? "10.244.1.6" : "10.244.1.5"]));
      await quiet();
      if (n < syncBurst - 1) expect(rules()).toContain(n % 2 === 0 ? "10.244.1.6:8080" : "10.244.1.5:8080");
    }
    const before = restores();
    for (let n = 7; n < 30; n++) endpointSlices.put(makeSlice("web", [`10.244.1.${n}`]));
    await quiet();
    expect(restores()).toBe(before);
    await clock.advance(options.minSyncPeriodMs);
    await quiet();
    expect(restores()).toBe(before + 1);
    expect(rules()).toContain("10.244.1.29:8080");
  });

  test("that fail are tried again in full, sooner than the sync period", async () => {
    commands.tables.iptables.failNext(new AgentError("Unavailable", "locked"));
    endpointSlices.put(makeSlice("web", ["10.244.1.6"]));
    await quiet();
    expect(events.at(-1)).toMatchObject({ isOk: false });
    expect(rules()).not.toContain("10.244.1.6:8080");
    await clock.advance(2_000);
    await quiet();
    expect(rules()).toContain("10.244.1.6:8080");
    expect(events.at(-1)).toMatchObject({ isOk: true, isFull: true });
  });

  test("of malformed objects are warned about once, and hold nothing up", async () => {
    services.put(makeService("bad", { clusterIP: "nonsense" }), makeService("good", { clusterIP: "10.96.0.11" }));
    endpointSlices.put(makeSlice("good", ["10.244.1.7"]));
    await clock.advance(options.minSyncPeriodMs);
    services.put(makeService("bad", { clusterIP: "nonsense" }));
    await clock.advance(options.minSyncPeriodMs);
    await quiet();
    expect(warnings().filter((msg) => msg.includes("nonsense"))).toHaveLength(1);
    expect(rules()).toContain("10.244.1.7:8080");
  });

  test("of objects that cannot even be read cost their own service only", async () => {
    services.put(makeService("torn"), makeService("good", { clusterIP: "10.96.0.11" }));
    endpointSlices.put(makeSlice("torn", [{ address: "10.244.1.8", hints: { forZones: [null as never] } }]));
    endpointSlices.put(makeSlice("good", ["10.244.1.7"]));
    await clock.advance(options.minSyncPeriodMs);
    await quiet();
    expect(warnings().join()).toMatch(/service ns1\/torn is ignored/);
    expect(rules()).toContain("10.244.1.7:8080");
  });

  test("tell how long it took from the change to the kernel", async () => {
    const slice = makeSlice("web", ["10.244.1.6"]);
    const changedAt = new Date(clock.now() - 250).toISOString();
    slice.metadata.annotations = { "endpoints.kubernetes.io/last-change-trigger-time": changedAt };
    endpointSlices.put(slice);
    await quiet();
    expect(events.at(-1)?.programmingLatenciesMs).toEqual([250]);
  });

  test("of the node's zone choose endpoints anew", async () => {
    endpointSlices.put(
      makeSlice("web", [
        { address: "10.244.1.5", hints: { forZones: [{ name: "z1" }] } },
        { address: "10.244.2.5", hints: { forZones: [{ name: "z2" }] } },
      ]),
    );
    nodes.put({ metadata: { name: "n1", labels: { "topology.kubernetes.io/zone": "z2" } } });
    await clock.advance(options.minSyncPeriodMs);
    await quiet();
    expect(rules()).toContain("10.244.2.5:8080");
    expect(rules()).not.toContain("10.244.1.5:8080");
  });
});

describe("of the Node itself", () => {
  const node = (podCIDR: string, ip: string): Node => ({
    metadata: { name: "n1" },
    spec: { podCIDRs: [podCIDR] },
    status: { addresses: [{ type: "InternalIP", address: ip }] },
  });

  test("other pod CIDRs and other addresses are told, and count for all services", async () => {
    const type = "LoadBalancer";
    const loadBalancerSourceRanges = ["198.51.100.0/24"];
    const status = { loadBalancer: { ingress: [{ ip: "203.0.113.9" }] } };
    services.put(makeService("web", { type, loadBalancerSourceRanges }, { status })).markSynced();
    endpointSlices.put(makeSlice("web", ["10.244.1.5"])).markSynced();
    nodes.put(node("10.244.1.0/24", "192.0.2.1"));
    await start({ detectLocal: { ...options.detectLocal, mode: "NodeCIDR" } });
    expect(rules()).toContain("! -s 10.244.1.0/24 -m set --match-set KUBE-CLUSTER-IPS dst,dst -j KUBE-MARK-MASQ");
    const told = () => lines.filter(({ msg }) => msg.includes("the Node has changed"));
    nodes.put(node("10.244.9.0/24", "198.51.100.7"));
    await clock.advance(options.minSyncPeriodMs);
    await quiet();
    expect(rules()).toContain("! -s 10.244.9.0/24 -m set --match-set KUBE-CLUSTER-IPS dst,dst -j KUBE-MARK-MASQ");
    expect(rules()).not.toContain("10.244.1.0/24");
    // The node lies in the source range now: it may reach the address that it holds itself.
    expect([...(commands.sets.get(rangeSetName("IPv4", "ns1/web")) ?? [])]).toContain("203.0.113.9");
    expect(told()).toHaveLength(1);
    nodes.put({ ...node("10.244.9.0/24", "198.51.100.7"), spec: {} });
    await clock.advance(options.minSyncPeriodMs);
    expect(told()).toHaveLength(1);
  });
});

describe("rules that somebody else changed", () => {
  test("come back within a sync period; until then nothing runs without need", async () => {
    services.put(makeService("web")).markSynced();
    endpointSlices.put(makeSlice("web", ["10.244.1.5"])).markSynced();
    await start();
    const before = restores();
    await clock.advance(options.syncPeriodMs * 3);
    await quiet();
    expect(restores()).toBe(before);
    const want = rules();
    commands.tables.iptables.flushEverything();
    await clock.advance(options.syncPeriodMs);
    await quiet();
    expect(rules()).toBe(want);
    expect(warnings()).toContain("rules were changed by somebody else; writing all of them");
  });

  test("are written in full every hour, unless there are very many", async () => {
    services.put(makeService("web")).markSynced();
    endpointSlices.put(makeSlice("web", ["10.244.1.5"])).markSynced();
    const proxy = await start();
    for (let n = 0; n < 125; n++) await clock.advance(30_000);
    await quiet();
    expect(proxy.stats()[0]?.fullSyncs).toBe(2);
  }, 30_000); // an hour of looks: seconds on a busy machine
});

test("UDP flows to endpoints that went are removed, and no others", async () => {
  const port = { name: "dns", port: 53, protocol: "UDP" as const };
  services.put(makeService("dns", { ports: [port] })).markSynced();
  endpointSlices.put(makeSlice("dns", ["10.244.1.6"], { ports: [{ ...port, port: 5353 }] })).markSynced();
  const flow = (dst: string, reply: string) =>
    `udp      17 29 src=10.244.1.9 dst=${dst} sport=4000 dport=53 src=${reply} dst=10.244.1.9 sport=5353 dport=4000 mark=0 use=1`;
  commands.flows = [
    flow("10.96.0.10", "10.244.1.5"),
    flow("10.96.0.10", "10.244.1.6"),
    flow("10.96.0.99", "10.244.1.5"),
  ];
  await start();
  expect(commands.log.filter((line) => line.startsWith("conntrack -D"))).toEqual([
    "conntrack -D -f ipv4 -p udp --orig-dst 10.96.0.10 --orig-port-dst 53 --reply-src 10.244.1.5 --reply-port-src 5353",
  ]);
});

test("cleanup removes everything of ours and leaves the rest as it was", async () => {
  for (const tables of Object.values(commands.tables)) {
    await tables.restore("*nat\n:DOCKER - [0:0]\n-A PREROUTING -j DOCKER\n-A DOCKER -j RETURN\nCOMMIT\n");
  }
  const before = [rules(), commands.tables.ip6tables.dump()];
  services
    .put(makeService("web", { type: "NodePort", ports: [{ name: "p80", port: 80, nodePort: 30_080 }] }))
    .markSynced();
  endpointSlices.put(makeSlice("web", ["10.244.1.5"])).markSynced();
  await start({ families: ["IPv4", "IPv6"] });
  stop.abort();
  await quiet();
  expect(rules()).not.toBe(before[0]);
  expect(await cleanup({ log: log(), commands }, new AbortController().signal)).toEqual([]);
  // What keeps neighbours from sending to 127.0.0.0/8 is the kubelet's, too, and the kernel still routes such packets.
  const guard = /^.*(KUBE-FIREWALL|block incoming localnet connections).*\n/gm;
  expect(rules().match(guard)).toHaveLength(4);
  expect([rules().replace(guard, ""), commands.tables.ip6tables.dump()]).toEqual(before);
  expect(commands.sets.size).toBe(0);
});

test("cleanup removes what it can and names what somebody else holds", async () => {
  services.put(makeService("web")).markSynced();
  endpointSlices.put(makeSlice("web", ["10.244.1.5"])).markSynced();
  await start();
  stop.abort();
  await quiet();
  const held = /KUBE-SVC-(?!AT)\w+/.exec(rules())?.[0] ?? "";
  await commands.tables.iptables.restore(`*nat\n-A OUTPUT -j ${held}\nCOMMIT\n`);
  const problems = await cleanup({ log: log(), commands }, new AbortController().signal);
  expect(problems).toHaveLength(3); // in each flavour; here they are the same tables
  for (const problem of problems) expect(problem).toContain(`chain ${held} of table nat is empty but stays: `);
  expect(rules()).not.toMatch(/KUBE-SEP-|KUBE-SERVICES|KUBE-POSTROUTING/);
});
