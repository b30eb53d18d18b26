import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { EndpointSlice, Node, Service } from "../../../agent/kube/types.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { healthCheckIPs, nodePortAddressesOf, readNodePortAddresses } from "../../../agent/proxy/node-ports.ts";
import { proxyOptionsDefault } from "../../../agent/proxy/options.ts";
import { createProxy, type Proxy } from "../../../agent/proxy/proxy.ts";
import { FakeCommands } from "../../support/fake-commands.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";

describe("rules of ours", () => {
  const clock = new FakeClock();
  let commands: FakeCommands;
  let services: MemoryStore<Service>;
  let slices: MemoryStore<EndpointSlice>;
  let proxy: Proxy;
  let stop: AbortController;
  let done: Promise<void>;

  beforeEach(async () => {
    commands = new FakeCommands();
    services = new MemoryStore<Service>().markSynced();
    slices = new MemoryStore<EndpointSlice>().markSynced();
    proxy = createProxy(
      { ...proxyOptionsDefault, nodeName: "n1", nodeIPs: ["192.0.2.1"], families: ["IPv4"], iptablesFlavour: "nft" },
      {
        services,
        endpointSlices: slices,
        nodes: new MemoryStore<Node>().markSynced(),
        clock,
        commands,
        log: silentLogger,
        sysctls: { read: async () => "0", write: async () => {} },
        localIPs: () => ["192.0.2.1"],
      },
    );
    stop = new AbortController();
    done = proxy.run(stop.signal);
    await synced();
  });

  afterEach(async () => {
    stop.abort();
    await clock.advance(0);
    await done;
  });

  async function synced(): Promise<void> {
    for (let n = 0; n < 10; n++) await settle();
    await clock.advance(proxyOptionsDefault.minSyncPeriodMs);
    for (let n = 0; n < 10; n++) await settle();
  }

  const inKernel = (table: string) =>
    [...(commands.tables.iptables.tables.get(table) ?? [])]
      .filter(([chain]) => chain.startsWith("KUBE-"))
      .reduce((total, [, rules]) => total + rules.length, 0);
  const owned = (table: string) => proxy.stats()[0]?.backend.rules?.[table]?.owned;

  test("are as many as the kernel has, after any change", async () => {
    const check = () => {
      for (const table of ["nat", "filter"]) expect([table, owned(table)]).toEqual([table, inKernel(table)]);
    };
    check();
    const nodePort = (n: number) => ({
      clusterIP: `10.96.0.${n}`,
      type: "NodePort" as const,
      ports: [{ name: "p80", port: 80, nodePort: 30_000 + n, protocol: "TCP" as const }],
    });
    for (let n = 10; n < 60; n++) {
      services.put(makeService(`s${n}`, nodePort(n)));
      if (n % 3 > 0) slices.put(makeSlice(`s${n}`, ["10.244.1.5", "10.244.1.6"]));
    }
    await synced();
    check();
    const many = owned("nat") ?? 0;
    expect(many).toBeGreaterThan(300);
    for (let n = 10; n < 55; n++) services.remove(`ns1/s${n}`);
    slices.put(makeSlice("s56", ["10.244.1.5"]));
    await synced();
    check();
    expect(owned("nat")).toBeLessThan(many / 5);
  });

  test("are not told while nobody knows", async () => {
    commands.tables.iptables.failNext(new Error("gone wrong") as never);
    services.put(makeService("web"));
    for (let n = 0; n < 10; n++) await settle();
    expect(proxy.stats()[0]?.backend.rules).toBeUndefined();
  });
});

describe("addresses of health checks", () => {
  const local = () => ["127.0.0.1", "192.0.2.1", "198.51.100.1", "::1", "2001:db8::1", "fe80::1"];
  const nodeIPs = ["192.0.2.1", "2001:db8::1"];
  const cases: {
    mode: "iptables" | "nftables";
    entries: string[];
    family: "IPv4" | "IPv6";
    want: string[] | undefined;
  }[] = [
    { mode: "iptables", entries: [], family: "IPv4", want: undefined },
    { mode: "nftables", entries: [], family: "IPv4", want: ["192.0.2.1"] },
    { mode: "nftables", entries: [], family: "IPv6", want: ["2001:db8::1"] },
    { mode: "iptables", entries: ["198.51.100.0/24"], family: "IPv4", want: ["198.51.100.1"] },
    { mode: "iptables", entries: ["198.51.100.0/24"], family: "IPv6", want: undefined },
    { mode: "nftables", entries: ["0.0.0.0/0"], family: "IPv4", want: undefined },
    { mode: "iptables", entries: ["127.0.0.0/8", "192.0.2.1/32"], family: "IPv4", want: ["127.0.0.1", "192.0.2.1"] },
    { mode: "iptables", entries: ["fe80::/10", "2001:db8::/32"], family: "IPv6", want: ["2001:db8::1"] },
  ];
  test.each(cases)("$mode $entries $family: $want", ({ mode, entries, family, want }) => {
    const addresses = nodePortAddressesOf({ mode, nodePortAddresses: entries });
    expect(healthCheckIPs(readNodePortAddresses(addresses, nodeIPs, family), local, family)).toEqual(want);
  });
});
