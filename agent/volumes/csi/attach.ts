import type { ApiClient, Store } from "../../kube/port.ts";
import { volumeAttachments } from "../../kube/resources.ts";
import type { Node, VolumeAttachment } from "../../kube/types.ts";
import type { Clock } from "../../lib/clock.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import { AttachLimitError } from "../failures.ts";
import { inStep } from "../kind.ts";
import { attachmentName, uniqueVolumeName } from "./paths.ts";
import type { CSIMap } from "./port.ts";

export interface AttachDeps {
  /** undefined: there is no API server. */
  client: ApiClient | undefined;
  /** Holds at most one object: the own Node. */
  ownNode: Store<Node>;
  nodeName: string;
  clock: Clock;
}

// Attaching takes seconds as a rule. Whoever waits longer is told what for; the pod is tried again when the Node changes.
export const attachPatienceMs = 10_000;

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
 * Rejects with a `VolumeStepError` that says what is being waited for, after {@link attachPatienceMs}.
 */
export async function waitForAttach(
  { driver, handle }: { driver: string; handle: string },
  deps: AttachDeps,
  signal: AbortSignal,
): Promise<CSIMap> {
  const { client, nodeName } = deps;
  await inStep("VerifyControllerAttachedVolume", () => untilAttached(uniqueVolumeName(driver, handle), deps, signal));
  return await inStep("WaitForAttach", async () => {
    if (client === undefined) throw new AgentError("Invalid", "no API server could tell what is attached");
    const name = attachmentName(handle, driver, nodeName);
    return readAttachment(await readLive(client, name, handle, signal), handle);
  });
}

async function untilAttached(volumeName: string, deps: AttachDeps, signal: AbortSignal): Promise<void> {
  const { ownNode, nodeName, clock } = deps;
  const obstacle = () => attachObstacle(ownNode.get(nodeName), volumeName, nodeName);
  if (obstacle() === undefined) return;
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
  const why = obstacle();
  if (why !== undefined) throw new AgentError("Unavailable", why);
}

async function readLive(
  client: ApiClient,
  name: string,
  handle: string,
  signal: AbortSignal,
): Promise<VolumeAttachment> {
  try {
    return await client.get(volumeAttachments, { name }, { signal });
  } catch (err) {
    if (signal.aborted) throw err;
    const code = err instanceof AgentError ? err.code : "Internal";
    throw new AgentError(code, `volume ${handle} has GET error for volume attachment ${name}: ${messageOf(err)}`, {
      cause: err,
    });
  }
}

// gRPC's code for a node that has no room for another volume.
const resourceExhausted = 8;

/**
 * What an attachment says to those who mount the volume. Rejects with code Unavailable while it is not attached, as an
 * `AttachLimitError` if the node has no room for it. Pure.
 */
export function readAttachment({ metadata, status }: VolumeAttachment, handle: string): CSIMap {
  const { name, deletionTimestamp } = metadata;
  if (deletionTimestamp !== undefined) {
    throw new AgentError("Unavailable", `volume attachment ${name} of volume ${handle} is being deleted`);
  }
  if (status?.attached === true) return status.attachmentMetadata ?? {};
  const { message: why = "", errorCode } = status?.attachError ?? {};
  if (errorCode === resourceExhausted) throw new AttachLimitError("Unavailable", why);
  throw new AgentError(
    "Unavailable",
    why === "" ? `volume ${handle} is not attached by volume attachment ${name} yet` : why,
  );
}
