import type { CSIDriver, Pod } from "../../kube/types.ts";
import { AgentError } from "../../lib/errors.ts";
import type { VolumeContext } from "../kind.ts";
import { ephemeralHandle } from "./paths.ts";
import type { CSIAccessMode, CSIMap, NodeCapability, VolumeCapability } from "./port.ts";

/** What CSI needs to know of a volume, be it a PersistentVolume or written in the pod. */
export interface CSIVolume {
  readonly driver: string;
  readonly handle: string;
  readonly isEphemeral: boolean;
  readonly isReadOnly: boolean;
  readonly fsType: string;
  readonly attributes: CSIMap;
  readonly mountOptions: readonly string[];
  readonly accessModes: readonly string[];
  readonly stageSecret: SecretRef | undefined;
  readonly publishSecret: SecretRef | undefined;
  readonly expandSecret: SecretRef | undefined;
}

export interface SecretRef {
  readonly namespace: string;
  readonly name: string;
}

/** Reads a volume's source. Rejects with code Invalid what no driver could be asked for. */
export function readCSIVolume({ pod, volume, bound }: Pick<VolumeContext, "pod" | "volume" | "bound">): CSIVolume {
  const { namespace = "default", uid = "" } = pod.metadata;
  if (bound === undefined) {
    const { csi } = volume;
    if (csi === undefined || csi.driver === "") throw new AgentError("Invalid", "the volume names no CSI driver");
    return {
      driver: csi.driver,
      handle: ephemeralHandle(uid, volume.name),
      isEphemeral: true,
      isReadOnly: csi.readOnly === true,
      fsType: csi.fsType ?? "",
      attributes: csi.volumeAttributes ?? {},
      mountOptions: [],
      accessModes: ["ReadWriteOnce"],
      stageSecret: undefined,
      publishSecret: secretRef({ ...csi.nodePublishSecretRef, namespace }),
      expandSecret: undefined,
    };
  }
  const { csi, mountOptions = [], accessModes = [] } = bound.volume.spec;
  if (csi === undefined || csi.driver === "" || csi.volumeHandle === "") {
    const { name } = bound.volume.metadata;
    throw new AgentError("Invalid", `PersistentVolume "${name}" names no CSI driver and volumeHandle`);
  }
  return {
    driver: csi.driver,
    handle: csi.volumeHandle,
    isEphemeral: false,
    isReadOnly: bound.isReadOnly || csi.readOnly === true,
    fsType: csi.fsType ?? "",
    attributes: csi.volumeAttributes ?? {},
    mountOptions,
    accessModes,
    stageSecret: secretRef(csi.nodeStageSecretRef),
    publishSecret: secretRef(csi.nodePublishSecretRef),
    expandSecret: secretRef(csi.nodeExpandSecretRef),
  };
}

function secretRef(ref: { name?: string; namespace?: string } | undefined): SecretRef | undefined {
  const { name = "", namespace = "" } = ref ?? {};
  return name === "" ? undefined : { name, namespace };
}

/** Rejects with code Invalid a volume that the driver's CSIDriver object does not allow. Pure. */
export function checkLifecycle({ driver, isEphemeral }: CSIVolume, object: CSIDriver | undefined): void {
  const mode = isEphemeral ? "Ephemeral" : "Persistent";
  const modes = object?.spec.volumeLifecycleModes ?? [];
  // As the API server fills in.
  const allowed: readonly string[] = modes.length === 0 ? ["Persistent"] : modes;
  if (allowed.includes(mode)) return;
  const why = object === undefined ? "no CSIDriver object" : `only supports ${JSON.stringify(allowed)}`;
  throw new AgentError("Invalid", `volume mode "${mode}" not supported by driver ${driver} (${why})`);
}

/** True if somebody else has to attach the volume to the node before it can be used. Pure. */
export function needsAttach({ isEphemeral }: Pick<CSIVolume, "isEphemeral">, object: CSIDriver | undefined): boolean {
  return !isEphemeral && object?.spec.attachRequired !== false;
}

/** True if at most one pod of the cluster may have the volume. Pure. */
export function isSinglePod({ accessModes }: CSIVolume): boolean {
  return accessModes.length === 1 && accessModes[0] === "ReadWriteOncePod";
}

const accessModesOf: Readonly<Record<string, CSIAccessMode>> = {
  ReadWriteOnce: "SINGLE_NODE_WRITER",
  ReadOnlyMany: "MULTI_NODE_READER_ONLY",
  ReadWriteMany: "MULTI_NODE_MULTI_WRITER",
  ReadWriteOncePod: "SINGLE_NODE_WRITER",
};

// Drivers that know the difference are told it.
const finerAccessModesOf: Readonly<Record<string, CSIAccessMode>> = {
  ...accessModesOf,
  ReadWriteOnce: "SINGLE_NODE_MULTI_WRITER",
  ReadWriteOncePod: "SINGLE_NODE_SINGLE_WRITER",
};

/** CSI's word for a volume's first access mode. Pure. */
export function csiAccessMode(
  accessModes: readonly string[],
  capabilities: ReadonlySet<NodeCapability>,
): CSIAccessMode {
  const [mode = "ReadWriteOnce"] = accessModes;
  const table = capabilities.has("SINGLE_NODE_MULTI_WRITER") ? finerAccessModesOf : accessModesOf;
  return (Object.hasOwn(table, mode) ? table[mode] : undefined) ?? "SINGLE_NODE_WRITER";
}

/** How a volume is to be used. Pure. @param mountFlags with an SELinux label's, if it has one */
export function volumeCapability(
  volume: CSIVolume,
  capabilities: ReadonlySet<NodeCapability>,
  use: { isBlock: boolean; fsGroup: number | undefined; mountFlags: readonly string[] },
): VolumeCapability {
  const accessMode = csiAccessMode(volume.accessModes, capabilities);
  if (use.isBlock) return { accessMode, access: { kind: "block" } };
  const isGroupGiven = use.fsGroup !== undefined && capabilities.has("VOLUME_MOUNT_GROUP");
  const volumeMountGroup = isGroupGiven ? String(use.fsGroup) : "";
  const { fsType } = volume;
  return { accessMode, access: { kind: "mount", fsType, mountFlags: use.mountFlags, volumeMountGroup } };
}

/** True if the volume's files are to be given to the pod's fsGroup by us. Pure. */
export function needsFSGroup(
  volume: CSIVolume,
  fsGroup: number | undefined,
  object: CSIDriver | undefined,
  capabilities: ReadonlySet<NodeCapability>,
): boolean {
  if (fsGroup === undefined || volume.isReadOnly || capabilities.has("VOLUME_MOUNT_GROUP")) return false;
  switch (object?.spec.fsGroupPolicy ?? "ReadWriteOnceWithFSType") {
    case "None":
      return false;
    case "File":
      return true;
    case "ReadWriteOnceWithFSType": {
      const isOnce = volume.accessModes.some((mode) => mode === "ReadWriteOnce" || mode === "ReadWriteOncePod");
      return volume.fsType !== "" && isOnce;
    }
  }
}

/** What a driver that asks for it is told about the pod. Pure. */
export function podInfo({ metadata, spec }: Pod, isEphemeral: boolean): CSIMap {
  const prefix = "csi.storage.k8s.io";
  return {
    [`${prefix}/pod.name`]: metadata.name,
    [`${prefix}/pod.namespace`]: metadata.namespace ?? "default",
    [`${prefix}/pod.uid`]: metadata.uid ?? "",
    [`${prefix}/serviceAccount.name`]: spec.serviceAccountName ?? "",
    [`${prefix}/ephemeral`]: String(isEphemeral),
  };
}
