import { describe, expect, test } from "vitest";
import { parseDefaultRoutesIPv4, parseDefaultRoutesIPv6 } from "../../../agent/node/address-sources.ts";
import {
  type AddressOptions,
  type AddressSources,
  chooseAddresses,
  hostIPs,
  needsLookup,
  nodeIPProblem,
  parseNodeIPs,
} from "../../../agent/node/addresses.ts";
import type { NodeAddress } from "../../../agent/kube/types.ts";

const sources: AddressSources = {
  localIPs: ["127.0.0.1", "10.0.0.1", "10.0.0.2", "fd00::1", "fe80::1", "192.168.0.5"],
  resolvedIPs: [],
  defaultRouteIPs: ["192.168.0.5", "fd00::1"],
};
const plain: AddressOptions = { nodeName: "n1", hostname: "n1", nodeIPs: [], cloudProvider: "" };
const hostname: NodeAddress = { type: "Hostname", address: "n1" };
const internal = (address: string): NodeAddress => ({ type: "InternalIP", address });

describe("the node's addresses", () => {
  const cases: {
    name: string;
    options?: Partial<AddressOptions>;
    sources?: Partial<AddressSources>;
    existing?: NodeAddress[];
    want: NodeAddress[] | "keep" | RegExp;
  }[] = [
    { name: "an explicit address", options: { nodeIPs: ["10.0.0.2"] }, want: [internal("10.0.0.2"), hostname] },
    {
      name: "a pair, in the order given",
      options: { nodeIPs: ["fd00::1", "10.0.0.1"] },
      want: [internal("fd00::1"), internal("10.0.0.1"), hostname],
    },
    {
      name: "IPv6 in another spelling",
      options: { nodeIPs: ["fd00:0::0001"] },
      want: [internal("fd00:0::0001"), hostname],
    },
    {
      name: "a hostname that is an address",
      options: { hostname: "10.0.0.9" },
      want: [internal("10.0.0.9"), { type: "Hostname", address: "10.0.0.9" }],
    },
    {
      name: "the resolver's first usable answer",
      sources: { resolvedIPs: ["127.0.1.1", "8.8.8.8", "10.0.0.2"] },
      want: [internal("10.0.0.2"), hostname],
    },
    {
      name: "IPv4 before IPv6",
      sources: { resolvedIPs: ["fd00::1", "10.0.0.2"] },
      want: [internal("10.0.0.2"), hostname],
    },
    {
      name: "IPv6 before IPv4 with ::",
      options: { nodeIPs: ["::"] },
      sources: { resolvedIPs: ["10.0.0.2", "fd00::1"] },
      want: [internal("fd00::1"), hostname],
    },
    { name: "the default route's interface", want: [internal("192.168.0.5"), hostname] },
    { name: "no address at all", sources: { defaultRouteIPs: [] }, want: /^can't get ip address of node n1\. error: / },
    {
      name: "an address of another machine",
      options: { nodeIPs: ["10.9.9.9"] },
      want: /10\.9\.9\.9 is not on any interface/,
    },
    { name: "a loopback address", options: { nodeIPs: ["127.0.0.1"] }, want: /loopback/ },
    {
      name: "a cloud controller's addresses stay",
      options: { cloudProvider: "external" },
      existing: [internal("10.1.1.1")],
      want: "keep",
    },
    {
      name: "before the cloud controller only the name is known",
      options: { cloudProvider: "external" },
      want: [hostname],
    },
    {
      name: "but an unspecified node IP asks for a first address",
      options: { cloudProvider: "external", nodeIPs: ["0.0.0.0"] },
      want: [internal("192.168.0.5"), hostname],
    },
  ];
  for (const { name, options, sources: more, existing = [], want } of cases) {
    test(name, () => {
      const result = chooseAddresses({ ...plain, ...options }, { ...sources, ...more }, existing);
      if (want === "keep") expect(result).toEqual({ kind: "keep" });
      else if (want instanceof RegExp) expect(result.kind === "failed" ? result.problem : result).toMatch(want);
      else expect(result).toEqual({ kind: "addresses", addresses: want });
    });
  }
});

test.each([
  ["", { ips: [] }],
  ["10.0.0.1", { ips: ["10.0.0.1"] }],
  ["10.0.0.1, fd00::1", { ips: ["10.0.0.1", "fd00::1"] }],
  ["::", { ips: ["::"] }],
])("--node-ip %j is taken", (flag, want) => expect(parseNodeIPs(flag)).toEqual(want));

test.each([
  ["nonsense", /"nonsense" is not an IP address/],
  ["10.0.0.1,10.0.0.2", /one IPv4 and one IPv6/],
  ["10.0.0.1,fd00::1,fd00::2", /at most one per IP family/],
  ["0.0.0.0,fd00::1", /must not contain 0\.0\.0\.0/],
])("--node-ip %j is refused", (flag, why) =>
  expect(parseNodeIPs(flag)).toHaveProperty("problem", expect.stringMatching(why)),
);

test.each([
  ["169.254.1.1", /link-local/],
  ["fe80::1", /link-local/],
  ["224.0.0.1", /multicast/],
  ["ff02::1", /multicast/],
  ["::", /unspecified/],
  ["::1", /loopback/],
])("%s cannot be a node's", (ip, why) => expect(nodeIPProblem(ip, [ip])).toMatch(why));

test("the resolver is asked only if the flags do not settle it", () => {
  expect(needsLookup(plain)).toBe(true);
  expect(needsLookup({ ...plain, nodeIPs: ["0.0.0.0"] })).toBe(true);
  expect(needsLookup({ ...plain, nodeIPs: ["10.0.0.1"] })).toBe(false);
  expect(needsLookup({ ...plain, hostname: "10.0.0.1" })).toBe(false);
});

test("host IPs: the first, then the first of the other family; external ones stand in", () => {
  const of = (...addresses: NodeAddress[]) => hostIPs({ metadata: { name: "n1" }, status: { addresses } });
  const external: NodeAddress = { type: "ExternalIP", address: "1.2.3.4" };
  expect(of(hostname, internal("10.0.0.1"), internal("10.0.0.2"), internal("fd00::1"))).toEqual([
    "10.0.0.1",
    "fd00::1",
  ]);
  expect(of(external, internal("fd00::1"))).toEqual(["fd00::1", "1.2.3.4"]);
  expect(of(external)).toEqual(["1.2.3.4"]);
  expect(hostIPs(undefined)).toEqual([]);
});

test("interfaces of the default routes, best metric first", () => {
  const ipv4 = [
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT",
    "eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0",
    "wlan0\t00000000\t0101A8C0\t0003\t0\t0\t50\t00000000\t0\t0\t0",
    "eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0",
  ];
  expect(parseDefaultRoutesIPv4(ipv4.join("\n"))).toEqual(["wlan0", "eth0"]);
  const zero = "0".repeat(32);
  const ipv6 = [
    `${zero} 00 ${zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0`,
    `${zero} 00 ${zero} 00 ${zero} ffffffff 00000001 00000000 00200200       lo`,
    `fe80${"0".repeat(28)} 40 ${zero} 00 ${zero} 00000100 00000001 00000000 00000001     eth1`,
  ];
  expect(parseDefaultRoutesIPv6(ipv6.join("\n"))).toEqual(["eth0"]);
});
