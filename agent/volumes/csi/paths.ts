import { createHash } from "node:crypto";
import { join } from "node:path";
import { AgentError } from "../../lib/errors.ts";
import { pluginDirName } from "../pod-paths.ts";

/**
 * Where CSI volumes are, ROOT being kubelet's root directory:
 *
 *   ROOT/plugins/kubernetes.io/csi/DRIVER/SHA256(HANDLE)/globalmount    a staged volume
 *   ROOT/plugins/kubernetes.io/csi/DRIVER/SHA256(HANDLE)/vol_data.json  what it is
 *   ROOT/pods/UID/volumes/kubernetes.io~csi/NAME/mount                  a pod's volume
 *   ROOT/pods/UID/volumes/kubernetes.io~csi/NAME/vol_data.json          what it is
 *
 * and of block volumes, NAME being the PersistentVolume's:
 *
 *   ROOT/plugins/kubernetes.io/csi/volumeDevices/staging/NAME           a staged volume
 *   ROOT/plugins/kubernetes.io/csi/volumeDevices/publish/NAME/UID       a pod's device, as the driver gave it
 *   ROOT/plugins/kubernetes.io/csi/volumeDevices/NAME/dev/UID           the same, held open
 *   ROOT/plugins/kubernetes.io/csi/volumeDevices/NAME/data/vol_data.json
 */
export const csiPluginName = "kubernetes.io/csi";
export const csiDirName = pluginDirName(csiPluginName);
/** Beside the drivers' directories, so that no driver can have this name. */
export const blockDirName = "volumeDevices";

// What CSI allows as a driver's name (domain name notation). It is a directory's name to us.
const driverNamePattern = /^[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?$/;

/** ROOT/plugins/kubernetes.io/csi */
export function csiRootOf(rootDir: string): string {
  return join(rootDir, "plugins", csiPluginName);
}

/** The directory of one volume that is, or can be, staged. Rejects a driver's name that is none with code Invalid. */
export function deviceDirOf(rootDir: string, driver: string, handle: string): string {
  checkDriverName(driver);
  return join(csiRootOf(rootDir), driver, sha256(handle));
}

/** Where in its directory a volume is staged. */
export function stagingPathOf(deviceDir: string): string {
  return join(deviceDir, "globalmount");
}

/** Where in its directory a pod's volume is. The driver makes and removes it. */
export function targetPathOf(dir: string): string {
  return join(dir, "mount");
}

/** The places of one block volume. */
export interface BlockPaths {
  stagingPath: string;
  /** One file for each pod in it; the driver makes and removes them. */
  publishDir: string;
  /** One bind mount for each pod in it. */
  mapDir: string;
  dataDir: string;
  /** Holds `mapDir` and `dataDir`. */
  ownDir: string;
}

export function blockPathsOf(rootDir: string, specName: string): BlockPaths {
  const base = join(csiRootOf(rootDir), blockDirName);
  const ownDir = join(base, specName);
  return {
    stagingPath: join(base, "staging", specName),
    publishDir: join(base, "publish", specName),
    mapDir: join(ownDir, "dev"),
    dataDir: join(ownDir, "data"),
    ownDir,
  };
}

/** A volume's name in `volumesAttached` and `volumesInUse` of a Node. */
export function uniqueVolumeName(driver: string, handle: string): string {
  return `${csiPluginName}/${driver}^${handle}`;
}

/** The name of the VolumeAttachment by which a volume is attached to a node. */
export function attachmentName(handle: string, driver: string, nodeName: string): string {
  return `csi-${sha256(`${handle}${driver}${nodeName}`)}`;
}

/** The handle of a volume that is written in the pod itself. */
export function ephemeralHandle(podUID: string, volumeName: string): string {
  return `csi-${sha256(`${podUID}${volumeName}`)}`;
}

function checkDriverName(driver: string): void {
  if (driver.length > 63 || !driverNamePattern.test(driver) || driver === blockDirName) {
    throw new AgentError("Invalid", `"${driver}" is not the name of a CSI driver`);
  }
}

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
