import { describe, expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import type { ClientSets } from "../../../agent/proxy/iptables/affinity.ts";
import { FakeIptables, FakeIpset } from "../../support/fake-iptables.ts";
import { tracePacket } from "../../support/packet-tracer.ts";
import { Bench } from "./iptables-bench.ts";

const hourMs = 3_600_000;

/** What becomes of a first packet to `10.96.0.N`, port 80, from a pod. */
function fateOf(bench: Bench, n: number): string {
  const packet = { src: "10.244.9.9", dst: `10.96.0.${n}`, dport: 80, proto: "tcp", iface: "veth1" } as const;
  const { dnat, verdict } = tracePacket(bench.iptables.tables, packet, {
    sets: bench.set?.bySet() ?? {},
  });
  return dnat ?? verdict;
}

describe("at every moment of a change a packet is translated or refused", () => {
  const one = ["10.244.1.5"];
  const cases: { name: string; before: Record<number, string[]>; after: Record<number, string[]> }[] = [
    { name: "the first endpoint", before: { 1: [] }, after: { 1: one } },
    { name: "the last endpoint", before: { 1: one }, after: { 1: [] } },
    { name: "one gains, another loses", before: { 1: [], 2: one }, after: { 1: one, 2: [] } },
    {
      name: "many gain, many lose",
      before: Object.fromEntries(Array.from({ length: 60 }, (_, n) => [n + 1, n % 2 ? one : []])),
      after: Object.fromEntries(Array.from({ length: 60 }, (_, n) => [n + 1, n % 2 ? [] : one])),
    },
  ];
  for (const { name, before, after } of cases) {
    test(name, async () => {
      const bench = new Bench();
      for (const [n, endpoints] of Object.entries(before)) bench.put(`s${n}`, `10.96.0.${n}`, endpoints);
      await bench.sync();
      const lost: string[] = [];
      let moments = 0;
      bench.iptables.onCommit = () => {
        moments += 1;
        for (const n of Object.keys(before)) if (fateOf(bench, Number(n)) === "ACCEPT") lost.push(n);
      };
      if (bench.set !== undefined) bench.set.onCommit = bench.iptables.onCommit;
      for (const [n, endpoints] of Object.entries(after)) bench.put(`s${n}`, `10.96.0.${n}`, endpoints);
      await bench.sync();
      expect(moments).toBeGreaterThan(1);
      expect(lost).toEqual([]);
      for (const [n, endpoints] of Object.entries(after)) {
        expect(fateOf(bench, Number(n))).toBe(endpoints.length > 0 ? "10.244.1.5:8080" : "REJECT");
      }
      expect(bench.iptables.dump()).toBe((await bench.fresh()).dump);
    });
  }

  test("the first endpoint, noticed only by a full sync", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", []);
    await bench.sync();
    const lost: string[] = [];
    bench.iptables.onCommit = () => {
      if (fateOf(bench, 1) === "ACCEPT") lost.push("web");
    };
    bench.put("web", "10.96.0.1", one);
    await bench.sync(true);
    expect(lost).toEqual([]);
  });
});

describe("a chain that somebody else's rule refers to", () => {
  async function withHeldChain(): Promise<{ bench: Bench; held: string }> {
    const bench = new Bench();
    bench.put("old", "10.96.0.1", ["10.244.1.5"]);
    bench.put("web", "10.96.0.2", ["10.244.1.6"]);
    await bench.sync();
    const held = [...bench.iptables.tables.get("nat")!.keys()].find((chain) =>
      bench.iptables.tables.get("nat")?.get(chain)?.join().includes("ns1/old:p80 -> "),
    );
    if (held === undefined) throw new Error("no chain");
    await bench.iptables.restore(`*nat\n-A OUTPUT -j ${held}\nCOMMIT\n`);
    bench.model.setService("ns1/old", undefined);
    return { bench, held };
  }

  test("fails no full sync: services are programmed, and it is told", async () => {
    const { bench, held } = await withHeldChain();
    await bench.sync(true);
    expect(bench.backend.needsFull).toBe(false);
    expect(bench.lines.filter((line) => line.includes("stale chains cannot be deleted"))).toHaveLength(1);
    expect(bench.iptables.tables.get("nat")?.get(held)).toEqual([]);
    expect(bench.iptables.dump()).not.toContain("ns1/old");
    expect(bench.iptables.dump().match(/:KUBE-SEP-/g)).toHaveLength(1);
    // Not tried at each sync, nor told at each.
    const before = bench.iptables.texts.length;
    await bench.sync(true);
    expect(bench.iptables.texts.slice(before).join("")).not.toContain(held);
    expect(bench.lines.filter((line) => line.includes("stale chains"))).toHaveLength(1);
  });

  test("fails no change, neither the one that leaves it nor what came with that", async () => {
    const { bench, held } = await withHeldChain();
    bench.put("web", "10.96.0.2", ["10.244.1.7"]);
    await bench.sync(false);
    expect(bench.backend.needsFull).toBe(false);
    expect(fateOf(bench, 2)).toBe("10.244.1.7:8080");
    expect(bench.iptables.tables.get("nat")?.get(held)).toEqual([]);
    expect(bench.lines.filter((line) => line.includes("stale chains cannot be deleted"))).toHaveLength(1);
    // All the others went.
    expect(bench.iptables.dump().match(/:KUBE-SEP-/g)).toHaveLength(1);
    const before = bench.iptables.texts.length;
    bench.put("web", "10.96.0.2", ["10.244.1.8"]);
    await bench.sync(false);
    expect(bench.iptables.texts).toHaveLength(before + 1);
  });

  test("does not hide that another line is refused", async () => {
    const { bench } = await withHeldChain();
    bench.iptables.refuses = /--to-destination 10\.244\.66\./;
    bench.put("web", "10.96.0.2", ["10.244.66.7"]);
    await bench.sync(false);
    expect(bench.refused).toEqual(["ns1/web: the kernel says no"]);
    expect(fateOf(bench, 2)).toBe("10.244.1.6:8080");
  });

  test("goes when the rule is gone", async () => {
    const { bench, held } = await withHeldChain();
    await bench.sync(true);
    bench.iptables.tables.get("nat")?.get("OUTPUT")?.pop();
    await bench.clock.advance(60_000);
    await bench.sync();
    expect(bench.iptables.tables.get("nat")?.has(held)).toBe(false);
    expect(bench.iptables.dump()).toBe((await bench.fresh()).dump);
  });

  test("is the service's again when that comes back", async () => {
    const { bench, held } = await withHeldChain();
    await bench.sync(true);
    bench.put("old", "10.96.0.1", ["10.244.1.5"]);
    await bench.sync();
    await bench.clock.advance(60_000);
    await bench.sync();
    expect(bench.iptables.tables.get("nat")?.get(held)).not.toEqual([]);
    expect(fateOf(bench, 1)).toBe("10.244.1.5:8080");
  });
});

test("chains that an old kube-proxy has left go with the first full sync", async () => {
  const bench = new Bench();
  await bench.iptables.restore(
    "*nat\n:KUBE-XLB-FW5WK6PXQNBBTCNH - [0:0]\n:KUBE-SVC-OLD - [0:0]\n-A KUBE-XLB-FW5WK6PXQNBBTCNH -j KUBE-SVC-OLD\nCOMMIT\n",
  );
  bench.put("web", "10.96.0.1", ["10.244.1.5"]);
  await bench.sync(true);
  expect(bench.iptables.dump()).not.toMatch(/KUBE-XLB-|KUBE-SVC-OLD/);
});

describe("a kernel that does not match sets", () => {
  test("gets rules without them, and is asked again an hour later", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    bench.iptables.refuses = /--match-set/;
    await bench.sync();
    expect(bench.backend.needsFull).toBe(false);
    expect(fateOf(bench, 1)).toBe("10.244.1.5:8080");
    expect(await bench.backend.findDamage(new AbortController().signal)).toBeUndefined();
    bench.put("web", "10.96.0.1", ["10.244.1.6"]);
    await bench.sync();
    await bench.sync(true);
    expect(bench.iptables.texts.filter((text) => text.includes("--match-set"))).toHaveLength(1);
    expect(bench.lines.filter((line) => line.includes("sets are unusable"))).toHaveLength(1);
    bench.iptables.refuses = undefined;
    await bench.clock.advance(hourMs);
    await bench.sync(true);
    expect(bench.iptables.dump()).toContain("--match-set KUBE-SERVICE-IPS dst,dst -j KUBE-SVC-AT");
    expect(bench.iptables.dump()).toBe((await bench.fresh()).dump);
  });

  test("is not what a lock looks like that somebody holds while it is asked", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    const { restore } = bench.iptables;
    let isHeld = true;
    bench.iptables.restore = async (text) => {
      if (isHeld && text.includes("--match-set")) {
        isHeld = false;
        throw new AgentError("Unavailable", "somebody holds the lock");
      }
      await restore.call(bench.iptables, text);
    };
    await expect(bench.sync()).rejects.toThrow("lock");
    await bench.sync();
    expect(bench.iptables.dump()).toContain("--match-set KUBE-SERVICE-IPS dst,dst -j KUBE-SVC-AT");
  });

  test("remembers clients without sets, and refuses no service", async () => {
    const names = new Set<string>();
    const clientSets: ClientSets = {
      create: async (some) => some.forEach((name) => names.add(name)),
      list: async () => [...names],
      destroy: async (some) => some.forEach((name) => names.delete(name)),
    };
    const bench = new Bench(new FakeIptables(), new FakeIpset(), clientSets);
    bench.iptables.refuses = /-j SET /;
    const many = Array.from({ length: 20 }, (_, n) => `10.244.1.${n + 1}`);
    bench.put("web", "10.96.0.1", many, { sessionAffinity: "ClientIP" });
    await bench.sync().catch(() => {});
    await bench.sync();
    expect(bench.refused).toEqual([]);
    expect(bench.iptables.dump().match(/--rcheck/g)).toHaveLength(20);
    expect(names.size).toBe(0);
  });
});

test("sets of clients that cannot be listed or removed fail no sync", async () => {
  const fail = async () => {
    throw new AgentError("Unavailable", "no answer");
  };
  const clientSets: ClientSets = { create: async () => {}, list: fail, destroy: fail };
  const bench = new Bench(new FakeIptables(), new FakeIpset(), clientSets);
  const many = Array.from({ length: 20 }, (_, n) => `10.244.1.${n + 1}`);
  bench.put("web", "10.96.0.1", many, { sessionAffinity: "ClientIP" });
  await bench.sync();
  bench.put("web", "10.96.0.1", ["10.244.1.1"], { sessionAffinity: "ClientIP" });
  await bench.sync();
  expect(bench.backend.needsFull).toBe(false);
  expect(bench.lines.filter((line) => line.includes("no answer"))).toHaveLength(2);
});
