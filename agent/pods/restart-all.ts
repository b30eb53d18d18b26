import type { Container, Pod } from "../kube/types.ts";
import type { ContainerStatus, PodSnapshot } from "../runtime/port.ts";
import { allContainers } from "../kube/pod-resources.ts";
import type { PodLocal } from "./local.ts";
import { isAlive, isAnyStarting, type PlanBuilder } from "./plan.ts";
import { ruleAfter } from "./restart-policy.ts";

/** Why a container is not there that was removed so that all begin anew; also what ended the instance before. */
export const restartingAllReason = "RestartingAllContainers";

/** True for a pod in which the exit of some container may ask for a restart of all. */
export function canRestartAll({ spec }: Pod): boolean {
  return [...(spec.initContainers ?? []), ...spec.containers].some(({ restartPolicyRules = [] }) =>
    restartPolicyRules.some(({ action }) => action === "RestartAllContainers"),
  );
}

/**
 * The instance whose exit asks for a restart of all containers, by a rule of its own; undefined if there is none. It is
 * the only record of that wish, which is why it is removed last.
 *
 * @param isReplaced whether we stopped an instance ourselves to replace it: its exit is none of its own
 */
export function restartAllTrigger(
  pod: Pod,
  { sandboxes, containers }: PodSnapshot,
  isReplaced: (status: ContainerStatus) => boolean,
): ContainerStatus | undefined {
  const seen = new Set<string>();
  return containers.find((status) => {
    if (seen.has(status.name)) return false;
    seen.add(status.name);
    if (status.state !== "exited" || status.sandboxID !== sandboxes[0]?.id || isReplaced(status)) return false;
    return asksForAll(pod, status);
  });
}

function asksForAll(pod: Pod, { name, exitCode }: ContainerStatus): boolean {
  const container: Container | undefined = allContainers(pod).find((candidate) => candidate.name === name);
  return container !== undefined && ruleAfter(container, exitCode) === "RestartAllContainers";
}

/**
 * Stops everything at once and forgets it: regular containers first, then init ones, the one that asked for it last.
 * What is left is a sandbox without containers, in which the pod begins anew. Logs stay.
 */
export function restartAll(
  pod: Pod,
  trigger: ContainerStatus,
  { containers }: PodSnapshot,
  local: PodLocal,
  plan: PlanBuilder,
): void {
  const alive = containers.filter(isAlive);
  const why = `Container ${trigger.name} exited, all containers of the pod will be restarted`;
  for (const { id, name } of alive) {
    plan.want({ kind: "KillContainer", containerID: id, container: name, graceSeconds: 0, why });
  }
  // A start under way may yet show a container, which has to go with the others.
  if (alive.length > 0 || isAnyStarting(local)) return;
  const isInit = ({ name }: ContainerStatus) => (pod.spec.initContainers ?? []).some((init) => init.name === name);
  const isTrigger = ({ name }: ContainerStatus) => name === trigger.name;
  const groups = [
    containers.filter((status) => !isTrigger(status) && !isInit(status)),
    containers.filter((status) => !isTrigger(status) && isInit(status)),
    containers.filter((status) => isTrigger(status) && status.id !== trigger.id),
    [trigger],
  ];
  const next = groups.find((group) => group.length > 0) ?? [];
  for (const { id } of next) plan.want({ kind: "RemoveContainer", containerID: id, keepsLogs: true });
}
