import { isStaticPod, uidOf } from "../../kube/pod-resources.ts";
import { keyOf } from "../../kube/port.ts";
import type { Pod } from "../../kube/types.ts";

/**
 * Of the static pods of one name, only one is worked on at a time: an edited manifest is a new pod of the old name, and the
 * old one may hold what the new one needs. Others wait in the order in which they came.
 */
export class StaticTurns {
  readonly #names = new Map<string, { started: string; waiting: Pod[] }>();

  /** @returns true if the pod has its turn (and keeps it until `leave`); false: it waits */
  enter(pod: Pod): boolean {
    if (!isStaticPod(pod)) return true;
    const key = keyOf(pod.metadata);
    const entry = this.#names.get(key);
    if (entry === undefined) {
      this.#names.set(key, { started: uidOf(pod), waiting: [] });
      return true;
    }
    if (entry.started === uidOf(pod)) return true;
    const at = entry.waiting.findIndex((other) => uidOf(other) === uidOf(pod));
    if (at < 0) entry.waiting.push(pod);
    else entry.waiting[at] = pod;
    return false;
  }

  /** Nothing of the pod is left, or it does not want to start any more. @returns the pod whose turn it is now, if any */
  leave(pod: Pod): Pod | undefined {
    const key = keyOf(pod.metadata);
    const entry = this.#names.get(key);
    if (entry === undefined) return undefined;
    entry.waiting = entry.waiting.filter((other) => uidOf(other) !== uidOf(pod));
    if (entry.started !== uidOf(pod)) return undefined;
    const next = entry.waiting.shift();
    if (next === undefined) this.#names.delete(key);
    else entry.started = uidOf(next);
    return next;
  }

  /** The UID of the pod of this name (`namespace/name`) that is worked on. */
  started(key: string): string | undefined {
    return this.#names.get(key)?.started;
  }
}
