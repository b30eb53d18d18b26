import {
  ChainWalker,
  type End,
  type Ended,
  listOf,
  passing,
  type Passed,
  type Place,
  type State,
  type Unjudged,
} from "./chain-walk.ts";
import type { Packet, Surroundings } from "./match.ts";
import type { BaseChain, Chain, Hook, Ruleset } from "./ruleset.ts";

/** One way that the packet may take. */
export interface Way {
  /** In (0, 1]; those of all ways add up to 1. */
  readonly share: number;
  /** unreachable: there is no route to where it goes. */
  readonly fate: "local" | "forwarded" | "drop" | "reject" | "unreachable";
  /** `ip:port` that it was sent on to. */
  readonly dnat: { readonly address: string; readonly port: number } | undefined;
  /** The address that it leaves with; "": that of the interface by which it leaves; undefined: its own. */
  readonly snat: string | undefined;
  readonly oif: string | undefined;
  readonly passed: readonly Passed[];
}

export interface Walk {
  /** At least one. */
  readonly ways: readonly Way[];
  readonly unjudged: readonly Unjudged[];
  /** Lists of xt_recent that `recalls` did not know; look them up and walk again. */
  readonly unknownLists: readonly string[];
  /** Rules looked at, on the longest way. */
  readonly visited: number;
}

/** One hook on the way. */
interface Stop {
  readonly hook: Hook;
  /** The connection was translated before. */
  readonly isNatSkipped?: boolean;
}

/**
 * Follows the first packet of a connection through all tables, as the kernel would, and takes every random choice both ways. Pure.
 *
 *     made here:  output ─▶ route ─▶ postrouting ─▶ (to the machine itself: prerouting but nat, input)
 *     comes in:   prerouting ─▶ route ─▶ input, or forward ─▶ postrouting
 */
export function walk(ruleset: Ruleset, packet: Packet, surroundings: Surroundings): Walk {
  return new Walker(ruleset, packet, surroundings).run();
}

class Walker {
  readonly #ruleset: Ruleset;
  readonly #packet: Packet;
  readonly #surroundings: Surroundings;
  readonly #chains: ChainWalker;
  readonly #ways: { way: Way; visited: number }[] = [];

  constructor(ruleset: Ruleset, packet: Packet, surroundings: Surroundings) {
    this.#ruleset = ruleset;
    this.#packet = packet;
    this.#surroundings = surroundings;
    this.#chains = new ChainWalker(ruleset.family, surroundings);
  }

  run(): Walk {
    const { saddr, daddr, protocol, dport, iif } = this.#packet;
    const start: State = {
      saddr,
      daddr,
      protocol,
      dport,
      mark: 0,
      share: 1,
      isDnat: false,
      snat: undefined,
      iif,
      oif: undefined,
      visited: 0,
      trail: undefined,
    };
    if (iif === undefined) this.#output(start);
    else this.#input(start);
    return {
      ways: this.#ways.map(({ way }) => way),
      unjudged: [...this.#chains.unjudged.values()],
      unknownLists: [...this.#chains.unknownLists],
      visited: Math.max(...this.#ways.map(({ visited }) => visited)),
    };
  }

  #output(start: State): void {
    // The first route decides whether there is a packet at all; after a translation it is looked up anew.
    const oif = this.#isHere(start) ? "lo" : this.#surroundings.interfaceTo(start.daddr);
    if (oif === undefined) {
      this.#finish(start, "unreachable");
      return;
    }
    const { here, elsewhere } = this.#routed(this.#through([{ ...start, oif }], [{ hook: "output" }]));
    this.#leave(elsewhere, [{ hook: "postrouting" }]);
    const toSelf = this.#through(
      here.map((state) => ({ ...state, oif: "lo" })),
      [{ hook: "postrouting" }],
    );
    const looped = this.#through(
      toSelf.map((state) => ({ ...state, iif: "lo", oif: undefined })),
      [
        { hook: "prerouting", isNatSkipped: true },
        { hook: "input", isNatSkipped: true },
      ],
    );
    for (const state of looped) this.#finish(state, "local");
  }

  #input(start: State): void {
    const { here, elsewhere } = this.#routed(this.#through([start], [{ hook: "prerouting" }]));
    for (const state of this.#through(here, [{ hook: "input" }])) this.#finish(state, "local");
    this.#leave(elsewhere, [{ hook: "forward" }, { hook: "postrouting" }]);
  }

  #isHere({ daddr }: State): boolean {
    return this.#surroundings.isLocal(daddr);
  }

  #routed(states: readonly State[]): { here: State[]; elsewhere: State[] } {
    return {
      here: states.filter((state) => this.#isHere(state)),
      elsewhere: states.filter((state) => !this.#isHere(state)),
    };
  }

  #leave(states: readonly State[], hooks: readonly Stop[]): void {
    for (const state of states) {
      const oif = this.#surroundings.interfaceTo(state.daddr);
      if (oif === undefined) this.#finish(state, "unreachable");
      else for (const end of this.#through([{ ...state, oif }], hooks)) this.#finish(end, "forwarded");
    }
  }

  /** @returns what came through all of these hooks, one after the other */
  #through(states: readonly State[], hooks: readonly Stop[]): readonly State[] {
    let open = states;
    for (const { hook, isNatSkipped = false } of hooks) {
      const next: State[] = [];
      for (const state of open) {
        for (const { state: after, end } of this.#hook(state, hook, isNatSkipped)) {
          if (end === "drop" || end === "reject") this.#finish(after, end);
          else next.push(after);
        }
      }
      open = next;
    }
    return open;
  }

  #finish(state: State, fate: Way["fate"]): void {
    const { share, isDnat, snat, oif } = state;
    const dnat = isDnat ? { address: state.daddr, port: state.dport } : undefined;
    this.#ways.push({ way: { share, fate, dnat, snat, oif, passed: listOf(state) }, visited: state.visited });
  }

  /** All base chains of one hook, in the kernel's order. */
  #hook(start: State, hook: Hook, isNatSkipped: boolean): Ended[] {
    const bases = this.#ruleset.tables.flatMap((table) =>
      [...table.chains.values()].flatMap((chain) =>
        chain.base?.hook === hook ? [{ table, chain, base: chain.base }] : [],
      ),
    );
    bases.sort((a, b) => a.base.priority - b.base.priority);
    let open: { state: State; isTranslated: boolean }[] = [{ state: start, isTranslated: isNatSkipped }];
    const ended: Ended[] = [];
    for (const { table, chain, base } of bases) {
      const next: typeof open = [];
      for (const { state, isTranslated } of open) {
        // The kernel leaves the other nat chains out once one of them has translated.
        if (base.type === "nat" && isTranslated) {
          next.push({ state, isTranslated });
          continue;
        }
        for (const one of this.#chains.through(chain, { table, hook }, state)) {
          const end = one.end === "continue" ? base.policy : one.end;
          if (end === "drop" || end === "reject") ended.push(this.#byPolicy(one, end, chain, base, { table, hook }));
          else next.push({ state: one.state, isTranslated: isTranslated || end === "translated" });
        }
      }
      open = next;
    }
    return [...ended, ...open.map(({ state }) => ({ state, end: "accept" as const }))];
  }

  #byPolicy(one: Ended, end: End, chain: Chain, base: BaseChain, place: Place): Ended {
    if (one.end !== "continue") return { state: one.state, end };
    const note = `policy of chain ${chain.name}: ${base.policy}`;
    return { state: passing(one.state, place, chain, undefined, note), end };
  }
}
