import { expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import type { ClientSets } from "../../../agent/proxy/iptables/affinity.ts";
import { IptablesBackend } from "../../../agent/proxy/iptables/sync.ts";
import { ServiceModel } from "../../../agent/proxy/model.ts";
import { FakeIptables, FakeIpset } from "../../support/fake-iptables.ts";
import { type Packet, tracePacket } from "../../support/packet-tracer.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";
import { FakeClock } from "../kube/fake-clock.ts";

const signal = new AbortController().signal;
const packet: Packet = { src: "10.244.9.9", dst: "10.96.0.10", dport: 80, proto: "tcp", iface: "veth1" };

class FakeClientSets implements ClientSets {
  readonly sets = new Map<string, Set<string>>();
  failure: AgentError | undefined;

  async create(names: readonly string[]): Promise<void> {
    if (this.failure !== undefined) throw this.failure;
    for (const name of names) if (!this.sets.has(name)) this.sets.set(name, new Set());
  }

  async list(): Promise<string[]> {
    return [...this.sets.keys()];
  }

  async destroy(names: readonly string[]): Promise<void> {
    for (const name of names) this.sets.delete(name);
  }
}

class Bench {
  readonly iptables = new FakeIptables();
  readonly set = new FakeIpset();
  readonly clientSets = new FakeClientSets();
  readonly clock = new FakeClock();
  readonly #model = new ServiceModel("IPv4", { name: "n1", zone: undefined, ips: [] });
  readonly #backend = new IptablesBackend({
    iptables: this.iptables,
    ipset: this.set,
    clientSets: this.clientSets,
    clock: this.clock,
    log: silentLogger,
  });

  async put(endpoints: number): Promise<void> {
    const addresses = Array.from({ length: endpoints }, (_, i) => `10.244.${i >> 8}.${i & 255}`);
    this.#model.setService("ns1/web", makeService("web", { sessionAffinity: "ClientIP" }));
    this.#model.setSlice("ns1/web-a", makeSlice("web", addresses));
    await this.sync();
  }

  async sync(): Promise<void> {
    const pending = this.#model.pending();
    const isFull = this.#backend.needsFull;
    await this.#backend.sync(
      {
        isFull,
        keys: isFull ? this.#model.keys() : [...pending.keys],
        describe: (key) => this.#model.describe(key),
        endpointCount: () => this.#model.endpointCount(),
        fixed: {
          family: "IPv4",
          mark: "0x004000",
          nodePortIPs: undefined,
          hasLocalhostNodePorts: true,
          dropsInvalid: true,
          hasRandomFully: true,
        },
        render: { family: "IPv4", masqueradeAll: false, localPods: undefined },
      },
      signal,
    );
    this.#model.settle(pending);
  }

  trace(random: (chance: number) => boolean, recent: ReadonlySet<string> = new Set(), more: Partial<Packet> = {}) {
    const sets = { ...Object.fromEntries(this.clientSets.sets), ...this.set.bySet() };
    return tracePacket(this.iptables.tables, { ...packet, ...more }, { sets, random, recent });
  }
}

/** Takes each alternative with its chance, the same ones each time. */
function seeded(seed: number): (chance: number) => boolean {
  let state = seed;
  return (chance) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return state / 2 ** 32 < chance;
  };
}

test("among a thousand endpoints a new client passes few rules, and one that was here goes where it went", async () => {
  const bench = new Bench();
  await bench.put(1_000);
  expect(bench.clientSets.sets.size).toBe(16);
  let fresh = 0;
  let again = 0;
  const rounds = 200;
  for (let n = 0; n < rounds; n++) {
    const client = { src: `172.16.${n >> 8}.${n & 255}` };
    const random = seeded(n * 7_919 + 1);
    const first = bench.trace(random, new Set(), client);
    fresh = Math.max(fresh, first.visited.nat);
    const endpoint = first.path.find((chain) => chain.startsWith("KUBE-SEP-")) ?? "";
    const second = bench.trace(random, new Set([endpoint]), client);
    expect(second.dnat).toBe(first.dnat);
    again += second.visited.nat;
  }
  // Jump, set, dispatch (3), sixteen sets, and at most three digits' worth of choices.
  expect(fresh).toBeLessThanOrEqual(3 + 16 + 16 * 2 + 16 + 4);
  // Half of the sets, and half of one group's 62 lists: kube-proxy's layout needs 500.
  expect(again / rounds).toBeLessThan(60);
});

test("a client that only the set remembers, not a list, chooses anew", async () => {
  const bench = new Bench();
  await bench.put(100);
  for (const set of bench.clientSets.sets.values()) set.add(packet.src);
  expect(bench.trace(seeded(3)).dnat).toMatch(/^10\.244\.0\.\d+:8080$/);
});

test("few endpoints need no sets, and sets go when endpoints do", async () => {
  const bench = new Bench();
  await bench.put(17);
  expect(bench.clientSets.sets.size).toBeGreaterThan(4);
  const chains = bench.iptables.tables.get("nat")!.size;
  await bench.put(16);
  expect(bench.clientSets.sets.size).toBe(0);
  expect(bench.iptables.dump()).not.toContain("--match-set KUBE-AFF");
  expect(bench.iptables.dump()).toContain("--rcheck --seconds 10800");
  expect(bench.iptables.tables.get("nat")!.size).toBeLessThan(chains);
});

test("where sets cannot be made, every endpoint is asked, and an hour later it is tried again", async () => {
  const bench = new Bench();
  bench.clientSets.failure = new AgentError("Invalid", "no module");
  await expect(bench.put(20)).rejects.toThrow("no module");
  await bench.sync();
  expect(bench.iptables.dump()).not.toContain("KUBE-AFF");
  expect(bench.iptables.dump().match(/--rcheck/g)).toHaveLength(20);
  bench.clientSets.failure = undefined;
  await bench.clock.advance(3_600_000);
  bench.iptables.failNext(new AgentError("Unavailable", "locked"));
  await expect(bench.put(21)).rejects.toThrow("locked");
  await bench.sync();
  expect(bench.iptables.dump()).toContain("--match-set KUBE-AFF-");
});
