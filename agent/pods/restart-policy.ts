import { isSidecar } from "../kube/pod-resources.ts";
import type { Container, Pod } from "../kube/types.ts";
import type { ContainerStatus } from "../runtime/port.ts";

/**
 * Whether a container that does not run should be started again: its own rules first, then its own policy, then the
 * pod's. Not while the pod is being deleted.
 */
export function shouldRestart(
  pod: Pod,
  container: Container,
  newest: Pick<ContainerStatus, "state" | "exitCode">,
): boolean {
  if (pod.metadata.deletionTimestamp !== undefined) return false;
  if (newest.state !== "exited") return true;
  return restartsAfter(pod, container, newest.exitCode);
}

/** Whether an exit with this code is followed by a restart. Init containers that succeeded are not asked about. */
export function restartsAfter(pod: Pod, container: Container, exitCode: number): boolean {
  for (const { exitCodes } of container.restartPolicyRules ?? []) {
    const values = exitCodes?.values ?? [];
    if (exitCodes?.operator === "In" ? values.includes(exitCode) : !values.includes(exitCode)) return true;
  }
  switch (container.restartPolicy ?? pod.spec.restartPolicy ?? "Always") {
    case "Always":
      return true;
    case "OnFailure":
      return exitCode !== 0;
    case "Never":
      return false;
  }
}

/** Whether a failed init container fails the whole pod. */
export function failsPod(pod: Pod, container: Container, exitCode: number): boolean {
  if (isSidecar(container) || exitCode === 0) return false;
  // For init containers the pod's Always means OnFailure: one that succeeded does not run again.
  return !restartsAfter(pod, container, exitCode);
}
