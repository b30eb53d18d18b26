import { quantityValue } from "../kube/quantity.ts";
import type { Condition, PersistentVolumeClaim, Quantity } from "../kube/types.ts";
import { rfc3339 } from "../lib/rfc3339.ts";
import type { BoundClaim } from "./kind.ts";

/** What is to be done because a volume has grown. */
export type ExpansionPlan =
  | { kind: "none" }
  /** It has grown, but here it cannot be written to. */
  | { kind: "read-only"; bytes: number }
  | {
      kind: "expand";
      size: Quantity;
      bytes: number;
      /** How far the expansion is stands in the claim's status, and is for us to write there. */
      isTracked: boolean;
      /** Another node has written to the claim that it is done. */
      isClaimDone: boolean;
    };

// Written by the resizer on volumes whose driver did all of it.
const notRequiredAnnotation = "volume.kubernetes.io/node-expansion-not-required";
// Conditions that are over once the claim has its size.
const resizeConditions: ReadonlySet<string> = new Set([
  "Resizing",
  "FileSystemResizePending",
  "ControllerResizeError",
  "NodeResizeError",
]);

/**
 * Whether a volume is to be expanded on this node. Pure.
 * @param knownBytes the size that it was mounted with, or expanded to, here; undefined: it is about to be mounted
 */
export function decideExpansion(
  { claim, volume, isReadOnly }: BoundClaim,
  isVolumeReadOnly: boolean,
  knownBytes: number | undefined,
): ExpansionPlan {
  const size = volume.spec.capacity?.storage;
  const { capacity, allocatedResources, allocatedResourceStatuses } = claim.status ?? {};
  const claimed = capacity?.storage;
  if (size === undefined || claimed === undefined) return { kind: "none" };
  const bytes = quantityValue(size);
  if (bytes <= (knownBytes ?? quantityValue(claimed))) return { kind: "none" };
  if (isReadOnly || isVolumeReadOnly) return { kind: "read-only", bytes };
  const allocated = allocatedResources?.storage;
  // Written by resizers that know nothing of these fields.
  if (allocated === undefined) return { kind: "expand", size, bytes, isTracked: false, isClaimDone: false };
  const shared = { kind: "expand", size: allocated, bytes: quantityValue(allocated) } as const;
  switch (allocatedResourceStatuses?.storage ?? "") {
    case "NodeResizePending":
    case "NodeResizeInProgress":
      return { ...shared, isTracked: true, isClaimDone: false };
    case "": {
      const isShared = volume.spec.accessModes?.includes("ReadWriteMany") === true;
      const isElsewhereDone = quantityValue(claimed) >= quantityValue(allocated);
      const isRequired = claim.metadata.annotations?.[notRequiredAnnotation] === undefined;
      return isShared && isElsewhereDone && isRequired
        ? { ...shared, isTracked: false, isClaimDone: true }
        : { kind: "none" };
    }
    default:
      return { kind: "none" };
  }
}

/** The claim's status once the volume has its size. Pure. */
export function expandedStatus({ status }: PersistentVolumeClaim, size: Quantity): object {
  return {
    capacity: { storage: size },
    ...(status?.allocatedResourceStatuses?.storage === undefined
      ? {}
      : { allocatedResourceStatuses: { storage: null } }),
    conditions: (status?.conditions ?? []).filter(({ type }) => !resizeConditions.has(type)),
  };
}

/** What failing to expand means. */
export type ExpansionFailure =
  /** Tried again. */
  | "unfinished"
  /** Not while it is used; it stays usable as it is. */
  | "in use"
  /** Never: the claim has to ask for another size. */
  | "infeasible"
  | "failed";

/** The claim's status after its expansion failed. Pure. */
export function failedStatus(
  { status }: PersistentVolumeClaim,
  isInfeasible: boolean,
  why: string,
  nowMs: number,
): object {
  const condition: Condition = {
    type: "NodeResizeError",
    status: "True",
    message: `failed to expand pvc with ${why}`,
    lastTransitionTime: rfc3339(nowMs),
  };
  const others = (status?.conditions ?? []).filter(({ type }) => type !== condition.type);
  return {
    ...(isInfeasible ? { allocatedResourceStatuses: { storage: "NodeResizeInfeasible" } } : {}),
    conditions: [...others, condition],
  };
}
