import { parseMountinfo } from "../lib/mount.ts";
import type { DeviceFilesystem } from "./cadvisor-rows.ts";
import { parseDiskstats } from "./parse.ts";
import type { FileReader } from "./read.ts";
import type { RemoteFilesystems } from "./remote-filesystem.ts";

/**
 * One mount point of each block device, from /proc/self/mountinfo; the shortest one, which is less likely to go away.
 * Others are left out: asking a filesystem whose server has gone would never end, and what FUSE serves has `/dev/fuse` or
 * any other name as its source. Real devices have a major number; btrfs shows 0 there, though it lies on one.
 */
export function blockDeviceMounts(mountinfo: string): Map<string, string> {
  const mounts = new Map<string, string>();
  for (const { device: number, mountPoint, fsType, source } of parseMountinfo(mountinfo)) {
    if (!source.startsWith("/dev/") || fsType.startsWith("fuse")) continue;
    if (number.startsWith("0:") && fsType !== "btrfs") continue;
    const known = mounts.get(source);
    if (known === undefined || mountPoint.length < known.length) mounts.set(source, mountPoint);
  }
  return mounts;
}

/**
 * The machine's filesystems on block devices, with what their disks have done. Those that cannot be asked, or do not answer,
 * are left out.
 */
export async function readMachineFilesystems(
  reader: FileReader,
  filesystems: RemoteFilesystems,
): Promise<DeviceFilesystem[]> {
  const [mountinfo, diskstats] = await Promise.all([
    reader.list("/proc/self/mountinfo"),
    reader.list("/proc/diskstats"),
  ]);
  const disks = parseDiskstats(diskstats);
  const found: DeviceFilesystem[] = [];
  const never = new AbortController().signal; // each question has a limit of its own
  for (const [device, mountPoint] of blockDeviceMounts(mountinfo ?? "")) {
    // A disk that has failed hangs like a server that is away.
    const figures = await filesystems.ask(mountPoint, never).catch(() => undefined);
    if (figures === undefined) continue;
    const disk = disks.get(device);
    found.push({ device, figures, ...(disk === undefined ? {} : { disk }) });
  }
  return found;
}
