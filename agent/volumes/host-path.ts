import { mkdir, writeFile } from "node:fs/promises";
import { AgentError, messageOf } from "../lib/errors.ts";
import { abortable } from "../lib/abortable.ts";
import { sourceOf, type VolumeKind } from "./kind.ts";
import { lookAt } from "./look.ts";

/** A path of the node, handed to containers as it is. */
export const hostPathKind: VolumeKind = {
  field: "hostPath",
  pluginName: "kubernetes.io/host-path",
  isReadOnly: false,
  isRelabelled: false,
  isRefreshed: false,
  refusesMountOptions: true,
  async setUp({ volume, bound, signal }) {
    const { path = "", type = "" } = sourceOf({ volume, bound }, "hostPath") ?? {};
    if (path === "") throw new AgentError("Invalid", "hostPath needs a path");
    if (path.split("/").includes("..")) throw new AgentError("Invalid", `path "${path}" must not contain ".."`);
    // What it waits for may never come.
    await abortable(ensureHostPath(path, type, signal), signal);
    return { hostPath: path };
  },
};

// File types of stat(2).
const socketType = 0o140_000;
const fileType = 0o100_000;
const blockDeviceType = 0o060_000;
const directoryType = 0o040_000;
const charDeviceType = 0o020_000;

const checks: Record<string, { fileType: number; noun: string; create?: (path: string) => Promise<unknown> }> = {
  Directory: { fileType: directoryType, noun: "directory" },
  DirectoryOrCreate: {
    fileType: directoryType,
    noun: "directory",
    create: (path) => mkdir(path, { recursive: true, mode: 0o755 }),
  },
  File: { fileType, noun: "file" },
  FileOrCreate: {
    fileType,
    noun: "file",
    create: (path) => writeFile(path, "", { flag: "a", mode: 0o644 }),
  },
  Socket: { fileType: socketType, noun: "socket file" },
  CharDevice: { fileType: charDeviceType, noun: "character device" },
  BlockDevice: { fileType: blockDeviceType, noun: "block device" },
};

/** Checks that `path` is what `type` says, creating it where the type allows. Links are followed, as containers would see it. */
async function ensureHostPath(path: string, type: string, signal: AbortSignal): Promise<void> {
  if (type === "") return;
  const check = Object.hasOwn(checks, type) ? checks[type] : undefined;
  if (check === undefined) {
    throw new AgentError(
      "Invalid",
      `hostPath type "${type}" is not known, use one of ${Object.keys(checks).join(", ")}`,
    );
  }
  let present = await look(path, signal);
  if (present === undefined && check.create !== undefined) {
    await check.create(path).catch((err: unknown) => {
      throw new AgentError("Internal", `cannot make ${check.noun} ${path}: ${messageOf(err)}`, { cause: err });
    });
    present = await look(path, signal);
  }
  if (present !== check.fileType) {
    throw new AgentError("Invalid", `hostPath type check failed: ${path} is not a ${check.noun}`);
  }
}

/** The file type at `path`; undefined if nothing is there. */
async function look(path: string, signal: AbortSignal): Promise<number | undefined> {
  const found = await lookAt(path, signal);
  if (found.kind === "there") return found.fileType;
  if (found.kind === "absent") return undefined;
  throw new AgentError("Unavailable", `hostPath type check failed: ${path} cannot be looked at: ${found.message}`);
}
