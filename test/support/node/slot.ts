import { mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { processKey } from "./process-key.ts";

// Short, because everything lives below it and a unix socket's path holds 107 bytes.
const slotsDir = "/tmp/nltest";

// 10.200.N.0/24 for each slot; more than any machine runs at once.
const slotsMax = 250;

/** One of the machine's places for a test node. Every name and address of the node follows from its number. */
export interface Slot {
  number: number;
  /** Removed last: while it exists nobody else takes the number. */
  dir: string;
}

/** Takes a free slot for this process. The claim is one rename, so it is either complete or absent. */
export async function claimSlot(): Promise<Slot> {
  await mkdir(slotsDir, { recursive: true, mode: 0o755 });
  const claim = join(slotsDir, `claim-${process.pid}-${process.hrtime.bigint()}`);
  await mkdir(claim);
  await writeFile(join(claim, "owner"), await processKey(process.pid));
  for (let number = 1; number <= slotsMax; number++) {
    const dir = slotDir(number);
    try {
      await rename(claim, dir);
      return { number, dir };
    } catch (err) {
      // A directory that is not empty cannot be replaced: taken.
      if (!hasErrno(err, "ENOTEMPTY", "EEXIST")) throw err;
    }
  }
  await rm(claim, { recursive: true, force: true });
  throw new Error(`all ${slotsMax} test nodes of ${slotsDir} are taken: is something not cleaning up?`);
}

/** Slots whose owner no longer runs, taken over by this process so that only one sweeper cleans each. */
export async function takeOverDeadSlots(): Promise<Slot[]> {
  const names = await readdir(slotsDir).catch(() => []);
  const dead: Slot[] = [];
  for (const name of names) {
    const dir = join(slotsDir, name);
    if (/^(claim|gone)-/.test(name)) {
      // Someone died while taking or leaving a slot; the PID is in the name, since the owner file may not be there.
      if ((await processKey(Number(name.split("-")[1]))) === "") await rm(dir, { recursive: true, force: true });
      continue;
    }
    const number = Number(name);
    if (!Number.isInteger(number) || (await isRunning(join(dir, "owner")))) continue;
    if (await lock(join(dir, "sweeper"))) dead.push({ number, dir });
  }
  return dead;
}

/** Gives the slot back. In one step, so that whoever takes the number next never meets what is being removed. */
export async function releaseSlot({ dir }: Slot): Promise<void> {
  const gone = join(slotsDir, `gone-${process.pid}-${process.hrtime.bigint()}`);
  try {
    await rename(dir, gone);
  } catch (err) {
    if (hasErrno(err, "ENOENT")) return;
    throw err;
  }
  await rm(gone, { recursive: true, force: true });
}

function slotDir(number: number): string {
  return join(slotsDir, String(number));
}

async function lock(path: string): Promise<boolean> {
  for (let attempt = 0; attempt < 2; attempt++) {
    try {
      await writeFile(path, await processKey(process.pid), { flag: "wx" });
      return true;
    } catch (err) {
      if (!hasErrno(err, "EEXIST")) return false; // the slot is gone: someone else finished it
      if (await isRunning(path)) return false;
      await rm(path, { force: true });
    }
  }
  return false;
}

/** True if the process that wrote this file still runs. */
async function isRunning(path: string): Promise<boolean> {
  const written = await readFile(path, "utf8").catch(() => "");
  const pid = Number(written.split(" ", 1)[0]);
  return pid > 0 && (await processKey(pid)) === written;
}

function hasErrno(err: unknown, ...codes: string[]): boolean {
  return err instanceof Error && "code" in err && codes.includes(String(err.code));
}
