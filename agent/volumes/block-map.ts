import { randomUUID } from "node:crypto";
import {
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  realpath,
  rename,
  rmdir,
  stat,
  symlink,
  unlink,
} from "node:fs/promises";
import { dirname, join } from "node:path";
import { ignoreErrno } from "../lib/errno.ts";
import { AgentError } from "../lib/errors.ts";
import { exec } from "../lib/exec.ts";
import { bindMount, isMountPoint, unmountAllUnder } from "../lib/mount.ts";
import type { VolumeContext } from "./kind.ts";
import { inStep } from "./step-error.ts";

/**
 * A block device as a pod has it:
 *
 *   ROOT/pods/UID/volumeDevices/PLUGIN/NAME  a link to the device, for the pod's containers
 *   MAPDIR/UID                               the device bind-mounted; one for each pod
 *   /dev/loopN                               a loop device on that: it holds the device open, so that its name cannot go to
 *                                            another device while a pod uses it
 */
export interface BlockMap {
  podUID: string;
  /** Of the volume, somewhere below ROOT/plugins. */
  mapDir: string;
  /** See `blockLinkOf`. */
  link: string;
}

// losetup makes a few system calls; one that hangs has a sick device beneath it.
const losetupTimeoutMs = 30_000;
const sysBlock = "/sys/block";

/**
 * Gives a pod a device. Idempotent, also across a SIGKILL in the middle.
 * @param devicePath may be a link. Rejects with Invalid if it is not a block device.
 */
export async function mapBlockDevice(
  { podUID, mapDir, link }: BlockMap,
  devicePath: string,
  { specName, event, signal }: Pick<VolumeContext, "specName" | "event" | "signal">,
): Promise<void> {
  await inStep("MapBlockVolume", async () => {
    const device = await realpath(devicePath);
    if (!(await stat(device)).isBlockDevice()) throw new AgentError("Invalid", `${devicePath} is not a block device`);
    // First of all, as tear-down finds the rest by it.
    const isNew = await ensureLink(link, device);
    const file = join(mapDir, podUID);
    await mkdir(mapDir, { recursive: true, mode: 0o750 });
    await (await open(file, "a", 0o600)).close();
    if (!(await isMountPoint(file))) await bindMount(device, file, signal);
    if ((await loopDevicesOf(file)).length === 0) await holdOpen(file, signal);
    if (!isNew) return;
    const done = `MapVolume.MapPodDevice succeeded for volume "${specName}"`;
    event("Normal", "SuccessfulMountVolume", `${done} globalMapPath "${mapDir}"`);
    event("Normal", "SuccessfulMountVolume", `${done} volumeMapPath "${dirname(link)}"`);
  });
}

/**
 * Undoes {@link mapBlockDevice}, as far as it got. Idempotent. Rejects, with the link still there, if the device does not let go.
 * Without a `link` that stays in any case, for those who have more to undo.
 */
export async function unmapBlockDevice({
  podUID,
  mapDir,
  link,
}: Omit<BlockMap, "link"> & { link?: string }): Promise<void> {
  const file = join(mapDir, podUID);
  for (const device of await loopDevicesOf(file)) {
    const result = await exec("losetup", ["--detach", device], { timeoutMs: losetupTimeoutMs });
    if (result.failure !== undefined && (await loopDevicesOf(file)).includes(device)) {
      throw new AgentError("Internal", `cannot detach ${device}: ${result.message}`);
    }
  }
  await unmountAllUnder(file);
  await unlink(file).catch(ignoreErrno("ENOENT"));
  await rmdir(mapDir).catch(ignoreErrno("ENOENT", "ENOTEMPTY", "EEXIST")); // others may have theirs in it
  if (link !== undefined) await unlink(link).catch(ignoreErrno("ENOENT"));
}

/** @returns false: it was there */
async function ensureLink(link: string, device: string): Promise<boolean> {
  await mkdir(dirname(link), { recursive: true, mode: 0o750 });
  const present = await readlink(link).catch(ignoreErrno("ENOENT"));
  if (present === device) return false;
  // Renamed over the old one, so that there always is one: tear-down finds the rest by it. Beside the links it would be taken
  // for a volume if we were killed now; the pod's directory goes with all that is in it.
  const made = join(dirname(dirname(dirname(link))), `.device-${randomUUID()}`);
  await symlink(device, made);
  await rename(made, link);
  return true;
}

async function holdOpen(file: string, signal: AbortSignal): Promise<void> {
  const result = await exec("losetup", ["--find", file], { timeoutMs: losetupTimeoutMs, signal });
  if (result.failure === undefined) return;
  const code = result.failure === "canceled" ? "Canceled" : "Internal";
  throw new AgentError(code, `cannot hold the device open with a loop device: ${result.message}`);
}

/** Loop devices on `file`, as `/dev/loopN`. */
async function loopDevicesOf(file: string): Promise<string[]> {
  const dir = await realpath(dirname(file)).catch(ignoreErrno("ENOENT"));
  if (dir === undefined) return [];
  const wanted = join(dir, file.slice(dirname(file).length + 1));
  const found: string[] = [];
  for (const name of await readdir(sysBlock)) {
    if (!name.startsWith("loop")) continue;
    // Not there, or ENXIO, while nothing is attached.
    const backing = await readFile(join(sysBlock, name, "loop/backing_file"), "utf8").catch(() => "");
    if (backing.replace(/ \(deleted\)\n?$|\n$/, "") === wanted) found.push(`/dev/${name}`);
  }
  return found;
}
