import { mkdir, rmdir } from "node:fs/promises";
import { join, posix } from "node:path";
import { ignoreErrno } from "../lib/errno.ts";
import { AgentError } from "../lib/errors.ts";
import { exec } from "../lib/exec.ts";
import {
  bindMount,
  isAtOrBeneath,
  isMountPoint,
  listMountsBlindly,
  listMountsUnder,
  remountBind,
  unmountAllUnder,
} from "../lib/mount.ts";
import { mapBlockDevice, unmapBlockDevice } from "./block-map.ts";
import { expandIfGrown, newSizeState, sizeCheckJitter, sizeCheckMs, type SizeState } from "./expand.ts";
import { FilesystemMismatchError, type FormatAndMount, formatAndMount, growFilesystem } from "./format-and-mount.ts";
import { giveToGroup } from "./fs-group.ts";
import type { SetUpResult, VolumeContext, VolumeKind } from "./kind.ts";
import { KeyedLock } from "./keyed-lock.ts";
import { lookAt, lookTimeoutMs } from "./look.ts";
import { joinMountOptions, mountOptionsOf } from "./mount-options.ts";
import { inStep } from "./step-error.ts";
import { pluginDirName, rootDirOf } from "./pod-paths.ts";

const pluginName = "kubernetes.io/local-volume";
// The API's default for devices; directories have one already.
const fsTypeDefault = "ext4";
// File types of stat(2).
const blockDeviceType = 0o060_000;
const directoryType = 0o040_000;

/**
 * A disk or directory of this node as a PersistentVolume:
 *
 *   a directory            bind-mounted into the pod's directory
 *   a device, Filesystem   mounted once at ROOT/plugins/kubernetes.io/local-volume/mounts/NAME, made an ext4 if it is empty,
 *                          and from there bind-mounted into each pod's directory; unmounted after the last
 *   a device, Block        mapped (see block-map.ts) at ROOT/plugins/kubernetes.io~local-volume/volumeDevices/NAME
 */
export function createLocalKind(random: () => number = Math.random): VolumeKind {
  // Pods that share a volume take turns: the first mounts and owns it, the last unmounts.
  const turns = new KeyedLock();
  /** What pods have been given, by the volume's directory or link. */
  const given = new Map<string, Given>();
  return {
    field: "local",
    pluginName,
    isReadOnly: false,
    isRelabelled: true,
    isRefreshed: false,
    takesBlock: true,
    async setUp(context) {
      const { dir, specName, signal } = context;
      const work = async () => {
        const before = given.get(dir);
        const volume = before ?? (await give(context));
        const refresh = await grow(volume, context, { isInUse: before !== undefined, random });
        given.set(dir, volume);
        return { ...volume.result, ...refresh };
      };
      return await turns.run(specName, work, signal);
    },
    async tearDown({ podUID, podDir, specName, dir, isBlock }) {
      const rootDir = rootDirOf(podDir);
      await turns.run(specName, async () => {
        given.delete(dir);
        if (isBlock) return await unmapBlockDevice({ podUID, mapDir: mapDirOf(rootDir, specName), link: dir });
        await unmountAllUnder(dir);
        // First what is shared: as long as the pod's directory is there, this is done again.
        await unmountDevice(rootDir, specName);
        await rmdir(dir).catch(ignoreErrno("ENOENT"));
      });
    },
  };
}

/** A volume that a pod has. */
interface Given {
  result: SetUpResult;
  /** Of a device that is mounted. */
  device: string | undefined;
  size: SizeState;
}

async function give(context: VolumeContext): Promise<Given> {
  const { pod, podDir, dir, specName, bound, isBlock, signal } = context;
  const local = bound?.volume.spec.local;
  if (local === undefined || bound === undefined) throw new AgentError("Invalid", "a local volume needs a claim");
  const { isReadOnly } = bound;
  const source = await inStep("NewMounter initialization", async () => await findSource(local.path, signal));
  const rootDir = rootDirOf(podDir);
  if (isBlock) {
    const podUID = pod.metadata.uid ?? "";
    await mapBlockDevice({ podUID, mapDir: mapDirOf(rootDir, specName), link: dir }, source.path, context);
    return { result: { hostPath: dir, isReadOnly }, device: undefined, size: newSizeState() };
  }
  const isMounted = await isMountPoint(dir);
  // First of all, as tear-down finds the rest by it. What is mounted there already is not looked at: it may be dead.
  if (!isMounted) await mkdir(dir, { recursive: true, mode: 0o750 });
  const options = mountOptionsOf(bound.volume);
  let { path } = source;
  if (source.isDevice) {
    path = deviceMountOf(rootDir, specName);
    const mount = { device: source.path, target: path, fsType: local.fsType || fsTypeDefault, options, isReadOnly };
    await inStep("MountDevice", async () => await mountDevice(mount, context));
  }
  if (!isMounted) await bindMount(path, dir, signal);
  const ofBind = joinMountOptions(source.isDevice ? [] : options, isReadOnly ? ["ro"] : []);
  // Also on what is mounted: we may have been killed in between.
  if (ofBind.length > 0) await remountBind(dir, ofBind, signal);
  if (!isReadOnly) await own(context, path);
  return {
    result: { hostPath: dir, isReadOnly, isRelabelled: !isReadOnly },
    device: source.isDevice ? source.path : undefined,
    size: newSizeState(),
  };
}

/** Lets a file system fill its disk if the volume has grown. @returns when to look again: while it is used, it may grow */
async function grow(
  { device, size }: Given,
  context: VolumeContext,
  { isInUse, random }: { isInUse: boolean; random: () => number },
): Promise<Pick<SetUpResult, "isRefreshed" | "refreshAtMs">> {
  const { podDir, specName, bound, isBlock, deps } = context;
  const { clock, expansion } = deps;
  if (expansion === undefined || isBlock) return {};
  const work = {
    isReadOnly: bound?.isReadOnly === true,
    isPossible: true,
    isInUse,
    // A directory has all of the disk that it is on.
    expand: async () => {
      if (device !== undefined) await growFilesystem(device, deviceMountOf(rootDirOf(podDir), specName));
    },
    failureOf: () => "failed" as const,
  };
  const againInMs = await expandIfGrown(context, work, size, { ...expansion, random });
  if (device === undefined && againInMs === undefined) return {};
  return {
    isRefreshed: true,
    refreshAtMs: clock.now() + (againInMs ?? sizeCheckMs * (1 + sizeCheckJitter * random())),
  };
}

/** What is at the path of a PersistentVolume. Asked of other processes: the disk behind it may be dead. */
async function findSource(path: string, signal: AbortSignal): Promise<{ path: string; isDevice: boolean }> {
  if (!posix.isAbsolute(path)) throw new AgentError("Invalid", `path "${path}" must be absolute`);
  if (path.split("/").includes("..")) throw new AgentError("Invalid", `path "${path}" must not contain ".."`);
  const found = await lookAt(path, signal);
  if (found.kind === "absent") throw new AgentError("NotFound", `path "${path}" does not exist`);
  if (found.kind !== "there") {
    const why = found.kind === "silent" ? "does not answer" : "cannot be looked at";
    throw new AgentError("Unavailable", `path "${path}" ${why}: ${found.message}`);
  }
  const isDevice = found.fileType === blockDeviceType;
  if (!isDevice && found.fileType !== directoryType) {
    throw new AgentError("Invalid", `path "${path}" is neither a directory nor a block device`);
  }
  return { path: await ask("readlink", ["-f", "--", path], signal), isDevice };
}

/** What another process says of a path that it has found. */
async function ask(file: string, args: readonly string[], signal: AbortSignal): Promise<string> {
  const { failure, stdout, message } = await exec(file, args, { timeoutMs: lookTimeoutMs, signal });
  signal.throwIfAborted();
  if (failure !== undefined) throw new AgentError("Unavailable", message);
  return stdout.trim();
}

/** The device is always mounted writable, if it can be: what one pod only reads another may write. */
async function mountDevice(mount: FormatAndMount, { event, signal }: VolumeContext): Promise<void> {
  if (await isMountPoint(mount.target)) return;
  await mkdir(mount.target, { recursive: true, mode: 0o750 });
  try {
    await formatAndMount(mount, signal);
  } catch (err) {
    if (err instanceof FilesystemMismatchError) {
      event("Warning", "FailedMountOnFilesystemMismatch", err.message, "volume");
    }
    throw err;
  }
}

async function unmountDevice(rootDir: string, specName: string): Promise<void> {
  const target = deviceMountOf(rootDir, specName);
  const mount = (await listMountsBlindly(target)).at(-1);
  if (mount !== undefined) {
    const sharing = (await listMountsUnder(join(rootDir, "pods"))).filter(({ source }) => source === mount.source);
    if (sharing.length > 0) return;
    await unmountAllUnder(target);
  }
  await rmdir(target).catch(ignoreErrno("ENOENT"));
}

/** Gives the volume to the pod's fsGroup, unless other pods have it: they own it as it is. */
async function own(context: VolumeContext, path: string): Promise<void> {
  const { pod, podDir, dir, specName, deps, event, signal } = context;
  const { fsGroup } = pod.spec.securityContext ?? {};
  if (fsGroup === undefined) return;
  if (!(await isSharedWithOthers(podDir, dir))) {
    signal.throwIfAborted();
    await giveToGroup(path, fsGroup, context, deps.clock);
    return;
  }
  const gid = await ask("stat", ["-L", "-c", "%g", "--", path], signal);
  if (gid === String(fsGroup)) return;
  const why = `The requested fsGroup is ${fsGroup}, but the volume ${specName} has GID ${gid}.`;
  event("Warning", "AlreadyMountedVolume", `${why} The volume may not be shareable.`);
}

/** True if other pods have the same directory mounted, whatever their PersistentVolume is called. */
async function isSharedWithOthers(podDir: string, dir: string): Promise<boolean> {
  const mounts = await listMountsUnder(join(rootDirOf(podDir), "pods"));
  const mine = mounts.findLast(({ mountPoint }) => mountPoint === dir);
  return mounts.some(
    ({ mountPoint, source, root }) =>
      mine !== undefined &&
      source === mine.source &&
      root === mine.root &&
      !isAtOrBeneath(mountPoint, podDir) &&
      mountPoint.includes(`/volumes/${pluginDirName(pluginName)}/`),
  );
}

function deviceMountOf(rootDir: string, specName: string): string {
  return join(rootDir, "plugins", pluginName, "mounts", specName);
}

function mapDirOf(rootDir: string, specName: string): string {
  return join(rootDir, "plugins", pluginDirName(pluginName), "volumeDevices", specName);
}
