import type { Logger } from "../../lib/log.ts";
import { type Commands, expectSuccess } from "../commands.ts";
import type { Family } from "../ip.ts";
import { commandNames, createIptables, type Flavour } from "./exec.ts";
import { canaryChain, canaryTables, jumps, ownChains } from "./fixed.ts";
import { createIpset, whyNoIpset } from "./ipset.ts";
import { isJump, isServiceChain } from "./own.ts";
import { deleteChains } from "./stale.ts";
import { RestoreText } from "./text.ts";

// Reading the rules of ten thousand services back takes seconds, on a busy machine with the legacy flavour minutes.
const saveTimeoutMs = 300_000;

/** What of ours is in the tables, as read from iptables-save. */
export interface OwnRules {
  readonly chains: Readonly<Record<(typeof canaryTables)[number], readonly string[]>>;
  /** Rules in foreign chains that lead to ours, as `CHAIN …` after `-A`. */
  readonly jumps: readonly { readonly table: "nat" | "filter"; readonly rule: string }[];
}

/**
 * Picks what is ours, and kube-proxy's, out of the lines of iptables-save. Feed it all lines, then ask. Pure. KUBE-FIREWALL stays: it
 * is the kubelet's, too, and the kernel still routes packets for 127.0.0.0/8 after us, which it keeps neighbours from sending.
 */
export class OwnRulesReader {
  #table = "";
  readonly #chains = { mangle: [] as string[], nat: [] as string[], filter: [] as string[] };
  readonly #jumps: { table: "nat" | "filter"; rule: string }[] = [];

  line(line: string): void {
    if (line.startsWith("*")) this.#table = line.slice(1);
    else if (line.startsWith(":")) this.#chain(line.slice(1).split(" ", 1)[0] ?? "");
    else if (line.startsWith("-A ")) this.#rule(line.slice(3));
  }

  result(): OwnRules {
    return { chains: this.#chains, jumps: this.#jumps };
  }

  #chain(chain: string): void {
    const table = this.#table;
    if (table === "mangle" && chain === canaryChain) this.#chains.mangle.push(chain);
    if (table !== "nat" && table !== "filter") return;
    if (chain === canaryChain || ownChains[table].includes(chain) || isServiceChain(table, chain)) {
      this.#chains[table].push(chain);
    }
  }

  #rule(rule: string): void {
    const table = this.#table;
    if (table !== "nat" && table !== "filter") return;
    const from = rule.split(" ", 1)[0];
    const isOurs = jumps.some((jump) => jump.table === table && jump.from === from && isJump(rule, jump));
    if (isOurs) this.#jumps.push({ table, rule });
  }
}

/**
 * Removes every rule, chain and set that the iptables backend (or kube-proxy's) makes, of these families and in both flavours.
 * Foreign rules stay as they are. Can be repeated.
 *
 * @returns what could not be removed, one line each; empty: all is clean
 */
export async function cleanupIptables(
  commands: Commands,
  log: Logger,
  signal: AbortSignal,
  families: readonly Family[] = ["IPv4", "IPv6"],
): Promise<string[]> {
  const problems: string[] = [];
  for (const family of families) {
    for (const flavour of ["nft", "legacy", undefined] as const) {
      try {
        problems.push(...(await cleanupOne(commands, family, flavour, log, signal)));
      } catch (err) {
        problems.push(`${commandNames(family, flavour).command}: ${(err as Error).message}`);
      }
    }
  }
  if ((await whyNoIpset(commands, signal)) === undefined) {
    for (const family of families) {
      const ipset = createIpset(commands, family);
      await ipset
        .counts(signal)
        .then(async (counts) => await ipset.destroy(counts.keys(), signal))
        .then(async () => await ipset.counts(signal))
        .then((left) => problems.push(...[...left.keys()].map((set) => `set ${set} stays: a rule refers to it`)))
        .catch((err: unknown) => problems.push(`sets: ${(err as Error).message}`));
    }
  }
  return problems;
}

async function cleanupOne(
  commands: Commands,
  family: Family,
  flavour: Flavour | undefined,
  log: Logger,
  signal: AbortSignal,
): Promise<string[]> {
  const reader = new OwnRulesReader();
  const onLine = (line: string) => reader.line(line);
  const save = await commands.lines(commandNames(family, flavour).save, [], {
    onLine,
    timeoutMs: saveTimeoutMs,
    signal,
  });
  if (save.failure === "spawn") return []; // not installed: then it has left nothing
  expectSuccess(save, "read the rules");
  const own = reader.result();
  const count = canaryTables.reduce((sum, table) => sum + own.chains[table].length, 0);
  if (count + own.jumps.length === 0) return [];

  const iptables = await createIptables(commands, family, flavour, signal);
  const text = new RestoreText();
  for (const { table, rule } of own.jumps) text.raw(table, `-D ${rule}`);
  if (text.lines > 0) await iptables.restore(text.toString(), signal);
  const left = await deleteChains(iptables, own.chains, signal);
  const chains = count - left.length;
  log.info({ family, flavour: flavour ?? "default", chains, jumps: own.jumps.length }, "service rules removed");
  const { command } = commandNames(family, flavour);
  return left.map(
    ({ table, chain, reason }) => `${command}: chain ${chain} of table ${table} is empty but stays: ${reason}`,
  );
}
