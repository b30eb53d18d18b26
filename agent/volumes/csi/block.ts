import { mkdir, rmdir, symlink, unlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { ignoreErrno } from "../../lib/errno.ts";
import { mapBlockDevice, unmapBlockDevice } from "../block-map.ts";
import type { TearDownContext, VolumeContext } from "../kind.ts";
import { blockPathsOf } from "./paths.ts";
import type { CSIDrivers } from "./port.ts";
import { publishPathOf } from "./publish.ts";
import { removePublished } from "./tear-down.ts";
import { readVolumeData } from "./volume-data.ts";

/**
 * Makes the link in the pod's directory, first of all: tear-down finds the rest of a block volume by it. It leads to the device
 * once that is there. Idempotent.
 */
export async function markBlock({ dir, specName, pod }: VolumeContext, rootDir: string): Promise<void> {
  await mkdir(dirname(dir), { recursive: true, mode: 0o750 });
  const { mapDir } = blockPathsOf(rootDir, specName);
  await symlink(join(mapDir, pod.metadata.uid ?? ""), dir).catch(ignoreErrno("EEXIST"));
}

/** Gives a pod the device that its driver has published. Idempotent. */
export async function mapForPod(context: VolumeContext, rootDir: string): Promise<void> {
  const { mapDir } = blockPathsOf(rootDir, context.specName);
  const podUID = context.pod.metadata.uid ?? "";
  await mapBlockDevice({ podUID, mapDir, link: context.dir }, publishPathOf(rootDir, context), context);
}

/** Takes a device from its pod, by what is on disk; the link goes last. Idempotent. Rejects while driver or device do not let go. */
export async function unmapFromPod(
  { podUID, specName, dir }: TearDownContext,
  { rootDir, drivers }: { rootDir: string; drivers: CSIDrivers },
): Promise<void> {
  const { mapDir, publishDir, dataDir } = blockPathsOf(rootDir, specName);
  await unmapBlockDevice({ podUID, mapDir });
  const data = await readVolumeData(dataDir);
  // Without it no driver was asked for anything.
  if (data !== undefined) {
    await drivers.client(data.driverName).nodeUnpublishVolume(data.volumeHandle, join(publishDir, podUID));
  }
  await removePublished(publishDir, podUID);
  await rmdir(mapDir).catch(ignoreErrno("ENOENT", "ENOTEMPTY", "EEXIST"));
  await unlink(dir).catch(ignoreErrno("ENOENT"));
  await rmdir(dirname(dir)).catch(ignoreErrno("ENOENT", "ENOTEMPTY", "EEXIST"));
}
