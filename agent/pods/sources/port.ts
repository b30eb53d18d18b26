import type { StoreChange } from "../../kube/port.ts";
import type { Pod } from "../../kube/types.ts";

/** The pods that the node is to run, wherever they come from; without mirror pods, which only stand for static ones. */
export interface PodSet {
  /** True once every configured source has told all that it has. */
  readonly hasSynced: boolean;
  /** Resolves when `hasSynced` becomes true; rejects with an AbortError when `signal` aborts. */
  synced(signal: AbortSignal): Promise<void>;
  /** Resolves once the API server has told all that it has, at once if there is none; rejects as `synced` does. */
  apiSynced(signal: AbortSignal): Promise<void>;
  list(): Iterable<Pod>;
  byUID(podUID: string): Pod | undefined;
  /** By name; a static pod before one of the API server's. */
  find(namespace: string, name: string): Pod | undefined;
  /** Calls `listener` for every pod that is there and for every change from now on. @returns ends it */
  subscribe(listener: (change: StoreChange<Pod>) => void): () => void;
}

/** The pods of the API server that stand for static pods of this node. */
export interface MirrorSet {
  /** Resolves once the API server has told all that it has; rejects with an AbortError when `signal` aborts. */
  synced(signal: AbortSignal): Promise<void>;
  /** @param key `namespace/name` */
  get(key: string): Pod | undefined;
  list(): Iterable<Pod>;
  /** As {@link PodSet.subscribe}. */
  subscribe(listener: (change: StoreChange<Pod>) => void): () => void;
}

/** Takes the complete set of pods that one source has now. */
export type Deliver = (pods: readonly Pod[]) => void;
