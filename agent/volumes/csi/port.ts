import type { CSIDriver } from "../../kube/types.ts";
import { AgentError, type ErrorCode } from "../../lib/errors.ts";
import type { StatusName } from "../../lib/grpc/channel.ts";

/** Optional parts of a driver's node service, in the words of CSI's NodeServiceCapability. */
export type NodeCapability =
  | "STAGE_UNSTAGE_VOLUME"
  | "GET_VOLUME_STATS"
  | "EXPAND_VOLUME"
  | "VOLUME_CONDITION"
  | "SINGLE_NODE_MULTI_WRITER"
  | "VOLUME_MOUNT_GROUP";

/** CSI's VolumeCapability.AccessMode. */
export type CSIAccessMode =
  | "SINGLE_NODE_WRITER"
  | "SINGLE_NODE_READER_ONLY"
  | "MULTI_NODE_READER_ONLY"
  | "MULTI_NODE_SINGLE_WRITER"
  | "MULTI_NODE_MULTI_WRITER"
  | "SINGLE_NODE_SINGLE_WRITER"
  | "SINGLE_NODE_MULTI_WRITER";

/** How a volume is to be used: as a block device, or mounted. */
export interface VolumeCapability {
  readonly accessMode: CSIAccessMode;
  readonly access:
    | { readonly kind: "block" }
    | {
        readonly kind: "mount";
        /** "": the driver chooses. */
        readonly fsType: string;
        readonly mountFlags: readonly string[];
        /** The pod's fsGroup as a decimal number, for drivers with VOLUME_MOUNT_GROUP; "" for none. */
        readonly volumeMountGroup: string;
      };
}

/** String maps as CSI has them. Those named `secrets` are neither logged nor put into error texts. */
export type CSIMap = Readonly<Record<string, string>>;

export interface NodeStageVolumeRequest {
  readonly volumeID: string;
  readonly publishContext: CSIMap;
  readonly stagingTargetPath: string;
  readonly capability: VolumeCapability;
  readonly secrets: CSIMap;
  readonly volumeContext: CSIMap;
}

export interface NodePublishVolumeRequest {
  readonly volumeID: string;
  readonly publishContext: CSIMap;
  /** "": the volume is not staged. */
  readonly stagingTargetPath: string;
  readonly targetPath: string;
  readonly capability: VolumeCapability;
  readonly isReadOnly: boolean;
  readonly secrets: CSIMap;
  readonly volumeContext: CSIMap;
}

export interface NodeExpandVolumeRequest {
  readonly volumeID: string;
  readonly volumePath: string;
  /** The size that the volume is to have at least, in bytes. */
  readonly requiredBytes: number;
  /** "": the volume is not staged. */
  readonly stagingTargetPath: string;
  readonly capability: VolumeCapability;
  readonly secrets: CSIMap;
}

export interface NodeInfo {
  /** Never empty: a driver that has none is refused. */
  readonly nodeID: string;
  /** 0: the driver sets no limit. */
  readonly maxVolumesPerNode: number;
  /** Topology key → value; empty without topology. */
  readonly topology: CSIMap;
}

export interface VolumeUsage {
  readonly unit: "BYTES" | "INODES";
  readonly available: number;
  readonly total: number;
  readonly used: number;
}

export interface VolumeStats {
  readonly usage: readonly VolumeUsage[];
  /** undefined: the driver says nothing about the volume's health. */
  readonly condition: { readonly isAbnormal: boolean; readonly message: string } | undefined;
}

export interface CSICallOptions {
  /** Ends the call early; it rejects with Canceled then, and what the driver did is not known. */
  readonly signal?: AbortSignal;
}

/**
 * The node service of one registered driver. Each call has a deadline of two minutes and is not repeated here. All reject with a
 * {@link CSIError}. A client stays usable for as long as its driver is registered; after that calls reject with Unavailable,
 * and {@link CSIDrivers.client} gives the next one: so ask for a client at each operation and keep none.
 */
export interface CSIDriverClient {
  /** The driver's name, as in CSIDriver and PersistentVolume objects. */
  readonly driver: string;
  nodeGetInfo(options?: CSICallOptions): Promise<NodeInfo>;
  /** Asked anew at each call, as a driver may be replaced by a newer one. Capabilities that we do not know are left out. */
  nodeGetCapabilities(options?: CSICallOptions): Promise<ReadonlySet<NodeCapability>>;
  nodeStageVolume(request: NodeStageVolumeRequest, options?: CSICallOptions): Promise<void>;
  nodeUnstageVolume(volumeID: string, stagingTargetPath: string, options?: CSICallOptions): Promise<void>;
  nodePublishVolume(request: NodePublishVolumeRequest, options?: CSICallOptions): Promise<void>;
  nodeUnpublishVolume(volumeID: string, targetPath: string, options?: CSICallOptions): Promise<void>;
  nodeGetVolumeStats(
    request: { readonly volumeID: string; readonly volumePath: string; readonly stagingTargetPath: string },
    options?: CSICallOptions,
  ): Promise<VolumeStats>;
  /** @returns the volume's size in bytes after it; 0 if the driver does not say */
  nodeExpandVolume(request: NodeExpandVolumeRequest, options?: CSICallOptions): Promise<number>;
}

/** The CSI drivers that are registered on this node. */
export interface CSIDrivers {
  /**
   * The client of a registered driver.
   * @throws CSIError with code Unavailable, which is not final, if no such driver is registered (yet)
   */
  client(driver: string): CSIDriverClient;
  /** Calls `listener` with a driver's name after it was registered, registered anew or deregistered. @returns ends it */
  subscribe(listener: (driver: string) => void): () => void;
}

/** CSIDriver objects of the API server. Without an API server there are none. */
export interface CSIDriverObjects {
  /**
   * The CSIDriver object of a driver; waits until the API server has told what it has.
   * @returns undefined if there is none: attach required, fsGroupPolicy ReadWriteOnceWithFSType, Persistent volumes only
   * Rejects with an AbortError when `signal` aborts.
   */
  csiDriver(name: string, signal?: AbortSignal): Promise<CSIDriver | undefined>;
  /** Calls `listener` with the name of an object that came, changed or went. @returns ends it */
  subscribe(listener: (name: string) => void): () => void;
}

/** Why a driver did not do what it was asked. The message names call, driver and volume, and has the driver's words. */
export class CSIError extends AgentError {
  /** What the driver answered: `InvalidArgument` …; undefined if it could not be asked at all. */
  readonly status: StatusName | undefined;
  /**
   * True: the driver has refused, and has nothing in place. False: it may still be at work or may have done some of it, so that the
   * volume has to be taken for mounted until unpublish and unstage have succeeded.
   */
  readonly isFinal: boolean;

  constructor(
    code: ErrorCode,
    message: string,
    { status, isFinal, ...options }: ErrorOptions & { status: StatusName | undefined; isFinal: boolean },
  ) {
    super(code, message, options);
    this.status = status;
    this.isFinal = isFinal;
  }
}

/** True for errors after which nothing of a volume can be in place, see {@link CSIError.isFinal}; false for anything unknown. */
export function isFinalError(err: unknown): boolean {
  return err instanceof CSIError && err.isFinal;
}
