import { chmod, chown, mkdir, open, readFile, rm, rmdir, stat, statfs, truncate } from "node:fs/promises";
import { dirname, join } from "node:path";
import { errnoOf, ignoreErrno } from "../../../agent/lib/errno.ts";
import { exec } from "../../../agent/lib/exec.ts";
import { bindMount, isMountPoint, type MountEntry, mountFilesystem, parseMountinfo } from "../../../agent/lib/mount.ts";
import { quantityValue } from "../../../agent/kube/quantity.ts";

/**
 * The volumes of a test CSI driver. Each is a "disk" that keeps its data until the driver's directory is removed: a tmpfs that
 * stays mounted, or an image file for those of ext4 and for block devices.
 */

const sizeDefault = "8Mi";
const commandTimeoutMs = 30_000;

/** What `volume_context` says of a volume. */
export interface VolumeSettings {
  /** `tmpfs`, the default, or `ext4`. */
  backend: string;
  sizeBytes: number;
}

export function settingsOf(volumeContext: Record<string, string>): VolumeSettings {
  const { backend = "tmpfs", size = sizeDefault } = volumeContext;
  return { backend, sizeBytes: quantityValue(size) };
}

export interface MountRequest {
  volumeID: string;
  settings: VolumeSettings;
  target: string;
  mountFlags: readonly string[];
  isReadOnly: boolean;
  /** Group that is to own the volume; "" for none. */
  group: string;
}

export function openVolumes(dir: string) {
  const disks = join(dir, "disks");
  const diskOf = (volumeID: string) => join(disks, encodeURIComponent(volumeID));
  const imageOf = (volumeID: string) => `${diskOf(volumeID)}.img`;

  const ensureImage = async (volumeID: string, { sizeBytes }: VolumeSettings, isFormatted: boolean) => {
    const image = imageOf(volumeID);
    await mkdir(disks, { recursive: true });
    const isNew = await stat(image).then(
      () => false,
      () => true,
    );
    if (!isNew) return image;
    await (await open(image, "wx")).close();
    await truncate(image, sizeBytes);
    if (isFormatted) await run("mkfs.ext4", ["-q", image]);
    return image;
  };
  const ensureDisk = async (volumeID: string, { sizeBytes }: VolumeSettings) => {
    const disk = diskOf(volumeID);
    await mkdir(disk, { recursive: true });
    const options = [`size=${sizeBytes}`, "mode=0755"];
    if (!(await isMountPoint(disk))) {
      await mountFilesystem({ type: "tmpfs", source: sourceOf(dir), target: disk, options });
    }
    return disk;
  };

  return {
    /** Makes the volume visible at `target`. Idempotent. */
    mount: async ({ volumeID, settings, target, mountFlags, isReadOnly, group }: MountRequest): Promise<void> => {
      await mkdir(target, { recursive: true });
      if (await isMountPoint(target)) return;
      if (settings.backend === "ext4") {
        const image = await ensureImage(volumeID, settings, true);
        await run("mount", ["-t", "ext4", "-o", ["loop", ...mountFlags].join(","), image, target]);
      } else {
        await bindMount(await ensureDisk(volumeID, settings), target);
        if (mountFlags.length > 0) await run("mount", ["-o", ["remount", "bind", ...mountFlags].join(","), target]);
      }
      if (group !== "") {
        await chown(target, -1, Number(group));
        await chmod(target, 0o2775);
      }
      if (isReadOnly) await run("mount", ["-o", "remount,bind,ro", target]);
    },
    /** Makes what is mounted at `source` visible at `target`, too. Idempotent. */
    bind: async (source: string, target: string, isReadOnly: boolean): Promise<void> => {
      await mkdir(target, { recursive: true });
      if (await isMountPoint(target)) return;
      await bindMount(source, target);
      if (isReadOnly) await run("mount", ["-o", "remount,bind,ro", target]);
    },
    /** Attaches the volume as a loop device and binds that to the file `target`. Idempotent. */
    publishDevice: async (volumeID: string, settings: VolumeSettings, target: string): Promise<void> => {
      const image = await ensureImage(volumeID, settings, false);
      const device = (await deviceOf(image)) ?? (await run("losetup", ["--find", "--show", image])).trim();
      await mkdir(dirname(target), { recursive: true });
      await (await open(target, "a")).close();
      if (!(await isMountPoint(target))) await bindMount(device, target);
    },
    /** Takes away a mount, the directory or file that it was on, and a device that nobody uses any more. Idempotent. */
    unmount: async (volumeID: string, target: string): Promise<void> => {
      if (await isMountPoint(target)) await run("umount", [target]);
      await rmdir(target).catch((err: unknown) => {
        if (errnoOf(err) !== "ENOENT" && errnoOf(err) !== "ENOTDIR") throw err;
      });
      await rm(target, { force: true });
      const device = await deviceOf(imageOf(volumeID));
      // Fails while another pod has it, and is done with the last one.
      if (device !== undefined) await exec("losetup", ["--detach", device], { timeoutMs: commandTimeoutMs });
    },
    /** @returns the new size in bytes */
    expand: async (volumeID: string, sizeBytes: number): Promise<number> => {
      const image = imageOf(volumeID);
      const hasImage = await stat(image).then(
        () => true,
        () => false,
      );
      if (!hasImage) {
        await run("mount", ["-o", `remount,size=${sizeBytes}`, diskOf(volumeID)]);
        return sizeBytes;
      }
      await truncate(image, sizeBytes);
      const device = await deviceOf(image);
      if (device === undefined) return sizeBytes;
      await run("losetup", ["--set-capacity", device]);
      const probe = await exec("blkid", ["-o", "value", "-s", "TYPE", device], { timeoutMs: commandTimeoutMs });
      if (probe.stdout.trim() === "ext4") await run("resize2fs", [device]);
      return sizeBytes;
    },
    stats: async (path: string) => {
      const info = await stat(path);
      if (!info.isDirectory()) return [{ unit: "BYTES", total: String(info.size) }];
      const { bsize, blocks, bavail, bfree, files, ffree } = await statfs(path);
      const text = (n: number) => String(n);
      return [
        {
          unit: "BYTES",
          total: text(blocks * bsize),
          available: text(bavail * bsize),
          used: text((blocks - bfree) * bsize),
        },
        { unit: "INODES", total: text(files), available: text(ffree), used: text(files - ffree) },
      ];
    },
    isThere: async (volumeID: string): Promise<boolean> =>
      (await stat(diskOf(volumeID)).catch(ignoreErrno("ENOENT"))) !== undefined ||
      (await stat(imageOf(volumeID)).catch(ignoreErrno("ENOENT"))) !== undefined,
  };
}

/** Unmounts all volumes of a driver wherever they are mounted, and detaches its devices. */
export async function removeVolumes(dir: string): Promise<void> {
  const { stdout } = await exec("losetup", ["--list", "--noheadings", "--output", "NAME,BACK-FILE"], {
    timeoutMs: commandTimeoutMs,
  });
  const devices = stdout.split("\n").flatMap((line) => {
    const [device = "", file = ""] = line.trim().split(/\s+/);
    return file.startsWith(`${dir}/`) ? [device] : [];
  });
  const isOurs = ({ source, root, fsType }: MountEntry) =>
    source === sourceOf(dir) || devices.includes(source) || (fsType === "devtmpfs" && devices.includes(`/dev${root}`));
  const mounts = parseMountinfo(await readFile("/proc/self/mountinfo", "utf8")).filter(isOurs);
  for (const { mountPoint } of mounts.toReversed()) await run("umount", ["-l", mountPoint]);
  // One that was mounted has gone with its mount.
  for (const device of devices) await exec("losetup", ["--detach", device], { timeoutMs: commandTimeoutMs });
}

/** What the mount table names as the source of a driver's volumes in memory, also where they are bound. */
function sourceOf(dir: string): string {
  return `csi:${dir}`;
}

async function deviceOf(image: string): Promise<string | undefined> {
  const { stdout } = await exec("losetup", ["--associated", image], { timeoutMs: commandTimeoutMs });
  return /^(\/dev\/\S+):/.exec(stdout)?.[1];
}

async function run(file: string, args: readonly string[]): Promise<string> {
  const { failure, message, stdout } = await exec(file, args, { timeoutMs: commandTimeoutMs });
  if (failure !== undefined) throw new Error(message);
  return stdout;
}
