import { mkdir, readFile, rmdir } from "node:fs/promises";
import { release } from "node:os";
import { join } from "node:path";
import { AgentError, messageOf } from "../lib/errors.ts";
import { exec } from "../lib/exec.ts";
import type { Logger } from "../lib/log.ts";
import { unmountAllUnder } from "../lib/mount.ts";

// tmpfs learned `noswap` in Linux 6.4; some distributions have it in older ones.
const noswapSince = [6, 4] as const;
// A trial takes 2 ms; one that hangs this long has a sick kernel beneath it.
const trialTimeoutMs = 30_000;

/** True if a kernel of this release (`uname -r`) surely has tmpfs with `noswap`. */
export function releaseHasNoswap(kernelRelease: string): boolean {
  const [major = 0, minor = 0] = kernelRelease.split(".").map((part) => Number.parseInt(part, 10));
  return major > noswapSince[0] || (major === noswapSince[0] && minor >= noswapSince[1]);
}

/**
 * Finds out whether a tmpfs can be kept out of swap. In a user namespace the kernel refuses it. What the kernel says is
 * remembered; a trial that fails for another reason counts as a no for now, and is made again at the next call.
 * @param scratchDir where a trial mount may be made on old kernels
 * @param kernelRelease as `uname -r` has it
 */
export function createTmpfsProbe(scratchDir: string, log: Logger, kernelRelease = release()): () => Promise<boolean> {
  let answer: Promise<boolean> | undefined;
  const ask = async () => {
    try {
      const takesIt = await probe(scratchDir, kernelRelease);
      if (!takesIt) log.info({}, "volumes in memory may be swapped out: the kernel refuses tmpfs with noswap");
      return takesIt;
    } catch (err) {
      answer = undefined;
      const msg = "cannot find out whether tmpfs takes noswap: this volume may be swapped out, the next one asks again";
      log.warn({ err: messageOf(err) }, msg);
      return false;
    }
  };
  return () => (answer ??= ask());
}

async function probe(scratchDir: string, kernelRelease: string): Promise<boolean> {
  const uidMap = (await readFile("/proc/self/uid_map", "utf8")).trim().split(/\s+/);
  if (uidMap.join(" ") !== "0 0 4294967295") return false;
  if (releaseHasNoswap(kernelRelease)) return true;
  // Always the same: what a run that was killed left there is made use of, and goes.
  const dir = join(scratchDir, ".noswap");
  await mkdir(dir, { recursive: true, mode: 0o700 });
  try {
    const args = ["--no-canonicalize", "-t", "tmpfs", "-o", "noswap,size=4k", "tmpfs", dir];
    const { failure, stderr, message } = await exec("env", ["LC_ALL=C", "mount", ...args], {
      timeoutMs: trialTimeoutMs,
    });
    if (failure === undefined) return true;
    if (isRefusal(stderr)) return false;
    throw new AgentError("Internal", message);
  } finally {
    await unmountAllUnder(dir);
    await rmdir(dir);
  }
}

/** True if these words of mount(8), in the C locale, say that the kernel does not know an option. Pure. */
export function isRefusal(words: string): boolean {
  return /bad option|bad value|invalid argument|unknown (?:mount )?(?:parameter|option)|unrecognized mount option/i.test(
    words,
  );
}
