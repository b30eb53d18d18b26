import type { ContainerStatus, PodStatus } from "../../kube/types.ts";
import { HttpError } from "../port.ts";

/**
 * The container instance whose log is meant: the running one, else the last that ended.
 *
 * @param podName for messages
 * @param previous the instance before the present one
 * @returns its ID as statuses have it, `containerd://…`
 * Throws HttpError 400 if there is no such instance: its message ends up before the person who asked.
 */
export function selectInstance(
  podName: string,
  status: PodStatus | undefined,
  container: string,
  previous: boolean,
): string {
  const found = findStatus(status, container);
  const who = `container "${container}" in pod "${podName}"`;
  if (found === undefined) throw new HttpError(400, `${who} is not available`);
  const last = found.lastState?.terminated;
  const { waiting, running, terminated } = found.state ?? {};
  if (previous) return present(last?.containerID, `previous terminated ${who} not found`);
  if (running !== undefined) return present(found.containerID, `${who} is not available`);
  // An instance that ended without having started has no ID; the one before it may have.
  if (terminated !== undefined || last !== undefined) {
    return present(terminated?.containerID || last?.containerID, `${who} is terminated`);
  }
  throw new HttpError(
    400,
    `${who} is waiting to start${waiting === undefined ? " - no logs yet" : `: ${why(waiting)}`}`,
  );
}

function findStatus(status: PodStatus | undefined, container: string): ContainerStatus | undefined {
  const lists = [status?.containerStatuses, status?.initContainerStatuses, status?.ephemeralContainerStatuses];
  return lists.flatMap((list) => list ?? []).find(({ name }) => name === container);
}

function present(containerID: string | undefined, otherwise: string): string {
  if (containerID === undefined || containerID === "") throw new HttpError(400, otherwise);
  return containerID;
}

function why({ reason = "" }: { reason?: string }): string {
  if (reason === "ErrImagePull") return "image can't be pulled";
  if (reason === "ImagePullBackOff") return "trying and failing to pull image";
  return reason;
}
