import { AgentError } from "../lib/errors.ts";
import { exec } from "../lib/exec.ts";
import { listMountsBlindly, mountFilesystem } from "../lib/mount.ts";

/** A block device that is to be mounted with a file system, which it gets if it has nothing yet. */
export interface FormatAndMount {
  /** Absolute and resolved. */
  device: string;
  /** An existing directory with nothing mounted. */
  target: string;
  fsType: string;
  options: readonly string[];
  /** An empty device is refused, and none is repaired. */
  isReadOnly: boolean;
}

// Reading a device's first and last blocks; one that does not answer is broken.
const readTimeoutMs = 30_000;
// Making or repairing a file system writes all over a device. It is never broken off early: half a file system is one
// that nobody can mount and nobody would make anew.
export const longTimeoutMs = 30 * 60_000;

// blkid's exit code when there is nothing that it knows on the device, and also when the device could not be read.
const blkidNothing = 2;
// All that blkid looks at lies there: superblocks and partition tables at the beginning, copies and RAID's at the end.
const sectorBytes = 512;
const firstSectors = (1 << 20) / sectorBytes;
const lastSectors = (64 << 10) / sectorBytes;
const fsckCorrected = 1;
const fsckUncorrected = 4;

// A part of a program's name to us.
const fsTypePattern = /^[a-z0-9][a-z0-9_]*$/;

/** A device has another file system than it was to be mounted as. */
export class FilesystemMismatchError extends AgentError {}

/**
 * Rejects with an `AgentError`, see {@link FilesystemMismatchError} for one; with code Invalid for an empty device that may not be
 * written, with Unavailable for one that cannot be read: it is not taken for empty.
 */
export async function formatAndMount(what: FormatAndMount, signal: AbortSignal): Promise<void> {
  const { device, target, fsType, isReadOnly } = what;
  if (!fsTypePattern.test(fsType)) throw new AgentError("Invalid", `"${fsType}" is not a file system type`);
  const present = await contentOf(device);
  signal.throwIfAborted();
  if (present === undefined) {
    if (isReadOnly) throw new AgentError("Invalid", `device ${device} has no file system, and is to be read only`);
    await makeFilesystem(device, fsType);
  } else if (!isReadOnly) {
    await repair(device);
  }
  const options = [...what.options, "defaults"];
  try {
    await mountFilesystem({ type: fsType, source: device, target, options }, signal);
  } catch (err) {
    if (present === undefined || present === fsType || !(err instanceof AgentError)) throw err;
    const why = `failed to mount device ${device} as ${fsType}, it has ${present}: ${err.message}`;
    throw new FilesystemMismatchError(err.code, why, { cause: err });
  }
}

/** What is on a device: a file system's type, or words for something else; undefined: nothing. */
async function contentOf(device: string): Promise<string | undefined> {
  const args = ["-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", device];
  const result = await exec("blkid", args, { timeoutMs: readTimeoutMs });
  if (result.code === blkidNothing) {
    await checkReadable(device);
    return undefined;
  }
  if (result.failure !== undefined) {
    throw new AgentError("Internal", `cannot tell what is on ${device}: ${result.message}`);
  }
  return parseBlkid(result.stdout);
}

/** Reads what blkid has read, as it does not say whether it could. By another process: a disk that hangs must not hold ours. */
async function checkReadable(device: string): Promise<void> {
  const run = async (file: string, args: readonly string[]) => {
    const result = await exec(file, args, { timeoutMs: readTimeoutMs });
    if (result.failure === undefined) return result.stdout;
    throw new AgentError(
      "Unavailable",
      `device ${device} cannot be read, it is not taken for empty: ${result.message}`,
    );
  };
  const sectors = Math.floor(Number(await run("blockdev", ["--getsize64", device])) / sectorBytes);
  const read = async (skip: number, count: number) =>
    await run("dd", [`if=${device}`, "of=/dev/null", `bs=${sectorBytes}`, `skip=${skip}`, `count=${count}`]);
  await read(0, firstSectors);
  await read(Math.max(0, sectors - lastSectors), lastSectors);
}

/**
 * Reads `blkid -o export`. Pure.
 * @returns the file system's type, or words for a partition table or anything else that is there
 */
export function parseBlkid(output: string): string {
  const fields = new Map(
    output.split("\n").map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]),
  );
  const table = fields.get("PTTYPE") ?? "";
  if (table !== "") return `a partition table (${table})`;
  return fields.get("TYPE") || "something unknown";
}

async function makeFilesystem(device: string, fsType: string): Promise<void> {
  const options = fsType === "ext3" || fsType === "ext4" ? ["-F", "-m0"] : fsType === "xfs" ? ["-f"] : [];
  const result = await exec(`mkfs.${fsType}`, [...options, device], { timeoutMs: longTimeoutMs });
  if (result.failure === undefined) return;
  throw new AgentError("Internal", `cannot make an ${fsType} file system on ${device}: ${result.message}`);
}

// Without a checker for this type, and whatever else it says, mounting tells.
async function repair(device: string): Promise<void> {
  const result = await exec("fsck", ["-a", device], { timeoutMs: longTimeoutMs });
  if (result.code === undefined || result.code <= fsckCorrected) return;
  if ((result.code & fsckUncorrected) !== 0 && result.code < 8) {
    const words = (result.stdout || result.stderr).trim().split("\n").at(-1) ?? "";
    throw new AgentError("Internal", `fsck found errors on device ${device} that it could not correct: ${words}`);
  }
}

/**
 * Lets the file system of a device fill it, while it is mounted at `target`. Nothing to do is success.
 * Rejects with Unimplemented for file systems that cannot grow.
 */
export async function growFilesystem(device: string, target: string): Promise<void> {
  const { fsType = "nothing" } = (await listMountsBlindly(target)).find(({ source }) => source === device) ?? {};
  const command = growCommand(fsType, device, target);
  if (command === undefined) {
    throw new AgentError("Unimplemented", `${fsType} on device ${device} at ${target} cannot be expanded`);
  }
  const [file, ...args] = command;
  const result = await exec(file, args, { timeoutMs: longTimeoutMs });
  if (result.failure === undefined) return;
  // They begin with who they are.
  const words = result.stderr.trim().split("\n").at(-1) || result.message;
  throw new AgentError("Internal", `cannot expand the ${fsType} file system on ${device}: ${words}`);
}

function growCommand(fsType: string, device: string, target: string): [string, ...string[]] | undefined {
  switch (fsType) {
    case "ext2":
    case "ext3":
    case "ext4":
      return ["resize2fs", device];
    case "xfs":
      return ["xfs_growfs", "-d", target];
    case "btrfs":
      return ["btrfs", "filesystem", "resize", "max", target];
    default:
      return undefined;
  }
}
