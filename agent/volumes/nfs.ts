import { mkdir, rmdir } from "node:fs/promises";
import { isIPv6 } from "node:net";
import { ignoreErrno } from "../lib/errno.ts";
import { AgentError } from "../lib/errors.ts";
import { listMountsBlindly, mountFilesystem, unmountOrForce } from "../lib/mount.ts";
import { sourceOf, type VolumeContext, type VolumeKind } from "./kind.ts";
import { KeyedLock } from "./keyed-lock.ts";
import { joinMountOptions, mountOptionsOf } from "./mount-options.ts";

// mount.nfs gives up by itself after two minutes of asking a server; a little more, so that its own words are told.
export const nfsMountTimeoutMs = 130_000;
// kubelet's patience before it unmounts by force.
export const nfsUnmountPatienceMs = 60_000;

/**
 * A directory of an NFS server. Its server may go away at any moment, and then whoever looks at the mount point waits for
 * ever: nothing here does, mounts are found in the kernel's table.
 */
export function createNFSKind(): VolumeKind {
  // A pod may name one PersistentVolume twice: by the directory, which is mounted once.
  const turns = new KeyedLock();
  return {
    field: "nfs",
    pluginName: "kubernetes.io/nfs",
    isReadOnly: false,
    isRelabelled: false,
    isRefreshed: false,
    async setUp(context) {
      const { bound, dir, signal } = context;
      const { readOnly = false } = sourceOf(context, "nfs") ?? {};
      const isReadOnly = readOnly || bound?.isReadOnly === true;
      await turns.run(dir, async () => await ensureMounted(context, isReadOnly), signal);
      return { hostPath: dir, isReadOnly };
    },
    async tearDown({ dir }) {
      await unmountNFS(dir);
      await rmdir(dir).catch(ignoreErrno("ENOENT"));
    },
    unmount: unmountNFS,
  };
}

async function ensureMounted(context: VolumeContext, isReadOnly: boolean): Promise<void> {
  const { bound, dir, signal } = context;
  const { server = "", path = "" } = sourceOf(context, "nfs") ?? {};
  if (server === "" || path === "") throw new AgentError("Invalid", "an nfs volume needs server and path");
  if ((await listMountsBlindly(dir)).length > 0) return;
  await mkdir(dir, { recursive: true, mode: 0o750 });
  const ofVolume = bound === undefined ? [] : mountOptionsOf(bound.volume);
  const options = joinMountOptions(ofVolume, isReadOnly ? ["ro"] : []);
  const mount = { type: "nfs", source: nfsSource(server, path), target: dir, options };
  await mountFilesystem({ ...mount, timeoutMs: nfsMountTimeoutMs }, signal);
}

async function unmountNFS(path: string): Promise<void> {
  await unmountOrForce(path, nfsUnmountPatienceMs);
}

/** `server:path`, as mount.nfs takes it. Pure. */
export function nfsSource(server: string, path: string): string {
  return `${isIPv6(server) ? `[${server}]` : server}:${path}`;
}
