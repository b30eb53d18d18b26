import { isStaticPod, uidOf } from "../kube/pod-resources.ts";
import type { ApiClient } from "../kube/port.ts";
import { pods } from "../kube/resources.ts";
import type { Pod } from "../kube/types.ts";
import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { hasCode, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { isTerminalPhase } from "./status.ts";

/** Rest after a failed deletion: 1 s doubling to the 10 s after which kubelet's status manager goes over all pods again. */
export const deletionRetry = { baseMs: 1_000, maxMs: 10_000, jitter: 0.2 };

export interface ObjectDeletionDeps {
  client: Pick<ApiClient, "delete">;
  clock: Clock;
  log: Logger;
  /** It may be tried again. */
  onRetry(): void;
}

/** Lets the API server remove the object of a pod of which nothing is left, once. */
export class ObjectDeletion {
  readonly #deps: ObjectDeletionDeps;
  #state: "none" | "underWay" | "done" = "none";
  #failures = 0;

  constructor(deps: ObjectDeletionDeps) {
    this.#deps = deps;
  }

  /**
   * Begins to delete `pod` if that is due: the object was told to go, and the API server knows how the pod ended.
   *
   * @param known the object as the API server has it
   * @returns the work under way, which never rejects; undefined if nothing begins
   */
  begin(pod: Pod, known: Pod | undefined): Promise<void> | undefined {
    // A mirror pod is not what we run: it comes and goes with its static pod.
    if (this.#state !== "none" || isStaticPod(pod)) return undefined;
    if (known?.metadata.deletionTimestamp === undefined || !isTerminalPhase(known.status?.phase)) return undefined;
    this.#state = "underWay";
    return this.#delete(pod);
  }

  async #delete(pod: Pod): Promise<void> {
    const { client, clock, log, onRetry } = this.#deps;
    const { name, namespace = "" } = pod.metadata;
    try {
      await client.delete(pods, { namespace, name }, { gracePeriodSeconds: 0, uid: uidOf(pod) });
      this.#state = "done";
    } catch (err) {
      if (hasCode(err, "NotFound", "Conflict")) {
        this.#state = "done"; // gone, or another pod has its name
        return;
      }
      this.#failures += 1;
      const retryInMs = Math.round(backoffMs(this.#failures, deletionRetry));
      log.warn({ err: messageOf(err), retryInMs }, "pod not deleted from the API server, trying again");
      clock.after(retryInMs, () => {
        this.#state = "none";
        onRetry();
      });
    }
  }
}
