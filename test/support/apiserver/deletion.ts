import type { ObjectMeta } from "../../../agent/kube/types.ts";
import { numberAt, stringAt } from "./json.ts";
import type { ApiObject } from "./types.ts";

/** The fields of the API's DeleteOptions that matter here. */
export interface DeleteOptions {
  gracePeriodSeconds?: number;
  preconditions?: { uid?: string; resourceVersion?: string };
}

export type DeleteDecision =
  /** Deletion goes on already; nothing changes. */
  | { kind: "pending" }
  /** Write the marks of a deletion that waits for someone. */
  | { kind: "mark"; metadata: ObjectMeta }
  /** Take it out of the store, with this as its last metadata. */
  | { kind: "remove"; metadata: ObjectMeta };

/**
 * What a DELETE does. Pods are deleted gracefully: whoever runs them deletes them again with grace 0. A second DELETE
 * can only shorten the grace. Finalizers hold everything back.
 */
export function decideDelete(plural: string, object: ApiObject, options: DeleteOptions, nowMs: number): DeleteDecision {
  const { metadata } = object;
  const holds = (metadata.finalizers ?? []).length > 0 || (plural === "namespaces" && object["spec"] !== undefined);
  const requested = options.gracePeriodSeconds;

  if (metadata.deletionTimestamp !== undefined) {
    const current = metadata.deletionGracePeriodSeconds;
    if (current === undefined) return holds ? { kind: "pending" } : { kind: "remove", metadata };
    if (plural !== "pods" || requested === undefined || requested >= current) {
      return current === 0 && !holds ? { kind: "remove", metadata } : { kind: "pending" };
    }
    const deadlineMs = Date.parse(metadata.deletionTimestamp) + (requested - current) * 1000;
    const shortened = { ...metadata, deletionTimestamp: seconds(deadlineMs), deletionGracePeriodSeconds: requested };
    return { kind: requested === 0 && !holds ? "remove" : "mark", metadata: shortened };
  }

  const grace = plural === "pods" ? podGraceSeconds(object, requested) : 0;
  const marked: ObjectMeta = {
    ...metadata,
    deletionTimestamp: seconds(nowMs + grace * 1000),
    deletionGracePeriodSeconds: grace,
    // The mark is a change of what is wanted, so kinds that count generations count it.
    ...(metadata.generation === undefined ? {} : { generation: metadata.generation + 1 }),
  };
  if (holds || grace > 0) return { kind: "mark", metadata: marked };
  return { kind: "remove", metadata: plural === "pods" ? marked : metadata };
}

// A pod that no node runs, or that has ended, needs no grace.
function podGraceSeconds(pod: ApiObject, requested: number | undefined): number {
  if (stringAt(pod, "spec", "nodeName") === "") return 0;
  const phase = stringAt(pod, "status", "phase");
  if (phase === "Failed" || phase === "Succeeded") return 0;
  const grace = requested ?? numberAt(pod, "spec", "terminationGracePeriodSeconds") ?? 0;
  return grace < 0 ? 1 : grace;
}

function seconds(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`;
}
