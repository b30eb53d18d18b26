import { readFile } from "node:fs/promises";
import { beforeAll, describe, expect, test } from "vitest";
import { silentLogger } from "../../../agent/lib/log.ts";
import { parseNftList } from "../../../agent/proxy/inspect/nft-json.ts";
import { parseNftRule } from "../../../agent/proxy/inspect/nft-rule.ts";
import { surroundingsOf } from "../../../agent/proxy/inspect/read.ts";
import { interfaceTo, isLocalAddress, parseRoutes4, parseRoutes6 } from "../../../agent/proxy/inspect/routes.ts";
import type { Ruleset } from "../../../agent/proxy/inspect/ruleset.ts";
import type { Packet } from "../../../agent/proxy/inspect/match.ts";
import { walk } from "../../../agent/proxy/inspect/walk.ts";
import { IptablesBackend } from "../../../agent/proxy/iptables/sync.ts";
import { ServiceModel } from "../../../agent/proxy/model.ts";
import { FakeIptables, FakeIpset } from "../../support/fake-iptables.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";
import { fates, nftRuleset, routes, rulesetOf, savedSet, savedText, surroundings } from "./inspect-support.ts";

const kernelFile = async (name: string) => await readFile(new URL(`kernel/${name}`, import.meta.url), "utf8");

const pod = { saddr: "10.244.1.9", iif: "veth1" };
const node = { saddr: "192.0.2.1", iif: undefined };
const outside = { saddr: "198.51.100.7", iif: "eth0" };
const inRange = { saddr: "192.0.2.99", iif: "eth0" };
const both = (mark = "") => [`50% 10.244.1.2:8080${mark}`, `50% 10.244.2.2:8080${mark}`];

// What a kernel listed of five services: web (TCP and UDP), none (no endpoints), sticky, np (a local node port), lb.
const cases: {
  name: string;
  packet: Partial<Packet> & { saddr: string };
  to: [address: string, port: number];
  want: string[];
  wantNft?: string[];
}[] = [
  { name: "a pod to a ClusterIP: any endpoint", packet: pod, to: ["10.96.0.10", 80], want: both() },
  { name: "over UDP", packet: { ...pod, protocol: "udp" }, to: ["10.96.0.10", 80], want: both() },
  { name: "the node to a ClusterIP is masqueraded", packet: node, to: ["10.96.0.10", 80], want: both(" m") },
  { name: "so is everybody outside", packet: outside, to: ["10.96.0.10", 80], want: both(" m") },
  {
    name: "an endpoint that reaches itself, and only then, is masqueraded",
    packet: { ...pod, saddr: "10.244.1.2" },
    to: ["10.96.0.10", 80],
    want: ["50% 10.244.1.2:8080 m", "50% 10.244.2.2:8080"],
  },
  {
    name: "a port that the service does not have",
    packet: pod,
    to: ["10.96.0.10", 81],
    want: ["100% forwarded"],
    wantNft: ["100% reject"],
  },
  { name: "no endpoints", packet: pod, to: ["10.96.0.11", 80], want: ["100% reject"] },
  { name: "no endpoints, from the node", packet: node, to: ["10.96.0.11", 80], want: ["100% reject"] },
  {
    name: "a node port under the policy Local",
    packet: outside,
    to: ["192.0.2.1", 30_080],
    want: ["100% 10.244.1.2:8080"],
  },
  { name: "the same from a pod: any endpoint", packet: pod, to: ["192.0.2.1", 30_080], want: both() },
  { name: "the same from the node", packet: node, to: ["192.0.2.1", 30_080], want: both(" m") },
  { name: "a node port that nobody has", packet: outside, to: ["192.0.2.1", 30_082], want: ["100% local"] },
  {
    name: "a load balancer's address, from within its ranges",
    packet: inRange,
    to: ["203.0.113.1", 80],
    want: both(" m"),
  },
  { name: "the same from elsewhere", packet: outside, to: ["203.0.113.1", 80], want: ["100% drop"] },
  { name: "an address that is no service's", packet: pod, to: ["203.0.113.9", 443], want: ["100% forwarded"] },
];

describe.each(["iptables", "nftables"] as const)("%s, as the kernel listed it", (mode) => {
  let ruleset: Ruleset;
  beforeAll(async () => {
    ruleset =
      mode === "iptables"
        ? rulesetOf(await kernelFile("iptables-save.txt"), await kernelFile("ipset-save.txt"))
        : nftRuleset(parseNftList(await kernelFile("nft-list.json")));
  });

  test.each(cases)("$name", ({ packet, to: [daddr, dport], want, wantNft }) => {
    expect(fates(ruleset, { ...packet, daddr, dport })).toEqual(mode === "nftables" ? (wantNft ?? want) : want);
  });

  test("no rule of ours is beyond judgement", () => {
    for (const { packet, to } of cases) {
      const full: Packet = { protocol: "tcp", iif: undefined, ...packet, daddr: to[0], dport: to[1] };
      expect(walk(ruleset, full, surroundings).unjudged).toEqual([]);
    }
  });

  test("a client that is remembered goes where it went", () => {
    const to = { daddr: "10.96.0.12", dport: 80 };
    const stranger = { ...pod, saddr: "10.244.1.77" };
    expect(fates(ruleset, { ...stranger, ...to })).toEqual(both());
    // The kernel had 10.244.1.2 in the list of the first endpoint; of xt_recent's lists we are told.
    const lists = new Map([
      ["KUBE-SEP-T7DSECR4GK3STBZI", new Set(["10.244.1.2"])],
      ["KUBE-SEP-S7CXZEA4YOVSDES6", new Set<string>()],
    ]);
    const known = surroundingsOf(routes, lists);
    expect(fates(ruleset, { ...pod, saddr: "10.244.1.2", ...to }, known)).toEqual(["100% 10.244.1.2:8080 m"]);
  });
});

// As nft lists a rule with masqueradeBit 31.
test("a mark's highest bit, which nft writes as a prefix, is understood", () => {
  const mark = { meta: { key: "mark" } };
  const right = { prefix: { addr: 0, len: 1 } };
  const rule = parseNftRule({ expr: [{ match: { op: "!=", left: mark, right } }, { masquerade: null }] }, "IPv4");
  expect(rule.steps[0]).toMatchObject({ kind: "match", fields: [{ kind: "mark", mask: 0x80000000 }], isNegated: true });
  const [step] = rule.steps;
  if (step?.kind !== "match" || !("find" in step.among)) throw new Error("no match");
  expect([...step.among].map(({ key }) => key)).toEqual([[0]]);
});

test("lists of clients that were not looked up are asked for", async () => {
  const ruleset = rulesetOf(await kernelFile("iptables-save.txt"), await kernelFile("ipset-save.txt"));
  const packet: Packet = { ...pod, daddr: "10.96.0.12", dport: 80, protocol: "tcp" };
  expect(walk(ruleset, packet, surroundings).unknownLists).toHaveLength(2);
  const lists = new Map(["T7DSECR4GK3STBZI", "S7CXZEA4YOVSDES6"].map((id) => [`KUBE-SEP-${id}`, new Set<string>()]));
  expect(walk(ruleset, packet, surroundingsOf(routes, lists)).unknownLists).toEqual([]);
});

const nat = (...rules: string[]) =>
  `*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:MINE - [0:0]\n${rules.join("\n")}\nCOMMIT\n`;
const filter = (policy: string, ...rules: string[]) =>
  `*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ${policy} [0:0]\n:OUTPUT ACCEPT [0:0]\n:MINE - [0:0]\n${rules.join("\n")}\nCOMMIT\n`;
const target = { ...pod, daddr: "203.0.113.9", dport: 443 };

describe("rules of others", () => {
  const foreign: [name: string, text: string, want: string[]][] = [
    ["a chain's policy counts", filter("DROP"), ["100% drop"]],
    ["as does an exception from it", filter("DROP", "-A FORWARD -i veth+ -o eth0 -j ACCEPT"), ["100% forwarded"]],
    ["not for another interface", filter("DROP", "-A FORWARD -i cni+ -o eth0 -j ACCEPT"), ["100% drop"]],
    ["lists of ports", filter("ACCEPT", "-A FORWARD -p tcp -m multiport --dports 80,440:450 -j DROP"), ["100% drop"]],
    [
      "ranges of addresses",
      filter("ACCEPT", "-A FORWARD -m iprange --dst-range 203.0.113.1-203.0.113.10 -j DROP"),
      ["100% drop"],
    ],
    [
      "packets that open no connection",
      filter("ACCEPT", "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j DROP"),
      ["100% forwarded"],
    ],
    [
      "SYN",
      filter("ACCEPT", "-A FORWARD -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j REJECT --reject-with tcp-reset"),
      ["100% reject"],
    ],
    [
      "flags that the first packet does not have",
      filter("ACCEPT", "-A FORWARD -p tcp -m tcp --tcp-flags ACK ACK -j DROP"),
      ["100% forwarded"],
    ],
    [
      "chances",
      filter("ACCEPT", "-A FORWARD -m statistic --mode random --probability 0.25000000000 -j DROP"),
      ["25% drop", "75% forwarded"],
    ],
    [
      "a return from a chain",
      filter("ACCEPT", "-A FORWARD -j MINE", "-A MINE -s 10.244.0.0/16 -j RETURN", "-A MINE -j DROP"),
      ["100% forwarded"],
    ],
    ["a goto does not come back", filter("ACCEPT", "-A FORWARD -g MINE", "-A FORWARD -j DROP"), ["100% forwarded"]],
    ["SNAT", nat("-A POSTROUTING -o eth0 -j SNAT --to-source 192.0.2.1"), ["100% forwarded m"]],
    [
      "only the first translation counts",
      nat(
        "-A PREROUTING -p tcp -j DNAT --to-destination 10.244.1.3:1",
        "-A PREROUTING -p tcp -j DNAT --to-destination 10.244.1.4:1",
      ),
      ["100% 10.244.1.3:1"],
    ],
    [
      "a redirection",
      nat("-A PREROUTING -p tcp -m tcp --dport 443 -j REDIRECT --to-ports 8443"),
      ["100% 127.0.0.1:8443"],
    ],
    ["what only logs is passed", filter("ACCEPT", '-A FORWARD -j LOG --log-prefix "a -j DROP"'), ["100% forwarded"]],
    [
      "a comment may say anything",
      filter("ACCEPT", '-A FORWARD -m comment --comment "! -s 1.2.3.4 -j DROP" -j ACCEPT'),
      ["100% forwarded"],
    ],
    ["marks of other bits", filter("ACCEPT", "-A FORWARD -m mark --mark 0x1/0x1 -j DROP"), ["100% forwarded"]],
  ];
  test.each(foreign)("%s", (_, text, want) => {
    expect(fates(rulesetOf(text), target)).toEqual(want);
  });

  test.each([
    ["a match", "-A FORWARD -m owner --uid-owner 0 -j DROP", "--uid-owner 0"],
    ["a target", "-A FORWARD -p tcp -j CLUSTERIP", "there is no chain CLUSTERIP, and no target of that name is known"],
    ["a mark of a connection", "-A FORWARD -m connmark --mark 0x1 -j DROP", "--mark 0x1"],
    ["a set that was not read", "-A FORWARD -m set --match-set unknown dst -j DROP", "--match-set unknown dst"],
  ])("%s that nobody understands is named and taken not to match", (_, rule, why) => {
    const ruleset = rulesetOf(filter("ACCEPT", rule));
    expect(fates(ruleset, target)).toEqual(["100% forwarded"]);
    const { unjudged } = walk(ruleset, { ...target, protocol: "tcp" }, surroundings);
    expect(unjudged).toMatchObject([{ table: "filter", chain: "FORWARD", why }]);
  });

  test("what is not understood does not matter where the rest of the rule does not match", () => {
    const ruleset = rulesetOf(filter("ACCEPT", "-A FORWARD -s 1.2.3.4/32 -m owner --uid-owner 0 -j DROP"));
    expect(walk(ruleset, { ...target, protocol: "tcp" }, surroundings).unjudged).toEqual([]);
  });

  test("packets to the machine itself meet INPUT, and loopback is an interface", () => {
    const ruleset = rulesetOf(
      "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n",
    );
    expect(fates(ruleset, { ...node, daddr: "127.0.0.1" })).toEqual(["100% local"]);
    expect(fates(ruleset, { ...outside, daddr: "192.0.2.1" })).toEqual(["100% drop"]);
  });

  test("without a route there is no packet", () => {
    const place = surroundingsOf({ local: routes.local, routes: [] }, new Map());
    expect(fates(rulesetOf(filter("ACCEPT")), { ...node, daddr: "10.96.0.10" }, place)).toEqual(["100% unreachable"]);
  });

  test("a firewall of nftables decides before iptables does, if it has the lower priority", () => {
    const chain = {
      family: "inet",
      table: "fw",
      name: "in",
      type: "filter",
      hook: "forward",
      prio: -10,
      policy: "accept",
    };
    const expr = [
      {
        match: {
          op: "==",
          left: { payload: { protocol: "tcp", field: "dport" } },
          right: { set: [443, { range: [1000, 2000] }] },
        },
      },
      { counter: { packets: 1, bytes: 2 } },
      { drop: null },
    ];
    const firewall = nftRuleset([{ chain }, { rule: { family: "inet", table: "fw", chain: "in", handle: 1, expr } }]);
    const { tables } = rulesetOf(filter("ACCEPT", "-A FORWARD -j REJECT"));
    const ruleset = { ...firewall, tables: [...tables, ...firewall.tables] };
    expect(fates(ruleset, target)).toEqual(["100% drop"]);
    expect(fates(ruleset, { ...target, dport: 444 })).toEqual(["100% reject"]);
    expect(fates(ruleset, { ...target, dport: 1500 })).toEqual(["100% drop"]);
  });
});

test("a thousand endpoints have equal shares, over all groups of the iptables mode", async () => {
  const count = 1_000;
  const model = new ServiceModel("IPv4", { name: "n1", zone: undefined, ips: [] });
  model.setService("ns1/web", makeService("web"));
  model.setSlice(
    "ns1/web-a",
    makeSlice(
      "web",
      Array.from({ length: count }, (_, i) => `10.245.${i >> 8}.${i & 255}`),
    ),
  );
  const iptables = new FakeIptables();
  const set = new FakeIpset();
  await new IptablesBackend({ iptables, ipset: set, log: silentLogger }).sync(
    {
      isFull: true,
      keys: model.keys(),
      describe: (key) => model.describe(key),
      endpointCount: () => model.endpointCount(),
      fixed: {
        family: "IPv4",
        mark: "0x004000",
        nodePortIPs: undefined,
        hasLocalhostNodePorts: false,
        dropsInvalid: true,
        hasRandomFully: true,
      },
      render: { family: "IPv4", masqueradeAll: false, localPods: undefined },
    },
    new AbortController().signal,
  );
  const ruleset = rulesetOf(savedText(iptables), savedSet(set.members ?? []));
  const { ways } = walk(ruleset, { ...pod, daddr: "10.96.0.10", dport: 80, protocol: "tcp" }, surroundings);
  expect(ways).toHaveLength(count);
  for (const { share } of ways) expect(share).toBeCloseTo(1 / count, 6);
});

describe("routes", () => {
  const fibTrie = `Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 192.0.2.1
        /32 host LOCAL
     |-- 192.0.2.255
        /32 link BROADCAST
     |-- 127.0.0.0
        /8 host LOCAL
`;
  const route = [
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT",
    "eth0\t00000000\t020200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0",
    "veth1\t0001F40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0",
    "*\t0000600A\t00000000\t0201\t0\t0\t0\t0000FFFF\t0\t0\t0",
  ].join("\n");
  const ifInet6 = "20010db8000000000000000000000001 04 40 00 82 veth-client\n";
  const zero = "0".repeat(32);
  const ipv6Route = [
    `20010db8000000000000000000000000 40 ${zero} 00 ${zero} 00000100 00000001 00000000 00000001 eth1`,
    `${zero} 00 ${zero} 00 20010db8000000000000000000000002 00000400 00000001 00000000 00000003 eth0`,
    `${zero} 00 ${zero} 00 ${zero} ffffffff 00000001 00000000 00200200       lo`,
  ].join("\n");

  test("of IPv4", () => {
    const found = parseRoutes4(fibTrie, route);
    expect(["192.0.2.1", "127.3.2.1", "192.0.2.255", "192.0.2.2"].map((ip) => isLocalAddress(found, ip))).toEqual([
      true,
      true,
      false,
      false,
    ]);
    expect(["10.244.1.7", "10.244.2.7", "8.8.8.8"].map((ip) => interfaceTo(found, ip))).toEqual([
      "veth1",
      "eth0",
      "eth0",
    ]);
  });

  test("of IPv6", () => {
    const found = parseRoutes6(ifInet6, ipv6Route);
    expect(isLocalAddress(found, "2001:db8::1")).toBe(true);
    expect(isLocalAddress(found, "2001:db8::2")).toBe(false);
    expect(interfaceTo(found, "2001:db8::2")).toBe("eth1");
    expect(interfaceTo(found, "fd00::1")).toBe("eth0");
  });
});
