import type { Store } from "../../agent/kube/port.ts";
import type { Condition, KubeObject } from "../../agent/kube/types.ts";

/** True for the condition that says that a pod or node is ready. */
export function isReady({ type, status }: Pick<Condition, "type" | "status">): boolean {
  return type === "Ready" && status === "True";
}

/** Resolves as soon as the store's object under `key` is as wanted; undefined stands for none. */
export async function until<T extends KubeObject>(
  store: Pick<Store<T>, "get" | "subscribe">,
  isTrue: (object: T | undefined) => boolean,
  key: string,
): Promise<void> {
  await new Promise<void>((resolve) => {
    const ends: (() => void)[] = []; // filled after the first look, which may happen inside subscribe
    const look = () => {
      if (!isTrue(store.get(key))) return;
      for (const end of ends) end();
      resolve();
    };
    ends.push(store.subscribe(look));
    look();
  });
}
