import type { Pod, PodStatus } from "../kube/types.ts";

/** Why the node ends a pod, or never began it, in the words of its status. The phase is Failed. */
export interface PodEnding {
  reason: string;
  message: string;
  /** Message of the condition DisruptionTarget, for pods that did nothing wrong themselves. */
  disruption?: string;
  /** The pod was never taken: its status says nothing else. */
  isRejection?: true;
}

/** When `activeDeadlineSeconds` is over, as Unix ms; undefined if there is no such limit or no start yet. */
export function activeDeadlineMs({ spec }: Pod, { startTime }: PodStatus): number | undefined {
  const { activeDeadlineSeconds } = spec;
  if (activeDeadlineSeconds === undefined || startTime === undefined) return undefined;
  return Date.parse(startTime) + activeDeadlineSeconds * 1_000;
}

/** The pod ran longer than its activeDeadlineSeconds. */
export const deadlineExceeded: PodEnding = {
  reason: "DeadlineExceeded",
  message: "Pod was active on the node longer than the specified deadline",
};

/** The node does not take the pod. */
export function rejection(reason: string, message: string): PodEnding {
  return { reason, message: `Pod was rejected: ${message}`, isRejection: true };
}
