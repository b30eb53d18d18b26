import { dirname, join } from "node:path";
import { AgentError } from "../lib/errors.ts";

/**
 * What is where in a pod's directory, ROOT/pods/UID:
 *
 *   volumes/PLUGIN/NAME              its volumes
 *   volume-subpaths/NAME/CONTAINER/N bind mounts of paths inside them
 *   plugins/kubernetes.io~empty-dir  marks of volumes that are ready
 *   containers/, etc-hosts           written by others
 */

// A UID is a file name to us. The API server gives out UUIDs, static pods have a hash.
const podUIDPattern = /^[A-Za-z0-9][A-Za-z0-9._-]*$/;

/** True if a directory of this name can be a pod's: a file system has its own beside them, such as `lost+found`. */
export function isPodUID(name: string): boolean {
  return podUIDPattern.test(name);
}

/** Rejects a UID that could be a path with code Invalid. */
export function podDirOf(rootDir: string, podUID: string): string {
  if (!isPodUID(podUID)) throw new AgentError("Invalid", `"${podUID}" is not a pod UID`);
  return join(rootDir, "pods", podUID);
}

/** Where a volume is; the kinds that have no directory of their own do not look at it. */
export function volumeDirOf(podDir: string, pluginName: string, volumeName: string): string {
  return join(podDir, "volumes", pluginDirName(pluginName), volumeName);
}

/** Where the `index`-th volumeMount of a container has its subPath. */
export function subPathTargetOf(podDir: string, volumeName: string, containerName: string, index: number): string {
  return join(podDir, "volume-subpaths", volumeName, containerName, String(index));
}

/** ROOT of ROOT/pods/UID. */
export function rootDirOf(podDir: string): string {
  return dirname(dirname(podDir));
}

/** The link through which a pod's containers are given a block device: ROOT/pods/UID/volumeDevices/PLUGIN/NAME. */
export function blockLinkOf(podDir: string, pluginName: string, specName: string): string {
  return join(podDir, "volumeDevices", pluginDirName(pluginName), specName);
}

/** `kubernetes.io/empty-dir` → `kubernetes.io~empty-dir`: the plugin's name as a directory. */
export function pluginDirName(pluginName: string): string {
  return pluginName.replaceAll("/", "~");
}
