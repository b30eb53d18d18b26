import { constants, type Stats } from "node:fs";
import { chmod, chown, type FileHandle, lchown, lstat, open, opendir } from "node:fs/promises";
import { errnoOf } from "../lib/errno.ts";
import { openDir } from "./dir-handle.ts";
import { fdPath } from "./safe-path.ts";

// Bits that an fsGroup volume gets: the group may read (and write, unless the volume is read-only) files; directories
// can be listed and entered, and hand their group down to what is made in them.
const readWriteBits = 0o660;
const readOnlyBits = 0o440;
const directoryBits = 0o2110;

// A handle that only stands for the file: opening has no effects, not even on devices and pipes.
const O_PATH = 0o10_000_000;
const slash = Buffer.from("/");

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
 * Rejects if a directory cannot be read.
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

class Walk {
  readonly #fsGroup: number;
  readonly #options: FSGroupOptions;
  readonly #monotonic: () => number;
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
    await this.#directory(root);
  }

  async #directory(dir: FileHandle): Promise<void> {
    const self = Buffer.from(fdPath(dir));
    // The typings know strings only; with this encoding names come as bytes, which need not be valid UTF-8.
    for await (const entry of await opendir(self.toString(), { encoding: "buffer" as BufferEncoding })) {
      await this.#entry(Buffer.concat([self, slash, entry.name as unknown as Buffer])).catch(ignoreVanished);
    }
    await this.#give(dir, await dir.stat());
  }

  /** @param path of which only the last part is looked up */
  async #entry(path: Buffer): Promise<void> {
    const stat = await lstat(path);
    if (stat.isSymbolicLink()) {
      if (stat.gid !== this.#fsGroup) await lchown(path, -1, this.#fsGroup).catch(this.#refused);
      this.#count();
      return;
    }
    const flags = stat.isDirectory() ? constants.O_RDONLY | constants.O_DIRECTORY : O_PATH;
    const handle = await open(path, flags | constants.O_NOFOLLOW);
    try {
      const opened = await handle.stat();
      if (stat.isDirectory()) await this.#directory(handle);
      else if (!opened.isSymbolicLink()) await this.#give(handle, opened);
    } finally {
      await handle.close();
    }
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

function ignoreVanished(err: unknown): void {
  if (!["ENOENT", "ENOTDIR", "ELOOP"].includes(errnoOf(err) ?? "")) throw err;
}
