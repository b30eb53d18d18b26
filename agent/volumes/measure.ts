import { dirname, join } from "node:path";
import { blockPathsOf, csiPluginName } from "./csi/paths.ts";
import type { CSIDrivers } from "./csi/port.ts";
import { readVolumeData } from "./csi/volume-data.ts";
import { measureByDriver } from "./csi-measure.ts";
import type { MountedVolume } from "./pod-states.ts";
import type { VolumeMeasure } from "./port.ts";

export interface VolumeMeasureDeps {
  /** kubelet's root directory. */
  rootDir: string;
  volumes: {
    /** The volume with this name in a pod; undefined while it is not mounted. */
    mounted(podUID: string, volumeName: string): MountedVolume | undefined;
  };
  drivers: Pick<CSIDrivers, "client">;
}

// In-tree kinds with a file system, or a device, of their own.
const ownFilesystemPlugins: ReadonlySet<string> = new Set([
  "kubernetes.io/nfs",
  "kubernetes.io/local-volume",
  "kubernetes.io/iscsi",
  "kubernetes.io/fc",
]);

/**
 * Makes what the statistics ask for volumes that are not made of our own files.
 *
 * @returns a function that says how a volume is measured; undefined of it: not mounted, or of a kind without figures
 * (hostPath, image). It rejects with the CSI driver's error.
 */
export function createVolumeMeasures({
  rootDir,
  volumes,
  drivers,
}: VolumeMeasureDeps): (podUID: string, volume: string, signal: AbortSignal) => Promise<VolumeMeasure | undefined> {
  return async (podUID, name, signal) => {
    const volume = volumes.mounted(podUID, name);
    if (volume === undefined) return undefined;
    const { pluginName, hostPath: path, isBlock } = volume;
    if (ownFilesystemPlugins.has(pluginName)) return { kind: isBlock ? "block" : "filesystem", path };
    if (pluginName !== csiPluginName) return undefined;
    const { dataDir, volumePath } = placesOf(volume, podUID, rootDir);
    const data = await readVolumeData(dataDir);
    if (data === undefined) return undefined;
    const request = { volumeID: data.volumeHandle, volumePath, stagingTargetPath: "" };
    return await measureByDriver(drivers.client(data.driverName), request, signal);
  };
}

/** Where it is written down what a CSI volume is, and where its driver has published it. */
function placesOf(
  { isBlock, specName, hostPath }: MountedVolume,
  podUID: string,
  rootDir: string,
): { dataDir: string; volumePath: string } {
  if (!isBlock) return { dataDir: dirname(hostPath), volumePath: hostPath };
  const { dataDir, mapDir } = blockPathsOf(rootDir, specName);
  return { dataDir, volumePath: join(mapDir, podUID) };
}
