import type { Stats } from "node:fs";
import { chmod, chown, type FileHandle, lchown, lstat, open } from "node:fs/promises";
import { errnoOf } from "../lib/errno.ts";
import { AgentError } from "../lib/errors.ts";
import { dirFlags, type DirEntry, entriesOf, fdPath, openDir, openFound, pathFlags } from "./safe-path.ts";

// Bits that an fsGroup volume gets: the group may read (and write, unless the volume is read-only) files; directories
// can be listed and entered, and hand their group down to what is made in them.
const readWriteBits = 0o660;
const readOnlyBits = 0o440;
const directoryBits = 0o2110;

// Each level keeps two descriptors open, and a container can nest its directories deeper than a process may have files open.
// So a walk goes this deep, and then in as many legs as it takes from what it found there, which keep one open each.
export const legDepthMax = 64;
// No path to what lies deeper fits into a system call (PATH_MAX): whoever made it did so to hurt.
export const legsMax = 32;

// How many entries are worked on at a time: enough to keep both disk and processors busy, half of the process's 16 threads.
export const entriesAtOnceMax = 8;

// A walk that takes longer than this is worth a word, and then every so often: kubelet's VolumePermissionChangeInProgress.
export const slowWalkMs = 30_000;
export const slowWalkAgainMs = 60_000;

export interface FSGroupOptions {
  isReadOnly: boolean;
  /** `fsGroupChangePolicy`; OnRootMismatch spares the walk if the top directory is as it should be. Default Always. */
  policy?: "Always" | "OnRootMismatch";
  /** Told what could not be changed, which does not end the walk: some file systems have no owners. */
  onRefused?(err: unknown): void;
  /** Told while a walk takes long, with the number of entries so far. */
  onSlow?(entries: number): void;
  /** Monotonic ms, for `onSlow`. */
  monotonic?(): number;
}

/** Mode of a volume's entry once it belongs to the fsGroup. Pure; `mode` as in `stat`, the result are permission bits. */
export function fsGroupMode(mode: number, isDirectory: boolean, isReadOnly: boolean): number {
  return (mode & 0o7777) | (isReadOnly ? readOnlyBits : readWriteBits) | (isDirectory ? directoryBits : 0);
}

/** True if a volume whose top is like this needs no walk under policy OnRootMismatch. Pure. */
export function isRootOwned(root: { gid: number; mode: number }, fsGroup: number, isReadOnly: boolean): boolean {
  return root.gid === fsGroup && fsGroupMode(root.mode, true, isReadOnly) === (root.mode & 0o7777);
}

/**
 * Gives `dir` and all that is in it to the group, the contents before their directory. Links are given away themselves,
 * never followed, also if a container swaps them in meanwhile. Entries that vanish meanwhile are left out.
 * Rejects if a directory cannot be read, and with Invalid if they are nested too deep.
 */
export async function applyFSGroup(dir: string | FileHandle, fsGroup: number, options: FSGroupOptions): Promise<void> {
  if (typeof dir !== "string") return await new Walk(fsGroup, options).run(dir);
  const handle = await openDir(dir);
  try {
    await new Walk(fsGroup, options).run(handle);
  } finally {
    await handle.close();
  }
}

/** Where something is, from the top of a leg. */
interface Place {
  /** One character a byte: as short as can be, for there may be many. */
  name: string;
  parent: Place | undefined;
}

interface Leg {
  /** Directories that begin legs of their own. */
  deeper: Place[];
}

class Walk {
  readonly #fsGroup: number;
  readonly #options: FSGroupOptions;
  readonly #monotonic: () => number;
  readonly #slots = new Slots(entriesAtOnceMax);
  #entries = 0;
  #wordAtMs: number;

  constructor(fsGroup: number, options: FSGroupOptions) {
    this.#fsGroup = fsGroup;
    this.#options = options;
    this.#monotonic = options.monotonic ?? (() => performance.now());
    this.#wordAtMs = this.#monotonic() + slowWalkMs;
  }

  async run(root: FileHandle): Promise<void> {
    const { policy = "Always", isReadOnly } = this.#options;
    if (policy === "OnRootMismatch" && isRootOwned(await root.stat(), this.#fsGroup, isReadOnly)) return;
    await this.#leg(root, 1);
  }

  async #leg(top: FileHandle, number: number): Promise<void> {
    if (number > legsMax) {
      const why = `has directories more than ${legsMax * legDepthMax} levels deep`;
      throw new AgentError("Invalid", `cannot give the volume to group ${this.#fsGroup}: it ${why}`);
    }
    const leg: Leg = { deeper: [] };
    await this.#contents(top, undefined, leg, 1);
    for (const place of leg.deeper) await this.#nextLeg(top, namesOf(place), number).catch(ignoreVanished);
    await this.#give(top, await top.stat());
  }

  async #nextLeg(top: FileHandle, names: readonly Buffer[], number: number): Promise<void> {
    const dir = await openFound(top, names);
    try {
      await this.#leg(dir, number + 1);
    } finally {
      await dir.close();
    }
  }

  /** All that is in a directory, which stays open until the last of it is done. Rejects with the first error. */
  async #contents(dir: FileHandle, place: Place | undefined, leg: Leg, depth: number): Promise<void> {
    const files = new Set<Promise<void>>();
    const failures: unknown[] = [];
    // Some file systems do not say in a directory what its entries are.
    const late: { entry: DirEntry; here: Place }[] = [];
    try {
      for await (const entry of entriesOf(dir)) {
        if (failures.length > 0) break;
        const here = { name: entry.name.toString("latin1"), parent: place };
        if (entry.isDirectory) {
          await this.#directory(entry, here, leg, depth).catch(ignoreVanished);
          continue;
        }
        await this.#slots.take();
        const work = this.#file(entry)
          .then((isDirectory) => void (isDirectory && late.push({ entry, here })))
          .catch(ignoreVanished)
          .catch((err: unknown) => void failures.push(err))
          .finally(() => {
            this.#slots.free();
            files.delete(work);
          });
        files.add(work);
      }
    } finally {
      await Promise.all(files);
    }
    if (failures.length > 0) throw failures[0];
    for (const { entry, here } of late) await this.#directory(entry, here, leg, depth).catch(ignoreVanished);
  }

  async #directory({ path }: DirEntry, place: Place, leg: Leg, depth: number): Promise<void> {
    if (depth === legDepthMax) {
      leg.deeper.push(place);
      return;
    }
    const handle = await open(path, dirFlags);
    try {
      await this.#contents(handle, place, leg, depth + 1);
      await this.#give(handle, await handle.stat());
    } finally {
      await handle.close();
    }
  }

  /** @returns true: nothing was done, it is a directory */
  async #file({ path }: DirEntry): Promise<boolean> {
    const stat = await lstat(path);
    if (stat.isDirectory()) return true;
    if (stat.isSymbolicLink()) {
      if (stat.gid !== this.#fsGroup) await lchown(path, -1, this.#fsGroup).catch(this.#refused);
      this.#count();
      return false;
    }
    // As most are, the second time.
    if (this.#isRight(stat)) {
      this.#count();
      return false;
    }
    const handle = await open(path, pathFlags);
    try {
      const opened = await handle.stat();
      if (!opened.isSymbolicLink()) await this.#give(handle, opened);
      return false;
    } finally {
      await handle.close();
    }
  }

  #isRight(stat: Stats): boolean {
    const mode = fsGroupMode(stat.mode, stat.isDirectory(), this.#options.isReadOnly);
    return stat.gid === this.#fsGroup && mode === (stat.mode & 0o7777);
  }

  /** By way of /proc, because a handle that only stands for a file has no fchown. What it stands for cannot change any more. */
  async #give(handle: FileHandle, stat: Stats): Promise<void> {
    this.#count();
    const path = fdPath(handle);
    const mode = fsGroupMode(stat.mode, stat.isDirectory(), this.#options.isReadOnly);
    const isForeign = stat.gid !== this.#fsGroup;
    if (isForeign) await chown(path, -1, this.#fsGroup).catch(this.#refused);
    // After a change of owner also if it looks the same: that may have cleared setuid and setgid.
    if (isForeign || mode !== (stat.mode & 0o7777)) await chmod(path, mode).catch(this.#refused);
  }

  readonly #refused = (err: unknown): void => {
    this.#options.onRefused?.(err);
  };

  #count(): void {
    this.#entries += 1;
    if (this.#options.onSlow === undefined || this.#monotonic() < this.#wordAtMs) return;
    this.#wordAtMs = this.#monotonic() + slowWalkAgainMs;
    this.#options.onSlow(this.#entries);
  }
}

/** So many at a time. */
class Slots {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  async take(): Promise<void> {
    if (this.#free > 0) this.#free -= 1;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  free(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free += 1;
    else next();
  }
}

function namesOf(place: Place): Buffer[] {
  const names: Buffer[] = [];
  for (let at: Place | undefined = place; at !== undefined; at = at.parent) names.push(Buffer.from(at.name, "latin1"));
  return names.toReversed();
}

function ignoreVanished(err: unknown): void {
  if (!["ENOENT", "ENOTDIR", "ELOOP"].includes(errnoOf(err) ?? "")) throw err;
}
