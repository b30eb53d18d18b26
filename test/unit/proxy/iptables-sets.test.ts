import { describe, expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { createIpset, setSizeFor } from "../../../agent/proxy/iptables/ipset.ts";
import { isOwnSet, rangeSetName, sharedSetNames } from "../../../agent/proxy/iptables/set-names.ts";
import { FakeCommands } from "../../support/fake-commands.ts";

import { type Packet, tracePacket } from "../../support/packet-tracer.ts";
import { makeService } from "../../support/service-objects.ts";
import { Bench } from "./iptables-bench.ts";

const signal = new AbortController().signal;
const lbIP = "203.0.113.1";
const ranges = rangeSetName("IPv4", "ns1/web");
const outside = { src: "192.0.2.99", dst: lbIP, proto: "tcp", dport: 80, iface: "eth0" } as const;

function fate(bench: Bench, packet: Packet): string {
  const sets = bench.set?.bySet() ?? {};
  const { dnat, verdict, isMasqueraded } = tracePacket(bench.iptables.tables, packet, {
    sets,
    localIPs: ["192.0.2.1"],
  });
  return dnat === undefined || verdict !== "ACCEPT" ? verdict : `${dnat}${isMasqueraded ? " m" : ""}`;
}

function putGated(bench: Bench, sourceRanges: string[], address = lbIP): void {
  const status = { loadBalancer: { ingress: [{ ip: address }] } };
  bench.put("web", "10.96.0.1", ["10.244.1.5"]);
  const spec = { clusterIP: "10.96.0.1", type: "LoadBalancer", loadBalancerSourceRanges: sourceRanges } as const;
  bench.model.setService("ns1/web", makeService("web", spec, { status }));
}

describe("source ranges", () => {
  test("change in their set alone", async () => {
    const bench = new Bench();
    putGated(bench, ["192.0.2.0/24", "198.51.100.7/32"]);
    await bench.sync();
    expect(fate(bench, outside)).toBe("10.244.1.5:8080 m");
    expect(bench.set?.sets.get(ranges)).toEqual(new Set(["192.0.2.0/24", "198.51.100.7"]));
    const before = bench.set?.log.length;
    putGated(bench, ["198.51.100.0/24", "198.51.100.7/32"]);
    expect(await bench.sync()).toBe("");
    // The new one first: nobody who may in is ever kept out.
    expect(bench.set?.log.slice(before)).toEqual([`add ${ranges} 198.51.100.0/24`, `del ${ranges} 192.0.2.0/24`]);
    expect(fate(bench, outside)).toBe("DROP");
    expect(fate(bench, { ...outside, src: "198.51.100.9" })).toBe("10.244.1.5:8080 m");
  });

  test("that are given up leave no set behind", async () => {
    const bench = new Bench();
    putGated(bench, ["198.51.100.0/24"]);
    await bench.sync();
    expect(fate(bench, outside)).toBe("DROP");
    putGated(bench, []);
    await bench.sync();
    expect(bench.set?.sets.has(ranges)).toBe(false);
    expect(fate(bench, outside)).toBe("10.244.1.5:8080 m");
    expect(bench.iptables.dump()).toBe((await bench.fresh()).dump);
  });

  test("are there before the first rule that asks for them, also in a change", async () => {
    const bench = new Bench();
    bench.put("other", "10.96.0.9", ["10.244.1.6"]);
    await bench.sync();
    bench.iptables.onCommit = () => {
      if (bench.iptables.dump().includes(ranges)) expect(bench.set?.sets.get(ranges)?.size).toBe(1);
    };
    putGated(bench, ["192.0.2.0/24"]);
    await bench.sync();
    expect(fate(bench, outside)).toBe("10.244.1.5:8080 m");
  });

  test("of a service that is gone, and sets begun by an agent that was killed, go with the next full sync", async () => {
    const bench = new Bench();
    bench.put("web", "10.96.0.1", ["10.244.1.5"]);
    await bench.set?.create([ranges, "KUBE-NEW", "KUBE-SERVICE-IPS-NEW"]);
    await bench.sync(true);
    expect([...(bench.set?.sets.keys() ?? [])].sort()).toEqual(Object.values(sharedSetNames("IPv4")).sort());
  });
});

describe("rules that lead somewhere already", () => {
  test("lose nobody when they are written anew with sets: not those who reach themselves, nor those of a range", async () => {
    const bench = new Bench();
    putGated(bench, ["192.0.2.0/24"]);
    // As a machine without ipset has them.
    const old = new Bench(bench.iptables, "none");
    Object.assign(old, { model: bench.model });
    await old.sync();
    expect(bench.iptables.dump()).not.toContain("--match-set");
    const self = { src: "10.244.1.5", dst: "10.96.0.1", proto: "tcp", dport: 80, iface: "veth1" } as const;
    const seen = new Set<string>();
    const look = () => {
      seen.add(`${fate(bench, self)}, ${fate(bench, outside)}`);
    };
    bench.iptables.onCommit = look;
    bench.set!.onCommit = look;
    await bench.sync(true);
    expect(bench.iptables.dump()).toContain("--match-set KUBE-HAIRPIN-CONNECTIONS");
    expect([...seen]).toEqual(["10.244.1.5:8080 m, 10.244.1.5:8080 m"]);
  });
});

describe("a set", () => {
  test("that is full is made anew, with all its members", async () => {
    const bench = new Bench();
    bench.put("a", "10.96.0.1", ["10.244.1.5"]);
    await bench.sync();
    bench.set?.sizes.set("KUBE-SERVICE-IPS", 1);
    bench.put("b", "10.96.0.2", ["10.244.1.6"]);
    await bench.sync();
    expect(bench.backend.needsFull).toBe(false);
    expect([...(bench.set?.members ?? [])].sort()).toEqual(["10.96.0.1,tcp:80", "10.96.0.2,tcp:80"]);
    expect(bench.set?.log).toContain("replace KUBE-SERVICE-IPS");
    expect(await bench.backend.findDamage(signal)).toBeUndefined();
  });

  test("that somebody destroyed is made anew by the next change, too", async () => {
    const bench = new Bench();
    bench.put("a", "10.96.0.1", ["10.244.1.5"]);
    await bench.sync();
    bench.set?.sets.delete("KUBE-HAIRPIN-CONNECTIONS");
    bench.put("b", "10.96.0.2", ["10.244.1.6"]);
    await bench.sync();
    expect(bench.set?.sets.get("KUBE-HAIRPIN-CONNECTIONS")?.size).toBe(2);
  });

  test.each(Object.values(sharedSetNames("IPv4")))("%s that lost a member is damage", async (name) => {
    const bench = new Bench();
    bench.put("a", "10.96.0.1", ["10.244.1.5"], {
      type: "NodePort",
      ports: [{ name: "p80", port: 80, nodePort: 30_080 }],
    });
    await bench.sync();
    expect(await bench.backend.findDamage(signal)).toBeUndefined();
    const members = bench.set?.sets.get(name);
    const [first = ""] = members ?? [];
    expect(members?.delete(first)).toBe(true);
    expect(await bench.backend.findDamage(signal)).toMatch(`set ${name} has `);
    await bench.sync(true);
    expect(await bench.backend.findDamage(signal)).toBeUndefined();
  });

  test("that cannot be filled leaves rules that do without, in the same sync; a later full sync uses sets again", async () => {
    const bench = new Bench();
    putGated(bench, ["192.0.2.0/24"]);
    bench.set?.failNext(new AgentError("Invalid", "kernel says no"));
    await bench.sync();
    expect(bench.iptables.dump()).not.toContain("--match-set");
    expect(fate(bench, outside)).toBe("10.244.1.5:8080 m");
    expect(fate(bench, { ...outside, src: "198.51.100.1" })).toBe("DROP");
    expect(bench.lines.filter((line) => line.includes("sets are unusable"))).toHaveLength(1);
    putGated(bench, ["198.51.100.0/24"]);
    await bench.sync();
    expect(fate(bench, outside)).toBe("DROP");
    expect(await bench.backend.findDamage(signal)).toBeUndefined();
    await bench.sync(true);
    expect(bench.iptables.dump()).toBe((await bench.fresh()).dump);
    expect(bench.set?.dump()).toBe((await bench.fresh()).sets);
  });
});

describe("the ipset command", () => {
  test("makes a set that was another type anew, and fills one that rules refer to beside it", async () => {
    const commands = new FakeCommands();
    commands.sets.set("KUBE-SERVICE-IPS", new Set(["x"]));
    commands.setKinds.set("KUBE-SERVICE-IPS", "hash:ip");
    const ipset = createIpset(commands, "IPv4");
    await ipset.create(["KUBE-SERVICE-IPS", ranges], signal);
    expect(Object.fromEntries(commands.setKinds)).toEqual({ "KUBE-SERVICE-IPS": "hash:ip,port", [ranges]: "hash:net" });
    await ipset.replace(new Map([["KUBE-SERVICE-IPS", ["10.96.0.1,tcp:80"]]]), signal);
    await ipset.change(
      new Map([["KUBE-SERVICE-IPS", { add: ["10.96.0.2,tcp:80"], remove: ["10.96.0.1,tcp:80"] }]]),
      signal,
    );
    expect([...(commands.sets.get("KUBE-SERVICE-IPS") ?? [])]).toEqual(["10.96.0.2,tcp:80"]);
    expect(await ipset.counts(signal)).toEqual(
      new Map([
        ["KUBE-SERVICE-IPS", 1],
        [ranges, 0],
      ]),
    );
    await ipset.destroy(["KUBE-SERVICE-IPS", "KUBE-6-SERVICE-IPS"], signal);
    expect([...commands.sets.keys()]).toEqual([ranges]);
  });

  test("gives sets room to grow", () => {
    expect([0, 10_000, 16_385, 100_000].map(setSizeFor)).toEqual([65_536, 65_536, 131_072, 524_288]);
  });

  test("knows its own names", () => {
    const own = ["KUBE-SERVICE-IPS", "KUBE-SERVICE-IPS-NEW", "KUBE-NEW", ranges, "KUBE-AFF-X-1", "KUBE-CLUSTER-IPS"];
    expect(own.map((name) => isOwnSet("IPv4", name))).toEqual(own.map(() => true));
    const others = ["KUBE-CLUSTER-IP", "KUBE-NODE-PORT-TCP", "KUBE-6-SERVICE-IPS", "KUBE-LOOP-BACK", "cali40s:x"];
    expect(others.map((name) => isOwnSet("IPv4", name))).toEqual(others.map(() => false));
    const names = (["IPv4", "IPv6"] as const).flatMap((family) => [
      ...Object.values(sharedSetNames(family)),
      rangeSetName(family, "ns1/web"),
    ]);
    for (const name of names) expect(name.length).toBeLessThanOrEqual(31);
  });
});
