import { isSidecar } from "../kube/pod-resources.ts";
import type { Container, Pod, RestartPolicy } from "../kube/types.ts";
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
  if (ruleAfter(container, exitCode) !== undefined) return true;
  switch (policyOf(pod, container)) {
    case "Always":
      return true;
    case "OnFailure":
      return exitCode !== 0;
    case "Never":
      return false;
  }
}

/** What the container's own rules say about an exit with this code; the first that matches counts. */
export function ruleAfter(container: Container, exitCode: number): "Restart" | "RestartAllContainers" | undefined {
  const rule = (container.restartPolicyRules ?? []).find(({ exitCodes }) => {
    const isListed = exitCodes?.values?.includes(exitCode) ?? false;
    if (exitCodes?.operator === "In") return isListed;
    return exitCodes?.operator === "NotIn" && !isListed;
  });
  return rule?.action;
}

/**
 * What the exit of an init container counts as. One in which something was killed for memory has failed, whatever code its
 * first process left with.
 */
export function initExitCode({ exitCode, reason }: { exitCode: number; reason?: string }): number {
  return exitCode === 0 && reason === "OOMKilled" ? killedExitCode : exitCode;
}

// 128 + SIGKILL
const killedExitCode = 137;

/** The container's own restart policy, else the pod's. */
export function policyOf(pod: Pod, container: Container): RestartPolicy {
  return container.restartPolicy ?? pod.spec.restartPolicy ?? "Always";
}

/** Whether a failed init container fails the whole pod. */
export function failsPod(pod: Pod, container: Container, exitCode: number): boolean {
  if (isSidecar(container) || exitCode === 0) return false;
  // For init containers the pod's Always means OnFailure: one that succeeded does not run again.
  return !restartsAfter(pod, container, exitCode);
}
