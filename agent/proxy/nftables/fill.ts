import type { ServiceDescription } from "../model.ts";
import { Pacer } from "../pacer.ts";
import type { Nft } from "./exec.ts";
import { baseChains } from "./fixed.ts";
import { noChanges, RuleState } from "./state.ts";
import { TableText } from "./text.ts";
import { type StageRequest, writeChanges, writeElements } from "./write.ts";

/** Text of one transaction. Small ones leave the kernel's lock to others, and let it work while the next one is made. */
export const stepLength = 512 * 1024;
// Endpoints, and services without any, that are written together: some hundred kilobytes of text.
const weightPerPortion = 1_000;

/** Services, and what stands beside them in the table. */
export interface FillRequest extends StageRequest {
  /** Chains that belong to no service, with their rules; see `renderFixed`. */
  readonly fixed: ReadonlyMap<string, readonly string[]>;
  /** Writes elements that belong to no service. */
  readonly addElements: (text: TableText) => void;
  /** There is a table, which no packet meets: it goes first. */
  readonly replaces: boolean;
}

/** What was filled in. */
interface Filled {
  readonly state: RuleState;
  readonly transactions: number;
  readonly bytes: number;
}

/**
 * Fills a table that does not exist. Everything goes in by steps, and each is taken by the kernel while the next one is made: of ten
 * thousand services neither alone takes much less than a second. What makes the kernel look at the table goes last. Rejects as
 * {@link Nft} does; a part of the table may be there then, and no packet meets it.
 */
export async function fillTable(request: FillRequest, nft: Nft, signal: AbortSignal): Promise<Filled> {
  const { keys, describe, render, lastRules, fixed, addElements, replaces } = request;
  const state = new RuleState(render);
  const text = new TableText(render.family);
  const pacer = new Pacer();
  let [transactions, bytes] = [0, 0];
  let applying = Promise.resolve();
  const apply = async (step: string) => {
    await applying;
    transactions += 1;
    bytes += step.length;
    applying = nft.apply(step, signal);
    applying.catch(() => {}); // it is awaited, with the next step or in the end
  };
  const applyAll = async (steps: readonly string[]) => {
    for (const step of steps) await apply(step);
  };
  try {
    text.addTable();
    if (replaces) text.replaceTable();
    text.addSharedSets();
    addElements(text);
    // What others lead to first; what the kernel comes in by last.
    for (const chain of fixed.keys()) if (!(chain in baseChains)) text.addChain(chain);
    for (const [chain, rules] of fixed) if (!(chain in baseChains)) text.writeChain(chain, rules);
    let changes = noChanges();
    let weight = 0;
    const writePortion = async () => {
      writeChanges(changes, text);
      await writeElements(state, text, pacer);
      [changes, weight] = [noChanges(), 0];
    };
    for (const key of keys) {
      const service = describe(key);
      state.stage(service, changes, lastRules(key));
      weight += weightOf(service);
      if (weight >= weightPerPortion) await writePortion();
      if (text.length >= stepLength) await applyAll(text.takeSteps(stepLength));
      await pacer.breathe();
    }
    await writePortion();
    await applyAll(text.takeSteps(stepLength));
    for (const [name, hook] of Object.entries(baseChains)) {
      text.addChain(name, hook);
      text.writeChain(name, fixed.get(name) ?? []);
    }
    await apply(text.toString());
    await applying;
  } finally {
    await applying.catch(() => {}); // no call goes on when this one has ended
  }
  return { state, transactions, bytes };
}

function weightOf({ ports }: ServiceDescription): number {
  return 1 + ports.reduce((sum, { endpoints }) => sum + endpoints.reachable.length, 0);
}
