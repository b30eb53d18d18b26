import { readdir, rmdir, unlink } from "node:fs/promises";
import { join } from "node:path";
import { errnoOf } from "../lib/errno.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import { isAtOrBeneath, listMountsUnder, unmountAllUnder } from "../lib/mount.ts";
import type { KindTable } from "./kinds.ts";
import { removeTree } from "./remove-tree.ts";
import { fdPath, openDir } from "./safe-path.ts";
import { pluginDirName } from "./pod-paths.ts";

/**
 * Unmounts and deletes all volumes of a pod, by what is on disk, so that it works for pods of an earlier run. Containers
 * must have stopped. Volumes of kinds that are not ours are left to whoever made them: only their empty directories go, and
 * while one of them is mounted nothing at all.
 * Rejects while something cannot be unmounted; then nothing beneath it is deleted.
 * @param left volumes that stay for now; they are not looked into, as what is mounted there may hang
 */
export async function tearDownPodVolumes(
  podDir: string,
  kinds: Pick<KindTable, "isOwnDirName">,
  left: readonly { plugin: string; specName: string }[] = [],
): Promise<void> {
  await listDir(podDir); // refuses a link
  const volumesDir = join(podDir, "volumes");
  const plugins = await listDir(volumesDir);
  const ownDirs = plugins.filter((plugin) => kinds.isOwnDirName(plugin)).map((plugin) => join(volumesDir, plugin));
  const held = new Set(left.map(({ plugin }) => plugin));
  await refuseMounts(
    plugins.filter((name) => !kinds.isOwnDirName(name) && !held.has(name)).map((name) => join(volumesDir, name)),
  );
  // Each keeps its volume busy: a volume must not go while one of them stays.
  await tearDownSubPaths(podDir, new Set(left.map(({ specName }) => specName)));
  await unmountAllUnder(volumesDir, ({ mountPoint }) => ownDirs.some((dir) => isAtOrBeneath(mountPoint, dir)));
  // First the marks: what is half deleted must not count as ready.
  await removeTree(join(podDir, "plugins", pluginDirName("kubernetes.io/empty-dir")));
  const removals = plugins.map(async (plugin) => {
    if (held.has(plugin)) return;
    const pluginDir = join(volumesDir, plugin);
    await (kinds.isOwnDirName(plugin) ? removeTree(pluginDir) : removeForeign(pluginDir));
  });
  for (const outcome of await Promise.allSettled(removals)) {
    if (outcome.status === "rejected") throw outcome.reason;
  }
  if (held.size === 0) await removeDir(volumesDir);
}

/**
 * Removes the directory of a pod that is gone and whose volumes were torn down. Rejects, deleting nothing, while anything
 * is mounted beneath; what still is in `volumes` is never deleted with its content.
 */
export async function removePodDir(podDir: string): Promise<void> {
  await listDir(podDir); // refuses a link
  const [first] = await listMountsUnder(podDir);
  if (first !== undefined) {
    throw new AgentError("Internal", `will not remove ${podDir}: ${first.mountPoint} is still mounted`);
  }
  await tearDownSubPaths(podDir);
  const volumesDir = join(podDir, "volumes");
  await removeEmptyDirs(volumesDir);
  for (const name of await listDir(podDir)) {
    const path = join(podDir, name);
    if (path === volumesDir) throw new AgentError("Internal", `will not remove ${podDir}: it has volumes again`);
    await removeTree(path);
  }
  await removeDir(podDir);
}

/**
 * Unmounts the subPaths of a pod and removes their targets, as empty directories or files, so that content is safe
 * whatever is mounted. Rejects if one is in use.
 */
async function tearDownSubPaths(podDir: string, left: ReadonlySet<string> = new Set()): Promise<void> {
  const dir = join(podDir, "volume-subpaths");
  const volumes = (await listDir(dir)).filter((volume) => !left.has(volume));
  const dirs = volumes.map((volume) => join(dir, volume));
  await unmountAllUnder(dir, ({ mountPoint }) => dirs.some((one) => isAtOrBeneath(mountPoint, one)));
  for (const volume of volumes) {
    for (const container of await listDir(join(dir, volume))) {
      const containerDir = join(dir, volume, container);
      for (const index of await listDir(containerDir)) {
        const target = join(containerDir, index);
        await unlink(target).catch(async (err: unknown) => {
          if (errnoOf(err) === "EISDIR") await removeDir(target);
          else if (errnoOf(err) !== "ENOENT") throw err;
        });
      }
      await removeDir(containerDir);
    }
    await removeDir(join(dir, volume));
  }
  if (left.size === 0) await removeDir(dir);
}

/** Rejects if anything is mounted beneath one of these directories, whatever it holds: it is somebody's data. */
async function refuseMounts(dirs: readonly string[]): Promise<void> {
  if (dirs.length === 0) return;
  const mounts = (await Promise.all(dirs.map(async (dir) => await listMountsUnder(dir)))).flat();
  const [first] = mounts;
  if (first === undefined) return;
  const why = `${first.mountPoint} is mounted, and its kind of volume is not supported by nodelet: unmount it`;
  throw new AgentError("Internal", `will not delete volumes: ${why}`);
}

/** Removes what is left of volumes of a kind that is not ours: PLUGIN/NAME, and nothing that is in one. */
async function removeForeign(pluginDir: string): Promise<void> {
  for (const name of await listDir(pluginDir)) await removeDir(join(pluginDir, name));
  await removeDir(pluginDir);
}

/** Removes a tree of directories that holds no files. Rejects at the first file or link. */
async function removeEmptyDirs(dir: string): Promise<void> {
  for (const name of await listDir(dir)) await removeEmptyDirs(join(dir, name));
  await removeDir(dir);
}

async function removeDir(dir: string): Promise<void> {
  await rmdir(dir).catch((err: unknown) => {
    if (errnoOf(err) === "ENOENT") return;
    throw new AgentError("Internal", `cannot remove ${dir}: ${messageOf(err)}`, { cause: err });
  });
}

/** Names in a directory; none if it is not there. A link in its place is refused: it could lead anywhere. */
async function listDir(path: string): Promise<string[]> {
  const dir = await openDir(path).catch((err: unknown) => {
    if (errnoOf(err) === "ENOENT") return undefined;
    if (errnoOf(err) !== "ENOTDIR" && errnoOf(err) !== "ELOOP") throw err;
    throw new AgentError("Internal", `will not delete ${path}: it is not a directory`, { cause: err });
  });
  if (dir === undefined) return [];
  try {
    return await readdir(fdPath(dir));
  } finally {
    await dir.close();
  }
}
