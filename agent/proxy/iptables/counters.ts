import type { Clock } from "../../lib/clock.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { PacketFigures } from "../backend.ts";
import { localhostCountComment } from "./fixed.ts";
import type { Iptables, PacketCount } from "./port.ts";

// Scrapes are seconds apart, of several scrapers, too: they share what one of them asked for.
export const countersAgeMsMax = 5_000;

interface PacketCountersDeps {
  readonly iptables: Pick<Iptables, "listPackets">;
  readonly clock: Pick<Clock, "monotonic">;
  readonly log: Logger;
}

/** Reads the counters of rules when somebody asks for them, with two short commands at most every few seconds. */
export class PacketCounters {
  readonly #deps: PacketCountersDeps;
  #known: { readonly atMs: number; readonly figures: Promise<PacketFigures> } | undefined;

  constructor(deps: PacketCountersDeps) {
    this.#deps = deps;
  }

  /** Never rejects; what cannot be read is absent. */
  async read(signal: AbortSignal): Promise<PacketFigures> {
    const nowMs = this.#deps.clock.monotonic();
    if (this.#known === undefined || nowMs - this.#known.atMs >= countersAgeMsMax) {
      this.#known = { atMs: nowMs, figures: this.#ask(signal) };
    }
    return await this.#known.figures;
  }

  async #ask(signal: AbortSignal): Promise<PacketFigures> {
    const { iptables, log } = this.#deps;
    try {
      const forward = await iptables.listPackets("filter", "KUBE-FORWARD", signal);
      const masqueraded = await iptables.listPackets("nat", "KUBE-POSTROUTING", signal);
      return {
        ...figure("invalidDropped", forward, " --ctstate INVALID"),
        ...figure("localhostNodePorts", masqueraded, `"${localhostCountComment}"`),
      };
    } catch (err) {
      if (!signal.aborted) log.debug({ err: messageOf(err) }, "counters of rules could not be read");
      return {};
    }
  }
}

function figure(name: keyof PacketFigures, counts: readonly PacketCount[], mark: string): PacketFigures {
  const found = counts.find(({ rule }) => rule.includes(mark));
  return found === undefined ? {} : { [name]: found.packets };
}
