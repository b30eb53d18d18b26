import { expect, test } from "vitest";
import type { Endpoint, Service, ServiceSpec } from "../../agent/kube/types.ts";
import type { ScenarioPlace } from "./proxy-scenarios.ts";
import { makeService, makeSlice } from "./service-objects.ts";

type Family = "IPv4" | "IPv6";

/** Who asks. `stranger` is an outside host that no source range names. */
type Source = "pod1" | "pod2" | "pod3" | "node" | "node2" | "client" | "stranger";
/** Where to: the cluster IP, the node port, the load balancer's VIP or the external IP. */
type Target = "clusterIP" | "nodePort" | "vip" | "externalIP";
/**
 * Whoever may answer, and the client as the endpoint sees it: as it is, or as the node. `refused` and `dropped` are no answer,
 * at once or never.
 */
type Fate = `${string} sees ${"it" | "node"}` | "refused" | "dropped";

/** A Service, its endpoints, and what becomes of packets to it. */
export interface MatrixRow {
  readonly name: string;
  readonly spec?: Partial<ServiceSpec>;
  readonly endpoints: readonly (Partial<Endpoint> & { pod: "pod1" | "pod2" | "pod3" })[];
  /** `inIptables`: another fate in that mode, where kube-proxy's rules differ as well. */
  readonly packets: readonly (readonly [from: Source, to: Target, want: Fate, inIptables?: Fate])[];
}

const nodePort = 30_080;
const addresses = {
  IPv4: {
    ...{ clusterIP: "10.96.0.20", nodePort: "192.0.2.1", vip: "198.51.100.7", externalIP: "198.51.100.9" },
    ...{ pod1: "10.244.1.2", pod2: "10.244.2.2", pod3: "10.244.3.2", client: "192.0.2.2", node2: "198.18.0.2" },
    stranger: "203.0.113.50",
    /** The node, as each pod sees it. */
    nodeSeenBy: { pod1: "10.244.1.1", pod2: "10.244.2.1", pod3: "198.18.0.1" },
  },
  IPv6: {
    ...{ clusterIP: "fd00:96::20", nodePort: "2001:db8::1", vip: "2001:db8:77::7", externalIP: "2001:db8:77::9" },
    ...{ pod1: "fd00:244:1::2", pod2: "fd00:244:2::2", pod3: "fd00:244:3::2" },
    ...{ client: "2001:db8::2", node2: "2001:db8:1::2", stranger: "2001:db8:50::50" },
    nodeSeenBy: { pod1: "fd00:244:1::1", pod2: "fd00:244:2::1", pod3: "2001:db8:1::1" },
  },
} as const;

const here = { nodeName: "n1" };
const there = { nodeName: "n2" };
const going = { conditions: { ready: false, serving: true, terminating: true } };
const unready = { conditions: { ready: false, serving: false, terminating: false } };
const ranges = ["192.0.2.0/24", "2001:db8::/64"];

/** The behaviour matrix of a service proxy. */
export const matrix: readonly MatrixRow[] = [
  {
    name: "a cluster IP: pods keep their address, others come as the node",
    endpoints: [{ pod: "pod2" }],
    packets: [
      ["pod1", "clusterIP", "pod2 sees it"],
      ["pod3", "clusterIP", "pod2 sees it"],
      ["node", "clusterIP", "pod2 sees node"],
      ["client", "clusterIP", "pod2 sees node"],
      ["node2", "clusterIP", "pod2 sees node"],
    ],
  },
  {
    name: "a cluster IP whose endpoint is on the other node",
    endpoints: [{ pod: "pod3", ...there }],
    packets: [
      ["pod1", "clusterIP", "pod3 sees it"],
      ["node", "clusterIP", "pod3 sees node"],
    ],
  },
  {
    name: "a pod reaches itself",
    spec: { type: "NodePort", externalIPs: ["198.51.100.9", "2001:db8:77::9"] },
    endpoints: [{ pod: "pod1", ...here }],
    packets: [
      ["pod1", "clusterIP", "pod1 sees node"],
      ["pod1", "nodePort", "pod1 sees node"],
      ["pod1", "externalIP", "pod1 sees node"],
    ],
  },
  {
    name: "external traffic, Cluster policy: all come as the node",
    spec: { type: "LoadBalancer", externalIPs: ["198.51.100.9", "2001:db8:77::9"] },
    endpoints: [{ pod: "pod1", ...here }],
    packets: (["nodePort", "vip", "externalIP"] as const).flatMap((to) =>
      (["client", "pod2", "pod3", "node", "node2"] as const).map((from) => [from, to, "pod1 sees node"] as const),
    ),
  },
  {
    name: "external traffic, Local policy: strangers to endpoints here and as themselves, pods and the node to all",
    spec: { type: "LoadBalancer", externalTrafficPolicy: "Local", externalIPs: ["198.51.100.9", "2001:db8:77::9"] },
    endpoints: [
      { pod: "pod1", ...here },
      { pod: "pod3", ...there },
    ],
    packets: (["nodePort", "vip", "externalIP"] as const).flatMap((to) => [
      ["client", to, "pod1 sees it"] as const,
      ["node2", to, "pod1 sees it"] as const,
      ["pod2", to, "pod1,pod3 sees it"] as const,
      ["node", to, "pod1,pod3 sees node"] as const,
    ]),
  },
  {
    name: "external traffic, Local policy, endpoints elsewhere only",
    spec: { type: "LoadBalancer", externalTrafficPolicy: "Local", externalIPs: ["198.51.100.9", "2001:db8:77::9"] },
    endpoints: [{ pod: "pod3", ...there }],
    packets: (["nodePort", "vip", "externalIP"] as const).flatMap((to) => [
      ["client", to, "dropped"] as const,
      ["pod2", to, "pod3 sees it"] as const,
      ["pod3", to, "pod3 sees node"] as const, // itself
      ["node", to, "pod3 sees node"] as const,
    ]),
  },
  {
    name: "a VIP with source ranges; node ports are not gated",
    spec: { type: "LoadBalancer", loadBalancerSourceRanges: ranges },
    endpoints: [{ pod: "pod1", ...here }],
    packets: [
      ["client", "vip", "pod1 sees node"],
      ["node", "vip", "pod1 sees node"],
      ["stranger", "vip", "dropped"],
      ["pod2", "vip", "dropped"],
      ["stranger", "nodePort", "pod1 sees node"],
      ["pod2", "clusterIP", "pod1 sees it"],
    ],
  },
  {
    name: "internal traffic, Local policy",
    spec: { internalTrafficPolicy: "Local" },
    endpoints: [
      { pod: "pod1", ...here },
      { pod: "pod3", ...there },
    ],
    packets: [
      ["pod2", "clusterIP", "pod1 sees it"],
      ["node", "clusterIP", "pod1 sees node"],
    ],
  },
  {
    name: "internal traffic, Local policy, endpoints elsewhere only; external traffic is not concerned",
    spec: { type: "NodePort", internalTrafficPolicy: "Local" },
    endpoints: [{ pod: "pod3", ...there }],
    packets: [
      ["pod1", "clusterIP", "dropped"],
      ["node", "clusterIP", "dropped"],
      ["client", "nodePort", "pod3 sees node"],
    ],
  },
  {
    name: "no endpoints at all: refused",
    spec: { type: "LoadBalancer", externalIPs: ["198.51.100.9", "2001:db8:77::9"] },
    endpoints: [{ pod: "pod1", ...unready }],
    packets: [
      ...(["clusterIP", "nodePort", "vip", "externalIP"] as const).flatMap((to) =>
        (["pod2", "client"] as const).map((from) => [from, to, "refused"] as const),
      ),
      ["node", "clusterIP", "refused"],
      ["node", "nodePort", "refused"],
      // iptables mode looks at external addresses of packets that come in or pass, not of those that the node makes.
      ["node", "vip", "refused", "dropped"],
      ["node", "externalIP", "refused", "dropped"],
    ],
  },
  {
    name: "an endpoint that ends serves while no other is ready",
    spec: { type: "NodePort", externalTrafficPolicy: "Local" },
    endpoints: [
      { pod: "pod1", ...here, ...going },
      { pod: "pod2", ...here, ...unready },
    ],
    packets: [
      ["pod2", "clusterIP", "pod1 sees it"],
      ["client", "nodePort", "pod1 sees it"],
    ],
  },
  {
    name: "an endpoint that ends gets nothing while another is ready",
    endpoints: [{ pod: "pod1", ...going }, { pod: "pod2" }],
    packets: [["pod1", "clusterIP", "pod2 sees it"]],
  },
  {
    name: "hints: this zone's endpoints only, also for external traffic",
    spec: { type: "NodePort" },
    endpoints: [
      { pod: "pod1", ...here, hints: { forZones: [{ name: "zone-a" }] } },
      { pod: "pod3", ...there, hints: { forZones: [{ name: "zone-b" }] } },
    ],
    packets: [
      ["pod2", "clusterIP", "pod1 sees it"],
      ["client", "nodePort", "pod1 sees node"],
    ],
  },
  {
    name: "hints: this node's endpoints only",
    endpoints: [
      { pod: "pod2", ...here, hints: { forNodes: [{ name: "n1" }] } },
      { pod: "pod3", ...there, hints: { forNodes: [{ name: "n2" }] } },
    ],
    packets: [["pod1", "clusterIP", "pod2 sees it"]],
  },
];

// Packets that may go to more than one endpoint are sent so often.
const repeats = 4;
const answerMs = 5_000;
// Long enough for an answer that should not come, also on a busy machine.
const silenceMs = 250;

/** Sends every packet of the matrix, over TCP and UDP, in both families. The node has to be in zone-a. */
export function testMatrix(place: () => ScenarioPlace, mode: "iptables" | "nftables"): void {
  test.each(matrix)("$name", async ({ spec = {}, endpoints, packets }) => {
    publishRow(place(), spec, endpoints);
    await place().running.settled();
    const wrong: string[] = [];
    const flows = (["IPv4", "IPv6"] as const).flatMap((family) => [
      { family, proto: "tcp" as const },
      { family, proto: "udp" as const },
    ]);
    const asked = flows.flatMap(({ family, proto }) =>
      packets.map(async ([from, to, wantInAll, inIptables = wantInAll]) => {
        const want = mode === "iptables" ? inIptables : wantInAll;
        for (let n = 0; n < (want.includes(",") ? repeats : 1); n += 1) {
          const got = await send(place(), { family, proto, from, to, want });
          if (!wanted(want).includes(got)) wrong.push(`${family} ${proto} ${from} → ${to}: ${got}, not ${want}`);
        }
      }),
    );
    await Promise.all(asked);
    expect(wrong).toEqual([]);
  });
}

function publishRow(
  { running }: ScenarioPlace,
  spec: Partial<ServiceSpec>,
  endpoints: readonly (Partial<Endpoint> & { pod: "pod1" | "pod2" | "pod3" })[],
): void {
  const { type = "ClusterIP" } = spec;
  const external = type === "ClusterIP" ? {} : { nodePort };
  const ports = [
    { name: "p80", port: 80, protocol: "TCP" as const, ...external },
    { name: "u80", port: 80, protocol: "UDP" as const, ...external },
  ];
  const ingress = [{ ip: addresses.IPv4.vip }, { ip: addresses.IPv6.vip }];
  const status: Partial<Service> = type === "LoadBalancer" ? { status: { loadBalancer: { ingress } } } : {};
  const clusterIPs = [addresses.IPv4.clusterIP, addresses.IPv6.clusterIP];
  const families = { ipFamilies: ["IPv4" as const, "IPv6" as const], clusterIP: clusterIPs[0]!, clusterIPs };
  running.services.put(makeService("row", { ...spec, ...families, ports }, status));
  const slicePorts = ports.map(({ name, protocol }) => ({ name, protocol, port: 8080 }));
  for (const family of ["IPv4", "IPv6"] as const) {
    const list = endpoints.map(({ pod, ...rest }) => ({ address: addresses[family][pod], ...rest }));
    running.endpointSlices.put(makeSlice("row", list, { addressType: family, ports: slicePorts, suffix: family }));
  }
}

async function send(
  { net }: ScenarioPlace,
  about: { family: Family; proto: "tcp" | "udp"; from: Source; to: Target; want: Fate },
): Promise<string> {
  const { family, proto, from, to, want } = about;
  const book = addresses[family];
  // pod3 and the stranger are second addresses of their machines.
  const peer = net[from === "pod3" ? "node2" : from === "stranger" ? "client" : from];
  const source = from === "node" ? undefined : book[from];
  const port = to === "nodePort" ? nodePort : 80;
  try {
    const answer = await peer.ask(proto, book[to], port, want === "dropped" ? silenceMs : answerMs, source);
    const [name = "", seen = ""] = answer.replace("::ffff:", "").split(" ");
    const nodeAddress = Object.entries(book.nodeSeenBy).find(([pod]) => pod === name)?.[1];
    return `${name} sees ${seen === source ? "it" : seen === nodeAddress ? "node" : seen}`;
  } catch (err) {
    const { message } = err as Error;
    return message === "ECONNREFUSED" ? "refused" : message === "ETIMEDOUT" ? "dropped" : message;
  }
}

function wanted(fate: Fate): string[] {
  const [names = "", seen] = fate.split(" sees ");
  return seen === undefined ? [fate] : names.split(",").map((name) => `${name} sees ${seen}`);
}
