import { posix } from "node:path";
import type { VolumeMount } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";
import type { Mount } from "../runtime/port.ts";
import type { MountContext } from "./port.ts";

/** What of a volume decides how containers see it. */
export interface MountableVolume {
  isReadOnly: boolean;
  isRelabelled: boolean;
}

const propagations: Record<string, Mount["propagation"]> = {
  None: "PRIVATE",
  HostToContainer: "HOST_TO_CONTAINER",
  Bidirectional: "BIDIRECTIONAL",
};

/**
 * The CRI mount of one volumeMount. Pure.
 * @param hostPath the volume, or the prepared subPath in it
 * Rejects with code Invalid for an unknown propagation, and for a recursive read-only mount that cannot be.
 */
export function buildMount(
  mount: VolumeMount,
  volume: MountableVolume,
  hostPath: string,
  context: MountContext & { selinuxEnabled: boolean },
): Mount {
  const { mountPropagation = "None", readOnly = false } = mount;
  const propagation = Object.hasOwn(propagations, mountPropagation) ? propagations[mountPropagation] : undefined;
  if (propagation === undefined) {
    throw new AgentError("Invalid", `volumeMount "${mount.name}": unknown mountPropagation "${mountPropagation}"`);
  }
  const { uids, gids } = context.userns ?? {};
  return {
    containerPath: posix.resolve("/", mount.mountPath),
    hostPath,
    readonly: readOnly || volume.isReadOnly,
    selinuxRelabel: volume.isRelabelled && context.selinuxEnabled,
    propagation,
    recursiveReadOnly: isRecursiveReadOnly(mount, context.recursiveReadOnlySupported),
    ...(uids === undefined || gids === undefined ? {} : { uidMappings: uids, gidMappings: gids }),
  };
}

function isRecursiveReadOnly(mount: VolumeMount, isSupported: boolean): boolean {
  const { name, recursiveReadOnly = "Disabled", readOnly = false, mountPropagation = "None" } = mount;
  if (recursiveReadOnly === "Disabled") return false;
  const refuse = (why: string) =>
    new AgentError("Invalid", `volumeMount "${name}": recursiveReadOnly ${recursiveReadOnly} ${why}`);
  if (recursiveReadOnly !== "IfPossible" && recursiveReadOnly !== "Enabled") throw refuse("is not known");
  if (!readOnly) throw refuse("needs readOnly: true");
  if (mountPropagation !== "None") throw refuse("needs mountPropagation None");
  if (recursiveReadOnly === "Enabled" && !isSupported) throw refuse("is not supported by this pod's runtime handler");
  return isSupported;
}
