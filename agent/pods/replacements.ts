import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { ignoreErrno } from "../lib/errno.ts";

/**
 * Notes of which instance of a container is stopped in order to be replaced, kept over a restart of the agent: without them
 * an exit with code 0 would look like the end of a container that is to run until it succeeds.
 */
export interface Replacements {
  /** Written before the instance is told to stop. */
  note(podUID: string, container: string, containerID: string): Promise<void>;
  /** ID of the instance that was noted last; undefined if there is none. */
  read(podUID: string, container: string): Promise<string | undefined>;
}

// An ID of any runtime is shorter; what is longer is not ours.
const idCharsMax = 256;

/** Keeps the notes beside the containers' termination messages; they go with the pod's directory. */
export function replacementsIn(rootDir: string): Replacements {
  const pathOf = (podUID: string, container: string) =>
    join(rootDir, "pods", podUID, "containers", container, "replaced");
  return {
    // Not synced: after a crash of the machine, no container has ended with code 0.
    note: async (podUID, container, containerID) => {
      const path = pathOf(podUID, container);
      await mkdir(dirname(path), { recursive: true, mode: 0o750 });
      await writeFile(path, containerID, { mode: 0o600 });
    },
    read: async (podUID, container) => {
      const text = await readFile(pathOf(podUID, container), "utf8").catch(ignoreErrno("ENOENT", "ENOTDIR"));
      return text === undefined || text === "" || text.length > idCharsMax ? undefined : text;
    },
  };
}
