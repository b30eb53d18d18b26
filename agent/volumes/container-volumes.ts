import { posix } from "node:path";
import type { Container, Pod, VolumeMount } from "../kube/types.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { Mount } from "../runtime/port.ts";
import { emptyDirKind } from "./empty-dir.ts";
import { podFields } from "./failures.ts";
import { buildImageMount, imageKind } from "./image.ts";
import { buildMount } from "./mounts.ts";
import type { MountedVolume } from "./pod-states.ts";
import type { BlockDevice, MountContext } from "./port.ts";
import { prepareSubPath, subPathOf } from "./sub-path.ts";
import { subPathTargetOf } from "./pod-paths.ts";

/** A pod's volumes as its containers are given them. */
export interface ContainerVolumes {
  pod: Pod;
  /** ROOT/pods/UID, resolved. */
  podDir: string;
  /** By name; undefined: the pod has not been set up. */
  mounted: ReadonlyMap<string, MountedVolume> | undefined;
  context: MountContext & { selinuxEnabled: boolean };
  log: Logger;
  /** Ends what waits for a file system. */
  signal: AbortSignal;
}

/**
 * CRI mounts of one container, in the order of its spec; subPaths are bind-mounted to a place of their own.
 * Rejects with code Invalid for what the pod's author must fix, and with Unavailable for a subPath on a file system that does
 * not answer; of several things, always the first.
 */
export async function containerMounts(
  volumes: ContainerVolumes,
  container: Container,
  env: ReadonlyMap<string, string>,
): Promise<Mount[]> {
  const found = await Promise.allSettled(
    (container.volumeMounts ?? []).map(
      async (mount, index) => await containerMount(volumes, { container, mount, index }, env),
    ),
  );
  return found.map((result) => {
    if (result.status === "rejected") throw result.reason;
    return result.value;
  });
}

async function containerMount(
  { pod, podDir, mounted, context, log, signal }: ContainerVolumes,
  { container, mount, index }: { container: Container; mount: VolumeMount; index: number },
  env: ReadonlyMap<string, string>,
): Promise<Mount> {
  const volume = mounted?.get(mount.name);
  if (volume === undefined || volume.isBlock) {
    throw new AgentError("Invalid", `cannot find volume "${mount.name}" to mount into container "${container.name}"`);
  }
  const subPath = subPathOf(mount, env);
  if (volume.pluginName === imageKind.pluginName) {
    return buildImageMount(mount, context.images?.get(mount.name), subPath, context);
  }
  const built = buildMount(mount, volume, volume.hostPath, context);
  if (subPath === undefined) return built;
  const target = subPathTargetOf(podDir, volume.specName, container.name, index);
  const errorContext = ` for volumeMount "${mount.name}" of container "${container.name}"`;
  try {
    const volumePath = volume.hostPath;
    await prepareSubPath({ volumePath, subPath, target, errorContext, mayHang: mayHang(volume) }, signal);
  } catch (err) {
    signal.throwIfAborted();
    // The event is kept from showing the node's paths to the pod's author; the log has them.
    const cause = err instanceof Error ? messageOf(err.cause) : "";
    log.warn({ ...podFields(pod), container: container.name, volume: mount.name, subPath, cause }, "subPath failed");
    throw err;
  }
  return { ...built, hostPath: target };
}

/** Not those that are on the node's own disk or in memory. */
function mayHang({ pluginName, isRefreshed }: MountedVolume): boolean {
  return !isRefreshed && pluginName !== emptyDirKind.pluginName;
}

/**
 * The block devices of one container, in the order of its spec. Throws with code Invalid for a volume that is not there and
 * for a path that is not absolute.
 */
export function containerDevices(
  mounted: ReadonlyMap<string, MountedVolume> | undefined,
  container: Container,
): BlockDevice[] {
  return (container.volumeDevices ?? []).flatMap(({ name, devicePath }) => {
    if (!posix.isAbsolute(devicePath)) {
      throw new AgentError("Invalid", `volumeDevice "${name}": devicePath "${devicePath}" must be absolute`);
    }
    const volume = mounted?.get(name);
    if (volume?.isBlock !== true) {
      throw new AgentError("Invalid", `cannot find volume "${name}" to pass into container "${container.name}"`);
    }
    const permissions = volume.isReadOnly ? "r" : "mrw";
    return volume.hostPath === "" ? [] : [{ hostPath: volume.hostPath, containerPath: devicePath, permissions }];
  });
}
