import type { DeviceFilesystem } from "./cadvisor-rows.ts";
import { filesystemOf } from "./filesystem.ts";
import { parseDiskstats } from "./parse.ts";
import type { FileReader } from "./read.ts";

/**
 * One mount point of each block device, from /proc/self/mountinfo; the shortest one, which is less likely to go away.
 * Others are left out: asking a network filesystem whose server has gone would never end.
 */
export function blockDeviceMounts(mountinfo: string): Map<string, string> {
  const mounts = new Map<string, string>();
  for (const line of mountinfo.split("\n")) {
    const [before = "", after = ""] = line.split(" - ");
    const mountPoint = before.split(" ")[4] ?? "";
    const device = after.split(" ")[1] ?? "";
    if (!device.startsWith("/dev/")) continue;
    const known = mounts.get(device);
    if (known === undefined || mountPoint.length < known.length) mounts.set(device, unescaped(mountPoint));
  }
  return mounts;
}

/** Mount points have blanks and the like as octal numbers. */
function unescaped(path: string): string {
  return path.replaceAll(/\\([0-7]{3})/g, (_all, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}

/** The machine's filesystems on block devices, with what their disks have done. Those that cannot be asked are left out. */
export async function readMachineFilesystems(reader: FileReader): Promise<DeviceFilesystem[]> {
  const [mountinfo, diskstats] = await Promise.all([
    reader.list("/proc/self/mountinfo"),
    reader.list("/proc/diskstats"),
  ]);
  const disks = parseDiskstats(diskstats);
  const filesystems: DeviceFilesystem[] = [];
  for (const [device, mountPoint] of blockDeviceMounts(mountinfo ?? "")) {
    const figures = await filesystemOf(mountPoint).catch(() => undefined);
    if (figures === undefined) continue;
    const disk = disks.get(device);
    filesystems.push({ device, figures, ...(disk === undefined ? {} : { disk }) });
  }
  return filesystems;
}
