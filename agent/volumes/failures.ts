import type { Pod } from "../kube/types.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import { type VolumeFailureMeaning, VolumeStepError } from "./step-error.ts";

/** Why one volume of a pod is not there. */
export interface VolumeFailure {
  /** Its name in the pod. */
  name: string;
  /** The name that events have: the PersistentVolume's, if it is known. */
  specName: string;
  isBlock: boolean;
  /** What it is made from could not even be found out: the claim is not bound, the kind is not known. */
  isUnresolved: boolean;
  err: unknown;
}

/** What a pod's event says of its volumes. */
export interface VolumeEvent {
  reason: "FailedMount" | "FailedMapVolume" | "Failed";
  message: string;
}

// So many errors of one pod are told at a time, as kubelet does.
export const errorsMax = 10;

/** There is no directory for the pod, so none of its volumes can be. */
export class PodDirError extends AgentError {
  readonly events: readonly VolumeEvent[];

  constructor(cause: unknown) {
    const message = `error making pod data directories: ${messageOf(cause)}`;
    super(cause instanceof AgentError ? cause.code : "Internal", message, { cause });
    this.events = [{ reason: "Failed", message }];
  }
}

/** Not all volumes of a pod are there. The message has all of what `events` say, and what is only pending. */
export class VolumesError extends AgentError {
  /** One for each volume that failed, and one for all claims together; none for what is only pending. */
  readonly events: readonly VolumeEvent[];
  /** One of them cannot come: the node has no room for it. */
  readonly exceedsAttachLimit: boolean;

  constructor(failures: readonly VolumeFailure[], unmounted: readonly string[]) {
    const events = describeFailures(failures, unmounted);
    const cause = failures[0]?.err;
    const code = cause instanceof AgentError ? cause.code : "Internal";
    const pending = failures.filter(isPending).map(describeFailure);
    super(code, [...events, ...pending].map(({ message }) => message).join("; "), { cause });
    this.events = events;
    this.exceedsAttachLimit = failures.some(({ err }) => meaningOf(err) === "over the limit");
  }
}

/**
 * What pods' events say of these failures, in the words that people search for; nothing of what is only pending. Pure.
 * @param unmounted names of all volumes of the pod that are not there
 */
export function describeFailures(failures: readonly VolumeFailure[], unmounted: readonly string[]): VolumeEvent[] {
  const resolved = failures.filter((failure) => !failure.isUnresolved && !isPending(failure)).slice(0, errorsMax);
  const unresolved = failures.filter(({ isUnresolved }) => isUnresolved).slice(0, errorsMax - resolved.length);
  const events = resolved.map(describeFailure);
  if (unresolved.length > 0) {
    const unattached = failures.filter(isUnattached).map(({ name }) => name);
    const unprocessed = failures.filter(({ isUnresolved }) => isUnresolved).map(({ name }) => name);
    const why = unresolved.map(({ err }) => messageOf(err)).join("; ");
    const message =
      `Unable to attach or mount volumes: unmounted volumes=[${unmounted.join(" ")}], ` +
      `unattached volumes=[${unattached.join(" ")}], failed to process volumes=[${unprocessed.join(" ")}]: ${why}`;
    events.push({ reason: "FailedMount", message });
  }
  return events;
}

/** The event of one volume that is known but could not be set up. Pure. */
export function describeFailure({ specName, isBlock, err }: VolumeFailure): VolumeEvent {
  const step = err instanceof VolumeStepError ? err.step : isBlock ? "SetUpDevice" : "SetUp";
  return {
    reason: isBlock ? "FailedMapVolume" : "FailedMount",
    message: `${isBlock ? "MapVolume" : "MountVolume"}.${step} failed for volume "${specName}" : ${messageOf(err)}`,
  };
}

function isPending({ err }: VolumeFailure): boolean {
  return meaningOf(err) === "pending";
}

function meaningOf(err: unknown): VolumeFailureMeaning | undefined {
  return err instanceof VolumeStepError ? err.meaning : undefined;
}

function isUnattached({ err }: VolumeFailure): boolean {
  return (
    err instanceof VolumeStepError && (err.step === "WaitForAttach" || err.step === "VerifyControllerAttachedVolume")
  );
}

/** Fields of log lines about a pod. */
export function podFields(pod: Pod): { pod: string; podUID: string } {
  return { pod: `${pod.metadata.namespace ?? ""}/${pod.metadata.name}`, podUID: pod.metadata.uid ?? "" };
}
