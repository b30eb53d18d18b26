import type { ApiClient } from "../kube/port.ts";
import type {
  ObjectReference,
  PersistentVolume,
  PersistentVolumeClaim,
  Pod,
  ResourceList,
  Volume,
} from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import type { Logger } from "../lib/log.ts";
import type { TmpfsMounter } from "../lib/tmpfs-mounts.ts";
import type { ObjectSource } from "./port.ts";
import type { TokenManager } from "./tokens.ts";

/** What volume kinds need from outside. */
export interface VolumeDeps {
  objects: Pick<ObjectSource, "configMap" | "secret">;
  tokens: Pick<TokenManager, "token">;
  clock: Clock;
  /** The node's allocatable resources as last reported; empty while unknown. */
  nodeAllocatable(): ResourceList;
  /** True if this kernel's tmpfs takes `noswap`. */
  tmpfsTakesNoswap(): Promise<boolean>;
  tmpfs: TmpfsMounter;
  /** undefined: volumes stay as large as they are. */
  expansion?: ExpansionDeps;
}

/** Who is told when a volume has grown. */
export interface ExpansionDeps {
  /** Has the claims; undefined: there is no API server. */
  client: ApiClient | undefined;
  nodeName: string;
  clock: Clock;
  log: Logger;
  /** Records an event about a claim. */
  event(about: ObjectReference, type: "Normal" | "Warning", reason: string, message: string): void;
}

/** A claim of a pod and the PersistentVolume that it is bound to, as the API server has them; checked against each other. */
export interface BoundClaim {
  claim: PersistentVolumeClaim;
  volume: PersistentVolume;
  /** The pod asks for the claim read-only. */
  isReadOnly: boolean;
}

/** One volume of one pod, about to be set up. */
export interface VolumeContext {
  pod: Pod;
  /** As in the pod; what it is made from may be in `bound.volume` instead. */
  volume: Volume;
  /** The name of its directory: the PersistentVolume's, or the volume's own. */
  specName: string;
  /** Undefined for what is written in the pod itself. */
  bound: BoundClaim | undefined;
  /** Containers use it through `volumeDevices`. */
  isBlock: boolean;
  /** UIDs of other pods of this node that use the same PersistentVolume; they may be setting it up at this moment. */
  otherPods: readonly string[];
  /** ROOT/pods/UID, resolved. */
  podDir: string;
  /** ROOT/pods/UID/volumes/PLUGIN/NAME, for the kinds that have a directory there. */
  dir: string;
  deps: VolumeDeps;
  /** Records an event about the pod; or, for its cluster's administrators, about the PersistentVolume. */
  event(type: "Normal" | "Warning", reason: string, message: string, about?: "pod" | "volume"): void;
  signal: AbortSignal;
}

/** A volume that is ready. */
export interface SetUpResult {
  /** What containers are given. Of a block volume: the link to the device, see `blockLinkOf`; "" for none. */
  hostPath: string;
  /** Where they differ from the kind's. */
  isReadOnly?: boolean;
  isRelabelled?: boolean;
  isRefreshed?: boolean;
  /** A group that is added to the containers, as PersistentVolumes may ask. */
  supplementalGroup?: number;
  /** Unix ms at which the content should be written anew; undefined: when something changes. */
  refreshAtMs?: number;
}

/** One kind of volume: how it is recognised, what containers may do with it, and how it gets there. */
export interface VolumeKind {
  /** Its field in `spec.volumes[]`. */
  readonly field: string;
  readonly pluginName: string;
  /** Containers never may write. */
  readonly isReadOnly: boolean;
  /** Containers' SELinux label may be put on it. */
  readonly isRelabelled: boolean;
  /** Its content follows other objects: set up again at each call. */
  readonly isRefreshed: boolean;
  /** Idempotent. Rejects with an `AgentError` that says why in one line, without the volume's name. */
  setUp(context: VolumeContext): Promise<SetUpResult>;
  /**
   * Undoes `setUp`, after all containers stopped and the volume's subPaths were unmounted. Works from what is on disk, so
   * that it can end what an earlier run began; idempotent. Its directory must be gone afterwards. Without it everything
   * mounted in the directory is unmounted and the rest deleted.
   */
  tearDown?(context: TearDownContext): Promise<void>;
  /**
   * Unmounts what is mounted at a path or beneath it, where the ordinary way could wait for ever: used for the volume's
   * subPaths. Nothing mounted is success.
   */
  unmount?(path: string): Promise<void>;
  /** Told when all volumes of a pod are gone, those included that were never set up. */
  forget?(podUID: string): void;
  /** Calls `listener` with the UID of a pod whose set-up may succeed now, or should be done again. @returns ends it */
  subscribe?(listener: (podUID: string) => void): () => void;
  /** May containers use it through `volumeDevices`? */
  readonly takesBlock?: boolean;
  /** A PersistentVolume of it may not have mount options. */
  readonly refusesMountOptions?: boolean;
}

/** A volume found in a pod's directory that is to go. */
export interface TearDownContext {
  podUID: string;
  /** ROOT/pods/UID, resolved. */
  podDir: string;
  specName: string;
  /** ROOT/pods/UID/volumes/PLUGIN/NAME or, of a block volume, the link ROOT/pods/UID/volumeDevices/PLUGIN/NAME. */
  dir: string;
  isBlock: boolean;
}

/** What a volume is made from: a field of the PersistentVolume behind the pod's claim, or else of the pod's volume itself. */
export function sourceOf<Field extends keyof Volume & keyof PersistentVolume["spec"]>(
  { volume, bound }: Pick<VolumeContext, "volume" | "bound">,
  field: Field,
): Volume[Field] | PersistentVolume["spec"][Field] {
  return bound === undefined ? volume[field] : bound.volume.spec[field];
}
