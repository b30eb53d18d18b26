import { type Family, hostPort } from "../ip.ts";
import { treeChains } from "../iptables/fixed.ts";
import { serviceSetName } from "../iptables/set-names.ts";
import { tableName } from "../nftables/fixed.ts";
import { familyWords } from "../nftables/render.ts";
import { endpointsBehind, isRemembering, type SharedEndpoint, type Target } from "./endpoints.ts";
import { printable, serviceOfChain, serviceOfComment, type ServiceName } from "./names.ts";
import { nodePortAddresses } from "./node-port.ts";
import {
  type Counter,
  type Entry,
  type Rule,
  type Ruleset,
  type Step,
  type Table,
  type Verdict,
  wordOf,
} from "./ruleset.ts";

/** Which service is meant: by name, or by one of its addresses. */
export type ServiceQuery = { readonly key: string } | { readonly address: string };

/** One place where packets for a service come in, or are refused. */
export interface Entrance {
  /** `cluster IP`, `node port`, …; "" if the rules do not say. */
  readonly kind: string;
  /** `10.96.0.10:80`, `*:30080` */
  readonly destination: string;
  /** Chains from the kernel's hook to the rule, the table first; with nftables, the map. */
  readonly path: readonly string[];
  /** The chain that packets are sent to, or what else becomes of them. */
  readonly leadsTo: string;
  readonly counter: Counter | undefined;
  /** Flows that came in here and that connection tracking knows now; absent: nobody looked. */
  readonly flows?: number | undefined;
  /** Whether the ipset that is asked first knows the address; undefined: no set is asked. */
  readonly isInSet: boolean | undefined;
}

/** A chain of the service. */
export interface ServiceChain {
  readonly name: string;
  /** Rules that do not choose an endpoint. */
  readonly rules: readonly { readonly text: string; readonly comment: string; readonly counter: Counter | undefined }[];
  readonly endpoints: readonly SharedEndpoint[];
  /** A client that was here before is sent to the endpoint that it had. */
  readonly hasAffinity: boolean;
}

/** What the kernel has for one port of a service. */
export interface PortRules {
  /** `namespace/name:port`. */
  readonly name: string;
  readonly protocol: string;
  readonly entrances: readonly Entrance[];
  readonly chains: readonly ServiceChain[];
}

/** What one set of tables has for a service. */
export interface ServiceRules {
  readonly service: string;
  readonly family: Family;
  readonly kind: Table["kind"];
  readonly ports: readonly PortRules[];
}

/** Finds all rules of a service; one entry for each kind of tables that has some. Pure. */
export function findServiceRules(ruleset: Ruleset, query: ServiceQuery): ServiceRules[] {
  const found: ServiceRules[] = [];
  for (const kind of ["iptables-nft", "iptables-legacy", "nft"] as const) {
    const tables = ruleset.tables.filter((table) => table.kind === kind);
    const of = (all: FoundEntrance[], service: string) => {
      if (all.length > 0) found.push({ service, family: ruleset.family, kind, ports: portsOf(all) });
    };
    const entrances =
      kind === "nft" ? nftEntrances(tables, ruleset.family, query) : iptablesEntrances(tables, ruleset.family, query);
    of(
      entrances,
      entrances.find(({ name }) => name.key !== "")?.name.key ?? ("key" in query ? query.key : query.address),
    );
  }
  return found;
}

interface FoundEntrance extends Entrance {
  readonly name: ServiceName;
  readonly protocol: string;
  readonly table: Table;
  readonly chain: string | undefined;
  readonly target: Target;
}

function portsOf(entrances: readonly FoundEntrance[]): PortRules[] {
  const ports = new Map<string, FoundEntrance[]>();
  for (const one of entrances) {
    const id = `${printable(one.name)} ${one.protocol}`;
    ports.set(id, [...(ports.get(id) ?? []), one]);
  }
  return [...ports].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, all]) => portOf(all));
}

function portOf(all: readonly FoundEntrance[]): PortRules {
  const [first] = all;
  const chains = new Map<string, ServiceChain>();
  for (const { table, chain, target } of all) if (chain !== undefined) addChains(table, chain, target, chains);
  return {
    name: first === undefined ? "" : printable(first.name),
    protocol: first?.protocol ?? "",
    entrances: all.map(({ kind, destination, path, leadsTo, counter, isInSet }) => {
      return { kind, destination, path, leadsTo, counter, isInSet };
    }),
    chains: [...chains.values()],
  };
}

/** A chain and those that it leads to, but for those of endpoints and the one that marks for masquerading. */
function addChains(table: Table, name: string, target: Target, chains: Map<string, ServiceChain>): void {
  const chain = table.chains.get(name);
  if (chain === undefined || chains.has(name)) return;
  const rules: ServiceChain["rules"][number][] = [];
  const next: string[] = [];
  const endpoints: SharedEndpoint[] = [];
  chains.set(name, { name, rules, endpoints, hasAffinity: chain.rules().some(isRemembering) });
  const chooses = chain.rules().some(({ steps }) => steps.some(isChance));
  for (const rule of chain.rules()) {
    const goals = goalsOf(rule).filter((goal) => table.chains.has(goal) && goal !== "KUBE-MARK-MASQ");
    // Many endpoints are chosen in groups, each of which has a chain of the same kind.
    const isLastChoice = chooses && goals.length > 0 && rule.steps.length === 1;
    const isChoice = goals.some(isEndpoint) || rule.steps.some(isChance) || isLastChoice;
    if (!isChoice && !rule.steps.some(isTranslation)) {
      rules.push({ text: rule.text, comment: rule.comment ?? "", counter: rule.counter });
      next.push(...goals);
    }
  }
  // Chains further down tell their endpoints themselves.
  if (next.length === 0) endpoints.push(...endpointsBehind(table, name, target));
  for (const goal of next) addChains(table, goal, target, chains);
}

function isChance({ kind }: Step): boolean {
  return kind === "chance" || kind === "recent";
}

function isTranslation(step: Step): boolean {
  return step.kind === "lookup" || (step.kind === "verdict" && step.verdict.kind === "dnat");
}

function goalsOf({ steps }: Rule): string[] {
  return steps.flatMap((step) => {
    if (step.kind !== "verdict") return [];
    return step.verdict.kind === "jump" || step.verdict.kind === "goto" ? [step.verdict.chain] : [];
  });
}

/** Chains that translate to one address. */
function isEndpoint(name: string): boolean {
  return name.startsWith("KUBE-SEP-") || name.startsWith("endpoint-");
}

function iptablesEntrances(tables: readonly Table[], family: Family, query: ServiceQuery): FoundEntrance[] {
  const found: FoundEntrance[] = [];
  // Ways to endpoints first, refusals last.
  const wanted = ["nat", "filter"].flatMap((name) => tables.filter((table) => table.name === name));
  for (const table of wanted) {
    const parents = new Map<string, string>();
    const hits: { chain: string; at: number }[] = [];
    const needle = "key" in query ? query.key : `-d ${query.address}/`;
    for (const chain of table.chains.values()) {
      for (const [at, text] of chain.texts().entries()) {
        const goal = / -[jg] (\S+)$/.exec(` ${text}`)?.[1];
        if (goal !== undefined && !parents.has(goal)) parents.set(goal, chain.name);
        if (text.includes(needle) && !serviceChainRE.test(chain.name)) hits.push({ chain: chain.name, at });
      }
    }
    for (const { chain, at } of hits) {
      const rule = table.chains.get(chain)?.rules()[at];
      if (rule !== undefined) found.push(...entrancesOf(rule, table, pathTo(chain, table, parents), family, query));
    }
  }
  return found;
}

// One service port or endpoint; the trees' inner chains have "AT-" or "NP-" after the prefix.
const serviceChainRE = /^KUBE-(SVC|SVL|EXT|FW|SEP)-[A-Z2-7]{16}$/;

function entrancesOf(
  rule: Rule,
  table: Table,
  path: readonly string[],
  family: Family,
  query: ServiceQuery,
): FoundEntrance[] {
  const name = serviceOfComment(rule.comment ?? "");
  if (name === undefined || ("key" in query && name.key !== query.key)) return [];
  const values = new Map<string, string | number>();
  let verdict: Verdict | undefined;
  for (const step of rule.steps) {
    if (step.kind === "verdict") ({ verdict } = step);
    if (step.kind !== "match" || !("find" in step.among) || step.isNegated) continue;
    const [field] = step.fields;
    for (const { key } of step.among) {
      const [value] = key;
      if (field !== undefined && typeof value !== "object" && value !== undefined) values.set(field.kind, value);
    }
  }
  if (verdict === undefined) return [];
  const address = values.get("daddr");
  const [protocol, port] = [String(values.get("protocol") ?? ""), Number(values.get("dport") ?? 0)];
  const chain = verdict.kind === "jump" || verdict.kind === "goto" ? verdict.chain : undefined;
  const asksSet = path.includes(treeChains.natServices.root) && table.name === "nat";
  const set = asksSet ? table.sets.get(serviceSetName(family)) : undefined;
  const isNodePort = path.includes(table.name === "nat" ? treeChains.natNodePorts.root : treeChains.noNodePort.root);
  return placesOf(address === undefined ? undefined : String(address), isNodePort, table).map((place) => ({
    name,
    protocol,
    table,
    chain,
    target: { daddr: String(address ?? ""), protocol, dport: port },
    kind: name.about === "" ? "node port" : name.about,
    destination: hostPort(place, port),
    path,
    leadsTo: chain ?? verdict.kind.toUpperCase(),
    counter: rule.counter,
    isInSet: set && set.find([String(address), protocol, port], (value, one) => value === one) !== undefined,
  }));
}

/** The addresses that packets to an entrance are for. */
function placesOf(address: string | undefined, isNodePort: boolean, table: Table): readonly string[] {
  if (address !== undefined) return [address];
  const places = isNodePort ? nodePortAddresses(table) : undefined;
  return places === undefined ? ["*"] : places.length === 0 ? ["(no address)"] : places;
}

function pathTo(chain: string, table: Table, parents: ReadonlyMap<string, string>): string[] {
  const path = [chain];
  for (let at = parents.get(chain); at !== undefined && !path.includes(at); at = parents.get(at)) {
    // Which of the hooks it was says nothing.
    if (table.chains.get(at)?.base === undefined) path.unshift(at);
  }
  return [table.name, ...path];
}

const entranceMaps = [
  { map: "service-ips", kind: "" },
  { map: "service-nodeports", kind: "node port" },
  { map: "no-endpoint-services", kind: "" },
  { map: "no-endpoint-nodeports", kind: "" },
  { map: "firewall-ips", kind: "source ranges" },
] as const;

function nftEntrances(tables: readonly Table[], family: Family, query: ServiceQuery): FoundEntrance[] {
  const table = tables.find(({ name }) => name === `${familyWords(family).ip} ${tableName}`);
  if (table === undefined) return [];
  const all = entranceMaps.flatMap(({ map, kind }) =>
    [...(table.sets.get(map) ?? [])].map((entry) => ({ entry, map, kind, name: nameOf(entry) })),
  );
  // An address leads to the service's name, and so to its other addresses.
  const byAddress = "address" in query ? all.filter(({ entry }) => entry.key[0] === query.address) : [];
  const keys = new Set(
    "key" in query ? [query.key] : byAddress.flatMap(({ name }) => (name === undefined ? [] : [name.key])),
  );
  const clusterIPs = table.sets.get("cluster-ips");
  return all.flatMap(({ entry, map, kind, name }) => {
    const isMeant = name === undefined ? byAddress.some((one) => one.entry === entry) : keys.has(name.key);
    if (!isMeant || entry.verdict === undefined) return [];
    const parts = [...entry.key];
    const port = Number(parts.pop());
    const protocol = wordOf(parts.pop());
    const isNodePort = parts.length === 0;
    const address = wordOf(parts.pop());
    const { verdict } = entry;
    const chain = verdict.kind === "goto" || verdict.kind === "jump" ? verdict.chain : undefined;
    const isReject = chain === "reject-chain";
    const isClusterIP = clusterIPs?.find([address], (value, one) => value === one) !== undefined;
    // In the words of the iptables mode's comments.
    const refusal = isReject ? "has no endpoints" : chain === undefined ? "has no local endpoints" : undefined;
    return placesOf(isNodePort ? undefined : address, isNodePort, table).map((place) => {
      return {
        name: name ?? { key: "", portName: "" },
        protocol,
        table,
        chain: isReject ? undefined : chain,
        target: { daddr: address, protocol, dport: port },
        kind: refusal ?? (kind === "" ? (isClusterIP ? "cluster IP" : "external or load balancer IP") : kind),
        destination: hostPort(place, port),
        path: [table.name, map],
        leadsTo: isReject ? "REJECT" : (chain ?? verdict.kind.toUpperCase()),
        counter: undefined,
        isInSet: undefined,
      };
    });
  });
}

function nameOf({ comment, verdict }: Entry): ServiceName | undefined {
  const chain = verdict?.kind === "goto" || verdict?.kind === "jump" ? verdict.chain : "";
  return serviceOfChain(chain) ?? serviceOfComment(comment ?? "");
}
