import { mkdir, realpath, rmdir, stat } from "node:fs/promises";
import { join, posix } from "node:path";
import { ignoreErrno } from "../lib/errno.ts";
import { AgentError } from "../lib/errors.ts";
import { bindMount, isAtOrBeneath, isMountPoint, listMountsUnder, remountBind, unmountAllUnder } from "../lib/mount.ts";
import { abortable } from "./abortable.ts";
import { mapBlockDevice, unmapBlockDevice } from "./block-map.ts";
import { FilesystemMismatchError, type FormatAndMount, formatAndMount } from "./format-and-mount.ts";
import type { SetUpResult, VolumeContext, VolumeKind } from "./kind.ts";
import { KeyedLock } from "./keyed-lock.ts";
import { joinMountOptions, mountOptionsOf } from "./mount-options.ts";
import { applyFSGroup } from "./ownership.ts";
import { inStep } from "./step-error.ts";
import { pluginDirName, rootDirOf } from "./pod-paths.ts";

const pluginName = "kubernetes.io/local-volume";
// The API's default for devices; directories have one already.
const fsTypeDefault = "ext4";

/**
 * A disk or directory of this node as a PersistentVolume:
 *
 *   a directory            bind-mounted into the pod's directory
 *   a device, Filesystem   mounted once at ROOT/plugins/kubernetes.io/local-volume/mounts/NAME, made an ext4 if it is empty,
 *                          and from there bind-mounted into each pod's directory; unmounted after the last
 *   a device, Block        mapped (see block-map.ts) at ROOT/plugins/kubernetes.io~local-volume/volumeDevices/NAME
 */
export function createLocalKind(): VolumeKind {
  // Pods that share a volume take turns: the first mounts and owns it, the last unmounts.
  const turns = new KeyedLock();
  return {
    field: "local",
    pluginName,
    isReadOnly: false,
    isRelabelled: true,
    isRefreshed: false,
    takesBlock: true,
    setUp: async (context) => await turns.run(context.specName, async () => await setUp(context), context.signal),
    async tearDown({ podUID, podDir, specName, dir, isBlock }) {
      const rootDir = rootDirOf(podDir);
      await turns.run(specName, async () => {
        if (isBlock) return await unmapBlockDevice({ podUID, mapDir: mapDirOf(rootDir, specName), link: dir });
        await unmountAllUnder(dir);
        // First what is shared: as long as the pod's directory is there, this is done again.
        await unmountDevice(rootDir, specName);
        await rmdir(dir).catch(ignoreErrno("ENOENT"));
      });
    },
  };
}

async function setUp(context: VolumeContext): Promise<SetUpResult> {
  const { pod, podDir, dir, specName, bound, isBlock, signal } = context;
  const local = bound?.volume.spec.local;
  if (local === undefined || bound === undefined) throw new AgentError("Invalid", "a local volume needs a claim");
  const { isReadOnly } = bound;
  const source = await inStep("NewMounter initialization", async () => await lookAt(local.path, signal));
  const rootDir = rootDirOf(podDir);
  if (isBlock) {
    const podUID = pod.metadata.uid ?? "";
    await mapBlockDevice({ podUID, mapDir: mapDirOf(rootDir, specName), link: dir }, source.path, context);
    return { hostPath: dir, isReadOnly };
  }
  // First of all, as tear-down finds the rest by it.
  await mkdir(dir, { recursive: true, mode: 0o750 });
  const options = mountOptionsOf(bound.volume);
  let { path } = source;
  if (source.isDevice) {
    path = deviceMountOf(rootDir, specName);
    const mount = { device: source.path, target: path, fsType: local.fsType || fsTypeDefault, options, isReadOnly };
    await inStep("MountDevice", async () => await mountDevice(mount, context));
  }
  if (!(await isMountPoint(dir))) await bindMount(path, dir, signal);
  const ofBind = joinMountOptions(source.isDevice ? [] : options, isReadOnly ? ["ro"] : []);
  // Also on what is mounted: we may have been killed in between.
  if (ofBind.length > 0) await remountBind(dir, ofBind, signal);
  if (!isReadOnly) await own(context, path);
  return { hostPath: dir, isReadOnly, isRelabelled: !isReadOnly };
}

/** What is at the path of a PersistentVolume. */
async function lookAt(path: string, signal: AbortSignal): Promise<{ path: string; isDevice: boolean }> {
  if (!posix.isAbsolute(path)) throw new AgentError("Invalid", `path "${path}" must be absolute`);
  if (path.split("/").includes("..")) throw new AgentError("Invalid", `path "${path}" must not contain ".."`);
  const resolved = await abortable(realpath(path), signal).catch(ignoreErrno("ENOENT", "ENOTDIR"));
  if (resolved === undefined) throw new AgentError("NotFound", `path "${path}" does not exist`);
  const found = await abortable(stat(resolved), signal);
  if (!found.isDirectory() && !found.isBlockDevice()) {
    throw new AgentError("Invalid", `path "${path}" is neither a directory nor a block device`);
  }
  return { path: resolved, isDevice: found.isBlockDevice() };
}

/** The device is always mounted writable, if it can be: what one pod only reads another may write. */
async function mountDevice(mount: FormatAndMount, { event, signal }: VolumeContext): Promise<void> {
  await mkdir(mount.target, { recursive: true, mode: 0o750 });
  if (await isMountPoint(mount.target)) return;
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
  const mount = (await listMountsUnder(target)).at(-1);
  if (mount !== undefined) {
    const sharing = (await listMountsUnder(join(rootDir, "pods"))).filter(({ source }) => source === mount.source);
    if (sharing.length > 0) return;
    await unmountAllUnder(target);
  }
  await rmdir(target).catch(ignoreErrno("ENOENT"));
}

/** Gives the volume to the pod's fsGroup, unless other pods have it: they own it as it is. */
async function own({ pod, podDir, dir, specName, deps, event, signal }: VolumeContext, path: string): Promise<void> {
  const { fsGroup, fsGroupChangePolicy: policy } = pod.spec.securityContext ?? {};
  if (fsGroup === undefined) return;
  if (!(await isSharedWithOthers(podDir, dir))) {
    signal.throwIfAborted();
    await applyFSGroup(path, fsGroup, {
      isReadOnly: false,
      ...(policy === undefined ? {} : { policy }),
      monotonic: () => deps.clock.monotonic(),
      onSlow(entries) {
        const so = `Giving volume ${specName} to group ${fsGroup} takes long: ${entries} files so far`;
        event("Warning", "VolumePermissionChangeInProgress", `${so}; consider fsGroupChangePolicy OnRootMismatch`);
      },
    });
    return;
  }
  const { gid } = await stat(path);
  if (gid === fsGroup) return;
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
