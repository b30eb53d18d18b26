import { lstat, mkdir, rmdir, stat, unlink, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { VolumeMount } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";
import { expand } from "../lib/expand.ts";
import { bindMount, unmountAllUnder } from "../lib/mount.ts";
import { abortable } from "../lib/abortable.ts";
import { lookAt, lookTimeoutMs } from "./look.ts";
import { makeDirsInside, openInside } from "./safe-path.ts";

// The bind mount hides it; nobody but us ever sees these.
const targetDirMode = 0o750;
const targetFileMode = 0o640;
// All of it takes milliseconds. What takes longer than mount(8) may waits for a file system that went silent meanwhile.
const prepareTimeoutMs = 45_000;

/**
 * The path inside the volume that a mount asks for; undefined: the volume itself. Rejects with code Invalid for one that is
 * absolute, contains `..`, or names a variable without a value.
 */
export function subPathOf(mount: VolumeMount, env: ReadonlyMap<string, string>): string | undefined {
  let subPath = mount.subPath ?? "";
  if (mount.subPathExpr !== undefined && mount.subPathExpr !== "") {
    const missing: string[] = [];
    subPath = expand(mount.subPathExpr, (name) => {
      const value = env.get(name) ?? "";
      if (value === "") missing.push(name);
      return value;
    });
    if (missing.length > 0) throw new AgentError("Invalid", `missing value for ${missing.join(", ")}`);
  }
  if (subPath === "") return undefined;
  if (subPath.startsWith("/")) throw new AgentError("Invalid", `subPath "${subPath}" must not be an absolute path`);
  if (subPath.split("/").includes("..")) throw new AgentError("Invalid", `subPath "${subPath}" must not contain '..'`);
  return subPath;
}

interface SubPath {
  volumePath: string;
  subPath: string;
  /** Where it is bind-mounted. */
  target: string;
  /** ` for volumeMount "data" of container "app"`, appended to errors that must not show the node's paths. */
  errorContext: string;
  /** It may be on a network file system, or lead to one: whether that answers is found out first, by another process. */
  mayHang: boolean;
}

/**
 * Bind-mounts a path inside a volume at its target, making missing directories with the volume's own mode. A mount that is
 * there and still shows the same file is kept: it may be in use by a container.
 *
 * Containers of the pod may be writing to the volume meanwhile; whatever they do, only a file inside it is mounted.
 * Rejects with Unavailable for a file system that does not answer, with the signal's reason when it aborts, and with
 * Invalid, the reason as its cause, for all else.
 */
export async function prepareSubPath(options: SubPath, signal: AbortSignal): Promise<void> {
  const { volumePath, subPath, errorContext, mayHang } = options;
  if (mayHang && (await lookAt(join(volumePath, subPath), signal)).kind === "silent") {
    throw silent(errorContext, lookTimeoutMs);
  }
  const deadline = AbortSignal.timeout(prepareTimeoutMs);
  const over = AbortSignal.any([signal, deadline]);
  try {
    // A call that hangs cannot be taken back. What comes after it is not done, and what it opened is closed.
    await abortable(prepare(options, over), over);
  } catch (err) {
    signal.throwIfAborted();
    throw deadline.aborted ? silent(errorContext, prepareTimeoutMs) : err;
  }
}

function silent(errorContext: string, patienceMs: number): AgentError {
  const why = `its file system has not answered for ${patienceMs / 1000} s`;
  return new AgentError("Unavailable", `failed to prepare subPath${errorContext}: ${why}`);
}

async function prepare(options: SubPath, signal: AbortSignal): Promise<void> {
  const { volumePath, subPath, target, errorContext } = options;
  await ensureExists(volumePath, subPath, errorContext);
  try {
    const source = await openInside(volumePath, subPath);
    try {
      const wanted = await source.stat();
      if (await isSameFile(target, wanted)) return;
      signal.throwIfAborted();
      await unmountAllUnder(target);
      signal.throwIfAborted();
      await makeTarget(target, wanted.isDirectory());
      // By the number of our process: mount(8) is another one.
      await bindMount(`/proc/${process.pid}/fd/${source.fd}`, target, signal);
      if (!(await isSameFile(target, wanted))) {
        await unmountAllUnder(target);
        throw new AgentError("Internal", "the bind mount shows another file");
      }
    } finally {
      await source.close();
    }
  } catch (err) {
    throw new AgentError("Invalid", `failed to prepare subPath${errorContext}`, { cause: err });
  }
}

async function ensureExists(volumePath: string, subPath: string, errorContext: string): Promise<void> {
  try {
    const { mode } = await stat(volumePath);
    await makeDirsInside(volumePath, subPath, mode & 0o7777);
  } catch (err) {
    throw new AgentError("Invalid", `failed to create subPath directory${errorContext}`, { cause: err });
  }
}

/** A target that nothing is mounted at is a file of ours, and never the source itself. */
async function isSameFile(target: string, wanted: { dev: number; ino: number }): Promise<boolean> {
  const present = await lstat(target).catch(() => undefined);
  return present !== undefined && present.dev === wanted.dev && present.ino === wanted.ino;
}

async function makeTarget(target: string, isDirectory: boolean): Promise<void> {
  const present = await lstat(target).catch(() => undefined);
  if (present !== undefined && present.isDirectory() !== isDirectory) {
    await (present.isDirectory() ? rmdir(target) : unlink(target));
  }
  if (isDirectory) {
    await mkdir(target, { recursive: true, mode: targetDirMode });
    return;
  }
  await mkdir(dirname(target), { recursive: true, mode: targetDirMode });
  await writeFile(target, "", { flag: "a", mode: targetFileMode });
}
