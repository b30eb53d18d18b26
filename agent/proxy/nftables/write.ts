import type { SyncRequest } from "../backend.ts";
import type { Pacer } from "../pacer.ts";
import type { RenderContext, RenderedService } from "./render.ts";
import { type ChainChanges, noChanges, RuleState } from "./state.ts";
import type { TableText } from "./text.ts";

/** Services, and what decides their rules. */
export interface StageRequest extends Pick<SyncRequest, "keys" | "describe"> {
  readonly render: RenderContext;
  /** Rules that a service has in the place of its own, of those whose description was asked for last. */
  readonly lastRules: (key: string) => RenderedService | undefined;
}

/** Writes the elements that differ, set by set. */
export async function writeElements(state: RuleState, text: TableText, pacer: Pacer): Promise<void> {
  for (const [set, { deletes, adds }] of state.takeElementChanges()) {
    for (const key of deletes) text.deleteElement(set, key);
    for (const { key, value, comment } of adds) text.addElement(set, key, value, comment);
    await pacer.breathe();
  }
}

/** Takes all services of a request into a new state. */
export async function stageAll(
  { keys, describe, render, lastRules }: StageRequest,
  pacer: Pacer,
): Promise<{ state: RuleState; changes: ChainChanges }> {
  const state = new RuleState(render);
  const changes = noChanges();
  for (const key of keys) {
    const service = describe(key);
    state.stage(service, changes, lastRules(key));
    await pacer.breathe();
  }
  return { state, changes };
}

/** Writes the chains and sets of services, without the elements that lead there. */
export function writeChanges(changes: ChainChanges, text: TableText): void {
  for (const count of changes.newCounts) text.addCount(count);
  for (const [name, seconds] of changes.newAffinitySets) text.addAffinitySet(name, seconds);
  for (const chain of changes.writes.keys()) text.addChain(chain);
  for (const [chain, rules] of changes.writes) text.writeChain(chain, rules);
}
