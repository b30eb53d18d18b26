import { readdir, readFile, rmdir, unlink } from "node:fs/promises";
import { join } from "node:path";
import { writeFileAtomic } from "../../lib/atomic-file.ts";
import { ignoreErrno } from "../../lib/errno.ts";
import { AgentError } from "../../lib/errors.ts";

/** What is written beside a volume, so that an agent that knows nothing of it can take it away. */
export interface VolumeData {
  driverName: string;
  volumeHandle: string;
  /** With what SELinux label all of it was mounted. */
  seLinuxMountContext?: string;
}

/** What is written beside a pod's volume. */
export interface TargetData extends VolumeData {
  specVolID: string;
  nodeName: string;
  /** Name of the VolumeAttachment that it would have; there for every volume. */
  attachmentID: string;
  volumeLifecycleMode: "Persistent" | "Ephemeral";
}

const fileName = "vol_data.json";

/** Written before the driver is asked for anything, and to the disk: it has to outlive a crash that the mount outlives. */
export async function writeVolumeData(dir: string, data: VolumeData | TargetData): Promise<void> {
  await writeFileAtomic(join(dir, fileName), JSON.stringify(data));
}

/**
 * What was written beside a volume.
 * @returns undefined if there is nothing. Rejects with code Invalid if it says no driver or no handle.
 */
export async function readVolumeData(dir: string): Promise<(VolumeData & Partial<TargetData>) | undefined> {
  const path = join(dir, fileName);
  const text = await readFile(path, "utf8").catch(ignoreErrno("ENOENT", "ENOTDIR"));
  if (text === undefined) return undefined;
  const data = parse(text);
  if (data === undefined) throw new AgentError("Invalid", `${path} does not say of what driver and volume it is`);
  return data;
}

/** Removes what was written, and `dir`, which has nothing else in it any more. Rejects otherwise. */
export async function removeVolumeData(dir: string): Promise<void> {
  for (const name of (await readdir(dir).catch(ignoreErrno("ENOENT"))) ?? []) {
    // A write that was cut off leaves a temporary file.
    if (name === fileName || (name.startsWith(`${fileName}.`) && name.endsWith(".tmp"))) await unlink(join(dir, name));
  }
  await rmdir(dir).catch(ignoreErrno("ENOENT"));
}

function parse(text: string): (VolumeData & Partial<TargetData>) | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (typeof value !== "object" || value === null) return undefined;
  const texts = Object.fromEntries(Object.entries(value).filter(([, field]) => typeof field === "string"));
  const { driverName = "", volumeHandle = "", volumeLifecycleMode } = texts as Record<string, string>;
  if (driverName === "" || volumeHandle === "") return undefined;
  return {
    ...(texts as Record<string, string>),
    driverName,
    volumeHandle,
    volumeLifecycleMode: volumeLifecycleMode === "Ephemeral" ? "Ephemeral" : "Persistent",
  };
}
