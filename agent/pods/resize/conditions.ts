import type { Condition, Pod } from "../../kube/types.ts";

/** Types of the conditions that tell of resizes. */
export const resizeConditionTypes = ["PodResizePending", "PodResizeInProgress"] as const;

type ResizeConditionType = (typeof resizeConditionTypes)[number];

/** One condition; while it is there, it is true. */
export interface ResizeState {
  /** "Deferred", "Infeasible", "Error", or "" for a resize that is under way. */
  readonly reason: string;
  readonly message: string;
  /** Of the spec that asks for the resize. */
  readonly generation: number | undefined;
  /** Unix ms since which it has this reason. */
  readonly sinceMs: number;
}

export interface ResizeStates {
  readonly pending?: ResizeState;
  readonly inProgress?: ResizeState;
}

/** The state after this is to be said. An error of a resize that is under way stays until it ends, and so does what it is of. */
export function inProgressState(
  old: ResizeState | undefined,
  { reason, message, generation }: Omit<ResizeState, "sinceMs">,
  nowMs: number,
): ResizeState {
  if (old === undefined) return { reason, message, generation, sinceMs: nowMs };
  if (reason === "" && old.reason !== "") return old;
  if (reason === old.reason && message === old.message) return old;
  return {
    reason,
    message,
    generation: old.generation,
    sinceMs: reason === old.reason ? old.sinceMs : nowMs,
  };
}

/** The state after this is to be said; the same object if it says the same. */
export function pendingState(
  old: ResizeState | undefined,
  { reason, message, generation }: Omit<ResizeState, "sinceMs">,
  nowMs: number,
): ResizeState {
  const isSame = old?.reason === reason && old.message === message && old.generation === generation;
  if (old !== undefined && isSame) return old;
  return {
    reason,
    message,
    generation,
    sinceMs: old?.reason === reason ? old.sinceMs : nowMs,
  };
}

/** As the API server has them: what the agent before this one said. */
export function reportedStates({ status }: Pod): ResizeStates {
  const pending = reported(status?.conditions, "PodResizePending");
  const inProgress = reported(status?.conditions, "PodResizeInProgress");
  return {
    ...(pending === undefined ? {} : { pending }),
    ...(inProgress === undefined ? {} : { inProgress }),
  };
}

function reported(conditions: readonly Condition[] | undefined, type: ResizeConditionType): ResizeState | undefined {
  const found = conditions?.find((condition) => condition.type === type && condition.status === "True");
  if (found === undefined) return undefined;
  const { reason = "", message = "", observedGeneration: generation, lastTransitionTime = "" } = found;
  const sinceMs = Date.parse(lastTransitionTime);
  return {
    reason,
    message,
    generation,
    sinceMs: Number.isNaN(sinceMs) ? 0 : sinceMs,
  };
}

/** The conditions for the pod's status. @param format makes a time of Unix ms */
export function resizeConditions({ pending, inProgress }: ResizeStates, format: (ms: number) => string): Condition[] {
  const condition = (type: ResizeConditionType, state: ResizeState | undefined): Condition[] => {
    if (state === undefined) return [];
    const { reason, message, generation, sinceMs } = state;
    return [
      {
        type,
        status: "True",
        ...(generation === undefined ? {} : { observedGeneration: generation }),
        ...(reason === "" ? {} : { reason }),
        ...(message === "" ? {} : { message }),
        lastProbeTime: null,
        lastTransitionTime: format(sinceMs),
      },
    ];
  };
  return [...condition("PodResizePending", pending), ...condition("PodResizeInProgress", inProgress)];
}

/** The message of an event about a resize: what it is, and the resources that it is about. */
export function resizeMessage(what: string, { spec }: Pod, generation: number | undefined, error = ""): string {
  const list = (containers: Pod["spec"]["containers"] = []) =>
    containers.map(({ name, resources = {} }) => ({ name, resources }));
  const summary = {
    ...(spec.initContainers === undefined ? {} : { initContainers: list(spec.initContainers) }),
    containers: list(spec.containers),
    generation: generation ?? 0,
    ...(error === "" ? {} : { error }),
  };
  return `Pod resize ${what}: ${JSON.stringify(summary)}`;
}
