import { allContainers, claimNameOf } from "../kube/pod-resources.ts";
import type { ApiClient } from "../kube/port.ts";
import { persistentVolumeClaims, persistentVolumes } from "../kube/resources.ts";
import type { NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, Pod, Volume } from "../kube/types.ts";
import { AgentError, hasCode, isAbort, withContext } from "../lib/errors.ts";
import { awaiting } from "./awaits.ts";
import { toCSI } from "./in-tree.ts";
import type { BoundClaim } from "./kind.ts";
import type { ClaimResolver } from "./set-up.ts";

export interface ClaimResolverOptions {
  client: Pick<ApiClient, "get">;
  /** True if one of the terms allows this node. */
  matchesNode(terms: readonly NodeSelectorTerm[]): boolean;
}

const protectionFinalizer = "kubernetes.io/pvc-protection";

/**
 * Finds what is behind claims by asking the API server each time, as nodes may not watch claims: whoever waits for one asks
 * again. What is found is checked against each other and against the pod. PersistentVolumes of kinds that became CSI
 * drivers come out as such drivers' volumes.
 */
export function createClaimResolver({ client, matchesNode }: ClaimResolverOptions): ClaimResolver {
  return {
    async resolve(pod, volume, signal) {
      const { namespace = "" } = pod.metadata;
      const name = claimNameOf(pod, volume);
      if (name === undefined) throw new AgentError("Invalid", `volume ${volume.name} names no claim`);
      const ask = async <T>(what: string, get: Promise<T>): Promise<T> => {
        try {
          return await get;
        } catch (err) {
          if (signal.aborted || isAbort(err)) throw err;
          throw withContext(err, `failed to fetch ${what} from API server`);
        }
      };
      try {
        const claim = await ask("PVC", client.get(persistentVolumeClaims, { namespace, name }, { signal })).catch(
          (err: unknown) => {
            throw hasCode(err, "NotFound") ? new AgentError("NotFound", err.message, awaiting("claim", err)) : err;
          },
        );
        checkClaim(claim, pod, volume);
        const volumeName = claim.spec?.volumeName ?? "";
        const found = await ask(`PV ${volumeName}`, client.get(persistentVolumes, { name: volumeName }, { signal }));
        checkVolume(found, claim, usesOf(pod, volume.name));
        return { claim, volume: toCSI(found), isReadOnly: volume.persistentVolumeClaim?.readOnly === true };
      } catch (err) {
        if (signal.aborted || isAbort(err)) throw err;
        throw withContext(err, `error processing PVC ${namespace}/${name}`);
      }
    },
    isReachable({ volume }: BoundClaim) {
      const required = volume.spec.nodeAffinity?.required;
      return required === undefined || matchesNode(required.nodeSelectorTerms);
    },
  };
}

/** Throws an `AgentError` for a claim that the pod cannot have (yet). */
function checkClaim({ metadata, spec, status }: PersistentVolumeClaim, pod: Pod, volume: Volume): void {
  // While it is protected its users are not to suffer from its deletion.
  if (metadata.deletionTimestamp !== undefined && metadata.finalizers?.includes(protectionFinalizer) !== true) {
    throw new AgentError("Conflict", "PVC is being deleted", awaiting("new claim"));
  }
  if (status?.phase !== "Bound") throw new AgentError("Unavailable", "PVC is not bound", awaiting("binding"));
  if ((spec?.volumeName ?? "") === "") throw new AgentError("Invalid", "PVC is bound but its spec.volumeName is empty");
  if (volume.ephemeral === undefined) return;
  const isOwned = metadata.ownerReferences?.some(
    ({ controller, uid }) => controller === true && uid === pod.metadata.uid,
  );
  if (isOwned !== true) {
    const { namespace = "", name } = pod.metadata;
    const which = `PVC ${namespace}/${metadata.name}`;
    throw new AgentError("Conflict", `${which} was not created for pod ${namespace}/${name} (pod is not owner)`);
  }
}

/** Throws an `AgentError` for a PersistentVolume that is not this claim's, or not to be used as the pod does. */
function checkVolume(
  { metadata, spec }: PersistentVolume,
  claim: PersistentVolumeClaim,
  uses: { mounts: boolean; devices: boolean },
): void {
  const which = `PV ${metadata.name}`;
  if (spec.claimRef === undefined) {
    throw new AgentError("Unavailable", `${which} has no claimRef, it is not bound yet`, awaiting("binding"));
  }
  if (spec.claimRef.uid !== claim.metadata.uid) {
    throw new AgentError(
      "Conflict",
      `${which} is bound to another claim: its claimRef has UID ${spec.claimRef.uid ?? ""}, not ${claim.metadata.uid ?? ""}`,
    );
  }
  const { volumeMode } = spec;
  if (volumeMode === undefined) throw new AgentError("Invalid", `${which} has no volumeMode`);
  if (uses.mounts && volumeMode === "Block") {
    throw new AgentError("Invalid", `${which} has volumeMode Block, but is specified in volumeMounts`);
  }
  if (uses.devices && volumeMode !== "Block") {
    throw new AgentError("Invalid", `${which} has volumeMode ${volumeMode}, but is specified in volumeDevices`);
  }
}

function usesOf(pod: Pod, volumeName: string): { mounts: boolean; devices: boolean } {
  const isUsed = (uses: readonly { name: string }[] = []) => uses.some(({ name }) => name === volumeName);
  const containers = allContainers(pod);
  return {
    mounts: containers.some(({ volumeMounts }) => isUsed(volumeMounts)),
    devices: containers.some(({ volumeDevices }) => isUsed(volumeDevices)),
  };
}
