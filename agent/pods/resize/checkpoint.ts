import { readFile } from "node:fs/promises";
import { writeFileAtomic } from "../../lib/atomic-file.ts";
import { backoffMs } from "../../lib/backoff.ts";
import type { Clock, Timer } from "../../lib/clock.ts";
import { errnoOf } from "../../lib/errno.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { ResourceList, ResourceRequirements } from "../../kube/types.ts";
import type { PodResources } from "./allocation.ts";

/** Resources of pods by UID. */
type Entries = Record<string, PodResources>;

// What nobody waits for is written at once, but no sooner than this after the last such write: pods that come together share one.
export const lazySaveMs = 1_000;
/** Rest after a write that nobody waited for has failed. */
export const saveRetry = { baseMs: 1_000, maxMs: 60_000, jitter: 0.2 };
// FNV-1a, 32 bit.
const offsetBasis = 0x811c9dc5;
const prime = 0x01000193;

/**
 * One of the files in which the reference keeps the resources of pods over restarts, in its format:
 * `{"data":"{\"entries\":{<uid>:{\"ContainerResources\":{…}}}}","checksum":<n>}`.
 *
 * What is in memory counts at once; `save` says when it is on disk. A file that cannot be read is as good as none: pods
 * then have what their specs say.
 */
export class ResourceCheckpoint {
  readonly #path: string;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #entries = new Map<string, PodResources>();
  #onDisk = "";
  #writing: Promise<void> | undefined;
  #next: Promise<void> | undefined;
  /** The write that nobody waits for, as long as it has not begun. */
  #due: Timer | undefined;
  #lastLazyMs = Number.NEGATIVE_INFINITY;
  #failures = 0;

  constructor(path: string, { clock, log }: { clock: Clock; log: Logger }) {
    this.#path = path;
    this.#clock = clock;
    this.#log = log;
  }

  /** Reads the file. Never rejects. */
  async load(): Promise<void> {
    try {
      const text = await readFile(this.#path, "utf8");
      for (const [uid, resources] of Object.entries(parseCheckpoint(text))) this.#entries.set(uid, resources);
      this.#onDisk = text;
    } catch (err) {
      if (errnoOf(err) === "ENOENT") return;
      this.#log.error(
        { path: this.#path, err: messageOf(err) },
        "resources of pods not restored: pods have what their specs say, and resizes that were under way begin anew",
      );
    }
  }

  get(podUID: string): PodResources | undefined {
    return this.#entries.get(podUID);
  }

  set(podUID: string, resources: PodResources): void {
    this.#entries.set(podUID, resources);
  }

  entries(): IterableIterator<[podUID: string, resources: PodResources]> {
    return this.#entries.entries();
  }

  /** Forgets a pod; the file follows with the next write. */
  delete(podUID: string): void {
    this.#entries.delete(podUID);
  }

  /** Forgets all other pods. */
  keepOnly(isKnown: (podUID: string) => boolean): void {
    for (const uid of this.#entries.keys()) if (!isKnown(uid)) this.#entries.delete(uid);
  }

  /** Resolves once what is in memory now is on disk; rejects if it cannot be written. Calls that come together share a write. */
  async save(): Promise<void> {
    const before = this.#writing;
    if (before === undefined) {
      this.#writing = this.#write().finally(() => {
        this.#writing = undefined;
      });
      return await this.#writing;
    }
    // The write under way may have begun before the change.
    this.#next ??= before
      .catch(() => {})
      .then(async () => {
        this.#next = undefined;
        await this.save();
      });
    return await this.#next;
  }

  /** Saves at once, or a little later if it just has. A failure is logged, and it is tried again. */
  saveSoon(): void {
    this.#saveIn(Math.max(0, this.#lastLazyMs + lazySaveMs - this.#clock.monotonic()));
  }

  #saveIn(ms: number): void {
    this.#due ??= this.#clock.after(ms, () => void this.#saveLazily());
  }

  /** Writes what waits for `saveSoon`; resolves when nothing is under way. Never rejects. */
  async flush(): Promise<void> {
    if (this.#due !== undefined) await this.#saveLazily();
    else await (this.#next ?? this.#writing)?.catch(() => {}); // told to whoever began it
    this.#stopRetrying();
  }

  #stopRetrying(): void {
    this.#due?.cancel();
    this.#due = undefined;
  }

  // Never rejects.
  async #saveLazily(): Promise<void> {
    this.#stopRetrying();
    this.#lastLazyMs = this.#clock.monotonic();
    try {
      await this.save();
      this.#failures = 0;
    } catch (err) {
      this.#failures += 1;
      const retryInMs = Math.round(backoffMs(this.#failures, saveRetry));
      this.#log.warn({ path: this.#path, err: messageOf(err), retryInMs }, "resources of pods not saved, trying again");
      this.#saveIn(retryInMs);
    }
  }

  async #write(): Promise<void> {
    const text = renderCheckpoint(Object.fromEntries(this.#entries));
    if (text === this.#onDisk) return;
    await writeFileAtomic(this.#path, text);
    this.#onDisk = text;
  }
}

/** The file's text. */
export function renderCheckpoint(entries: Entries): string {
  const info = Object.keys(entries)
    .toSorted()
    .map((uid) => {
      const { containers, pod } = entries[uid] ?? { containers: {} };
      return [
        uid,
        {
          ContainerResources: containers,
          ...(pod === undefined ? {} : { PodLevelResources: pod }),
        },
      ] as const;
    });
  const data = JSON.stringify(info.length === 0 ? {} : { entries: Object.fromEntries(info) });
  return JSON.stringify({ data, checksum: checksumOf(data) });
}

/** What the file says. Throws with the reason if it is damaged. */
export function parseCheckpoint(text: string): Entries {
  const file = objectOf(JSON.parse(text), "checkpoint");
  const { data, checksum } = file;
  if (typeof data !== "string") throw new Error("the checkpoint has no data");
  if (checksum !== checksumOf(data)) throw new Error("the checkpoint is corrupt: its checksum does not fit");
  const entries = objectOf(objectOf(JSON.parse(data), "data")["entries"] ?? {}, "entries");
  return Object.fromEntries(
    Object.entries(entries).map(([uid, entry]): [string, PodResources] => {
      const { ContainerResources = {}, PodLevelResources } = objectOf(entry, uid);
      const containers = Object.entries(objectOf(ContainerResources ?? {}, uid)).map(
        ([name, value]) => [name, requirementsOf(value, name)] as const,
      );
      const pod = isAbsent(PodLevelResources) ? {} : { pod: requirementsOf(PodLevelResources, uid) };
      return [uid, { containers: Object.fromEntries(containers), ...pod }];
    }),
  );
}

// FNV-1a over the printed form of a Go string, as the reference's checkpoints have it.
function checksumOf(data: string): number {
  let hash = offsetBasis;
  for (const byte of Buffer.from(`(string)${data}`)) {
    hash ^= byte;
    hash = Math.imul(hash, prime);
  }
  return hash >>> 0;
}

function requirementsOf(value: unknown, what: string): ResourceRequirements {
  const { requests, limits } = objectOf(value, what);
  return {
    ...(isAbsent(requests) ? {} : { requests: listOf(requests, what) }),
    ...(isAbsent(limits) ? {} : { limits: listOf(limits, what) }),
  };
}

function listOf(value: unknown, what: string): ResourceList {
  const entries = Object.entries(objectOf(value, what)).map(([name, quantity]): [string, string | number] => {
    if (typeof quantity === "string" || typeof quantity === "number") return [name, quantity];
    throw new Error(`the checkpoint is malformed at ${what}: ${name} is no quantity`);
  });
  return Object.fromEntries(entries);
}

function objectOf(value: unknown, what: string): Record<string, unknown> {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  throw new Error(`the checkpoint is malformed at ${what}`);
}

function isAbsent(value: unknown): boolean {
  return value === undefined || value === null;
}
