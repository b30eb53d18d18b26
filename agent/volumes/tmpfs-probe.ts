import { mkdir, readFile, rmdir } from "node:fs/promises";
import { release } from "node:os";
import { join } from "node:path";
import { mountFilesystem, unmountAllUnder } from "../lib/mount.ts";

// tmpfs learned `noswap` in Linux 6.4; some distributions have it in older ones.
const noswapSince = [6, 4] as const;

/** True if a kernel of this release (`uname -r`) surely has tmpfs with `noswap`. */
export function releaseHasNoswap(kernelRelease: string): boolean {
  const [major = 0, minor = 0] = kernelRelease.split(".").map((part) => Number.parseInt(part, 10));
  return major > noswapSince[0] || (major === noswapSince[0] && minor >= noswapSince[1]);
}

/**
 * Finds out, at the first call, whether a tmpfs can be kept out of swap. In a user namespace the kernel refuses it.
 * @param scratchDir where a trial mount may be made on old kernels
 * @param kernelRelease as `uname -r` has it
 */
export function createTmpfsProbe(scratchDir: string, kernelRelease = release()): () => Promise<boolean> {
  let answer: Promise<boolean> | undefined;
  return () => (answer ??= probe(scratchDir, kernelRelease).catch(() => false));
}

async function probe(scratchDir: string, kernelRelease: string): Promise<boolean> {
  const uidMap = (await readFile("/proc/self/uid_map", "utf8")).trim().split(/\s+/);
  if (uidMap.join(" ") !== "0 0 4294967295") return false;
  if (releaseHasNoswap(kernelRelease)) return true;
  // Always the same: what a run that was killed left there is made use of, and goes.
  const dir = join(scratchDir, ".noswap");
  await mkdir(dir, { recursive: true, mode: 0o700 });
  try {
    await mountFilesystem({ type: "tmpfs", source: "tmpfs", target: dir, options: ["noswap", "size=4k"] });
    return true;
  } finally {
    await unmountAllUnder(dir);
    await rmdir(dir);
  }
}
