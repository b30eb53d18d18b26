/**
 * How many rules the first packet of a connection visits at most, for services of five endpoints: counted in what the backends
 * write, and beside it what kube-proxy's layout makes of the same services (its facts: one list of all of them in the iptables
 * mode, maps and a chain per service in nftables').
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { EndpointSlice, Node, Service } from "../../agent/kube/types.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { ServiceModel } from "../../agent/proxy/model.ts";
import { NftablesRules } from "../../agent/proxy/nftables/sync.ts";
import { proxyOptionsDefault } from "../../agent/proxy/options.ts";
import { createProxy } from "../../agent/proxy/proxy.ts";
import { FakeCommands } from "../support/fake-commands.ts";
import { FakeNft } from "../support/fake-nft.ts";
import { MemoryStore } from "../support/memory-store.ts";
import { traceNft } from "../support/nft-tracer.ts";
import { type Packet, tracePacket } from "../support/packet-tracer.ts";

/** Before routing, up to the endpoint or to the end. */
export interface RulesVisited {
  readonly toService: number;
  readonly toNone: number;
}

// So many services are tried, spread over all.
const tried = 500;
const packet: Packet = { src: "10.128.0.9", dst: "203.0.113.9", proto: "tcp", dport: 80, iface: "veth1" };
const clusterCIDR = "10.128.0.0/9";

/** What our rules make a packet visit. */
export async function countVisited(
  mode: "iptables" | "nftables",
  services: readonly Service[],
  slices: readonly EndpointSlice[],
): Promise<RulesVisited> {
  const visited = mode === "iptables" ? await visitIptables(services, slices) : await visitNftables(services, slices);
  const some = services.filter((_, n) => n % Math.ceil(services.length / tried) === 0);
  const toService = Math.max(...some.map(({ spec }) => visited({ ...packet, dst: spec?.clusterIP ?? "" })));
  return { toService, toNone: visited(packet) };
}

/** What kube-proxy's rules make it visit, computed. @param endpoints of each service */
export function countReference(mode: "iptables" | "nftables", services: number, endpoints: number): RulesVisited {
  // The gate of source ranges and its map, the jump to the services, their two rules (masquerading, the map), the service's own
  // rule; or, for none, the rule for node ports.
  if (mode === "nftables") return { toService: 6, toNone: 6 };
  // The jump, a rule a service, then masquerading, the choice of the last endpoint, and that one's two rules.
  return { toService: 1 + services + 1 + endpoints + 2, toNone: 1 + services + 1 };
}

async function visitIptables(services: readonly Service[], slices: readonly EndpointSlice[]) {
  const commands = new FakeCommands();
  const stop = new AbortController();
  const proxy = createProxy(
    {
      ...proxyOptionsDefault,
      ...{ nodeName: "n1", nodeIPs: ["192.0.2.1"], families: ["IPv4"], iptablesFlavour: "nft" },
      detectLocal: { ...proxyOptionsDefault.detectLocal, cidrs: [clusterCIDR] },
    },
    {
      services: new MemoryStore<Service>().put(...services).markSynced(),
      endpointSlices: new MemoryStore<EndpointSlice>().put(...slices).markSynced(),
      nodes: new MemoryStore<Node>().markSynced(),
      ...{ clock: systemClock, log: silentLogger, commands },
      sysctls: { read: async () => "0", write: async () => {} },
      localIPs: () => ["192.0.2.1"],
      findRivals: async () => [],
    },
  );
  const done = proxy.run(stop.signal);
  while (!proxy.stats().some(({ syncs }) => syncs > 0)) await Promise.race([sleep(10), done]);
  stop.abort();
  await done;
  const options = { sets: Object.fromEntries(commands.sets), localIPs: ["192.0.2.1"] };
  return (one: Packet) => tracePacket(commands.tables.iptables.tables, one, options).visited.nat;
}

async function visitNftables(services: readonly Service[], slices: readonly EndpointSlice[]) {
  const model = new ServiceModel("IPv4", { name: "n1", zone: undefined, ips: [] });
  for (const service of services) model.setService(`ns1/${service.metadata.name}`, service);
  for (const slice of slices) model.setSlice(`ns1/${slice.metadata.name}`, slice);
  const nft = new FakeNft();
  const [family, mark] = ["IPv4", "0x004000"] as const;
  const request = {
    ...{ isFull: true, keys: model.keys() },
    describe: (key: string) => model.describe(key),
    endpointCount: () => model.endpointCount(),
    fixed: {
      ...{ family, mark, masqueradeAll: false, nodePortIPs: ["192.0.2.1"], serviceCIDRs: [] },
      notFromLocalPods: `ip saddr != ${clusterCIDR}`,
    },
    render: { family, mark, fromLocalPods: `ip saddr ${clusterCIDR}` },
  };
  await new NftablesRules({ nft, clock: systemClock, log: silentLogger }).sync(request, new AbortController().signal);
  return (one: Packet) => traceNft(nft, one).visited.nat;
}
