import { endpointsOfSmallClusterMax, type SyncRequest } from "../backend.ts";
import type { FixedContext } from "./fixed.ts";
import { masqueradedClients, type RenderContext } from "./render.ts";
import { sharedSetNames } from "./set-names.ts";

/** A sync, and what decides the rules beyond the services. */
export interface IptablesSyncRequest extends SyncRequest {
  /** Without what the backend knows. */
  readonly fixed: Omit<FixedContext, "sets" | "masqueradedClients">;
  readonly render: Omit<RenderContext, "isLarge" | "hasSets" | "hasClientSets">;
}

/** What decides the rules that no service has a part in. */
export function fixedContext({ fixed, render }: IptablesSyncRequest, hasSets: boolean): FixedContext {
  const sets = hasSets ? sharedSetNames(fixed.family) : undefined;
  return { ...fixed, sets, masqueradedClients: masqueradedClients(render) };
}

/** See {@link RenderContext.isLarge}. */
export function isLargeCluster({ endpointCount }: IptablesSyncRequest): boolean {
  return endpointCount() > endpointsOfSmallClusterMax;
}
