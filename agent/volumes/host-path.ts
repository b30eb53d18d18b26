import type { Stats } from "node:fs";
import { mkdir, stat, writeFile } from "node:fs/promises";
import { ignoreErrno } from "../lib/errno.ts";
import { AgentError } from "../lib/errors.ts";
import { abortable } from "./abortable.ts";
import type { VolumeKind } from "./kind.ts";

/** A path of the node, handed to containers as it is. */
export const hostPathKind: VolumeKind = {
  field: "hostPath",
  pluginName: "kubernetes.io/host-path",
  isReadOnly: false,
  isRelabelled: false,
  isRefreshed: false,
  async setUp({ volume, signal }) {
    const { path = "", type = "" } = volume.hostPath ?? {};
    if (path.split("/").includes("..")) throw new AgentError("Invalid", `path "${path}" must not contain ".."`);
    await abortable(ensureHostPath(path, type), signal); // a stat on a dead network mount never returns
    return { hostPath: path };
  },
};

const checks: Record<
  string,
  { is: (stat: Stats) => boolean; noun: string; create?: (path: string) => Promise<unknown> }
> = {
  Directory: { is: (stat) => stat.isDirectory(), noun: "directory" },
  DirectoryOrCreate: {
    is: (stat) => stat.isDirectory(),
    noun: "directory",
    create: (path) => mkdir(path, { recursive: true, mode: 0o755 }),
  },
  File: { is: (stat) => stat.isFile(), noun: "file" },
  FileOrCreate: {
    is: (stat) => stat.isFile(),
    noun: "file",
    create: (path) => writeFile(path, "", { flag: "a", mode: 0o644 }),
  },
  Socket: { is: (stat) => stat.isSocket(), noun: "socket file" },
  CharDevice: { is: (stat) => stat.isCharacterDevice(), noun: "character device" },
  BlockDevice: { is: (stat) => stat.isBlockDevice(), noun: "block device" },
};

/** Checks that `path` is what `type` says, creating it where the type allows. Links are followed, as containers would see it. */
async function ensureHostPath(path: string, type: string): Promise<void> {
  if (type === "") return;
  const check = Object.hasOwn(checks, type) ? checks[type] : undefined;
  if (check === undefined) {
    throw new AgentError(
      "Invalid",
      `hostPath type "${type}" is not known, use one of ${Object.keys(checks).join(", ")}`,
    );
  }
  let present = await stat(path).catch(ignoreErrno("ENOENT", "ENOTDIR"));
  if (present === undefined && check.create !== undefined) {
    await check.create(path);
    present = await stat(path);
  }
  if (present === undefined || !check.is(present)) {
    throw new AgentError("Invalid", `hostPath type check failed: ${path} is not a ${check.noun}`);
  }
}
