import { persistentVolumeClaims } from "../kube/resources.ts";
import { quantityValue } from "../kube/quantity.ts";
import type { ObjectReference, PersistentVolumeClaim } from "../kube/types.ts";
import { backoffMs } from "../lib/backoff.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import {
  decideExpansion,
  expandedStatus,
  type ExpansionFailure,
  type ExpansionPlan,
  failedStatus,
} from "./expand-plan.ts";
import type { ExpansionDeps, VolumeContext } from "./kind.ts";
import { inStep } from "./step-error.ts";

// Of an expansion that failed under a running pod; kubelet's backoff of one volume's operation.
export const expandBackoff = { baseMs: 500, maxMs: 122_000 };

// How often a volume's size is compared with its claim's: kubelet does so at each pod sync, 1 min × 1–1.5.
export const sizeCheckMs = 60_000;
export const sizeCheckJitter = 0.5;

/** What is known here of one pod's volume; all of it can be found again. */
export interface SizeState {
  /** The size that it has here; undefined: it has not been looked at. */
  knownBytes: number | undefined;
  /** Tries one after another that failed. */
  failures: number;
}

export function newSizeState(): SizeState {
  return { knownBytes: undefined, failures: 0 };
}

/** How a volume can be expanded on this node. */
export interface Expansion {
  isReadOnly: boolean;
  /** False: whoever made the volume expands it elsewhere, here it has its size already. */
  isPossible: boolean;
  /** Containers use it: what fails is told of, and does not take it from them. */
  isInUse: boolean;
  /** Expands it to the size that it is to have at least. */
  expand(bytes: number): Promise<void>;
  /** What an error of `expand` means. */
  failureOf(err: unknown): ExpansionFailure;
}

/**
 * Expands a volume if it has grown, and writes to its claim how that went.
 * @returns after how many ms to try again what has failed under a running pod
 * Rejects with why the volume could not be expanded, in the step NodeExpandVolume, if no container uses it yet.
 */
export async function expandIfGrown(
  context: Pick<VolumeContext, "bound" | "specName" | "event" | "signal">,
  expansion: Expansion,
  state: SizeState,
  deps: ExpansionDeps & { random: () => number },
): Promise<number | undefined> {
  const { bound, specName, event, signal } = context;
  if (bound === undefined) return undefined;
  const plan = decideExpansion(bound, expansion.isReadOnly, state.knownBytes);
  if (plan.kind === "none" || (plan.kind === "expand" && !expansion.isPossible)) {
    // What cannot be expanded here has its size already.
    state.knownBytes ??= plan.kind === "expand" ? plan.bytes : claimedBytes(bound.claim);
    return undefined;
  }
  if (plan.kind === "read-only") {
    tellReadOnly(context, deps);
    state.knownBytes = plan.bytes;
    return undefined;
  }
  try {
    await inStep("NodeExpandVolume", async () => await expandVolume(plan, context, expansion, deps));
    state.knownBytes = plan.bytes;
    state.failures = 0;
    return undefined;
  } catch (err) {
    if (!expansion.isInUse || signal.aborted) throw err;
    state.failures += 1;
    const message = `NodeExpandVolume.NodeExpandVolume failed for volume "${specName}" : ${messageOf(err)}`;
    event("Warning", "VolumeResizeFailed", message);
    return backoffMs(state.failures, { ...expandBackoff, random: deps.random });
  }
}

function claimedBytes({ status }: PersistentVolumeClaim): number {
  return quantityValue(status?.capacity?.storage);
}

/** That it cannot be done while the volume is used is no error: it is used as it is. */
async function expandVolume(
  plan: ExpansionPlan & { kind: "expand" },
  { bound, specName, event }: Pick<VolumeContext, "bound" | "specName" | "event">,
  { expand, failureOf }: Expansion,
  deps: ExpansionDeps,
): Promise<void> {
  let claim = bound?.claim;
  if (claim === undefined) return;
  if (plan.isTracked && claim.status?.allocatedResourceStatuses?.storage !== "NodeResizeInProgress") {
    claim = await patchStatus(claim, { allocatedResourceStatuses: { storage: "NodeResizeInProgress" } }, deps);
  }
  try {
    await expand(plan.bytes);
  } catch (err) {
    const failure = failureOf(err);
    if (plan.isTracked && (failure === "infeasible" || failure === "failed")) {
      const status = failedStatus(claim, failure === "infeasible", messageOf(err), deps.clock.now());
      // Why it failed matters more; the next try writes its own.
      await patchStatus(claim, status, deps).catch((patchErr: unknown) => {
        deps.log.warn(
          { claim: claim?.metadata.name, err: messageOf(patchErr) },
          "cannot write to a claim that it did not grow",
        );
      });
    }
    if (failure === "in use") return;
    throw err;
  }
  if (!plan.isClaimDone) await patchStatus(claim, expandedStatus(claim, plan.size), deps);
  const message = `MountVolume.NodeExpandVolume succeeded for volume "${specName}" ${deps.nodeName}`;
  event("Normal", "FileSystemResizeSuccessful", message);
  deps.event(claimReference(claim), "Normal", "FileSystemResizeSuccessful", message);
}

/** What is said of a volume that has grown but cannot be written to here. */
function tellReadOnly(
  { bound, specName, event }: Pick<VolumeContext, "bound" | "specName" | "event">,
  deps: ExpansionDeps,
): void {
  const message = `MountVolume.NodeExpandVolume failed for volume "${specName}" : requested read-only file system`;
  event("Warning", "FileSystemResizeFailed", message);
  if (bound !== undefined) deps.event(claimReference(bound.claim), "Warning", "FileSystemResizeFailed", message);
}

/** Rejects with Conflict if somebody has changed the claim since it was read: it is looked at again then. */
async function patchStatus(
  claim: PersistentVolumeClaim,
  status: object,
  { client }: ExpansionDeps,
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
