import type { Clock } from "../lib/clock.ts";
import { type FilesystemFigures, filesystemOf } from "./filesystem.ts";

// A network filesystem whose server answers at all does so within this.
export const statfsTimeoutMs = 5_000;
// Each question that hangs holds one of the process's 16 threads: a quarter of them at most.
export const hangingMax = 4;

/** Asks filesystems whose server may have gone. Such a question never ends, and it cannot be taken back. */
export interface RemoteFilesystems {
  /**
   * Rejects when no answer has come within {@link statfsTimeoutMs}, at once while an earlier question about the same
   * directory is open or {@link hangingMax} about others hang, and with the signal's reason when it aborts.
   */
  ask(directory: string, signal: AbortSignal): Promise<FilesystemFigures>;
}

export function createRemoteFilesystems(clock: Clock, ask = filesystemOf): RemoteFilesystems {
  const open = new Set<string>();
  const hanging = new Set<string>();
  return {
    ask: async (directory, signal) => {
      signal.throwIfAborted();
      if (open.has(directory)) throw new Error(`${directory} has not answered: its server may be away`);
      if (hanging.size >= hangingMax) {
        throw new Error(`${directory} is not asked: ${hanging.size} other filesystems do not answer`);
      }
      const { promise, resolve, reject } = Promise.withResolvers<FilesystemFigures>();
      open.add(directory);
      const timer = clock.after(statfsTimeoutMs, () => {
        hanging.add(directory);
        reject(new Error(`${directory} did not answer within ${statfsTimeoutMs} ms: its server may be away`));
      });
      const onAbort = () => reject(signal.reason);
      signal.addEventListener("abort", onAbort, { once: true });
      ask(directory)
        .then(resolve, reject)
        .finally(() => {
          timer.cancel(); // an answer may also come when nobody waits any more
          open.delete(directory);
          hanging.delete(directory);
        });
      try {
        return await promise;
      } finally {
        signal.removeEventListener("abort", onAbort);
      }
    },
  };
}
