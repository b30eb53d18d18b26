import type { PodLocal } from "./local.ts";

/** How far a pod's volumes have come, and whether what is in them is out of date. */
export class VolumeProgress {
  #state: PodLocal["volumes"] = "unknown";
  #dueMs: number | undefined;
  #changes = 0;

  get state(): PodLocal["volumes"] {
    return this.#state;
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

  /** Time has passed. */
  look(nowMs: number): void {
    if (this.#dueMs === undefined || this.#dueMs > nowMs) return;
    this.#dueMs = undefined; // the next set-up says when the one after it is due
    this.#makeStale();
  }

  /** A set-up begins. @returns what to call when it has succeeded, with the time after which they are out of date */
  begin(): (dueMs: number | undefined) => void {
    const changes = this.#changes;
    return (dueMs) => {
      this.#state = changes === this.#changes ? "ready" : "stale";
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
