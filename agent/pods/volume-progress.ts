import { usedVolumes } from "../kube/pod-resources.ts";
import type { Pod } from "../kube/types.ts";
import type { PodLocal } from "./local.ts";

/** How far a pod's volumes have come, and whether what is in them is out of date. */
export class VolumeProgress {
  #state: PodLocal["volumes"] = "unknown";
  #dueMs: number | undefined;
  #changes = 0;
  /** What containers used when we looked last, and what of it has been set up; by the volumes' names. */
  #used: ReadonlySet<string> = new Set();
  #ready: ReadonlySet<string> = new Set();

  get state(): PodLocal["volumes"] {
    return this.#state;
  }

  /** Volumes that were never set up, as those that only a new ephemeral container uses. */
  get awaited(): ReadonlySet<string> {
    return this.#used.difference(this.#ready);
  }

  /** When what is in them is out of date for its age alone; undefined: never. */
  get dueMs(): number | undefined {
    return this.#dueMs;
  }

  /** What they show has changed. */
  changed(): void {
    this.#changes += 1;
    this.#makeStale();
  }

  /** Time has passed, and containers may have come that use other volumes. */
  look(pod: Pod, nowMs: number): void {
    const used = new Set(usedVolumes(pod).map(({ name }) => name));
    const hasMore = !used.isSubsetOf(this.#used);
    this.#used = used;
    if (hasMore) this.changed();
    if (this.#dueMs === undefined || this.#dueMs > nowMs) return;
    this.#dueMs = undefined; // the next set-up says when the one after it is due
    this.#makeStale();
  }

  /** A set-up begins. @returns what to call when it has succeeded, with the time after which they are out of date */
  begin(): (dueMs: number | undefined) => void {
    const changes = this.#changes;
    const used = this.#used;
    return (dueMs) => {
      this.#state = changes === this.#changes ? "ready" : "stale";
      this.#ready = used;
      this.#dueMs = dueMs;
    };
  }

  /** The pod stops: they stay as they are. */
  stop(): void {
    this.#dueMs = undefined;
  }

  #makeStale(): void {
    if (this.#state === "ready") this.#state = "stale";
  }
}
