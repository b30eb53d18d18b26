import { readFile, writeFile } from "node:fs/promises";
import { messageOf } from "../lib/errors.ts";
import { exec } from "../lib/exec.ts";
import type { Logger } from "../lib/log.ts";

export interface ProcessLimitsDeps {
  log: Logger;
  /** Replaced by tests. */
  run?: typeof exec;
  /** Directory of the process; replaced by tests. */
  procDir?: string;
}

const prlimitTimeoutMs = 10_000;

/**
 * How likely the kernel chooses this process when memory runs out: -1000 (never) to 1000. A lower score than it has needs
 * CAP_SYS_RESOURCE, which some containers lack; that is logged, and all else works. Never rejects.
 */
export async function setOOMScore(score: number, { log, procDir = "/proc/self" }: ProcessLimitsDeps): Promise<void> {
  try {
    await writeFile(`${procDir}/oom_score_adj`, String(score));
  } catch (err) {
    log.warn({ oomScoreAdj: score, err: messageOf(err) }, "cannot set the agent's own OOM score");
  }
}

/**
 * Sets how many files this process may have open (RLIMIT_NOFILE, soft and hard). Node.js has no call for it, so prlimit
 * does it from outside. Never rejects: a limit that stays too low is logged.
 */
export async function setOpenFilesMax(wanted: number, deps: ProcessLimitsDeps): Promise<void> {
  const { log, run = exec, procDir = "/proc/self" } = deps;
  const { soft, hard } = openFilesLimits(await readFile(`${procDir}/limits`, "utf8").catch(() => ""));
  if (soft === wanted && hard === wanted) return;
  const args = ["--pid", String(process.pid), `--nofile=${wanted}:${wanted}`];
  const { failure, message } = await run("prlimit", args, { timeoutMs: prlimitTimeoutMs });
  if (failure === undefined || soft >= wanted) return;
  log.warn(
    { maxOpenFiles: wanted, limit: soft, err: message },
    "cannot raise the agent's own limit of open files: raise it where the agent is started (LimitNOFILE)",
  );
}

/** RLIMIT_NOFILE in the text of /proc/PID/limits; 0 where it cannot be read. Pure. */
export function openFilesLimits(text: string): { soft: number; hard: number } {
  const [, soft = "", hard = ""] = /^Max open files\s+(\S+)\s+(\S+)/m.exec(text) ?? [];
  const number = (word: string) => (word === "unlimited" ? Number.POSITIVE_INFINITY : Number(word));
  return { soft: number(soft), hard: number(hard) };
}
