import type { ApiClient, Store } from "../../kube/port.ts";
import { volumeAttachments } from "../../kube/resources.ts";
import type { Node, VolumeAttachment } from "../../kube/types.ts";
import type { Clock } from "../../lib/clock.ts";
import { AgentError, hasCode, withContext } from "../../lib/errors.ts";
import { attachmentName, uniqueVolumeName } from "./paths.ts";
import type { CSIMap } from "./port.ts";
import { type VolumeFailureMeaning, type VolumeStep, VolumeStepError } from "../step-error.ts";

export interface AttachDeps {
  /** undefined: there is no API server. */
  client: ApiClient | undefined;
  /** Holds at most one object: the own Node. */
  ownNode: Store<Node>;
  nodeName: string;
  clock: Clock;
}

/** A volume of a pod that has to be attached to this node. */
export interface AwaitedVolume {
  driver: string;
  handle: string;
  /** Monotonic ms since when the pod wants it. */
  sinceMs: number;
  /**
   * Writes into the CSINode how many volumes the driver takes now, before a pod is given up for that; undefined: the driver does not
   * say it anew, and no pod is. Never rejects.
   */
  refreshLimit: (() => Promise<void>) | undefined;
}

// Attaching takes seconds as a rule. Whoever waits longer is told what for; the pod is tried again when the Node changes.
export const attachPatienceMs = 10_000;
// So long nothing is wrong with a volume that nobody has attached yet: kubelet's wait for a pod's volumes, 2m3s.
export const attachPendingMs = 123_000;

/** What still has to happen on the Node before a volume may be used; undefined: nothing. Pure. */
export function attachObstacle(node: Node | undefined, volumeName: string, nodeName: string): string | undefined {
  const { volumesAttached = [], volumesInUse = [] } = node?.status ?? {};
  if (!volumesAttached.some(({ name }) => name === volumeName)) {
    return `waiting for the attach/detach controller: the volume is not attached yet according to the status of node ${nodeName}`;
  }
  if (!volumesInUse.includes(volumeName)) {
    return `the volume has not been added to the list of VolumesInUse in the volume status of node ${nodeName} yet`;
  }
  return undefined;
}

/**
 * Waits until the attach/detach controller has attached a volume to this node, and knows that it is in use here.
 *
 * @returns what the attacher says to those who mount it
 * Rejects with a `VolumeStepError` that says what is being waited for, and why the attacher refuses if it does, after
 * {@link attachPatienceMs}.
 */
export async function waitForAttach(volume: AwaitedVolume, deps: AttachDeps, signal: AbortSignal): Promise<CSIMap> {
  const { driver, handle, sinceMs, refreshLimit } = volume;
  const obstacle = await untilAttached(uniqueVolumeName(driver, handle), deps, signal);
  const attachment = await readAttachment(deps.client, attachmentName(handle, driver, deps.nodeName), handle, signal);
  const waitedMs = deps.clock.monotonic() - sinceMs;
  const hasLimit = refreshLimit !== undefined;
  const verdict = judgeAttachment({ handle, obstacle, attachment, waitedMs, hasLimit });
  if (verdict.kind === "attached") return verdict.metadata;
  if (verdict.meaning === "over the limit") await refreshLimit?.();
  signal.throwIfAborted();
  throw new VolumeStepError(verdict.step, new AgentError(verdict.code, verdict.why), verdict.meaning);
}

/** What is known of a volume's way to this node. */
export interface AttachObservation {
  handle: string;
  /** What has to happen on the Node, see {@link attachObstacle}. */
  obstacle: string | undefined;
  /** Or why it cannot be read. */
  attachment: VolumeAttachment | AgentError;
  waitedMs: number;
  /** Its driver says now and then how many volumes the node takes. */
  hasLimit: boolean;
}

export type AttachVerdict =
  | { kind: "attached"; metadata: CSIMap }
  | {
      kind: "not yet";
      step: VolumeStep;
      code: AgentError["code"];
      why: string;
      meaning: VolumeFailureMeaning | undefined;
    };

// gRPC's code for a node that has no room for another volume.
const resourceExhausted = 8;

/** Whether a volume may be used, or what to tell its pod. Pure. */
export function judgeAttachment({
  handle,
  obstacle,
  attachment,
  waitedMs,
  hasLimit,
}: AttachObservation): AttachVerdict {
  const status = attachment instanceof AgentError ? undefined : attachment.status;
  const trouble = troubleOf(attachment, handle);
  if (obstacle === undefined && trouble === undefined) {
    return { kind: "attached", metadata: status?.attachmentMetadata ?? {} };
  }
  const isLate = waitedMs >= attachPendingMs;
  const isFull = hasLimit && isLate && status?.attachError?.errorCode === resourceExhausted;
  const overLimit = isFull ? "over the limit" : undefined;
  if (obstacle === undefined) {
    const code = attachment instanceof AgentError ? attachment.code : "Unavailable";
    return { kind: "not yet", step: "WaitForAttach", code, why: trouble ?? "", meaning: overLimit };
  }
  const { message: refusal = "" } = status?.attachError ?? {};
  // That there is no attachment yet, or that it is on its way, is what the Node says as well.
  const isNews = refusal !== "" || (attachment instanceof AgentError && !hasCode(attachment, "NotFound"));
  const why = isNews ? `${obstacle}: ${trouble}` : obstacle;
  const pending = refusal === "" && !isLate ? "pending" : undefined;
  const step = "VerifyControllerAttachedVolume";
  return { kind: "not yet", step, code: "Unavailable", why, meaning: overLimit ?? pending };
}

/** Why an attachment does not let the volume be mounted; undefined: it does. */
function troubleOf(attachment: VolumeAttachment | AgentError, handle: string): string | undefined {
  if (attachment instanceof AgentError) return attachment.message;
  const { metadata, status } = attachment;
  const { name, deletionTimestamp } = metadata;
  if (deletionTimestamp !== undefined) return `volume attachment ${name} of volume ${handle} is being deleted`;
  if (status?.attached === true) return undefined;
  return status?.attachError?.message || `volume ${handle} is not attached by volume attachment ${name} yet`;
}

/** @returns what is still missing when our patience has ended; undefined: nothing */
async function untilAttached(volumeName: string, deps: AttachDeps, signal: AbortSignal): Promise<string | undefined> {
  const { ownNode, nodeName, clock } = deps;
  const obstacle = () => attachObstacle(ownNode.get(nodeName), volumeName, nodeName);
  if (obstacle() === undefined) return undefined;
  const { promise, resolve } = Promise.withResolvers<void>();
  const look = () => {
    if (signal.aborted || obstacle() === undefined) resolve();
  };
  const timer = clock.after(attachPatienceMs, resolve);
  signal.addEventListener("abort", look, { once: true });
  const unsubscribe = ownNode.subscribe(look);
  try {
    look();
    await promise;
  } finally {
    unsubscribe();
    signal.removeEventListener("abort", look);
    timer.cancel();
  }
  signal.throwIfAborted();
  return obstacle();
}

/** Live: nodes may not watch attachments. */
async function readAttachment(
  client: ApiClient | undefined,
  name: string,
  handle: string,
  signal: AbortSignal,
): Promise<VolumeAttachment | AgentError> {
  if (client === undefined) return new AgentError("Invalid", "no API server could tell what is attached");
  try {
    return await client.get(volumeAttachments, { name }, { signal });
  } catch (err) {
    if (signal.aborted) throw err;
    return withContext(err, `volume ${handle} has GET error for volume attachment ${name}`);
  }
}
