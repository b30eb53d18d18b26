import { readdir, readFile, rm, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { exec } from "../../../agent/lib/exec.ts";

const unmountTimeoutMs = 10_000;

/** Mount points at or below `dir`, deepest (latest) first. */
export async function mountsBelow(dir: string): Promise<string[]> {
  const lines = (await readFile("/proc/self/mountinfo", "utf8")).split("\n");
  return lines
    .map((line) => unescapePath(line.split(" ")[4] ?? ""))
    .filter((path) => path === dir || path.startsWith(`${dir}/`))
    .reverse();
}

/** Unmounts everything below `dir`, also what is still in use (it goes when its last user does). */
export async function unmountBelow(dir: string): Promise<void> {
  for (let mounts = await mountsBelow(dir), round = 0; mounts.length > 0 && round < 5; round++) {
    for (const path of mounts) await exec("umount", ["--lazy", path], { timeoutMs: unmountTimeoutMs });
    mounts = await mountsBelow(dir);
    if (round === 4 && mounts.length > 0) throw new Error(`cannot unmount ${mounts.join(", ")}`);
  }
}

/** Removes a tree of empty cgroups in every hierarchy (v1 controllers, v2, hybrid). */
export async function removeCgroups(name: string): Promise<void> {
  const root = "/sys/fs/cgroup";
  const controllers = await readdir(root, { withFileTypes: true }).catch(() => []);
  const hierarchies = [
    root,
    ...controllers.filter((entry) => entry.isDirectory()).map((entry) => join(root, entry.name)),
  ];
  for (const hierarchy of hierarchies) await removeCgroupTree(join(hierarchy, name));
}

/** Removes the files that CNI keeps machine-wide for one network. */
export async function removeCNICache(network: string): Promise<void> {
  for (const dir of ["/var/lib/cni/results", "/var/lib/cni/cache/results"]) {
    const names = await readdir(dir).catch(() => []);
    for (const name of names) if (name.startsWith(`${network}-`)) await rm(join(dir, name), { force: true });
  }
}

async function removeCgroupTree(dir: string): Promise<void> {
  const entries = await readdir(dir, { withFileTypes: true }).catch(() => []);
  for (const entry of entries) if (entry.isDirectory()) await removeCgroupTree(join(dir, entry.name));
  // A cgroup whose last process is just ending stays: harmless, and the next sweep of this name gets it.
  await rmdir(dir).catch(() => {});
}

/** mountinfo writes blanks, tabs, newlines and backslashes as three octal digits. */
function unescapePath(path: string): string {
  return path.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
}
