import { hostPort } from "../ip.ts";
import { printable, serviceOfChain, serviceOn } from "./names.ts";
import { findNodePort } from "./node-port.ts";
import { isRemembering } from "./endpoints.ts";
import { type Entries, type Ruleset, wordOf } from "./ruleset.ts";
import type { Packet, Surroundings } from "./match.ts";
import type { Passed } from "./chain-walk.ts";
import { walk, type Walk, type Way } from "./walk.ts";

/** One end that a packet may come to. */
export interface TraceEnd {
  /** In (0, 1]; those of all ends add up to 1. */
  readonly share: number;
  readonly fate: Way["fate"];
  /** `ip:port` that it is sent on to; undefined: not translated. */
  readonly endpoint: string | undefined;
  /** The address that it leaves with: its own, another one, or ("") that of the interface by which it leaves. */
  readonly source: string;
  /** The interface by which it leaves; undefined: it does not. */
  readonly leavesBy: string | undefined;
  /** The rule that ended its way, for ends that are no arrival. */
  readonly decidedBy: TraceStep | undefined;
  /** Why it did, for people; "" for an arrival. */
  readonly why: string;
}

/** A rule on the way, in words. */
export interface TraceStep {
  readonly table: string;
  readonly hook: string;
  readonly chain: string;
  readonly rule: string;
  readonly comment: string;
  /** What the rule found in a map, or what the chain's policy is. */
  readonly note: string;
}

/** Where a packet ends, and why. */
export interface Trace {
  readonly packet: {
    readonly from: string;
    readonly to: string;
    readonly protocol: string;
    /** undefined: made on this machine. */
    readonly comesInBy: string | undefined;
    /** Nobody said by which interface it comes in; it is the one by which its source is reached. */
    readonly isInterfaceGuessed: boolean;
  };
  /** `namespace/name:port` that the rules name on its way; undefined: none. */
  readonly service: string | undefined;
  /** The service of the node port that the packet is for where rules do not take it, see `notes`; undefined: it is for none. */
  readonly nodePortOf: string | undefined;
  /** The likeliest first. */
  readonly ends: readonly TraceEnd[];
  /** Rules that all ways have in common, and where they part; see `partsAt`. */
  readonly steps: readonly TraceStep[];
  /** At which of `steps` ways part; undefined: there is one way. */
  readonly partsAt: number | undefined;
  readonly rulesLookedAt: number;
  /** Rules of which nobody can say whether they match; the trace takes them not to. */
  readonly unjudged: readonly {
    readonly table: string;
    readonly chain: string;
    readonly rule: string;
    readonly why: string;
  }[];
  /** What could not be read, and what else a person should know; one line each. */
  readonly notes: readonly string[];
}

/** What is asked about the machine, beside rules. */
export interface TraceContext {
  readonly surroundings: Surroundings;
  /** `net.ipv4.ip_forward` or its IPv6 sibling. */
  readonly forwards: boolean;
  readonly isInterfaceGuessed: boolean;
  readonly extraNotes: readonly string[];
}

/** Walks, and says in words what came of it. Pure. */
export function trace(ruleset: Ruleset, packet: Packet, context: TraceContext): { trace: Trace; walked: Walk } {
  const walked = walk(ruleset, packet, context.surroundings);
  const ways = walked.ways.toSorted((a, b) => b.share - a.share);
  const { steps, partsAt } = commonSteps(ways.map(({ passed }) => passed));
  const service = serviceOn(ways[0]?.passed ?? []);
  const to = hostPort(packet.daddr, packet.dport);
  const isUntouched = ways.every(({ fate, dnat }) => fate === "local" && dnat === undefined);
  const nodePort = isUntouched ? findNodePort(ruleset, packet) : undefined;
  const isForwarded = packet.iif !== undefined && ways.some(({ fate }) => fate === "forwarded");
  return {
    walked,
    trace: {
      packet: {
        from: packet.saddr,
        to,
        protocol: packet.protocol,
        comesInBy: packet.iif,
        isInterfaceGuessed: context.isInterfaceGuessed,
      },
      service: service && printable(service),
      nodePortOf: nodePort?.service,
      ends: ways.map((way) => endOf(way, packet)),
      steps,
      partsAt,
      rulesLookedAt: walked.visited,
      unjudged: walked.unjudged.map(({ table, chain, rule, why }) => ({ table, chain, rule: rule.text, why })),
      notes: [
        ...(isForwarded && !context.forwards
          ? ["this machine forwards nothing: net.ipv4.ip_forward (IPv6: net.ipv6.conf.all.forwarding) is 0"]
          : []),
        ...(ways.every(({ dnat }) => dnat === undefined) ? otherPorts(ruleset, packet) : []),
        ...(nodePort === undefined ? [] : [nodePort.note]),
        ...affinityNotes(ruleset, ways[0]?.passed ?? []),
        ...context.extraNotes,
        ...ruleset.unread,
      ],
    },
  };
}

function endOf({ share, fate, dnat, snat, oif, passed }: Way, { saddr }: Packet): TraceEnd {
  const last = passed.at(-1);
  return {
    share,
    fate,
    endpoint: dnat && hostPort(dnat.address, dnat.port),
    source: snat ?? saddr,
    leavesBy: fate === "forwarded" ? oif : undefined,
    decidedBy: (fate === "drop" || fate === "reject") && last !== undefined ? stepOf(last) : undefined,
    why: fate === "drop" || fate === "reject" ? reasonOf(passed) : "",
  };
}

/** Rules say it in a comment, of nftables mode the map that was asked. */
function reasonOf(passed: readonly Passed[]): string {
  const last = passed.at(-1);
  if (last === undefined) return "";
  const { rule, note } = last;
  const asked = passed.findLast(({ note: found }) => found !== undefined)?.rule?.text ?? "";
  const name = serviceOn(passed.toReversed());
  const of = name === undefined ? "" : `${printable(name)} `;
  if (asked.includes("@no-endpoint-")) return `${of}has no ${rule?.text.startsWith("reject") ? "" : "local "}endpoints`;
  if (serviceOfChain(last.chain) !== undefined && rule?.comment !== undefined) return `${of}${rule.comment}`;
  if (rule?.comment !== undefined && rule.comment !== "") return rule.comment;
  return [note, rule?.text].filter(Boolean).join("; ");
}

function stepOf({ table, hook, chain, rule, note }: Passed): TraceStep {
  return { table, hook, chain, rule: rule?.text ?? "", comment: rule?.comment ?? "", note: note ?? "" };
}

/** What all ways begin with and end with. */
function commonSteps(ways: readonly (readonly Passed[])[]): { steps: TraceStep[]; partsAt: number | undefined } {
  const [first = [], ...others] = ways;
  if (others.length === 0) return { steps: first.map(stepOf), partsAt: undefined };
  const isSame = (a: Passed | undefined, b: Passed | undefined) =>
    a !== undefined &&
    b !== undefined &&
    a.rule === b.rule &&
    a.hook === b.hook &&
    a.chain === b.chain &&
    a.note === b.note;
  let head = 0;
  while (head < first.length && others.every((way) => isSame(way[head], first[head]))) head += 1;
  let tail = 0;
  const fits = (way: readonly Passed[]) => tail < way.length - head && isSame(way.at(-1 - tail), first.at(-1 - tail));
  while (tail < first.length - head && others.every(fits)) tail += 1;
  const steps = [...first.slice(0, head), ...first.slice(first.length - tail)].map(stepOf);
  return { steps, partsAt: head };
}

/** Whether a client that comes again goes where it went. */
function affinityNotes({ tables }: Ruleset, way: readonly Passed[]): string[] {
  for (const { table: name, chain, rule } of way) {
    const rules = tables
      .find((table) => table.name === name && table.chains.has(chain))
      ?.chains.get(chain)
      ?.rules();
    if (rules?.some(isRemembering) !== true) continue;
    const isKnown = rule !== undefined && isRemembering(rule);
    const what = isKnown
      ? "this client was here before, and keeps its endpoint"
      : "the endpoint that a client gets it keeps";
    return [`session affinity: ${what} until it stays away for the timeout`];
  }
  return [];
}

const setsOfAddresses = ["KUBE-SERVICE-IPS", "KUBE-6-SERVICE-IPS", "service-ips", "no-endpoint-services"];

/** The usual mistake: the right address, and a port that the service does not have. */
function otherPorts(ruleset: Ruleset, { daddr, protocol, dport }: Packet): string[] {
  const found = new Set<string>();
  const look = (entries: Entries | undefined) => {
    for (const { key } of entries ?? []) if (key[0] === daddr) found.add(`${wordOf(key[1])} ${wordOf(key[2])}`);
  };
  for (const { sets } of ruleset.tables) for (const name of setsOfAddresses) look(sets.get(name));
  if (found.size === 0 || found.has(`${protocol} ${dport}`)) return [];
  return [`${daddr} is a service's address, but has no ${protocol} ${dport}: it has ${[...found].sort().join(", ")}`];
}
