import type { Family } from "../ip.ts";
import { detectLocalPods } from "../local-pods.ts";
import type { DetectLocalOptions } from "../options.ts";
import type { RenderContext, TreeName } from "./render.ts";
import type { SharedSetNames } from "./set-names.ts";

/** The tables that hold services' rules. */
export type Table = "nat" | "filter";

/** A rule in a chain that is not ours, which leads packets into one of our chains. */
export interface Jump {
  readonly table: Table;
  readonly from: "PREROUTING" | "INPUT" | "FORWARD" | "OUTPUT" | "POSTROUTING";
  readonly to: string;
  /** Extra match, or "". */
  readonly match: string;
  /** By which an existing jump is recognised, also one made by kube-proxy; or "". */
  readonly comment: string;
}

const ctstateNew = "-m conntrack --ctstate NEW";
const external = "kubernetes externally-visible service portals";
const portals = "kubernetes service portals";
const firewall = "kubernetes load balancer firewall";

/** Jumps from the built-in chains, in the order in which they are inserted at the head. */
export const jumps: readonly Jump[] = [
  { table: "filter", from: "INPUT", to: "KUBE-EXTERNAL-SERVICES", match: ctstateNew, comment: external },
  { table: "filter", from: "FORWARD", to: "KUBE-EXTERNAL-SERVICES", match: ctstateNew, comment: external },
  { table: "filter", from: "INPUT", to: "KUBE-NODEPORTS", match: "", comment: "kubernetes health check service ports" },
  { table: "filter", from: "FORWARD", to: "KUBE-SERVICES", match: ctstateNew, comment: portals },
  { table: "filter", from: "OUTPUT", to: "KUBE-SERVICES", match: ctstateNew, comment: portals },
  { table: "filter", from: "FORWARD", to: "KUBE-FORWARD", match: "", comment: "kubernetes forwarding rules" },
  { table: "filter", from: "INPUT", to: "KUBE-PROXY-FIREWALL", match: ctstateNew, comment: firewall },
  { table: "filter", from: "OUTPUT", to: "KUBE-PROXY-FIREWALL", match: ctstateNew, comment: firewall },
  { table: "filter", from: "FORWARD", to: "KUBE-PROXY-FIREWALL", match: ctstateNew, comment: firewall },
  { table: "nat", from: "OUTPUT", to: "KUBE-SERVICES", match: "", comment: portals },
  { table: "nat", from: "PREROUTING", to: "KUBE-SERVICES", match: "", comment: portals },
  { table: "nat", from: "POSTROUTING", to: "KUBE-POSTROUTING", match: "", comment: "kubernetes postrouting rules" },
];

/** Jumps to the chain that is shared with the kubelet role. */
export const sharedJumps: readonly Jump[] = [
  { table: "filter", from: "INPUT", to: "KUBE-FIREWALL", match: "", comment: "" },
  { table: "filter", from: "OUTPUT", to: "KUBE-FIREWALL", match: "", comment: "" },
];

/** Our chains that do not belong to a service, by table. The canary, KUBE-FIREWALL and the trees' inner chains apart. */
export const ownChains: Readonly<Record<Table, readonly string[]>> = {
  nat: ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"],
  filter: ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-FORWARD", "KUBE-PROXY-FIREWALL"],
};

/** Packets of no known connection. */
const invalidRule = "-m conntrack --ctstate INVALID -j DROP";
/** Tells the rule that counts connections to node ports on loopback. */
export const localhostCountComment = "kubernetes service nodeports on loopback, to be counted";
const localhostCountRule = `-m comment --comment "${localhostCountComment}" -m conntrack --ctstate DNAT --ctorigdst 127.0.0.0/8`;

/** By which others know the rule, too. */
export const martianComment = "block incoming localnet connections";
/** Node ports on loopback need route_localnet, which lets neighbours send to 127.0.0.0/8. IPv6 has no such setting. */
export const martianRule = `-m comment --comment "${martianComment}" -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP`;

/** Tells a flush of the tables by somebody else: it takes this chain's only rule away. */
export const canaryChain = "KUBE-PROXY-CANARY";
export const canaryTables = ["mangle", "nat", "filter"] as const;
export const canaryRule = '-m comment --comment "kubernetes service proxy: rules are in place"';

/** Where each dispatch tree lives. Their inner chains' prefixes are among the ones that kube-proxy cleans up, too. */
export const treeChains: Readonly<
  Record<TreeName, { table: Table; root: string; inner: string; keys: "address" | "port" }>
> = {
  natServices: { table: "nat", root: "KUBE-SVC-AT", inner: "KUBE-SVC-AT-", keys: "address" },
  natNodePorts: { table: "nat", root: "KUBE-NODEPORTS", inner: "KUBE-EXT-AT-", keys: "port" },
  noEndpoints: { table: "filter", root: "KUBE-SERVICES", inner: "KUBE-SVC-AT-", keys: "address" },
  noExternal: { table: "filter", root: "KUBE-EXT-AT", inner: "KUBE-EXT-AT-", keys: "address" },
  noNodePort: { table: "filter", root: "KUBE-EXT-NP", inner: "KUBE-EXT-NP-", keys: "port" },
  firewall: { table: "filter", root: "KUBE-PROXY-FIREWALL", inner: "KUBE-FW-AT-", keys: "address" },
  health: { table: "filter", root: "KUBE-NODEPORTS", inner: "KUBE-SVL-AT-", keys: "port" },
};

/** What the fixed chains depend on, beyond the configuration. */
export interface FixedContext {
  readonly family: Family;
  /** `0x…` of the masquerade bit. */
  readonly mark: string;
  /** Sets that rules may refer to; undefined: none. */
  readonly sets: SharedSetNames | undefined;
  /** What matches those clients of cluster IPs that are masqueraded; see `masqueradedClients`. Looked at with sets only. */
  readonly masqueradedClients: string | undefined;
  /** Addresses that accept node ports; undefined: all local ones. */
  readonly nodePortIPs: readonly string[] | undefined;
  /** Node ports on loopback addresses, and the rule against abuse of route_localnet that they need. */
  readonly hasLocalhostNodePorts: boolean;
  /** Drop packets that conntrack calls invalid: their DNAT would not be undone. Not with nf_conntrack_tcp_be_liberal. */
  readonly dropsInvalid: boolean;
  /** iptables knows `--random-fully` (1.6.2). */
  readonly hasRandomFully: boolean;
}

/** Chains that others need from the start; nothing leads to services through them. By table and chain. Pure. */
export function renderBase(context: FixedContext): Record<Table, Map<string, readonly string[]>> {
  const { mark, sets } = context;
  // Only what was translated: a machine's own address may be an endpoint, too, and be reached without a service.
  const hairpins = (target: string) =>
    sets === undefined
      ? []
      : [
          `-m comment --comment "kubernetes service traffic of an endpoint to itself" -m conntrack --ctstate DNAT -m set --match-set ${sets.hairpins} dst,dst,src -j ${target}`,
        ];
  const nat = new Map<string, readonly string[]>([
    ["KUBE-MARK-MASQ", [`-j MARK --or-mark ${mark}`]],
    [
      "KUBE-POSTROUTING",
      [
        ...hairpins("KUBE-MARK-MASQ"),
        `-m mark ! --mark ${mark}/${mark} -j RETURN`,
        // Only counts. All of them come here, as the node is their client, and little else does.
        ...(context.family === "IPv4" && context.hasLocalhostNodePorts ? [localhostCountRule] : []),
        // Cleared, so that a packet that passes here again (through a tunnel, say) is not masqueraded twice.
        `-j MARK --xor-mark ${mark}`,
        `-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE${context.hasRandomFully ? " --random-fully" : ""}`,
      ],
    ],
  ]);
  const filter = new Map<string, readonly string[]>([
    [
      "KUBE-FORWARD",
      [
        ...(context.dropsInvalid ? [invalidRule] : []),
        `-m comment --comment "kubernetes forwarding rules" -m mark --mark ${mark}/${mark} -j ACCEPT`,
        '-m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT',
        // As marked as the others above, but only when it leaves.
        ...hairpins("ACCEPT"),
      ],
    ],
  ]);
  if (context.family === "IPv4" && context.hasLocalhostNodePorts) {
    filter.set("KUBE-FIREWALL", [martianRule]);
  }
  return { nat, filter };
}

/** Chains that lead into the trees; written last. By table and chain. Pure. */
export function renderEntrances(context: FixedContext): Record<Table, Map<string, readonly string[]>> {
  const { family, sets, nodePortIPs, hasLocalhostNodePorts, masqueradedClients } = context;
  const toServices: string[] = [];
  if (sets === undefined) toServices.push(`-j ${treeChains.natServices.root}`);
  else {
    if (masqueradedClients !== undefined) {
      const match = `${masqueradedClients} -m set --match-set ${sets.clusterIPs} dst,dst`.trimStart();
      toServices.push(`-m comment --comment "kubernetes cluster IPs" ${match} -j KUBE-MARK-MASQ`);
    }
    // One lookup; packets that are for no service leave here.
    toServices.push(`-m set --match-set ${sets.serviceIPs} dst,dst -j ${treeChains.natServices.root}`);
  }
  const about = '-m comment --comment "kubernetes service nodeports; this must be the last rule"';
  // The lookup in the set comes first: most packets are for no node port, and whose address it is takes longer to tell.
  const isNodePort = sets === undefined ? "" : `-m set --match-set ${sets.nodePorts} dst,dst `;
  const toNodePorts: string[] = [];
  if (nodePortIPs === undefined) {
    const notLoopback = family === "IPv6" ? "! -d ::1/128 " : hasLocalhostNodePorts ? "" : "! -d 127.0.0.0/8 ";
    toNodePorts.push(`${about} ${isNodePort}-m addrtype --dst-type LOCAL ${notLoopback}-j KUBE-NODEPORTS`);
  } else {
    for (const ip of nodePortIPs) toNodePorts.push(`${about} -d ${ip} ${isNodePort}-j KUBE-NODEPORTS`);
  }
  return {
    nat: new Map([["KUBE-SERVICES", [...toServices, ...toNodePorts]]]),
    filter: new Map([
      [
        "KUBE-EXTERNAL-SERVICES",
        [`-j ${treeChains.noExternal.root}`, `-m addrtype --dst-type LOCAL -j ${treeChains.noNodePort.root}`],
      ],
    ]),
  };
}

/** What matches packets of this node's pods, and of everybody else; undefined if that cannot be told for the family. Pure. */
export function detectLocalMatch(options: DetectLocalOptions, family: Family): RenderContext["localPods"] {
  const pods = detectLocalPods(options, family);
  if (pods === undefined) return undefined;
  const match = pods.kind === "source" ? `-s ${pods.cidr}` : `-i ${pods.name}${pods.isPrefix ? "+" : ""}`;
  return { match, notMatch: `! ${match}` };
}
