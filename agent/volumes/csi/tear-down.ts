import { rmdir, unlink } from "node:fs/promises";
import { join } from "node:path";
import { errnoOf, ignoreErrno } from "../../lib/errno.ts";
import { AgentError } from "../../lib/errors.ts";
import type { TearDownContext } from "../kind.ts";
import { isMountedAt, readMountTable } from "./mount-table.ts";
import { targetPathOf } from "./paths.ts";
import type { CSIDrivers } from "./port.ts";
import { readVolumeData, removeVolumeData } from "./volume-data.ts";

/**
 * Takes a mounted volume from its pod: NodeUnpublishVolume, then what we made ourselves. By what is on disk; idempotent.
 * Rejects while the driver does not answer or refuses, and if something stays mounted: nothing beneath it is deleted.
 */
export async function unpublishTarget(
  { dir }: Pick<TearDownContext, "dir">,
  { drivers }: { drivers: CSIDrivers },
): Promise<void> {
  const data = await readVolumeData(dir);
  if (data !== undefined) {
    await drivers.client(data.driverName).nodeUnpublishVolume(data.volumeHandle, targetPathOf(dir));
  }
  await removeTarget(dir);
}

/** Removes the directory of a pod's volume that is not mounted, or not any more. */
export async function removeTarget(dir: string): Promise<void> {
  const target = targetPathOf(dir);
  if (isMountedAt(await readMountTable(), target)) {
    throw new AgentError("Internal", `something is still mounted at ${target}`);
  }
  await rmdir(target).catch(async (err: unknown) => {
    const code = errnoOf(err);
    if (code === "ENOENT") return;
    throw code === "ENOTEMPTY" ? new AgentError("Internal", `the driver has left files in ${target}`) : err;
  });
  await removeVolumeData(dir);
}

/** Removes the file by which a driver gave a pod a device, and its directory if no other pod has one there. */
export async function removePublished(publishDir: string, podUID: string): Promise<void> {
  const path = join(publishDir, podUID);
  if (isMountedAt(await readMountTable(), path)) {
    throw new AgentError("Internal", `something is still mounted at ${path}`);
  }
  await unlink(path).catch(async (err: unknown) => {
    if (errnoOf(err) === "EISDIR" || errnoOf(err) === "EPERM") await rmdir(path);
    else ignoreErrno("ENOENT")(err);
  });
  await rmdir(publishDir).catch(ignoreErrno("ENOENT", "ENOTEMPTY", "EEXIST"));
}
