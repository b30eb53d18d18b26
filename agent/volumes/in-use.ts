import { join } from "node:path";
import { namesIn } from "../lib/names-in.ts";
import { pluginDirName } from "./pod-paths.ts";

/** Which pods of this node use which PersistentVolume, those of an earlier run that are still on disk included. */
export interface PersistentVolumeUsers {
  /**
   * Notes that a pod is about to use `volume`.
   * @returns the other pods that use it; `isFirst`: none of them came earlier
   */
  add(volume: string, podUID: string): Promise<{ others: string[]; isFirst: boolean }>;
  /** The pod does not use it after all, and waits for it: {@link releaseAll} of another pod tells of it. */
  refuse(volume: string, podUID: string): void;
  /** The pod has failed to have it, with nothing of it in place. @returns pods that waited for it */
  release(volume: string, podUID: string): string[];
  /** All volumes of the pod are torn down. @returns pods that waited for one of them */
  releaseAll(podUID: string): string[];
}

// The plugins whose directories are named for PersistentVolumes. Those of a hostPath leave no trace in a pod's directory.
const plugins = ["kubernetes.io/local-volume", "kubernetes.io/nfs", "kubernetes.io/csi"].map(pluginDirName);

export function createPersistentVolumeUsers(rootDir: string): PersistentVolumeUsers {
  const users = new Map<string, Set<string>>();
  const waiting = new Map<string, Set<string>>();
  let found: Promise<void> | undefined;

  const addTo = (map: Map<string, Set<string>>, key: string, podUID: string) => {
    const known = map.get(key) ?? new Set();
    map.set(key, known.add(podUID));
    return known;
  };
  const removeFrom = (map: Map<string, Set<string>>, key: string, podUID: string): boolean => {
    const known = map.get(key);
    const wasThere = known?.delete(podUID) === true;
    if (known?.size === 0) map.delete(key);
    return wasThere;
  };
  const readDisk = async () => {
    for (const podUID of await namesIn(join(rootDir, "pods"))) {
      for (const plugin of plugins) {
        for (const volumes of ["volumes", "volumeDevices"]) {
          const names = await namesIn(join(rootDir, "pods", podUID, volumes, plugin));
          for (const volume of names) addTo(users, volume, podUID);
        }
      }
    }
  };

  return {
    async add(volume, podUID) {
      found ??= readDisk().catch((err: unknown) => {
        found = undefined; // to be read again, not to be taken for empty
        throw err;
      });
      await found;
      const all = [...addTo(users, volume, podUID)]; // in the order of their coming
      removeFrom(waiting, volume, podUID);
      return { others: all.filter((uid) => uid !== podUID), isFirst: all[0] === podUID };
    },
    refuse(volume, podUID) {
      removeFrom(users, volume, podUID);
      addTo(waiting, volume, podUID);
    },
    release: (volume, podUID) => (removeFrom(users, volume, podUID) ? [...(waiting.get(volume) ?? [])] : []),
    releaseAll(podUID) {
      for (const volume of waiting.keys()) removeFrom(waiting, volume, podUID);
      const released = [...users].flatMap(([volume, podUIDs]) => (podUIDs.has(podUID) ? [volume] : []));
      for (const volume of released) removeFrom(users, volume, podUID);
      return [...new Set(released.flatMap((volume) => [...(waiting.get(volume) ?? [])]))];
    },
  };
}
