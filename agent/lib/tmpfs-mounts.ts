import { readFile, rm, writeFile } from "node:fs/promises";
import { AgentError } from "./errors.ts";
import { exec } from "./exec.ts";
import { mountFilesystem, parseMountinfo } from "./mount.ts";

/** Mounts tmpfs file systems. */
export interface TmpfsMounter {
  /**
   * Mounts a tmpfs at `target`, an absolute and resolved path at which there is none yet.
   * Rejects with an `AgentError` that carries mount's own words, and with Canceled when `signal` aborts: either nothing is
   * mounted then nor will be, or it is there.
   */
  mount(target: string, options: readonly string[], signal: AbortSignal): Promise<void>;
}

// Far more than the volumes of a pod; keeps one mount(8) short.
const batchMax = 64;
// 64 local mounts take less than a tenth of a second.
const batchTimeoutMs = 30_000;

interface Request {
  target: string;
  options: readonly string[];
  signal: AbortSignal;
  done: PromiseWithResolvers<void>;
}

/**
 * Pods with secrets and tokens need a tmpfs for each, and to start a process for each costs more than to mount it. What is
 * asked for while one mount(8) is at work is mounted by the next all together: a file in the form of fstab names them.
 * Nobody waits for others to ask.
 *
 * @param tablePath where that file may be; nobody else may be able to write there
 * @param run starts mount(8) for a table; default: the real one
 */
export function createTmpfsMounter(tablePath: string, run = mountTable): TmpfsMounter {
  const queue: Request[] = [];
  let isAtWork = false;

  const work = async (): Promise<void> => {
    isAtWork = true;
    for (;;) {
      const batch = queue.splice(0, batchMax);
      if (batch.length === 0) break;
      const left = batch.length === 1 ? batch : await mountTogether(tablePath, batch, run);
      // One by one, each has an error of its own.
      await Promise.all(left.map(mountAlone));
      for (const { done } of batch) done.resolve(); // of no effect where it was rejected
    }
    isAtWork = false;
  };

  return {
    mount: async (target, options, signal) => {
      if (signal.aborted) throw canceled(target);
      const request = { target, options, signal, done: Promise.withResolvers<void>() };
      // One that is at work comes to its end: it is short, and what it leaves behind has to be known.
      const onAbort = () => {
        const at = queue.indexOf(request);
        if (at === -1) return;
        queue.splice(at, 1);
        request.done.reject(canceled(target));
      };
      signal.addEventListener("abort", onAbort, { once: true });
      queue.push(request);
      if (!isAtWork) void work();
      try {
        await request.done.promise;
      } finally {
        signal.removeEventListener("abort", onAbort);
      }
    },
  };
}

async function mountAlone({ target, options, signal, done }: Request): Promise<void> {
  await mountFilesystem({ type: "tmpfs", source: "tmpfs", target, options }, signal).catch(done.reject);
}

/** Never rejects. @returns what is not mounted after it */
async function mountTogether(
  tablePath: string,
  batch: readonly Request[],
  run: typeof mountTable,
): Promise<readonly Request[]> {
  try {
    await writeFile(tablePath, renderTable(batch), { mode: 0o600 });
    if (await run(tablePath)) return [];
    const mounts = parseMountinfo(await readFile("/proc/self/mountinfo", "utf8"));
    const present = new Set(mounts.filter(({ fsType }) => fsType === "tmpfs").map(({ mountPoint }) => mountPoint));
    return batch.filter(({ target }) => !present.has(target));
  } catch {
    return batch; // of which each will say what is wrong
  } finally {
    await rm(tablePath, { force: true }).catch(() => {});
  }
}

/** Lines of fstab(5). Pure. */
export function renderTable(mounts: readonly { target: string; options: readonly string[] }[]): string {
  return mounts
    .map(({ target, options }) => {
      return `tmpfs ${escaped(target)} tmpfs ${options.length === 0 ? "defaults" : options.map(escaped).join(",")} 0 0\n`;
    })
    .join("");
}

// What would end a field, as fstab(5) has it written.
function escaped(text: string): string {
  return text.replaceAll(/[\s\\#]/g, (char) => `\\${char.charCodeAt(0).toString(8).padStart(3, "0")}`);
}

/** Mounts all that a table names. @returns false if something of it was not mounted */
async function mountTable(tablePath: string): Promise<boolean> {
  const args = ["--no-canonicalize", "--all", "--fstab", tablePath];
  const { failure } = await exec("mount", args, { timeoutMs: batchTimeoutMs });
  return failure === undefined;
}

function canceled(target: string): AgentError {
  return new AgentError("Canceled", `mount of a tmpfs at ${target}: canceled`);
}
