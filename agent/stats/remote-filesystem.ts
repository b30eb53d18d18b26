import type { Clock } from "../lib/clock.ts";
import { type FilesystemFigures, filesystemOf } from "./filesystem.ts";

// A network filesystem whose server answers at all does so within this.
export const statfsTimeoutMs = 5_000;

/** Asks filesystems whose server may have gone. Such a question never ends, and it cannot be taken back. */
export interface RemoteFilesystems {
  /**
   * Rejects when no answer has come within {@link statfsTimeoutMs}, and at once while an earlier question about the same
   * directory is open: each holds one of the process's few threads.
   */
  ask(directory: string, signal: AbortSignal): Promise<FilesystemFigures>;
}

export function createRemoteFilesystems(clock: Clock, ask = filesystemOf): RemoteFilesystems {
  const open = new Set<string>();
  return {
    ask: async (directory, signal) => {
      if (open.has(directory)) throw new Error(`${directory} has not answered: its server may be away`);
      open.add(directory);
      const answer = ask(directory).finally(() => open.delete(directory));
      answer.catch(() => {}); // it may come when nobody waits any more
      const enough = new AbortController();
      const late = clock.sleep(statfsTimeoutMs, AbortSignal.any([signal, enough.signal])).then(() => {
        throw new Error(`${directory} did not answer within ${statfsTimeoutMs} ms: its server may be away`);
      });
      late.catch(() => {});
      try {
        return await Promise.race([answer, late]);
      } finally {
        enough.abort();
      }
    },
  };
}
