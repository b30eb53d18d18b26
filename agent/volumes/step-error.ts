import { AgentError, isAbort, messageOf } from "../lib/errors.ts";

/** A step of a volume's set-up other than the one that gives it to the pod, as events name it. */
export type VolumeStep =
  | "FindPluginBySpec"
  | "MountOptionSupport check"
  | "NodeAffinity check"
  | "NewMounter initialization"
  | "WaitForAttach"
  | "VerifyControllerAttachedVolume"
  | "MountDevice"
  | "SetUpDevice"
  | "MapPodDevice"
  | "MapBlockVolume"
  | "AttachFileDevice"
  | "NodeExpandVolume";

/**
 * What a failure means beside that the volume is not there: nothing is wrong so far, others only have not done their part, or
 * the node has no room for another volume of the driver, so that to wait for it would be in vain.
 */
export type VolumeFailureMeaning = "pending" | "over the limit";

/** What failed before a volume was given to its pod. The message leaves out step and volume. */
export class VolumeStepError extends AgentError {
  readonly step: VolumeStep;
  readonly meaning: VolumeFailureMeaning | undefined;

  constructor(step: VolumeStep, cause: unknown, meaning?: VolumeFailureMeaning) {
    super(cause instanceof AgentError ? cause.code : "Internal", messageOf(cause), { cause });
    this.step = step;
    this.meaning = meaning;
  }
}

/** Runs a part of a kind's `setUp`; what goes wrong in it is told of that step: `MountVolume.MountDevice failed …`. */
export async function inStep<T>(step: VolumeStep, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (err) {
    throw err instanceof VolumeStepError || isAbort(err) ? err : new VolumeStepError(step, err);
  }
}
