import { AgentError } from "../lib/errors.ts";
import type { ApiClient, Store } from "./port.ts";
import type { KubeObject } from "./types.ts";

/** What stands where an API server would be, for a node that runs alone. */

const refuse = async (): Promise<never> => {
  throw new AgentError("Unimplemented", "nodelet runs without an API server");
};

/** Every call rejects with Unimplemented. */
export const absentApi: ApiClient = {
  get: refuse,
  list: refuse,
  create: refuse,
  update: refuse,
  patch: refuse,
  delete: refuse,
  createSubresource: refuse,
  request: refuse,
  resetConnections: () => {},
};

/** A store of what nobody has: empty, and complete from the beginning. */
export function emptyStore<T extends KubeObject>(): Store<T> {
  return {
    hasSynced: true,
    size: 0,
    synced: async () => {},
    get: () => undefined,
    list: () => [],
    byIndex: () => [],
    subscribe: () => () => {},
  };
}
