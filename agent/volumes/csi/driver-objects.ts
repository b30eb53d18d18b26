import type { Store } from "../../kube/port.ts";
import type { CSIDriver } from "../../kube/types.ts";
import type { CSIDriverObjects } from "./port.ts";

/** CSIDriver objects as a store has them. */
export function csiDriverObjects(store: Store<CSIDriver>): CSIDriverObjects {
  return {
    csiDriver: async (name, signal) => {
      await store.synced(signal);
      return store.get(name);
    },
    subscribe: (listener) => store.subscribe(({ key }) => listener(key)),
  };
}
