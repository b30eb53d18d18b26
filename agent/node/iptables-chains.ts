import { randomInt } from "node:crypto";
import type { Clock } from "../lib/clock.ts";
import { hasCode, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { ignoreAbort } from "../lib/loop.ts";
import type { Family } from "../proxy/ip.ts";
import { martianComment, martianRule } from "../proxy/iptables/fixed.ts";
import type { ChainsByTable, Iptables } from "../proxy/iptables/port.ts";
import { type AnyTable, RestoreText } from "../proxy/iptables/text.ts";

interface IptablesChainsDeps {
  readonly clock: Clock;
  readonly log: Logger;
  /** Opens what this machine has; called again while it rejects. */
  readonly open: (family: Family, signal: AbortSignal) => Promise<Iptables>;
}

// The reference's period.
const checkPeriodMs = 60_000;
// Other programs look for these two, to find out which of the two kinds of iptables a node uses.
const hintChain = "KUBE-IPTABLES-HINT";
const canaryChain = "KUBE-KUBELET-CANARY";
const firewallChain = "KUBE-FIREWALL";
const chainsOfAll: ChainsByTable = { mangle: [hintChain, canaryChain], nat: [canaryChain], filter: [canaryChain] };
/** Where packets meet the firewall chain, first of all. */
const entrances = ["INPUT", "OUTPUT"] as const;
const jump = `-j ${firewallChain}`;

/** What must be there, by family. */
function wantedChains(family: Family): ChainsByTable {
  if (family === "IPv6") return chainsOfAll;
  return { ...chainsOfAll, filter: [canaryChain, firewallChain, ...entrances] };
}

/**
 * The iptables-restore text that adds what is missing, or "" if nothing is. What is there stays as it is, and where it is. Pure.
 *
 * @param listed rules by `table chain`; absent: there is no such chain
 */
export function renderMissing(family: Family, listed: ReadonlyMap<string, readonly string[] | undefined>): string {
  const text = new RestoreText();
  for (const [table, chains] of Object.entries(wantedChains(family)) as [AnyTable, readonly string[]][]) {
    for (const chain of chains) {
      const isOurs = chain.startsWith("KUBE-");
      if (isOurs && listed.get(`${table} ${chain}`) === undefined) text.write(table, chain, []);
    }
  }
  if (family === "IPv6") return text.toString();
  const has = (chain: string, part: string) =>
    (listed.get(`filter ${chain}`) ?? []).some((rule) => rule.includes(part));
  if (!has(firewallChain, `"${martianComment}"`)) text.raw("filter", `-A ${firewallChain} ${martianRule}`);
  for (const chain of entrances) if (!has(chain, ` ${jump}`)) text.raw("filter", `-I ${chain} ${jump}`);
  return text.toString();
}

/**
 * Keeps the chains that a kubelet owns: the marks by which others tell which iptables the node uses, and the guard of the loopback
 * network. Looks once a minute, and puts back what somebody flushed.
 */
export class IptablesChains {
  readonly #deps: IptablesChainsDeps;
  readonly #trouble = new Map<Family, string>();

  constructor(deps: IptablesChainsDeps) {
    this.#deps = deps;
  }

  async run(signal: AbortSignal): Promise<void> {
    await Promise.all([this.#keep("IPv4", signal), this.#keep("IPv6", signal)]);
  }

  async #keep(family: Family, signal: AbortSignal): Promise<void> {
    const { clock, log, open } = this.#deps;
    let iptables: Iptables | undefined;
    let isFirst = true;
    while (!signal.aborted) {
      try {
        iptables ??= await open(family, signal);
        const hasChanged = await ensureChains(family, iptables, signal);
        if (hasChanged && !isFirst) log.warn({ family }, "the kubelet's iptables chains were gone and are back");
        isFirst = false;
        this.#trouble.delete(family);
      } catch (err) {
        if (!signal.aborted) this.#tell(family, err);
      }
      // Not in step with the other family and with other agents of the machine: they share a lock.
      await clock.sleep(checkPeriodMs + randomInt(1_000), signal).catch(ignoreAbort);
    }
  }

  /** Once for each kind of trouble: a machine without iptables stays so. */
  #tell(family: Family, err: unknown): void {
    const text = messageOf(err);
    if (this.#trouble.get(family) === text) return;
    this.#trouble.set(family, text);
    const level = hasCode(err, "Unavailable") ? "info" : "warn";
    this.#deps.log[level](
      { family, err: text },
      "the kubelet's iptables chains cannot be kept; trying again each minute",
    );
  }
}

/** @returns whether anything had to be written */
async function ensureChains(family: Family, iptables: Iptables, signal: AbortSignal): Promise<boolean> {
  const wanted = wantedChains(family);
  let listed: Map<string, readonly string[] | undefined>;
  const all = await iptables.listMany(wanted, signal);
  if ("missing" in all) {
    listed = new Map();
    for (const [table, chains] of Object.entries(wanted)) {
      for (const chain of chains) listed.set(`${table} ${chain}`, await iptables.listRules(table, chain, signal));
    }
  } else listed = new Map(all);
  const text = renderMissing(family, listed);
  if (text !== "") await iptables.restore(text, signal);
  return text !== "";
}
