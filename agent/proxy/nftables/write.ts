import type { SyncRequest } from "../backend.ts";
import type { Pacer } from "../pacer.ts";
import type { RenderContext } from "./render.ts";
import { type ChainChanges, noChanges, RuleState } from "./state.ts";
import type { TableText } from "./text.ts";

/** Services, and what decides their rules. */
export interface StageRequest extends Pick<SyncRequest, "keys" | "describe"> {
  readonly render: RenderContext;
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
  { keys, describe, render }: StageRequest,
  pacer: Pacer,
): Promise<{ state: RuleState; changes: ChainChanges }> {
  const state = new RuleState(render);
  const changes = noChanges();
  for (const key of keys) {
    state.stage(describe(key), changes);
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
