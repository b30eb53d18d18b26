import type { ApiClient } from "../../kube/port.ts";
import { persistentVolumeClaims } from "../../kube/resources.ts";
import type { ObjectReference, PersistentVolumeClaim } from "../../kube/types.ts";
import type { Clock } from "../../lib/clock.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { VolumeContext } from "../kind.ts";
import { type ExpansionPlan, expandedStatus, expansionFailure, failedStatus } from "./expand-plan.ts";

export interface ExpandDeps {
  client: ApiClient | undefined;
  nodeName: string;
  clock: Clock;
  log: Logger;
  /** Records an event about a claim. */
  event(about: ObjectReference, type: "Normal" | "Warning", reason: string, message: string): void;
}

/**
 * Asks the driver to expand a volume, and writes to the claim how that went.
 * @returns false: the driver will not do it while the volume is used, which is no reason not to use it
 * Rejects with the driver's error, or with the API server's if the outcome could not be written down.
 */
export async function expandVolume(
  plan: ExpansionPlan & { kind: "expand" },
  { bound, specName, event }: Pick<VolumeContext, "bound" | "specName" | "event">,
  call: () => Promise<void>,
  deps: ExpandDeps,
): Promise<boolean> {
  let claim = bound?.claim;
  if (claim === undefined) return true;
  if (plan.isTracked && claim.status?.allocatedResourceStatuses?.storage !== "NodeResizeInProgress") {
    claim = await patchStatus(claim, { allocatedResourceStatuses: { storage: "NodeResizeInProgress" } }, deps);
  }
  try {
    await call();
  } catch (err) {
    const failure = expansionFailure(err);
    if (plan.isTracked && (failure === "infeasible" || failure === "failed")) {
      const status = failedStatus(claim, failure === "infeasible", messageOf(err), deps.clock.now());
      // The driver's error matters more; the next try writes its own.
      await patchStatus(claim, status, deps).catch((patchErr: unknown) => {
        deps.log.warn(
          { claim: claim?.metadata.name, err: messageOf(patchErr) },
          "cannot write to a claim that it did not grow",
        );
      });
    }
    if (failure === "in use") return false;
    throw err;
  }
  if (!plan.isClaimDone) await patchStatus(claim, expandedStatus(claim, plan.size), deps);
  const message = `MountVolume.NodeExpandVolume succeeded for volume "${specName}" ${deps.nodeName}`;
  event("Normal", "FileSystemResizeSuccessful", message);
  deps.event(claimReference(claim), "Normal", "FileSystemResizeSuccessful", message);
  return true;
}

/** What is said of a volume that has grown but cannot be written to here. */
export function tellReadOnly(
  { bound, specName, event }: Pick<VolumeContext, "bound" | "specName" | "event">,
  deps: ExpandDeps,
): void {
  const message = `MountVolume.NodeExpandVolume failed for volume "${specName}" : requested read-only file system`;
  event("Warning", "FileSystemResizeFailed", message);
  if (bound !== undefined) deps.event(claimReference(bound.claim), "Warning", "FileSystemResizeFailed", message);
}

/** Rejects with Conflict if somebody has changed the claim since it was read: it is looked at again then. */
async function patchStatus(
  claim: PersistentVolumeClaim,
  status: object,
  { client }: ExpandDeps,
): Promise<PersistentVolumeClaim> {
  if (client === undefined) throw new AgentError("Invalid", "there is no API server that could have the claim");
  const { name, namespace = "default", uid, resourceVersion } = claim.metadata;
  const patch = { metadata: { uid, resourceVersion }, status };
  return await client.patch(persistentVolumeClaims, { namespace, name }, patch, {
    type: "merge",
    subresource: "status",
  });
}

function claimReference({ metadata: { name, namespace, uid } }: PersistentVolumeClaim): ObjectReference {
  return {
    apiVersion: "v1",
    kind: "PersistentVolumeClaim",
    name,
    ...(namespace === undefined ? {} : { namespace }),
    ...(uid === undefined ? {} : { uid }),
  };
}
