import type { Clock } from "../../lib/clock.ts";
import { AgentError } from "../../lib/errors.ts";
import { type GRPCChannel, openChannel, type StatusName } from "../../lib/grpc/channel.ts";
import { loadProto, type ProtoPackage } from "../../lib/grpc/proto.ts";
import { awaiting } from "../awaits.ts";
import { csiError } from "./errors.ts";
import {
  type CSICallOptions,
  type CSIDriverClient,
  CSIError,
  type NodeCapability,
  type NodeExpandVolumeRequest,
  type NodeInfo,
  type NodePublishVolumeRequest,
  type NodeStageVolumeRequest,
  type VolumeCapability,
  type VolumeStats,
  type VolumeUsage,
} from "./port.ts";

// Kubelet's deadline of each call to a driver.
export const callTimeoutMs = 120_000;

const service = "csi.v1.Node";
const capabilities: ReadonlySet<string> = new Set<NodeCapability>([
  "STAGE_UNSTAGE_VOLUME",
  "GET_VOLUME_STATS",
  "EXPAND_VOLUME",
  "VOLUME_CONDITION",
  "SINGLE_NODE_MULTI_WRITER",
  "VOLUME_MOUNT_GROUP",
]);

/** A client with a connection of its own. */
export interface OwnedCSIClient extends CSIDriverClient {
  /** Calls under way go on to their end; new ones reject with Unavailable. */
  close(): void;
}

/** Opens a driver's node service. Nothing is sent yet; rejects with Invalid for an endpoint that is no unix socket. */
export type OpenCSIClient = (driver: string, endpoint: string) => Promise<OwnedCSIClient>;

/** One call to a driver that has ended. */
export interface CSICall {
  driver: string;
  /** `/csi.v1.Node/NodePublishVolume` */
  method: string;
  status: StatusName;
  seconds: number;
}

/**
 * Opens node services of real drivers. Loads gRPC with the first.
 * @param observe told of each call
 */
export function csiClientOpener(clock: Pick<Clock, "monotonic">, observe: (call: CSICall) => void): OpenCSIClient {
  return async (driver, endpoint) => {
    const target = endpointTarget(driver, endpoint);
    const proto = await loadProto("csi.v1.proto");
    const channel = await openChannel(target, { translate: csiError });
    return new Client(driver, { channel, proto, clock, observe });
  };
}

interface ClientDeps {
  channel: GRPCChannel;
  proto: ProtoPackage;
  clock: Pick<Clock, "monotonic">;
  observe: (call: CSICall) => void;
}

/** `/path`, `unix:/path` and `unix:///path` name a socket. */
export function endpointTarget(driver: string, endpoint: string): string {
  const path = /^(?:unix:(?:\/\/)?)?(\/[^/].*)$/.exec(endpoint)?.[1];
  if (path !== undefined) return `unix://${path}`;
  throw new AgentError("Invalid", `endpoint "${endpoint}" of CSI driver ${driver} is not an absolute path of a socket`);
}

class Client implements OwnedCSIClient {
  readonly driver: string;
  readonly #deps: ClientDeps;
  #isClosed = false;

  constructor(driver: string, deps: ClientDeps) {
    this.driver = driver;
    this.#deps = deps;
  }

  async nodeGetInfo(options?: CSICallOptions): Promise<NodeInfo> {
    const answer = await this.#call<WireNodeInfo>("NodeGetInfo", undefined, {}, options);
    if (answer.node_id === "") {
      const message = `NodeGetInfo of CSI driver ${this.driver}: the node ID is empty`;
      throw new CSIError("Invalid", message, { status: "OK", isFinal: true });
    }
    return {
      nodeID: answer.node_id,
      maxVolumesPerNode: Number(answer.max_volumes_per_node),
      topology: { ...answer.accessible_topology?.segments },
    };
  }

  async nodeGetCapabilities(options?: CSICallOptions): Promise<ReadonlySet<NodeCapability>> {
    const answer = await this.#call<WireCapabilities>("NodeGetCapabilities", undefined, {}, options);
    return new Set(answer.capabilities.flatMap(({ rpc }) => (isCapability(rpc?.type) ? [rpc.type] : [])));
  }

  async nodeStageVolume(request: NodeStageVolumeRequest, options?: CSICallOptions): Promise<void> {
    const { volumeID, publishContext, stagingTargetPath, capability, secrets, volumeContext } = request;
    const message = {
      volume_id: volumeID,
      publish_context: publishContext,
      staging_target_path: stagingTargetPath,
      volume_capability: capabilityToWire(capability),
      secrets,
      volume_context: volumeContext,
    };
    await this.#call("NodeStageVolume", volumeID, message, options);
  }

  async nodeUnstageVolume(volumeID: string, stagingTargetPath: string, options?: CSICallOptions): Promise<void> {
    const message = { volume_id: volumeID, staging_target_path: stagingTargetPath };
    await this.#call("NodeUnstageVolume", volumeID, message, options);
  }

  async nodePublishVolume(request: NodePublishVolumeRequest, options?: CSICallOptions): Promise<void> {
    const { volumeID, publishContext, stagingTargetPath, targetPath, capability, isReadOnly } = request;
    const message = {
      volume_id: volumeID,
      publish_context: publishContext,
      staging_target_path: stagingTargetPath,
      target_path: targetPath,
      volume_capability: capabilityToWire(capability),
      readonly: isReadOnly,
      secrets: request.secrets,
      volume_context: request.volumeContext,
    };
    await this.#call("NodePublishVolume", volumeID, message, options);
  }

  async nodeUnpublishVolume(volumeID: string, targetPath: string, options?: CSICallOptions): Promise<void> {
    await this.#call("NodeUnpublishVolume", volumeID, { volume_id: volumeID, target_path: targetPath }, options);
  }

  async nodeGetVolumeStats(
    request: Parameters<CSIDriverClient["nodeGetVolumeStats"]>[0],
    options?: CSICallOptions,
  ): Promise<VolumeStats> {
    const { volumeID, volumePath, stagingTargetPath } = request;
    const message = { volume_id: volumeID, volume_path: volumePath, staging_target_path: stagingTargetPath };
    const answer = await this.#call<WireVolumeStats>("NodeGetVolumeStats", volumeID, message, options);
    const condition = answer.volume_condition;
    return {
      usage: answer.usage.flatMap(usageOf),
      condition: condition === null ? undefined : { isAbnormal: condition.abnormal, message: condition.message },
    };
  }

  async nodeExpandVolume(request: NodeExpandVolumeRequest, options?: CSICallOptions): Promise<number> {
    const { volumeID, volumePath, requiredBytes, stagingTargetPath, capability, secrets } = request;
    const message = {
      volume_id: volumeID,
      volume_path: volumePath,
      capacity_range: { required_bytes: String(requiredBytes) },
      staging_target_path: stagingTargetPath,
      volume_capability: capabilityToWire(capability),
      secrets,
    };
    const answer = await this.#call<{ capacity_bytes: string }>("NodeExpandVolume", volumeID, message, options);
    return Number(answer.capacity_bytes);
  }

  close(): void {
    this.#isClosed = true;
    this.#deps.channel.close();
  }

  async #call<Response extends object>(
    method: string,
    volumeID: string | undefined,
    request: object,
    { signal }: CSICallOptions = {},
  ): Promise<Response> {
    const what = `${method} of CSI driver ${this.driver}${volumeID === undefined ? "" : ` for volume ${volumeID}`}`;
    if (this.#isClosed) {
      throw new CSIError("Unavailable", `${what}: the driver is no longer registered`, {
        status: undefined,
        isFinal: false,
        ...awaiting("driver"),
      });
    }
    const settings = { timeoutMs: callTimeoutMs, what, ...(signal === undefined ? {} : { signal }) };
    const { channel, proto, clock, observe } = this.#deps;
    const startedAtMs = clock.monotonic();
    let status: StatusName = "OK";
    try {
      return await channel.call<Response>(proto, service, method, request, settings);
    } catch (err) {
      status = (err instanceof CSIError ? err.status : undefined) ?? "Unknown";
      if (err instanceof CSIError) throw err;
      // Not sent at all, or we lost track of it.
      const { code, message } = err instanceof AgentError ? err : new AgentError("Internal", `${what}: ${String(err)}`);
      throw new CSIError(code, message, { status: undefined, isFinal: false, cause: err });
    } finally {
      const seconds = (clock.monotonic() - startedAtMs) / 1_000;
      observe({ driver: this.driver, method: `/${service}/${method}`, status, seconds });
    }
  }
}

function capabilityToWire({ accessMode, access }: VolumeCapability): object {
  return {
    access_mode: { mode: accessMode },
    ...(access.kind === "block"
      ? { block: {} }
      : {
          mount: {
            fs_type: access.fsType,
            mount_flags: access.mountFlags,
            volume_mount_group: access.volumeMountGroup,
          },
        }),
  };
}

function isCapability(type: string | undefined): type is NodeCapability {
  return type !== undefined && capabilities.has(type);
}

function usageOf({ unit, available, total, used }: WireVolumeUsage): VolumeUsage[] {
  if (unit !== "BYTES" && unit !== "INODES") return [];
  return [{ unit, available: Number(available), total: Number(total), used: Number(used) }];
}

// What the interface file's messages look like as loadProto reads them: 64-bit integers are decimal strings.
interface WireNodeInfo {
  node_id: string;
  max_volumes_per_node: string;
  accessible_topology: { segments: Record<string, string> } | null;
}

interface WireCapabilities {
  capabilities: { rpc?: { type: string } | null }[];
}

interface WireVolumeUsage {
  unit: string;
  available: string;
  total: string;
  used: string;
}

interface WireVolumeStats {
  usage: WireVolumeUsage[];
  volume_condition: { abnormal: boolean; message: string } | null;
}
