import { readdirSync, readFileSync, statfsSync } from "node:fs";
import { join } from "node:path";
import { parseCPUSet } from "./cpuset.ts";

/** What reading the configuration needs to know of the machine. Read once, at start. */
export interface ConfigHost {
  /** The text of a file; throws what Node.js throws. */
  readFile(path: string): string;
  /** Paths of all files below a directory, in lexical order; throws what Node.js throws. */
  filesBelow(dir: string): string[];
  isCgroupV2(): boolean;
  /** CPUs that are online, or undefined if the kernel does not tell. */
  onlineCPUs(): ReadonlySet<number> | undefined;
}

// CGROUP2_SUPER_MAGIC of linux/magic.h.
const cgroup2Magic = 0x63677270;

/** The machine we run on. */
export const systemHost: ConfigHost = {
  readFile: (path) => readFileSync(path, "utf8"),
  filesBelow,
  isCgroupV2: () => {
    try {
      return statfsSync("/sys/fs/cgroup").type === cgroup2Magic;
    } catch {
      return false;
    }
  },
  onlineCPUs: () => {
    try {
      return parseCPUSet(readFileSync("/sys/devices/system/cpu/online", "utf8"));
    } catch {
      return undefined;
    }
  },
};

// Go's filepath.Walk order: entries by name, a directory's content in its place. Links to directories are not followed.
function filesBelow(dir: string): string[] {
  const entries = readdirSync(dir, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1));
  return entries.flatMap((entry) => {
    const path = join(dir, entry.name);
    return entry.isDirectory() ? filesBelow(path) : [path];
  });
}
