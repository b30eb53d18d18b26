import { describe, expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { endpointsOfSmallClusterMax } from "../../../agent/proxy/backend.ts";
import { endpointChain } from "../../../agent/proxy/iptables/names.ts";
import { FakeIptables, splitTables } from "../../support/fake-iptables.ts";
import { tracePacket } from "../../support/packet-tracer.ts";
import { makeService } from "../../support/service-objects.ts";
import { Bench } from "./iptables-bench.ts";

const signal = new AbortController().signal;
const locked = () => new AgentError("Unavailable", "somebody holds the lock");

function chainsIn(text: string): string[] {
  return [...text.matchAll(/^:(\S+)/gm)].map((found) => found[1] ?? "");
}

describe("a change", () => {
  test("of one endpoint writes the service's own chains and nothing else", async () => {
    const bench = new Bench();
    for (let n = 0; n < 50; n++) bench.put(`s${n}`, `10.96.0.${n + 1}`, ["10.244.1.5", "10.244.1.6"]);
    await bench.sync();
    bench.put("s7", "10.96.0.8", ["10.244.1.5", "10.244.1.7"]);
    const text = await bench.sync();
    expect(splitTables(text).map(([table]) => table)).toEqual(["nat"]);
    const chains = chainsIn(text);
    expect(chains.filter((chain) => chain.startsWith("KUBE-SVC-"))).toHaveLength(1);
    expect(chains.filter((chain) => chain.startsWith("KUBE-SEP-"))).toHaveLength(2); // the new one, and the old one to delete
    expect(chains).toHaveLength(3);
    expect(text).toMatch(/^-X KUBE-SEP-/m);
  });

  test("of metadata alone runs no command", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    await bench.sync();
    bench.model.setService(
      "ns1/web",
      makeService(
        "web",
        { clusterIP: "10.96.0.1" },
        { metadata: { name: "web", namespace: "ns1", labels: { a: "b" } } },
      ),
    );
    expect(await bench.sync()).toBe("");
  });

  test("of an address moves the set's member and the dispatch rule", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    await bench.sync();
    bench.put("web", "10.96.0.2", ["10.244.1.5"]);
    await bench.sync();
    expect([...(bench.set?.members ?? [])]).toEqual(["10.96.0.2,tcp:80"]);
    expect(bench.iptables.dump()).not.toContain("10.96.0.1 ");
  });

  test("that takes the last endpoint refuses instead, and leaves no chains behind", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    await bench.sync();
    bench.put("web", "10.96.0.1", []);
    await bench.sync();
    expect(bench.iptables.dump()).toMatch(/has no endpoints.*-j REJECT/);
    expect(bench.iptables.dump()).not.toMatch(/KUBE-SEP-|:KUBE-SVC-(?!AT)/);
  });

  test("two services that claim one address: it stays when one of them goes", async () => {
    const bench = new Bench();
    bench.put("a", "10.96.0.1", ["10.244.1.5"]);
    bench.put("b", "10.96.0.1", ["10.244.1.6"]);
    await bench.sync();
    bench.model.setService("ns1/a", undefined);
    await bench.sync();
    expect([...(bench.set?.members ?? [])]).toEqual(["10.96.0.1,tcp:80"]);
  });

  test("of the addresses that accept node ports rewrites the entrance", async () => {
    const bench = new Bench();
    bench.fixed = { ...bench.fixed, nodePortIPs: ["192.0.2.1"] };
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    await bench.sync();
    bench.fixed = { ...bench.fixed, nodePortIPs: ["192.0.2.1", "192.0.2.2"] };
    expect(chainsIn(await bench.sync())).toContain("KUBE-SERVICES");
    expect(await bench.sync()).toBe("");
  });
});

test("any history of changes ends in the tables that a full sync makes (seeded random)", async () => {
  const seed = 7_112_026;
  let state = seed;
  const random = (max: number) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((state / 2 ** 32) * max);
  };
  const bench = new Bench();
  for (let step = 0; step < 400; step++) {
    for (let n = random(4); n >= 0; n--) {
      const name = `s${random(40)}`;
      if (random(5) === 0) {
        bench.model.setService(`ns1/${name}`, undefined);
        continue;
      }
      const endpoints = Array.from({ length: random(5) }, () => ({
        address: `10.244.${random(3)}.${random(6)}`,
        ...(random(2) === 0 ? { nodeName: "n1" } : {}),
        conditions: [{ ready: true }, { ready: false, serving: true, terminating: true }, { ready: false }][random(3)]!,
      }));
      bench.put(name, `10.96.${random(2)}.${random(30)}`, endpoints, {
        type: ["ClusterIP", "NodePort", "LoadBalancer"][random(3)],
        externalIPs: random(4) === 0 ? ["198.51.100.1"] : [],
        externalTrafficPolicy: random(2) === 0 ? "Local" : "Cluster",
        internalTrafficPolicy: random(3) === 0 ? "Local" : "Cluster",
        sessionAffinity: random(4) === 0 ? "ClientIP" : "None",
        ports: [{ name: "p80", port: 80, ...(random(2) === 0 ? { nodePort: 30_000 + random(40) } : {}) }],
      });
    }
    // Now and then a command fails; the next sync must put everything right.
    const trouble = random(10);
    if (trouble === 0) {
      bench.iptables.failNext(locked());
      await bench.sync().catch(() => {});
    } else if (trouble === 1) {
      bench.set?.failNext(locked());
      await bench.sync().catch(() => {});
      bench.set?.forgetFailures();
    }
    await bench.sync();
    if (step % 20 !== 0) continue;
    if (bench.backend.needsFull) await bench.sync();
    const want = await bench.fresh();
    expect(bench.iptables.dump(), `seed ${seed}, step ${step}`).toBe(want.dump);
    expect(bench.set?.dump()).toBe(want.sets);
  }
}, 20_000);

describe("trouble", () => {
  test("a failed sync makes the next one full, and nothing is forgotten", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    await bench.sync();
    bench.put("web", "10.96.0.1", ["10.244.1.6"]);
    bench.iptables.failNext(locked());
    await expect(bench.sync()).rejects.toThrow("lock");
    expect(bench.backend.needsFull).toBe(true);
    expect(bench.model.hasPending).toBe(true);
    await bench.sync();
    expect(bench.iptables.dump()).toBe((await bench.fresh()).dump);
  });

  test("without a usable set the tree alone decides, and the next full sync tries the set again", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    bench.set?.failNext(new AgentError("Invalid", "kernel says no"));
    await bench.sync();
    expect(bench.iptables.dump()).not.toContain("--match-set");
    await bench.sync(true);
    expect(bench.iptables.dump()).toContain("--match-set KUBE-SERVICE-IPS dst,dst");
  });

  test("damage is seen: flushed rules, deleted chains, a set that lost members", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    await bench.sync();
    expect(await bench.backend.findDamage(signal)).toBeUndefined();
    bench.set!.members?.clear();
    expect(await bench.backend.findDamage(signal)).toMatch(/set KUBE-SERVICE-IPS has 0 of 1 members/);
    await bench.sync(true);
    bench.iptables.tables.get("filter")?.set("KUBE-PROXY-CANARY", []);
    expect(await bench.backend.findDamage(signal)).toMatch(/filter/);
    await bench.sync(true);
    bench.iptables.flushEverything();
    expect(await bench.backend.findDamage(signal)).toMatch(/table mangle is gone/);
    await bench.sync(true);
    expect(bench.iptables.dump()).toBe((await bench.fresh()).dump);
  });
});

describe("damage by somebody else", () => {
  const nat = (bench: Bench) => bench.iptables.tables.get("nat")!;
  const filter = (bench: Bench) => bench.iptables.tables.get("filter")!;
  const cases: { name: string; harm: (bench: Bench) => void; want: RegExp }[] = [
    { name: "a flushed table", harm: (b) => b.iptables.flushEverything(), want: /is gone/ },
    {
      name: "a deleted jump",
      harm: (b) => nat(b).set("PREROUTING", []),
      want: /PREROUTING of table nat lost its jump to KUBE-SERVICES/,
    },
    {
      name: "a flushed root of a tree",
      harm: (b) => nat(b).set("KUBE-SVC-AT", []),
      want: /KUBE-SVC-AT of table nat was flushed/,
    },
    {
      name: "a rule more, in front",
      harm: (b) => nat(b).get("KUBE-SERVICES")?.unshift("-j RETURN"),
      want: /KUBE-SERVICES of table nat is not/,
    },
    {
      name: "an edited rule",
      harm: (b) => nat(b).set("KUBE-MARK-MASQ", ["-j MARK --or-mark 0x8000"]),
      want: /KUBE-MARK-MASQ/,
    },
    { name: "a deleted rule", harm: (b) => filter(b).get("KUBE-FORWARD")?.pop(), want: /KUBE-FORWARD/ },
    { name: "the guard of loopback", harm: (b) => filter(b).set("KUBE-FIREWALL", []), want: /KUBE-FIREWALL/ },
    { name: "a member of the set", harm: (b) => b.set?.members?.clear(), want: /has 0 of 1 members/ },
  ];
  for (const { name, harm, want } of cases) {
    test(`${name} is seen, and a full sync mends it`, async () => {
      const bench = new Bench();
      bench.put("web", "10.96.0.1", ["10.244.1.5"]);
      await bench.sync();
      bench.put("web2", "10.96.0.2", ["10.244.1.6"]); // the trees' roots are known after a change, too
      await bench.sync();
      bench.model.setService("ns1/web2", undefined);
      await bench.sync();
      expect(await bench.backend.findDamage(signal)).toBeUndefined();
      harm(bench);
      expect(await bench.backend.findDamage(signal)).toMatch(want);
      await bench.sync(true);
      expect(await bench.backend.findDamage(signal)).toBeUndefined();
      expect(bench.iptables.dump()).toBe((await bench.fresh()).dump);
    });
  }

  test("what others add to chains that are not ours alone is none", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    await bench.sync();
    filter(bench).get("KUBE-FIREWALL")?.push("-s 192.0.2.66 -j DROP");
    nat(bench).get("PREROUTING")?.unshift("-j RETURN");
    filter(bench).set("FOREIGN", ["-j DROP"]);
    expect(await bench.backend.findDamage(signal)).toBeUndefined();
  });
});

describe("a service that the kernel refuses", () => {
  const refusal = /--to-destination 10\.244\.66\./;

  test("keeps the rules that it had also if a full sync finds it", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    bench.put("other", "10.96.0.2", ["10.244.1.6"]);
    await bench.sync();
    const before = bench.iptables.dump();
    bench.iptables.refuses = refusal;
    bench.put("web", "10.96.0.1", ["10.244.66.1"]);
    await bench.sync(true);
    expect(bench.refused).toEqual(["ns1/web: the kernel says no"]);
    expect(bench.iptables.dump()).toBe(before);
    expect(bench.set?.members?.size).toBe(2);
    expect(bench.lines.filter((line) => line.includes("it keeps those that it had"))).toHaveLength(1);
  });

  test("is left out and named; all the others are programmed, and it is tried again later", async () => {
    const bench = new Bench();
    for (let n = 0; n < 40; n++) bench.put(`s${n}`, `10.96.0.${n + 1}`, ["10.244.1.5"]);
    bench.put("bad", "10.96.1.1", ["10.244.66.1"]);
    bench.iptables.refuses = refusal;
    await bench.sync();
    expect(bench.backend.needsFull).toBe(false);
    expect(bench.refused).toEqual(["ns1/bad: the kernel says no"]);
    expect(bench.iptables.dump()).toContain("ns1/s39:p80");
    // It never had rules that worked: its clients hear so at once.
    expect(bench.iptables.dump()).toMatch(/ns1\/bad:p80 has no endpoints.*-j REJECT/);
    expect(bench.set?.members?.size).toBe(40);

    // Others go on as ever, without a full sync for each of them.
    bench.put("s1", "10.96.0.2", ["10.244.1.6"]);
    expect(chainsIn(await bench.sync()).length).toBeLessThan(6);

    bench.iptables.refuses = undefined;
    await bench.sync();
    expect(bench.iptables.dump()).not.toContain("10.244.66.1");
    await bench.clock.advance(30_000);
    await bench.sync();
    expect(bench.iptables.dump()).toContain("ns1/bad:p80");
    expect(bench.iptables.dump()).toBe((await bench.fresh()).dump);
  });

  test("because of a change keeps the rules that it had, until a change is taken", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    bench.put("bad", "10.96.1.1", ["10.244.1.6"]);
    await bench.sync();
    bench.iptables.refuses = refusal;
    bench.put("bad", "10.96.1.1", ["10.244.66.1"]);
    bench.put("web", "10.96.0.1", ["10.244.1.7"]);
    await bench.sync();
    const keepsWorking = () => {
      expect(bench.iptables.dump()).toContain("10.244.1.7:8080");
      expect(bench.iptables.dump()).toContain("10.244.1.6:8080");
      expect(bench.iptables.dump()).not.toContain("ns1/bad:p80 has no endpoints");
      expect([...(bench.set?.members ?? [])].sort()).toEqual(["10.96.0.1,tcp:80", "10.96.1.1,tcp:80"]);
    };
    keepsWorking();
    expect(bench.refused).toHaveLength(1);
    // Neither a full sync nor a retry that is refused again takes them away.
    await bench.sync(true);
    keepsWorking();
    await bench.clock.advance(60_000);
    await bench.sync();
    keepsWorking();
    await bench.clock.advance(200_000);
    await bench.sync(true);
    keepsWorking();
    bench.put("bad", "10.96.1.1", ["10.244.1.8"]);
    await bench.sync();
    expect(bench.iptables.dump()).toContain("10.244.1.8:8080");
    expect(bench.refused).toHaveLength(1);
    expect(bench.iptables.dump()).toBe((await bench.fresh()).dump);
  });

  test("that is new is refused to its clients", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    await bench.sync();
    bench.iptables.refuses = refusal;
    bench.put("bad", "10.96.1.1", ["10.244.66.1"]);
    await bench.sync();
    expect(bench.iptables.dump()).toMatch(/ns1\/bad:p80 has no endpoints.*-j REJECT/);
    expect(bench.lines.filter((line) => line.includes("its clients are refused"))).toHaveLength(1);
  });

  test("whose last rules somebody flushed refuses its clients", async () => {
    const bench = new Bench();
    bench.put("bad", "10.96.1.1", ["10.244.1.6"]);
    await bench.sync();
    bench.iptables.refuses = refusal;
    bench.put("bad", "10.96.1.1", ["10.244.66.1"]);
    await bench.sync();
    expect(bench.iptables.dump()).toContain("10.244.1.6:8080");
    bench.iptables.flushEverything();
    await bench.sync(true);
    expect(bench.iptables.dump()).toMatch(/ns1\/bad:p80 has no endpoints.*-j REJECT/);
    expect(bench.iptables.dump()).not.toContain("10.244.1.6");
    bench.model.setService("ns1/bad", undefined);
    await bench.sync();
    expect(bench.iptables.dump()).toBe((await bench.fresh()).dump);
  });

  test("for its dispatch rule is found by the rule's comment", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    bench.put("bad", "10.96.1.1", []);
    bench.iptables.refuses = /10\.96\.1\.1 .*REJECT/;
    await bench.sync();
    expect(bench.refused).toHaveLength(1);
    expect(bench.iptables.dump()).toContain("ns1/web:p80");
  });

  test("if all are refused it is nobody's own fault, and the sync fails", async () => {
    const bench = new Bench();
    for (let n = 0; n < 200; n++) bench.put(`s${n}`, `10.96.0.${n + 1}`, ["10.244.66.5"]);
    bench.iptables.refuses = refusal;
    await expect(bench.sync()).rejects.toThrow("the kernel says no");
    expect(bench.iptables.texts.length).toBeLessThan(600);
  });
});

describe("a start", () => {
  test("removes kube-proxy's stale chains, adopts its jumps, and touches nothing foreign", async () => {
    const iptables = new FakeIptables();
    await iptables.restore(
      [
        "*nat",
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]",
        ":KUBE-SEP-BBBBBBBBBBBBBBBB - [0:0]",
        ":DOCKER - [0:0]",
        '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
        "-A KUBE-SERVICES -d 10.96.0.9 -j KUBE-SVC-AAAAAAAAAAAAAAAA",
        "-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-SEP-BBBBBBBBBBBBBBBB",
        "-A KUBE-SEP-BBBBBBBBBBBBBBBB -p tcp -j DNAT --to-destination 10.244.0.1:80",
        "-A DOCKER -i docker0 -j RETURN",
        "COMMIT",
        "*filter",
        ":KUBE-POD-FW-X - [0:0]",
        ":KUBE-FIREWALL - [0:0]",
        "-A KUBE-POD-FW-X -j DROP",
        "-A FORWARD -j KUBE-POD-FW-X",
        "COMMIT",
        "",
      ].join("\n"),
    );
    const bench = new Bench(iptables);
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    await bench.sync();
    const nat = iptables.tables.get("nat")!;
    expect(nat.has("KUBE-SVC-AAAAAAAAAAAAAAAA")).toBe(false);
    expect(nat.has("KUBE-SEP-BBBBBBBBBBBBBBBB")).toBe(false);
    expect(nat.get("PREROUTING")).toEqual([
      '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
      "-m addrtype --dst-type LOCAL -j DOCKER",
    ]);
    expect(nat.get("DOCKER")).toEqual(["-i docker0 -j RETURN"]);
    expect(iptables.tables.get("filter")?.get("KUBE-POD-FW-X")).toEqual(["-j DROP"]);
    expect(iptables.tables.get("filter")?.get("FORWARD")?.at(-1)).toBe("-j KUBE-POD-FW-X");
  });

  test("puts the jumps in kube-proxy's order, and once only", async () => {
    const bench = new Bench();
    await bench.sync();
    await bench.sync(true);
    const targets = (chain: string) =>
      bench.iptables.tables
        .get("filter")
        ?.get(chain)
        ?.map((rule) => / -j (\S+)$/.exec(` ${rule}`)?.[1]);
    expect(targets("INPUT")).toEqual([
      "KUBE-FIREWALL",
      "KUBE-PROXY-FIREWALL",
      "KUBE-NODEPORTS",
      "KUBE-EXTERNAL-SERVICES",
    ]);
    expect(targets("FORWARD")).toEqual([
      "KUBE-PROXY-FIREWALL",
      "KUBE-FORWARD",
      "KUBE-SERVICES",
      "KUBE-EXTERNAL-SERVICES",
    ]);
    expect(targets("OUTPUT")).toEqual(["KUBE-FIREWALL", "KUBE-PROXY-FIREWALL", "KUBE-SERVICES"]);
  });

  test("leads packets to services only when all of them are there, in texts of bounded size", async () => {
    const bench = new Bench();
    const many = Array.from({ length: 20 }, (_, n) => `10.244.1.${n + 1}`);
    for (let n = 0; n < 300; n++) bench.put(`s${n}`, `10.96.${n >> 8}.${n & 255}`, many);
    await bench.sync();
    const { texts } = bench.iptables;
    expect(texts.length).toBeGreaterThan(5);
    expect(Math.max(...texts.map((text) => text.split("\n").length))).toBeLessThan(4_500);
    const first = texts.findIndex((text) => chainsIn(text).includes("KUBE-SERVICES"));
    expect(texts.slice(first + 1).some((text) => text.includes(":KUBE-SEP-"))).toBe(false);
    expect(bench.iptables.dump()).toBe((await bench.fresh()).dump);
  }, 20_000);

  test("after many services went, removes their chains in bounded texts, too", async () => {
    const bench = new Bench();
    const many = Array.from({ length: 10 }, (_, n) => `10.244.1.${n + 1}`);
    for (let n = 0; n < 300; n++) bench.put(`s${n}`, `10.96.${n >> 8}.${n & 255}`, many);
    await bench.sync();
    const before = bench.iptables.texts.length;
    for (let n = 0; n < 300; n++) bench.model.setService(`ns1/s${n}`, undefined);
    await bench.sync();
    expect(Math.max(...bench.iptables.texts.slice(before).map((text) => text.split("\n").length))).toBeLessThan(4_500);
    expect(bench.iptables.dump()).toBe((await bench.fresh()).dump);
  }, 20_000);

  test("comments on endpoints end where they would cost too much", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    await bench.sync();
    expect(bench.iptables.dump()).toContain("ns1/web:p80 -> 10.244.1.5:8080");
    const many = Array.from({ length: endpointsOfSmallClusterMax }, (_, n) => `10.245.${n >> 8}.${n & 255}`);
    bench.put("big", "10.96.0.2", many);
    await bench.sync(true);
    expect(bench.iptables.dump()).not.toContain(" -> ");
    // What was written for a small cluster goes in the same way.
    expect(bench.iptables.dump()).not.toContain("KUBE-SEP-");
    expect(bench.iptables.dump()).toBe((await bench.fresh()).dump);
  });

  test("a cluster that grows or shrinks by changes gets the form of its size for what changes", async () => {
    const bench = new Bench();
    const endpointChains = (chain: string) => bench.iptables.dump().includes(chain);
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    await bench.sync();
    const many = Array.from({ length: endpointsOfSmallClusterMax }, (_, n) => `10.245.${n >> 8}.${n & 255}`);
    bench.put("big", "10.96.0.2", many);
    await bench.sync();
    expect(bench.iptables.dump()).not.toContain("ns1/big:p80 ->");
    expect(endpointChains(endpointChain("ns1/big:p80", "tcp", "10.245.0.0:8080"))).toBe(false);
    // What did not change is as good as it was.
    expect(endpointChains(endpointChain("ns1/web:p80", "tcp", "10.244.1.5:8080"))).toBe(true);
    bench.put("web", "10.96.0.1", ["10.244.1.6"]);
    await bench.sync();
    expect(bench.iptables.dump()).not.toContain("KUBE-SEP-");
    bench.put("big", "10.96.0.2", ["10.245.0.1"]);
    await bench.sync();
    expect(bench.iptables.dump()).toContain("ns1/big:p80 -> 10.245.0.1:8080");
  });
});

test("a Service whose first endpoint is elsewhere is refused or translated at every moment", async () => {
  const bench = new Bench();
  const ports = [{ name: "p80", port: 80, nodePort: 30_080 }];
  const spec = { type: "NodePort", externalTrafficPolicy: "Local", ports };
  bench.put("web", "10.96.0.1", [], spec);
  await bench.sync();
  const fates: string[] = [];
  bench.iptables.onCommit = () => {
    const packet = { src: "10.244.1.9", dst: "10.96.0.1", dport: 80, proto: "tcp" as const, iface: "veth1" };
    const { dnat, verdict } = tracePacket(bench.iptables.tables, packet, { sets: bench.set?.bySet() ?? {} });
    fates.push(dnat ?? verdict);
  };
  bench.put("web", "10.96.0.1", [{ address: "10.244.9.9", nodeName: "n2" }], spec);
  await bench.sync();
  expect(fates.at(-1)).toBe("10.244.9.9:8080");
  expect(fates).not.toContain("ACCEPT");
});
