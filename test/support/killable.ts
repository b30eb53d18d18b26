import { AsyncLocalStorage } from "node:async_hooks";
import childProcess from "node:child_process";
import { EventEmitter, once } from "node:events";
import fs from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";

/**
 * Work that ends between two steps as if the process had been killed there: from then on nothing that it calls begins or
 * answers any more, while the test goes on. A step is a change of the file system, or a program that is started.
 */

/** One run of such work. */
interface Run {
  stepsLeft: number;
  died: PromiseWithResolvers<"killed">;
  isDead: boolean;
  /** Steps that had begun: the kernel ends them, whoever asked for them. */
  underWay: Set<Promise<unknown>>;
  /** What it has opened: the kernel closes that. */
  opened: Set<{ close(): Promise<void> }>;
}

const current = new AsyncLocalStorage<Run>();

const changes = [
  "mkdir",
  "chmod",
  "chown",
  "lchown",
  "writeFile",
  "rename",
  "symlink",
  "rm",
  "rmdir",
  "unlink",
] as const;
const looks = ["open", "opendir", "readdir", "readFile", "realpath", "readlink", "lstat", "stat", "statfs"] as const;

// In the place of Node's own functions; only work given to `killAfter` notices. At import, and so to be imported first:
// modules may keep the functions that they find when they begin.
install();

function install(): void {
  const table = fs as unknown as Record<string, (...args: unknown[]) => Promise<unknown>>;
  for (const name of changes) table[name] = killable(table[name]!, true);
  for (const name of looks) table[name] = killable(table[name]!, false);
  const spawn = childProcess.spawn as (...args: unknown[]) => childProcess.ChildProcess;
  (childProcess as { spawn: unknown }).spawn = (...args: unknown[]) => {
    const run = current.getStore();
    if (run === undefined) return spawn(...args);
    // Nothing is ever heard of it, and who waits for it gives up one day.
    if (isDead(run, true)) return Object.assign(new EventEmitter(), { unref: () => {} });
    const child = spawn(...args);
    track(run, once(child, "close"));
    return child;
  };
  syncBuiltinESMExports();
}

/**
 * Runs `work` for as many steps.
 * @returns "killed", once all that had begun is over; "done" if it took fewer steps. Rejects as `work` does.
 */
export async function killAfter(steps: number, work: () => Promise<unknown>): Promise<"killed" | "done"> {
  const run: Run = {
    stepsLeft: steps,
    died: Promise.withResolvers(),
    isDead: false,
    underWay: new Set(),
    opened: new Set(),
  };
  const done = current.run(run, async () => await work()).then(() => "done" as const);
  const outcome = await Promise.race([done, run.died.promise]);
  while (run.underWay.size > 0) await Promise.allSettled(run.underWay);
  if (outcome === "killed") for (const handle of run.opened) await handle.close().catch(() => {}); // some had been closed
  return outcome;
}

function killable(original: (...args: unknown[]) => Promise<unknown>, isStep: boolean) {
  return (...args: unknown[]): Promise<unknown> => {
    const run = current.getStore();
    if (run === undefined) return original(...args);
    if (isDead(run, isStep)) return Promise.withResolvers<never>().promise;
    const work = original(...args);
    track(run, work);
    return work.then((result) => {
      if (isHandle(result)) run.opened.add(result);
      return result;
    });
  };
}

function isHandle(value: unknown): value is { close(): Promise<void> } {
  return typeof value === "object" && value !== null && "close" in value;
}

function isDead(run: Run, isStep: boolean): boolean {
  if (isStep && !run.isDead) {
    if (run.stepsLeft === 0) {
      run.isDead = true;
      run.died.resolve("killed");
    }
    run.stepsLeft -= 1;
  }
  return run.isDead;
}

function track(run: Run, work: Promise<unknown>): void {
  run.underWay.add(work);
  const forget = () => void run.underWay.delete(work);
  work.then(forget, forget);
}
