import { hostPort } from "../ip.ts";
import type { Counter, Rule, Step, Table } from "./ruleset.ts";

/** Whom packets are for when they come into a chain: maps without names ask for it. */
export interface Target {
  readonly daddr: string;
  readonly protocol: string;
  readonly dport: number;
}

/** An endpoint that a chain may choose. */
export interface SharedEndpoint {
  /** `ip:port`, the IPv6 address in brackets. */
  readonly address: string;
  /** In (0, 1]. Those of a chain add up to 1. */
  readonly share: number;
  /** The endpoint's own chain; undefined: it has none. */
  readonly chain: string | undefined;
  /** New connections that were sent to it, by whichever chain; undefined: nobody counts. */
  readonly counter: Counter | undefined;
  /** Flows to it that connection tracking knows now, by whichever entrance of the port; absent: nobody looked. */
  readonly flows?: number | undefined;
}

/** Whether a rule asks which clients were here before. */
export function isRemembering({ steps, text }: Rule): boolean {
  return steps.some(({ kind }) => kind === "recent") || /@affinity-|--match-set KUBE-(6-)?AFF-/.test(text);
}

// As deep as the kernel lets chains nest.
const nestingMax = 16;

/** The endpoints that a chain chooses among for clients whom nobody remembers, and their chances. Pure. */
export function endpointsBehind(table: Table, chain: string, target: Target): SharedEndpoint[] {
  return choose(table, chain, target, 1, 0);
}

function choose(table: Table, name: string, target: Target, share: number, depth: number): SharedEndpoint[] {
  const found: SharedEndpoint[] = [];
  let rest = share;
  for (const rule of depth > nestingMax ? [] : (table.chains.get(name)?.rules() ?? [])) {
    const chance = chanceOf(rule);
    if (chance === undefined) continue;
    const taken = rest * chance;
    const behind = rule.steps.flatMap((step) => chosen(table, name, rule, step, target, taken, depth));
    found.push(...behind);
    // Packets come back from a chain that only marks them.
    if (behind.length > 0) rest -= taken;
  }
  return found;
}

/** The rule's chance to be taken by a packet that comes to it; undefined: that depends on the packet. */
function chanceOf({ steps }: Rule): number | undefined {
  let chance = 1;
  for (const step of steps) {
    if (step.kind === "chance") chance *= step.probability;
    if (step.kind === "recent" || step.kind === "unknown") return undefined;
    if (step.kind === "match" && step.fields.some(({ kind }) => kind !== "protocol")) return undefined;
  }
  return chance;
}

function chosen(
  table: Table,
  chain: string,
  rule: Rule,
  step: Step,
  target: Target,
  share: number,
  depth: number,
): SharedEndpoint[] {
  if (step.kind === "verdict") {
    const { verdict } = step;
    const goal = verdict.kind === "jump" || verdict.kind === "goto" ? verdict.chain : undefined;
    if (goal !== undefined) return choose(table, goal, target, share, depth + 1);
    if (verdict.kind !== "dnat") return [];
    const { address, port = target.dport } = verdict;
    const own = /^(KUBE-SEP-|endpoint-)/.test(chain) ? chain : undefined;
    return [{ address: hostPort(address, port), share, chain: own, counter: rule.counter }];
  }
  if (step.kind !== "lookup") return [];
  const random = step.fields.find((field) => field.kind === "random")?.below ?? 1;
  const entries = "find" in step.map ? step.map : table.sets.get(step.map.set);
  const found: SharedEndpoint[] = [];
  for (let n = 0; n < random; n += 1) {
    const key = step.fields.map((field) => {
      if (field.kind === "random") return n;
      return field.kind === "daddr" || field.kind === "protocol" || field.kind === "dport" ? target[field.kind] : "";
    });
    const verdict = entries?.find(key, (value, one) => value === one)?.verdict;
    if (verdict === undefined) continue;
    found.push(...chosen(table, chain, rule, { kind: "verdict", verdict }, target, share / random, depth));
  }
  return found;
}
