import { readdir, readlink, stat } from "node:fs/promises";
import type { Clock } from "../lib/clock.ts";
import type { ProcessDetails } from "./cadvisor-rows.ts";
import { parseMaxOpenFiles } from "./parse.ts";
import { type FileReader, forEachLimited } from "./read.ts";

/** Looks at the open files of containers' processes. */
export interface ProcessMeter {
  /** @param pids by container ID. @returns by container ID, those that could be read */
  measure(pids: ReadonlyMap<string, readonly number[]>): Promise<ReadonlyMap<string, ProcessDetails>>;
}

// Each open file costs a system call to tell sockets from others; dashboards do not need it more often than this.
export const maxAgeMs = 60_000;
// Open files of one container beyond which sockets are not told apart: databases have tens of thousands.
export const descriptorsLookedAt = 1_024;
// Processes of one container that are looked at.
export const processesMax = 128;
const concurrency = 8;

export function createProcessMeter(reader: FileReader, clock: Clock, procRoot = "/proc"): ProcessMeter {
  const known = new Map<string, { atMs: number; details: ProcessDetails }>();

  const look = async (pids: readonly number[]): Promise<ProcessDetails | undefined> => {
    let descriptors = 0;
    let sockets = 0;
    let isReadable = false;
    for (const pid of pids.slice(0, processesMax)) {
      const directory = `${procRoot}/${pid}/fd`;
      // Linux 6.2 and later count for us: a list of a million names is not made then.
      const counted = await stat(directory).catch(() => undefined);
      if (counted === undefined) continue; // it has ended
      isReadable = true;
      const names = counted.size > descriptorsLookedAt ? [] : await readdir(directory).catch(() => []);
      descriptors += counted.size > 0 ? counted.size : names.length;
      if (descriptors > descriptorsLookedAt) continue;
      for (const name of names) {
        const target = await readlink(`${directory}/${name}`).catch(() => "");
        if (target.startsWith("socket:")) sockets += 1;
      }
    }
    if (!isReadable) return undefined;
    const maxOpenFiles = parseMaxOpenFiles(await reader.list(`${procRoot}/${pids[0]}/limits`));
    return {
      fileDescriptors: descriptors,
      ...(descriptors > descriptorsLookedAt ? {} : { sockets }),
      ...(maxOpenFiles === undefined ? {} : { maxOpenFiles }),
    };
  };

  return {
    measure: async (pids) => {
      for (const id of known.keys()) if (!pids.has(id)) known.delete(id);
      const nowMs = clock.now();
      const due = [...pids].filter(([id]) => nowMs - (known.get(id)?.atMs ?? Number.NEGATIVE_INFINITY) >= maxAgeMs);
      await forEachLimited(due, concurrency, async ([id, own]) => {
        const details = await look(own.filter((pid) => pid > 0));
        if (details === undefined) known.delete(id);
        else known.set(id, { atMs: nowMs, details });
      });
      return new Map([...known].map(([id, { details }]) => [id, details]));
    },
  };
}
