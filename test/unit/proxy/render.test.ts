import { describe, expect, test } from "vitest";
import { FakeClock } from "../kube/fake-clock.ts";
import type { EndpointSlice, Service, ServiceSpec } from "../../../agent/kube/types.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { endpointsOfSmallClusterMax } from "../../../agent/proxy/backend.ts";
import { detectLocalMatch, type FixedContext } from "../../../agent/proxy/iptables/fixed.ts";
import { chainNameLengthMax, endpointChain, portSuffix } from "../../../agent/proxy/iptables/names.ts";
import type { RenderContext } from "../../../agent/proxy/iptables/render.ts";
import { IptablesBackend } from "../../../agent/proxy/iptables/sync.ts";
import { parseIP } from "../../../agent/proxy/ip.ts";
import { ServiceModel } from "../../../agent/proxy/model.ts";
import { markText, nodePortIPs, readNodePortAddresses } from "../../../agent/proxy/node-ports.ts";
import { FakeIptables, FakeIpset } from "../../support/fake-iptables.ts";
import { type Packet, tracePacket } from "../../support/packet-tracer.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";

const vip = "10.96.0.10";
const nodeIP = "192.0.2.1";
const lbIP = "203.0.113.1";
const externalIP = "198.51.100.1";
const pod = "10.244.1.2";
const remotePod = "10.244.9.9";
const localIPs = ["127.0.0.1", nodeIP];
const signal = new AbortController().signal;

interface Setup {
  services: Service[];
  slices: EndpointSlice[];
  fixed?: Partial<FixedContext>;
  render?: Partial<RenderContext>;
  withoutSet?: boolean;
  /** So many endpoints that rules are kept few. */
  isLarge?: boolean;
}

/** The tables after a full sync of these objects on node n1. The fake checks that the text is closed and commits. */
async function program(setup: Setup) {
  const { family = "IPv4" } = setup.render ?? {};
  const model = new ServiceModel(family, { name: "n1", zone: undefined, ips: [parseIP(nodeIP)!] });
  for (const service of setup.services) model.setService(`ns1/${service.metadata.name}`, service);
  for (const slice of setup.slices) model.setSlice(`ns1/${slice.metadata.name}`, slice);
  const iptables = new FakeIptables();
  const set = new FakeIpset();
  const backend = new IptablesBackend({
    iptables,
    ipset: setup.withoutSet === true ? undefined : set,
    clock: new FakeClock(),
    log: silentLogger,
  });
  await backend.sync(
    {
      isFull: true,
      keys: model.keys(),
      describe: (key) => model.describe(key),
      endpointCount: () => (setup.isLarge === true ? endpointsOfSmallClusterMax + 1 : model.endpointCount()),
      fixed: {
        family,
        mark: "0x004000",
        nodePortIPs: undefined,
        hasLocalhostNodePorts: true,
        dropsInvalid: true,
        hasRandomFully: true,
        ...setup.fixed,
      },
      render: {
        family,
        masqueradeAll: false,
        localPods: { match: "-s 10.244.0.0/16", notMatch: "! -s 10.244.0.0/16" },
        ...setup.render,
      },
    },
    signal,
  );
  return { iptables, sets: set.bySet() };
}

type Case = {
  name: string;
  spec?: Partial<ServiceSpec>;
  extra?: Partial<Service>;
  endpoints?: Parameters<typeof makeSlice>[1];
  render?: Partial<RenderContext>;
  fixed?: Partial<FixedContext>;
  /** Packets and what becomes of them: `address` (masqueraded: `address m`), or the verdict. */
  packets: [packet: Partial<Packet>, want: string][];
  /** Without sets it is known less exactly who reaches itself. */
  onlyWithSets?: boolean;
};

const here = { nodeName: "n1" };
const there = { nodeName: "n2" };
const fromPod = { src: pod, iface: "veth1" };
const fromNode = { src: nodeIP };
const fromOutside = { src: "192.0.2.99", iface: "eth0" };
const nodePort: Partial<ServiceSpec> = { type: "NodePort", ports: [{ name: "p80", port: 80, nodePort: 30_080 }] };
const toNodePort = { dst: nodeIP, dport: 30_080 };
const loadBalancer = {
  spec: { ...nodePort, type: "LoadBalancer" } as Partial<ServiceSpec>,
  extra: { status: { loadBalancer: { ingress: [{ ip: lbIP }] } } },
};

const cases: Case[] = [
  {
    name: "clusterip",
    endpoints: ["10.244.1.5"],
    packets: [
      [fromPod, "10.244.1.5:8080"],
      [fromNode, "10.244.1.5:8080 m"],
      [fromOutside, "10.244.1.5:8080 m"],
      [{ ...fromPod, src: "10.244.1.5" }, "10.244.1.5:8080 m"],
      [{ ...fromPod, dport: 81 }, "ACCEPT"],
      [{ ...fromPod, proto: "udp" }, "ACCEPT"],
      [{ ...fromPod, dst: "10.96.0.11" }, "ACCEPT"],
      [{ ...fromOutside, dst: "203.0.113.77", dport: 443 }, "ACCEPT"],
    ],
  },
  {
    name: "clusterip-host-network",
    endpoints: [{ address: nodeIP, ...here }],
    packets: [
      [fromNode, `${nodeIP}:8080 m`],
      [{ ...fromNode, dst: nodeIP, dport: 8080 }, "ACCEPT"], // not by way of the service
    ],
  },
  {
    name: "clusterip-endpoint-elsewhere",
    endpoints: [{ address: remotePod, ...there }],
    // It would not come by here to reach itself.
    packets: [[{ ...fromPod, src: remotePod }, `${remotePod}:8080`]],
    onlyWithSets: true,
  },
  {
    name: "clusterip-no-endpoints",
    endpoints: [],
    packets: [
      [fromPod, "REJECT"],
      [fromNode, "REJECT"],
    ],
  },
  {
    name: "clusterip-masquerade-all",
    endpoints: ["10.244.1.5"],
    render: { masqueradeAll: true },
    packets: [[fromPod, "10.244.1.5:8080 m"]],
  },
  {
    name: "clusterip-no-detector",
    endpoints: ["10.244.1.5"],
    render: { localPods: undefined },
    packets: [[fromNode, "10.244.1.5:8080"]],
  },
  {
    name: "clusterip-affinity",
    spec: { sessionAffinity: "ClientIP", sessionAffinityConfig: { clientIP: { timeoutSeconds: 60 } } },
    endpoints: ["10.244.1.5", "10.244.1.6", "10.244.1.7"],
    packets: [[fromPod, "10.244.1.7:8080"]],
  },
  {
    name: "clusterip-internal-local",
    spec: { internalTrafficPolicy: "Local" },
    endpoints: [
      { address: "10.244.1.5", ...here },
      { address: remotePod, ...there },
    ],
    packets: [
      [fromPod, "10.244.1.5:8080"],
      [fromNode, "10.244.1.5:8080 m"],
    ],
  },
  {
    name: "clusterip-internal-local-none-here",
    spec: { internalTrafficPolicy: "Local" },
    endpoints: [{ address: remotePod, ...there }],
    packets: [[fromPod, "DROP"]],
  },
  {
    name: "nodeport",
    spec: nodePort,
    endpoints: ["10.244.1.5"],
    packets: [
      [{ ...fromOutside, ...toNodePort }, "10.244.1.5:8080 m"],
      [{ ...fromPod, ...toNodePort }, "10.244.1.5:8080 m"],
      [{ src: "127.0.0.1", dst: "127.0.0.1", dport: 30_080 }, "10.244.1.5:8080 m"],
      [{ ...fromOutside, dst: "203.0.113.77", dport: 30_080 }, "ACCEPT"],
      [{ ...fromOutside, ...toNodePort, dport: 30_081 }, "ACCEPT"],
    ],
  },
  { name: "nodeport-no-endpoints", spec: nodePort, packets: [[{ ...fromOutside, ...toNodePort }, "REJECT"]] },
  {
    name: "nodeport-addresses",
    spec: nodePort,
    endpoints: ["10.244.1.5"],
    fixed: { nodePortIPs: ["192.0.2.2"] },
    packets: [
      [{ ...fromOutside, ...toNodePort }, "ACCEPT"],
      [{ ...fromOutside, ...toNodePort, dst: "192.0.2.2" }, "10.244.1.5:8080 m"],
    ],
  },
  {
    name: "nodeport-not-on-localhost",
    spec: nodePort,
    endpoints: ["10.244.1.5"],
    fixed: { hasLocalhostNodePorts: false },
    packets: [
      [{ src: "127.0.0.1", dst: "127.0.0.1", dport: 30_080 }, "ACCEPT"],
      [{ ...fromOutside, ...toNodePort }, "10.244.1.5:8080 m"],
    ],
  },
  {
    name: "nodeport-external-local",
    spec: { ...nodePort, externalTrafficPolicy: "Local" },
    endpoints: [
      { address: "10.244.1.5", ...here },
      { address: remotePod, ...there },
    ],
    packets: [
      [{ ...fromOutside, ...toNodePort }, "10.244.1.5:8080"],
      [{ ...fromPod, ...toNodePort }, `${remotePod}:8080`],
      // A pod of another node that asks this node, and is led back to itself.
      [{ ...fromPod, ...toNodePort, src: remotePod }, `${remotePod}:8080 m`],
      [{ ...fromNode, ...toNodePort }, `${remotePod}:8080 m`],
    ],
  },
  {
    name: "nodeport-external-local-none-here",
    spec: { ...nodePort, externalTrafficPolicy: "Local" },
    endpoints: [{ address: remotePod, ...there }],
    packets: [
      [{ ...fromOutside, ...toNodePort }, "DROP"],
      [{ ...fromPod, ...toNodePort }, `${remotePod}:8080`],
    ],
  },
  {
    name: "external-ip",
    spec: { externalIPs: [externalIP] },
    endpoints: ["10.244.1.5"],
    packets: [[{ ...fromOutside, dst: externalIP }, "10.244.1.5:8080 m"]],
  },
  {
    name: "loadbalancer-source-ranges",
    spec: { ...loadBalancer.spec, loadBalancerSourceRanges: ["192.0.2.0/24"] },
    extra: loadBalancer.extra,
    endpoints: ["10.244.1.5"],
    packets: [
      [{ ...fromOutside, dst: lbIP }, "10.244.1.5:8080 m"],
      [{ ...fromOutside, src: "203.0.113.50", dst: lbIP }, "DROP"],
      [{ src: lbIP, dst: lbIP }, "10.244.1.5:8080 m"],
      // Node ports are not gated.
      [{ ...fromOutside, src: "203.0.113.50", ...toNodePort }, "10.244.1.5:8080 m"],
    ],
  },
  {
    name: "loadbalancer-local",
    spec: { ...loadBalancer.spec, externalTrafficPolicy: "Local", healthCheckNodePort: 31_000 },
    extra: loadBalancer.extra,
    endpoints: [{ address: "10.244.1.5", ...here }],
    packets: [
      [{ ...fromOutside, dst: lbIP }, "10.244.1.5:8080"],
      [{ ...fromOutside, dst: nodeIP, dport: 31_000 }, "ACCEPT"],
    ],
  },
  {
    name: "loadbalancer-no-endpoints",
    ...loadBalancer,
    packets: [
      [{ ...fromOutside, dst: lbIP }, "REJECT"],
      [{ ...fromOutside, ...toNodePort }, "REJECT"],
    ],
  },
];

describe("rules of one service", () => {
  for (const { name, spec = {}, extra = {}, endpoints = [], packets, onlyWithSets = false, ...contexts } of cases) {
    const variants = [
      { kind: "", isLarge: false, withoutSet: false },
      { kind: ", in a large cluster", isLarge: true, withoutSet: false },
      ...(onlyWithSets ? [] : [{ kind: ", without ipset", isLarge: false, withoutSet: true }]),
    ];
    for (const { kind, isLarge, withoutSet } of variants) {
      test(`${name}${kind}`, async () => {
        const { iptables, sets } = await program({
          services: [makeService("web", spec, extra)],
          slices: [makeSlice("web", endpoints)],
          withoutSet,
          isLarge,
          ...contexts,
        });
        if (kind === "") await expect(iptables.dump()).toMatchFileSnapshot(`golden/${name}.txt`);
        for (const [packet, want] of packets) {
          const full: Packet = { dst: vip, dport: 80, proto: "tcp", src: pod, ...packet };
          const { verdict, dnat, isMasqueraded } = tracePacket(iptables.tables, full, { sets, localIPs });
          const got = dnat === undefined || verdict !== "ACCEPT" ? verdict : `${dnat}${isMasqueraded ? " m" : ""}`;
          expect(got, JSON.stringify(full)).toBe(want);
        }
      });
    }
  }

  test("in a large cluster balances without chains of endpoints, but for session affinity", async () => {
    const { iptables } = await program({
      services: [makeService("web"), makeService("shop", { clusterIP: "10.96.0.11", sessionAffinity: "ClientIP" })],
      slices: [makeSlice("web", ["10.244.1.5", "10.244.1.6"]), makeSlice("shop", ["10.244.1.7"])],
      isLarge: true,
    });
    await expect(iptables.dump()).toMatchFileSnapshot("golden/large-cluster.txt");
    const endpointChains = [...iptables.tables.get("nat")!.keys()].filter((chain) => chain.startsWith("KUBE-SEP-"));
    expect(endpointChains).toEqual([endpointChain("ns1/shop:p80", "tcp", "10.244.1.7:8080")]);
  });

  test("IPv6", async () => {
    const { iptables } = await program({
      services: [makeService("web", { ...nodePort, clusterIP: "fd00:96::10" })],
      slices: [makeSlice("web", ["fd00:244::5"], { addressType: "IPv6" })],
      render: { family: "IPv6", localPods: undefined },
      fixed: { family: "IPv6" },
      withoutSet: true,
    });
    await expect(iptables.dump()).toMatchFileSnapshot("golden/ipv6.txt");
    const packet: Packet = { src: "fd00:244::9", dst: "fd00:96::10", proto: "tcp", dport: 80, iface: "veth1" };
    expect(tracePacket(iptables.tables, packet).dnat).toBe("[fd00:244::5]:8080");
  });

  test("affinity sends a known client to its endpoint", async () => {
    const { iptables, sets } = await program({
      services: [makeService("web", { sessionAffinity: "ClientIP" })],
      slices: [makeSlice("web", ["10.244.1.5", "10.244.1.6"])],
    });
    const recent = new Set([endpointChain("ns1/web:p80", "tcp", "10.244.1.5:8080")]);
    const packet: Packet = { ...fromPod, dst: vip, dport: 80, proto: "tcp" };
    expect(tracePacket(iptables.tables, packet, { sets, localIPs, recent }).dnat).toBe("10.244.1.5:8080");
  });

  test("the endpoints get equal shares", async () => {
    const { iptables, sets } = await program({
      services: [makeService("web")],
      slices: [makeSlice("web", ["10.1.0.1", "10.1.0.2", "10.1.0.3"])],
    });
    const shares = new Map<string, number>();
    for (let n = 0; n < 600; n++) {
      // A fine grid over [0, 1) for each draw: the shares come out exact.
      const draws = [((n % 3) + 0.5) / 3, ((Math.floor(n / 3) % 2) + 0.5) / 2];
      const random = (probability: number) => (draws.shift() ?? 0) < probability;
      const packet: Packet = { ...fromPod, dst: vip, dport: 80, proto: "tcp" };
      const { dnat = "" } = tracePacket(iptables.tables, packet, { sets, localIPs, random });
      shares.set(dnat, (shares.get(dnat) ?? 0) + 1);
    }
    expect([...shares.values()]).toEqual([200, 200, 200]);
  });
});

test("a packet visits few rules, however many services there are", async () => {
  // As many node ports as there are by default. Addresses as the API server hands them out: all over a /16.
  const count = 10_000;
  const nodePorts = 2_768;
  const ipOf = (i: number) => `10.96.${((i * 40_503) >> 8) & 255}.${(i * 40_503) & 255}`;
  const services = Array.from({ length: count }, (_, i) => {
    const nodePort = i < nodePorts ? { nodePort: 30_000 + i } : {};
    const ports = [{ name: "p80", port: 80, protocol: "TCP" as const, ...nodePort }];
    return makeService(`s${i}`, { clusterIP: ipOf(i), ...(i < nodePorts ? { type: "NodePort" as const } : {}), ports });
  });
  const five = Array.from({ length: 5 }, (_, n) => `10.244.1.${n + 5}`);
  const slices = services.map((service, i) => makeSlice(service.metadata.name, i % 7 === 0 ? five : ["10.244.1.5"]));
  const { iptables, sets } = await program({ services, slices });
  const visits: number[] = [];
  for (let i = 0; i < count; i += 7) {
    const packet: Packet = { ...fromPod, dst: ipOf(i), dport: 80, proto: "tcp" };
    const result = tracePacket(iptables.tables, packet, { sets, localIPs });
    expect(result.dnat).toBe("10.244.1.9:8080"); // the last one: nothing can cost more
    visits.push(result.visited.nat);
    if (i >= nodePorts) continue;
    const toNode: Packet = { ...fromOutside, dst: nodeIP, dport: 30_000 + i, proto: "tcp" };
    visits.push(tracePacket(iptables.tables, toNode, { sets, localIPs }).visited.nat);
  }
  // Jump and set (2), tree (4 · 6 levels + 8 in the leaf), service (5) and endpoint (2); kube-proxy's list has 10 000.
  expect(Math.max(...visits)).toBeLessThanOrEqual(40);
  expect(visits.reduce((a, b) => a + b) / visits.length).toBeLessThan(32);
  const stranger: Packet = { ...fromPod, dst: "203.0.113.9", dport: 443, proto: "tcp" };
  const visited = (packet: Packet) => tracePacket(iptables.tables, packet, { sets, localIPs }).visited.nat;
  expect(visited(stranger)).toBe(4);
  // A port that nobody has, also one among the node ports, or one that somebody has of another protocol: out after one lookup.
  for (const [dport, proto] of [
    [22, "tcp"],
    [30_001, "udp"],
    [45_000, "tcp"],
  ] as const) {
    expect(visited({ ...fromOutside, dst: nodeIP, dport, proto })).toBe(4);
  }
}, 60_000);

test("a thousand endpoints are chosen evenly, by some twenty rules, and one that goes changes its own path only", async () => {
  const addresses = Array.from({ length: 1_000 }, (_, i) => `10.244.${i >> 8}.${i & 255}`);
  const slicesOf = (list: readonly string[]) => [makeSlice("web", list)];
  const { iptables, sets } = await program({ services: [makeService("web")], slices: slicesOf(addresses) });
  const packet: Packet = { ...fromPod, dst: vip, dport: 80, proto: "tcp" };
  const seen = new Map<string, number>();
  let visited = 0;
  // Draws spread evenly: the n-th packet takes the n-th of 4 000 equal parts, digit by digit.
  const draws = 4_000;
  for (let n = 0; n < draws; n += 1) {
    let rest = (n + 0.5) / draws;
    // Takes the first alternative with its chance, and stretches what is left to all of (0, 1).
    const random = (chance: number) => {
      const isTaken = rest < chance;
      rest = isTaken ? rest / chance : (rest - chance) / (1 - chance);
      return isTaken;
    };
    const result = tracePacket(iptables.tables, packet, { sets, localIPs, random });
    visited += result.visited.nat;
    seen.set(result.dnat ?? "", (seen.get(result.dnat ?? "") ?? 0) + 1);
  }
  expect(seen.size).toBe(1_000);
  for (const count of seen.values()) expect(Math.abs(count - draws / 1_000)).toBeLessThanOrEqual(1);
  expect(visited / draws).toBeLessThan(30);

  const fewer = await program({ services: [makeService("web")], slices: slicesOf(addresses.slice(0, -1)) });
  const nat = iptables.tables.get("nat")!;
  const changed = [...fewer.iptables.tables.get("nat")!].filter(
    ([chain, rules]) => JSON.stringify(rules) !== JSON.stringify(nat.get(chain)),
  );
  expect(changed.length).toBeLessThanOrEqual(4);
}, 30_000);

describe("names", () => {
  test("are those of kube-proxy", () => {
    expect(portSuffix("default/kubernetes:https", "tcp")).toBe("NPX46M4PTMTKRN6Y");
    expect(portSuffix("kube-system/kube-dns:dns", "udp")).toBe("TCOU7JCQXEZGVUNU");
    expect(portSuffix("ns1/svc1", "tcp")).toBe("AQI2S6QIMU7PVVRP");
    expect(endpointChain("ns1/svc1:p80", "tcp", "10.180.0.1:80")).toBe("KUBE-SEP-SXIVWICOYRO3J4NJ");
    expect(endpointChain("ns1/svc1:p80", "tcp", "[fd00:10:180::1]:80")).toBe("KUBE-SEP-OGYCNMB4EMRUSJ6N");
  });

  test("fit the kernel's limit", () => {
    expect(`KUBE-EXT-${portSuffix("a", "sctp")}`.length).toBeLessThanOrEqual(chainNameLengthMax);
  });

  test("the mark has six digits", () => {
    expect([0, 14, 31].map(markText)).toEqual(["0x000001", "0x004000", "0x80000000"]);
  });
});

describe("who is a local pod", () => {
  const options = {
    mode: "ClusterCIDR" as const,
    cidrs: ["fd00::/64", "10.0.0.0/8"],
    bridgeInterface: "cni0",
    interfaceNamePrefix: "veth",
  };
  test("by the family's CIDR", () => {
    expect(detectLocalMatch(options, "IPv4")?.match).toBe("-s 10.0.0.0/8");
    expect(detectLocalMatch(options, "IPv6")?.notMatch).toBe("! -s fd00::/64");
    expect(detectLocalMatch({ ...options, cidrs: ["fd00::/64"] }, "IPv4")).toBeUndefined();
    expect(detectLocalMatch({ ...options, cidrs: ["0.0.0.0/0"] }, "IPv4")).toBeUndefined();
  });
  test("by a CIDR as the kernel spells it, or each look at the rules would find damage", () => {
    const sloppy = { ...options, cidrs: ["10.244.7.7/16", "FD00:244:0:0::1/32"] };
    expect(detectLocalMatch(sloppy, "IPv4")?.match).toBe("-s 10.244.0.0/16");
    expect(detectLocalMatch(sloppy, "IPv6")?.notMatch).toBe("! -s fd00:244::/32");
  });
  test("by interface", () => {
    expect(detectLocalMatch({ ...options, mode: "BridgeInterface" }, "IPv4")?.match).toBe("-i cni0");
    expect(detectLocalMatch({ ...options, mode: "InterfaceNamePrefix" }, "IPv4")?.notMatch).toBe("! -i veth+");
  });
});

describe("nodePortAddresses", () => {
  const of = (entries: string[], family: "IPv4" | "IPv6" = "IPv4") =>
    nodePortIPs(
      readNodePortAddresses(entries, [nodeIP, "2001:db8::1"], family),
      () => [...localIPs, "10.1.1.1", "::1", "2001:db8::1"],
      family,
      true,
    );
  test("no entry, none of the family, or everything: all addresses", () => {
    expect(of([])).toBeUndefined();
    expect(of(["fd00::/8"])).toBeUndefined();
    expect(of(["10.0.0.0/8", "0.0.0.0/0"])).toBeUndefined();
  });
  test("CIDRs choose among local addresses", () => {
    expect(of(["10.0.0.0/8", "127.0.0.0/8"])).toEqual(["10.1.1.1", "127.0.0.1"]);
    expect(of(["::/1"], "IPv6")).toEqual(["2001:db8::1"]);
  });
  test("primary means the node's own addresses", () => {
    expect(of(["primary"])).toEqual([nodeIP]);
    expect(readNodePortAddresses(["primary"], [nodeIP], "IPv4").hasLoopback).toBe(false);
    expect(readNodePortAddresses(["127.0.0.0/8"], [nodeIP], "IPv4").hasLoopback).toBe(true);
  });
});
