import type { ServiceDescription } from "../model.ts";
import { Pacer } from "../pacer.ts";
import type { Nft } from "./exec.ts";
import { baseChains, type FixedContext, renderFixed } from "./fixed.ts";
import { TableText } from "./text.ts";
import { stageAll, type StageRequest, writeChanges, writeElements } from "./write.ts";

// Never made: the kernel is only asked whether it would take what is written for it.
const trialTable = "kube-proxy-trial";
// If more services than this are refused at once the fault is hardly theirs. Each one costs some fifteen trials.
const foundMax = 32;

/**
 * Services whose rules the kernel refuses. Everything that is rendered is checked before, so there should be none; but one that
 * slips through must not hold up the others, for ever, on every node.
 */
export class Culprits {
  readonly #nft: Nft;
  /** By key, what the service looked like when it was refused. */
  readonly #refused = new Map<string, string>();

  constructor(nft: Nft) {
    this.#nft = nft;
  }

  /** The service; without ports while it looks as it did when it was refused. */
  withoutRefused(service: ServiceDescription): ServiceDescription {
    const refused = this.#refused.get(service.key);
    if (refused === undefined) return service;
    if (refused === lookOf(service)) return { ...service, ports: [] };
    this.#refused.delete(service.key);
    return service;
  }

  /**
   * Looks for services that the kernel refuses, by halves, in a table that does not exist.
   * @returns why, by service; empty if none of them is to blame. They are left out from now on.
   */
  async find(
    request: StageRequest & { readonly fixed: FixedContext },
    signal: AbortSignal,
  ): Promise<ReadonlyMap<string, string>> {
    const found = new Map<string, string>();
    const search = async (keys: readonly string[]): Promise<void> => {
      if (found.size >= foundMax) return;
      const refusal = await this.#tryOut({ ...request, keys }, signal);
      const [only] = keys;
      if (refusal === undefined || only === undefined) return;
      if (keys.length === 1) {
        found.set(only, refusal);
        return;
      }
      const middle = keys.length >> 1;
      await search(keys.slice(0, middle));
      await search(keys.slice(middle));
    };
    if ((await this.#tryOut({ ...request, keys: [] }, signal)) === undefined) await search(request.keys);
    for (const key of found.keys()) this.#refused.set(key, lookOf(request.describe(key)));
    return found;
  }

  async #tryOut(
    request: StageRequest & { readonly fixed: FixedContext },
    signal: AbortSignal,
  ): Promise<string | undefined> {
    const pacer = new Pacer();
    const { state, changes } = await stageAll(request, pacer);
    const fixed = [...renderFixed(request.fixed)].filter(([chain]) => !(chain in baseChains));
    const text = new TableText(request.render.family, trialTable);
    text.addTable();
    text.addSharedSets();
    for (const [chain] of fixed) text.addChain(chain);
    writeChanges(changes, text);
    for (const [chain, rules] of fixed) text.writeChain(chain, rules);
    await writeElements(state, text, pacer);
    return await this.#nft.tryOut(text.toString(), signal);
  }
}

function lookOf({ ports }: ServiceDescription): string {
  return JSON.stringify(ports);
}
