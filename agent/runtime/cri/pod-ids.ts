/** Whose a runtime object is. */
export interface PodObject {
  podUID: string;
  kind: "sandbox" | "container";
}

// Entries are some 200 bytes; a node of 110 pods has a few hundred objects at a time.
const entriesMax = 16_384;

/**
 * Remembers which pod a container or sandbox ID belongs to, because containerd's events name only the ID.
 * At its bound the oldest entry goes; an ID that is not here can still be asked of the runtime.
 */
export class PodIDs {
  readonly #byID = new Map<string, PodObject>();

  get(id: string): PodObject | undefined {
    return this.#byID.get(id);
  }

  add(id: string, object: PodObject): void {
    if (this.#byID.has(id)) return;
    if (this.#byID.size >= entriesMax) {
      const oldest = this.#byID.keys().next();
      if (oldest.done !== true) this.#byID.delete(oldest.value);
    }
    this.#byID.set(id, object);
  }

  delete(id: string): void {
    this.#byID.delete(id);
  }
}
