import type { Logger } from "../../lib/log.ts";
import { isAbort, messageOf } from "../../lib/errors.ts";
import { csiPluginName } from "./paths.ts";
import type { CSIDriverObjects } from "./port.ts";
import { needsAttach } from "./volume.ts";

/**
 * The volumes that the attach/detach controller must not detach from this node: `volumesInUse` of the Node. A volume is among them
 * from the moment that a pod wants it until nothing of it is on the disk any more.
 */
export class ReportedVolumes {
  readonly #objects: Pick<CSIDriverObjects, "csiDriver">;
  readonly #log: Logger;
  /** By pod volume. */
  readonly #wanted = new Map<string, string>();
  /** On the disk, and so much longer as nobody has looked there again; undefined: nobody has looked yet. */
  #onDisk: Set<string> | undefined;
  readonly #listeners = new Set<() => void>();
  #looks = 0;

  constructor(objects: Pick<CSIDriverObjects, "csiDriver">, log: Logger) {
    this.#objects = objects;
    this.#log = log;
  }

  /** @param podVolume names one volume of one pod */
  want(podVolume: string, volumeName: string): void {
    if (this.#wanted.get(podVolume) === volumeName) return;
    this.#wanted.set(podVolume, volumeName);
    this.#tell();
  }

  /** The pod is done with it; it stays reported until the next look at the disk. */
  unwant(podVolume: string): void {
    const volumeName = this.#wanted.get(podVolume);
    if (volumeName === undefined) return;
    this.#wanted.delete(podVolume);
    this.#onDisk?.add(volumeName);
  }

  /** What a look at the disk has found. Those that nobody has to attach are left out. */
  found(volumeNames: ReadonlySet<string>, signal: AbortSignal): void {
    this.#looks += 1;
    const look = this.#looks;
    const attachable = this.#attachable(volumeNames, signal);
    attachable.then(
      (names) => {
        if (look !== this.#looks) return; // a later look knows better
        const before = this.list();
        this.#onDisk = names;
        if (before?.join() !== this.list()?.join()) this.#tell();
      },
      (err: unknown) => {
        if (!isAbort(err)) this.#log.warn({ err: messageOf(err) }, "cannot say which CSI volumes are in use");
      },
    );
  }

  /** Sorted; undefined while it is not known. */
  list(): string[] | undefined {
    return this.#onDisk === undefined ? undefined : [...new Set([...this.#wanted.values(), ...this.#onDisk])].sort();
  }

  /** Calls `listener` when {@link list} may have changed. @returns ends it */
  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  async #attachable(volumeNames: ReadonlySet<string>, signal: AbortSignal): Promise<Set<string>> {
    const found = new Set<string>();
    for (const name of volumeNames) {
      const driver = name.slice(csiPluginName.length + 1, name.indexOf("^"));
      if (needsAttach({ isEphemeral: false }, await this.#objects.csiDriver(driver, signal))) found.add(name);
    }
    return found;
  }

  #tell(): void {
    for (const listener of this.#listeners) listener();
  }
}
