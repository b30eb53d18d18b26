import type { ConfigMap, Container, Pod, Secret } from "../kube/types.ts";
import type { IDMapping, Mount, MountedImage } from "../runtime/port.ts";
import type { VolumeStats } from "./csi/port.ts";

/**
 * A pod's volumes, seen from its worker. The worker calls these in its own order and never twice at once for one pod;
 * calls for different pods run in parallel. Everything is idempotent, also across a SIGKILL in the middle.
 */
export interface PodVolumes {
  /**
   * Makes every volume used by a container of `pod` (volumeMounts or volumeDevices) ready; on later calls refreshes
   * configMap, secret, downwardAPI and projected ones. Resolves when all are mounted. Rejects with an `AgentError` whose
   * message names each volume and why it is not there (the worker makes it a FailedMount event and retries).
   */
  setUp(pod: Pod, signal: AbortSignal): Promise<void>;
  /** When `setUp` should next be called to refresh content (tokens near expiry, changed objects), in ms; undefined: never. */
  refreshInMs(podUID: string): number | undefined;
  /**
   * Registers a function called when content that `setUp(pod)` wrote is out of date (a configMap or secret changed).
   * @returns the unregister function
   */
  onChange(listener: (podUID: string) => void): () => void;
  /**
   * CRI mounts of one container: volume mounts in spec order (subPath bind mounts prepared), without /etc/hosts and
   * termination log. `env` is the container's final environment, for subPathExpr.
   * Rejects with code Invalid for what the pod's author must fix, with Unavailable where a file system does not answer.
   */
  mounts(pod: Pod, container: Container, env: ReadonlyMap<string, string>, context: MountContext): Promise<Mount[]>;
  /**
   * The devices of one container's `volumeDevices`, in spec order. Rejects (synchronously) with code Invalid for a volume
   * that is not there and for a path that is not absolute.
   */
  devices(podUID: string, container: Container): BlockDevice[];
  /** Unmounts and removes everything under the pod's `volumes` and `volume-subpaths`. */
  tearDown(podUID: string): Promise<void>;
  /** Groups that volumes ask to be added to containers (PV gid annotations). */
  supplementalGroups(podUID: string): number[];
  /** UIDs that have a directory under ROOT/pods. */
  podUIDsOnDisk(): Promise<string[]>;
  /** Removes the directory of a pod that is gone, never crossing a mount point nor following a link. */
  removePodDir(podUID: string): Promise<void>;
}

/** A block device that a container is given. */
export interface BlockDevice {
  hostPath: string;
  containerPath: string;
  /** "mrw", or "r" for a claim that the pod asks for read-only. */
  permissions: string;
}

/**
 * How the size of a mounted volume that is not made of files of ours gets known: by asking the filesystem that is mounted
 * at `path`, by the size of a block device, or by what its driver has just counted.
 */
export type VolumeMeasure =
  | { kind: "filesystem"; path: string }
  | { kind: "block"; path: string }
  | ({ kind: "driver"; driver: string } & VolumeStats);

export interface MountContext {
  podIPs: readonly string[];
  recursiveReadOnlySupported: boolean;
  userns: { uids: IDMapping[]; gids: IDMapping[] } | undefined;
  /** What the images of the pod's image volumes came to, by volume name; default: it has none. */
  images?: ReadonlyMap<string, MountedImage>;
  /** Ends what waits for a file system; default: that has a deadline only. */
  signal?: AbortSignal;
}

/**
 * ConfigMaps and Secrets that registered pods refer to (facts: volumes-and-env §5): watched, cached or fetched as
 * `configMapAndSecretChangeDetectionStrategy` says.
 */
export interface ObjectSource {
  /** Starts keeping the objects that `pod` refers to. Called at each sync; the latest spec counts. */
  register(pod: Pod): void;
  unregister(podUID: string): void;
  /** Rejects with NotFound, Forbidden, Unavailable … */
  configMap(namespace: string, name: string): Promise<ConfigMap>;
  secret(namespace: string, name: string): Promise<Secret>;
  onChange(listener: (kind: "ConfigMap" | "Secret", namespace: string, name: string) => void): () => void;
}
