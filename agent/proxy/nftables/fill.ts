import { Pacer } from "../pacer.ts";
import type { Nft } from "./exec.ts";
import { baseChains } from "./fixed.ts";
import { noChanges, RuleState } from "./state.ts";
import { TableText } from "./text.ts";
import { type StageRequest, writeChanges, writeElements } from "./write.ts";

// Text that makes a transaction. Small ones leave the kernel's lock to others, and let it work while the next one is made.
const stepLengthMin = 512 * 1024;
// Services that are written together: about as many elements of a map go into one command.
const servicesPerPortion = 200;

/** Services, and what stands beside them in the table. */
export interface FillRequest extends StageRequest {
  /** Chains that belong to no service, with their rules; see `renderFixed`. */
  readonly fixed: ReadonlyMap<string, readonly string[]>;
  /** Writes elements that belong to no service. */
  readonly addElements: (text: TableText) => void;
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
  const { keys, describe, render, lastRules, fixed, addElements } = request;
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
  try {
    text.addTable();
    text.addSharedSets();
    addElements(text);
    // What others lead to first; what the kernel comes in by last.
    for (const chain of fixed.keys()) if (!(chain in baseChains)) text.addChain(chain);
    for (const [chain, rules] of fixed) if (!(chain in baseChains)) text.writeChain(chain, rules);
    for (let at = 0; at < keys.length; at += servicesPerPortion) {
      const changes = noChanges();
      for (const key of keys.slice(at, at + servicesPerPortion)) {
        const service = describe(key);
        state.stage(service, changes, lastRules(key));
        await pacer.breathe();
      }
      writeChanges(changes, text);
      await writeElements(state, text, pacer);
      if (text.length >= stepLengthMin) await apply(text.take());
    }
    for (const [name, hook] of Object.entries(baseChains)) {
      text.addChain(name, hook);
      text.writeChain(name, fixed.get(name) ?? []);
    }
    await apply(text.take());
    await applying;
  } finally {
    await applying.catch(() => {}); // no call goes on when this one has ended
  }
  return { state, transactions, bytes };
}
