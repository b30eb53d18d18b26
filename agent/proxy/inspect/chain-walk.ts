import { AgentError } from "../../lib/errors.ts";
import type { Family } from "../ip.ts";
import { entriesIn, holds, keysOf, matches, type PacketState, type Surroundings } from "./match.ts";
import type { Chain, Hook, Rule, Step, Table, Verdict } from "./ruleset.ts";

/** A rule that the packet matched, or whose map had an entry for it. */
export interface Passed {
  readonly table: string;
  readonly hook: Hook;
  readonly chain: string;
  readonly rule: Rule | undefined;
  /** Of the entry that was found, or the words that say what it was. */
  readonly note: string | undefined;
}

/** A rule that could decide something, and of which it cannot be said whether it matches. It is taken not to. */
export interface Unjudged {
  readonly table: string;
  readonly chain: string;
  readonly rule: Rule;
  readonly why: string;
}

// More than any service has endpoints. A rule set that branches further is not explained by a longer list.
const waysMax = 10_000;
// The kernel's own limit of chains in chains is 16; rules that loop are refused by it.
const nestingMax = 64;

/** A linked list: ways share their beginning. */
interface Trail {
  readonly passed: Passed;
  readonly before: Trail | undefined;
}

/** The packet on one of its ways. */
export interface State extends PacketState {
  /** Of all packets, those that come this way; in (0, 1]. */
  readonly share: number;
  /** Rules looked at. */
  readonly visited: number;
  readonly trail: Trail | undefined;
}

export type End = "accept" | "drop" | "reject" | "translated" | "continue";

export interface Ended {
  readonly state: State;
  readonly end: End;
}

/** Where a chain runs: its table, and the hook from which the kernel came. */
export interface Place {
  readonly table: Table;
  readonly hook: Hook;
}

/** Follows packets through chains and those that they lead to, and takes every random choice both ways. Does no I/O. */
export class ChainWalker {
  /** Rules that could not be judged so far. */
  readonly unjudged = new Map<Rule, Unjudged>();
  /** Lists of xt_recent that `recalls` did not know. */
  readonly unknownLists = new Set<string>();
  readonly #family: Family;
  readonly #surroundings: Surroundings;

  constructor(family: Family, surroundings: Surroundings) {
    this.#family = family;
    this.#surroundings = surroundings;
  }

  /** What becomes of a packet in a chain. "continue": it came out at the end of the chain, or returned. */
  through(chain: Chain, place: Place, start: State, depth = 0): Ended[] {
    const ended: Ended[] = [];
    let open: State[] = [start];
    for (const rule of chain.rules()) {
      const next: State[] = [];
      for (const state of open) {
        for (const { state: after, end } of this.#rule(rule, chain, place, seen(state), depth)) {
          if (end === "next") next.push(after);
          else ended.push({ state: after, end });
        }
      }
      open = merged(next);
      if (open.length === 0) break;
    }
    const all = [...ended, ...open.map((state) => ({ state, end: "continue" as const }))];
    if (all.length <= waysMax) return all;
    throw new AgentError("Invalid", `the packet has more than ${waysMax} ways through chain ${chain.name}`);
  }

  /** "next": go on with the rule after this one. */
  #rule(rule: Rule, chain: Chain, place: Place, start: State, depth: number): { state: State; end: End | "next" }[] {
    const { table } = place;
    // States for which every condition so far is true.
    let open: State[] = [start];
    const out: { state: State; end: End | "next" }[] = [];
    let doubt = "";
    for (const step of rule.steps) {
      const next: State[] = [];
      for (const state of open) {
        switch (step.kind) {
          case "match": {
            const truth = matches(step, state, table, this.#surroundings);
            if (truth === undefined) doubt ||= `unknown set or list in: ${rule.text}`;
            if (truth === false) out.push({ state, end: "next" });
            else next.push(state);
            break;
          }
          case "chance": {
            const { probability } = step;
            if (probability < 1) out.push({ state: { ...state, share: state.share * (1 - probability) }, end: "next" });
            if (probability > 0) next.push({ ...state, share: state.share * Math.min(1, probability) });
            break;
          }
          case "recent": {
            const known = this.#surroundings.recalls(step.list, state.saddr);
            if (known === undefined) this.unknownLists.add(step.list);
            if ((known ?? false) === step.isNegated) out.push({ state, end: "next" });
            else next.push(state);
            break;
          }
          case "unknown":
            doubt ||= step.text;
            next.push(state);
            break;
          case "mark":
            next.push(doubt === "" ? { ...state, mark: ((state.mark & step.keep) ^ step.flip) >>> 0 } : state);
            break;
          case "verdict":
            if (doubt === "") out.push(...this.#verdict(step.verdict, rule, chain, place, state, depth, undefined));
            else next.push(state);
            break;
          case "lookup":
            if (doubt === "") out.push(...this.#lookup(step, rule, chain, place, state, depth, next));
            else next.push(state);
            break;
          default:
            step satisfies never;
        }
      }
      open = next;
      if (open.length === 0) break;
    }
    if (doubt !== "" && open.length > 0 && decides(rule)) {
      this.unjudged.set(rule, { table: table.name, chain: chain.name, rule, why: doubt });
    }
    const marks = doubt === "" && rule.steps.some(({ kind }) => kind === "mark");
    const told = marks ? open.map((state) => passing(state, place, chain, rule, undefined)) : open;
    return [...out, ...told.map((state) => ({ state, end: "next" as const }))];
  }

  #lookup(
    step: Extract<Step, { kind: "lookup" }>,
    rule: Rule,
    chain: Chain,
    place: Place,
    state: State,
    depth: number,
    next: State[],
  ): { state: State; end: End | "next" }[] {
    const entries = entriesIn(step.map, place.table);
    if (entries === undefined) {
      next.push(state);
      this.unjudged.set(rule, { table: place.table.name, chain: chain.name, rule, why: "its map could not be read" });
      return [];
    }
    const found: { state: State; end: End | "next" }[] = [];
    for (const { key, share } of keysOf(step.fields, state, this.#surroundings)) {
      const one = { ...state, share: state.share * share };
      const entry = entries.find(key, holds);
      if (entry?.verdict === undefined) next.push(one);
      else {
        const what = `${key.join(" . ")}${entry.comment === undefined ? "" : ` (${entry.comment})`}`;
        found.push(...this.#verdict(entry.verdict, rule, chain, place, one, depth, what));
      }
    }
    return found;
  }

  #verdict(
    verdict: Verdict,
    rule: Rule,
    chain: Chain,
    place: Place,
    before: State,
    depth: number,
    note: string | undefined,
  ): { state: State; end: End | "next" }[] {
    const state = passing(before, place, chain, rule, note);
    switch (verdict.kind) {
      case "continue":
        return [{ state: before, end: "next" }];
      case "accept":
      case "drop":
      case "reject":
        return [{ state, end: verdict.kind }];
      case "return":
        return [{ state, end: "continue" }];
      case "dnat": {
        const { address, port } = verdict;
        return [{ state: { ...state, daddr: address, dport: port ?? state.dport, isDnat: true }, end: "translated" }];
      }
      case "redirect": {
        const { port } = verdict;
        // To the address of the interface by which it came in; any local one says as much.
        const daddr = this.#family === "IPv4" ? "127.0.0.1" : "::1";
        return [{ state: { ...state, daddr, dport: port ?? state.dport, isDnat: true }, end: "translated" }];
      }
      case "snat":
        return [{ state: { ...state, snat: verdict.to }, end: "translated" }];
      case "jump":
      case "goto": {
        const target = place.table.chains.get(verdict.chain);
        if (target === undefined || depth > nestingMax) {
          const why = `there is no chain ${verdict.chain}, and no target of that name is known`;
          this.unjudged.set(rule, { table: place.table.name, chain: chain.name, rule, why });
          return [{ state: before, end: "next" }];
        }
        return this.through(target, place, state, depth + 1).map((one) => {
          if (one.end !== "continue") return one;
          // A detour on which nothing happened is not worth telling.
          const after = one.state.trail === state.trail ? { ...one.state, trail: before.trail } : one.state;
          return { state: after, end: verdict.kind === "jump" ? ("next" as const) : one.end };
        });
      }
      default:
        return verdict satisfies never;
    }
  }
}

/** Whether anything follows from the rule. */
function decides({ steps }: Rule): boolean {
  return steps.some((step) => {
    if (step.kind === "lookup" || step.kind === "mark") return true;
    if (step.kind === "unknown") return step.text.startsWith("-j ");
    return step.kind === "verdict" && step.verdict.kind !== "return" && step.verdict.kind !== "continue";
  });
}

function seen(state: State): State {
  return { ...state, visited: state.visited + 1 };
}

/** The same packet, with one more rule that it has passed. */
export function passing(
  state: State,
  { table, hook }: Place,
  chain: Chain,
  rule: Rule | undefined,
  note: string | undefined,
): State {
  return {
    ...state,
    trail: { passed: { table: table.name, hook, chain: chain.name, rule, note }, before: state.trail },
  };
}

/** Ways that differ in nothing but their history are one again. */
function merged(states: State[]): State[] {
  if (states.length < 2) return states;
  const byKey = new Map<string, State>();
  for (const state of states) {
    const key = [state.saddr, state.daddr, state.dport, state.mark, state.snat].join(" ");
    const same = byKey.get(key);
    byKey.set(key, same === undefined ? state : { ...same, share: same.share + state.share });
  }
  return [...byKey.values()];
}

/** What the packet has passed, in order. */
export function listOf({ trail }: State): Passed[] {
  const list: Passed[] = [];
  for (let at = trail; at !== undefined; at = at.before) list.push(at.passed);
  return list.reverse();
}
