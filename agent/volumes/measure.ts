import { dirname, join } from "node:path";
import { blockPathsOf, csiPluginName, deviceDirOf, stagingPathOf } from "./csi/paths.ts";
import type { CSIDrivers } from "./csi/port.ts";
import { readVolumeData, type VolumeData } from "./csi/volume-data.ts";
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
 * (hostPath, image), or a driver's that does not count. It rejects with the CSI driver's error.
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
    const { dataDir, volumePath, stagingPathFor } = placesOf(volume, podUID, rootDir);
    const data = await readVolumeData(dataDir);
    if (data === undefined) return undefined;
    const client = drivers.client(data.driverName);
    const capabilities = await client.nodeGetCapabilities({ signal });
    if (!capabilities.has("GET_VOLUME_STATS")) return undefined;
    const isStaged = data.volumeLifecycleMode !== "Ephemeral" && capabilities.has("STAGE_UNSTAGE_VOLUME");
    const stagingTargetPath = isStaged ? stagingPathFor(data) : "";
    const request = { volumeID: data.volumeHandle, volumePath, stagingTargetPath };
    return { kind: "driver", driver: client.driver, ...(await client.nodeGetVolumeStats(request, { signal })) };
  };
}

interface CSIPlaces {
  /** Where it is written down what the volume is. */
  dataDir: string;
  /** Where its driver has published it. */
  volumePath: string;
  stagingPathFor(data: VolumeData): string;
}

function placesOf({ isBlock, specName, hostPath }: MountedVolume, podUID: string, rootDir: string): CSIPlaces {
  if (!isBlock) {
    const stagingPathFor = ({ driverName, volumeHandle }: VolumeData) =>
      stagingPathOf(deviceDirOf(rootDir, driverName, volumeHandle));
    return { dataDir: dirname(hostPath), volumePath: hostPath, stagingPathFor };
  }
  const { dataDir, mapDir, stagingPath } = blockPathsOf(rootDir, specName);
  return { dataDir, volumePath: join(mapDir, podUID), stagingPathFor: () => stagingPath };
}
