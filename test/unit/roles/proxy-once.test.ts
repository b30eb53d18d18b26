import { expect, test } from "vitest";
import { silentLogger } from "../../../agent/lib/log.ts";
import { proxyOptionsDefault, type ProxyOptions } from "../../../agent/proxy/options.ts";
import { cleanUpProxy, decideInitSysctls } from "../../../agent/roles/proxy-once.ts";
import { FakeCommands } from "../../support/fake-commands.ts";

const toolsOfIptables = [
  "iptables",
  "iptables-nft",
  "iptables-legacy",
  "ip6tables",
  "ip6tables-nft",
  "ip6tables-legacy",
];

test.each([
  ["with iptables", ["nft"], 0],
  ["with nft", toolsOfIptables, 0],
  ["without either, where nobody can say that nothing is left", ["nft", ...toolsOfIptables], 1],
])("--cleanup on a machine %s", async (_, missing, want) => {
  const commands = new FakeCommands();
  for (const file of missing) for (const end of ["", "-save", "-restore"]) commands.missing.add(`${file}${end}`);
  expect(await cleanUpProxy(silentLogger, new AbortController().signal, commands)).toBe(want);
});

const routeLocalnet = (options: Partial<ProxyOptions>) => {
  const conntrack = { ...proxyOptionsDefault.conntrack, maxPerCore: 0 };
  const given = { ...proxyOptionsDefault, nodeName: "", nodeIPs: ["127.0.0.1"], conntrack, ...options };
  return decideInitSysctls(given, 2).some(({ path }) => path.endsWith("/route_localnet"));
};

// It opens the node's loopback to its neighbours, so it is set only where the proxy's rules will need it.
test.each([
  ["iptables mode with node ports on all addresses", {}, true],
  ["on addresses that include loopback", { nodePortAddresses: ["127.0.0.0/8"] }, true],
  ["on others", { nodePortAddresses: ["10.0.0.0/8"] }, false],
  ["on the node's own, which are never loopback", { nodePortAddresses: ["primary"] }, false],
  ["not on localhost", { localhostNodePorts: false }, false],
  ["nftables mode", { mode: "nftables" }, false],
] as const)("--init-only sets route_localnet or not: %s", (_, options, want) => {
  expect(routeLocalnet(options)).toBe(want);
});

test("--init-only sets what connection tracking needs in any mode", () => {
  const options = { ...proxyOptionsDefault, mode: "nftables", nodeName: "", nodeIPs: [] } as const;
  expect(decideInitSysctls(options, 4)).toContainEqual({ path: "net/netfilter/nf_conntrack_max", value: 131_072 });
});
