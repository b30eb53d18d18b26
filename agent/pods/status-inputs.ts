import { isSidecar } from "../kube/pod-resources.ts";
import type { Condition, Container, Pod, PodStatus } from "../kube/types.ts";
import type { SeenContainer } from "../probes/port.ts";
import type { PodSnapshot } from "../runtime/port.ts";
import { ownConditionTypes } from "./conditions.ts";
import { formatDelay } from "./crash-backoff.ts";
import type { PodLocal } from "./local.ts";
import { describePod, specContainers } from "./names.ts";
import { type Plan } from "./plan.ts";
import { restartsAfter } from "./restart-policy.ts";
import { sandboxState } from "./sandbox.ts";
import { isTerminalPhase } from "./status.ts";

type Attempts = PodLocal["attempts"];

/** Why containers that should run do not, by name. */
export function waitingReasons(
  pod: Pod,
  attempts: Attempts,
  plan: Pick<Plan, "backoff">,
): Map<string, { reason: string; message: string }> {
  const waiting = new Map<string, { reason: string; message: string }>();
  for (const { container } of specContainers(pod)) {
    const { name } = container;
    const attempt = [attempts.get(`start/${name}`), attempts.get(`image/${name}`)].find(
      (candidate) => candidate?.state === "failed" && candidate.reason !== "ContainerCreating",
    );
    if (attempt?.state === "failed") waiting.set(name, { reason: attempt.reason, message: attempt.message });
    const backoff = plan.backoff.get(name);
    if (backoff === undefined) continue;
    const message = `back-off ${formatDelay(backoff.delayMs)} restarting failed container=${name} pod=${describePod(pod)}`;
    waiting.set(name, { reason: "CrashLoopBackOff", message });
  }
  return waiting;
}

/**
 * Whether the pod's sandbox is there, with all else that containers need. After a restart of the agent, containers prove
 * that their volumes were ready.
 */
export function hasReadySandbox(pod: Pod, observed: PodSnapshot, volumes: PodLocal["volumes"]): boolean {
  const state = sandboxState(pod, observed);
  if (state.kind !== "ready") return false;
  return volumes !== "unknown" || observed.containers.some(({ sandboxID }) => sandboxID === state.sandbox.id);
}

// Nobody sees a container before its hook is over, as with kubelet, which then looks at the pod again.
function isInPostStart({ name, lifecycle }: Container, attempts: Attempts): boolean {
  return lifecycle?.postStart !== undefined && attempts.get(`start/${name}`)?.state === "running";
}

/** What the runtime shows, without containers that are being started and whose postStart hook has not ended. */
export function withoutPostStart(pod: Pod, observed: PodSnapshot, attempts: Attempts): PodSnapshot {
  const hidden = specContainers(pod).flatMap(({ container }) => {
    if (!isInPostStart(container, attempts)) return [];
    const newest = observed.containers.find(({ name }) => name === container.name);
    return newest?.state === "created" || newest?.state === "running" ? [newest] : [];
  });
  if (hidden.length === 0) return observed;
  return { ...observed, containers: observed.containers.filter((container) => !hidden.includes(container)) };
}

/** The containers that probes may look at, and what was last reported of these instances. */
export function probedContainers(
  pod: Pod,
  observed: PodSnapshot,
  reported: PodStatus,
  attempts: Attempts,
): SeenContainer[] {
  const statuses = [...(reported.initContainerStatuses ?? []), ...(reported.containerStatuses ?? [])];
  return specContainers(pod).flatMap(({ kind, container }): SeenContainer[] => {
    const isProbed = kind === "regular" || (kind === "init" && isSidecar(container));
    const newest = observed.containers.find(({ name }) => name === container.name);
    if (!isProbed || newest === undefined || isInPostStart(container, attempts)) return [];
    const old = statuses.find(({ containerID }) => containerID?.endsWith(`//${newest.id}`) === true);
    return [
      {
        name: container.name,
        containerID: newest.id,
        isRunning: newest.state === "running",
        startedAtMs: newest.startedAtMs,
        wasStarted: old?.started === true,
        wasReady: old?.ready === true,
      },
    ];
  });
}

/** Names of regular containers that were reported to have ended and that nothing starts again. */
export function finishedContainers(pod: Pod, reported: PodStatus): Set<string> {
  const finished = pod.spec.containers.filter((container) => {
    const status = reported.containerStatuses?.find(({ name }) => name === container.name);
    const exitCode = status?.state?.terminated?.exitCode;
    return exitCode !== undefined && !restartsAfter(pod, container, exitCode);
  });
  return new Set(finished.map(({ name }) => name));
}

/** What we said last, with the conditions of others as the API server has them now. */
export function previousStatus(wanted: PodStatus | undefined, known: PodStatus): PodStatus {
  if (wanted === undefined) return known;
  const isOwn = ({ type }: Condition) => ownConditionTypes.includes(type);
  const own = (wanted.conditions ?? []).filter(isOwn);
  return { ...wanted, conditions: [...own, ...(known.conditions ?? []).filter((condition) => !isOwn(condition))] };
}

/**
 * The end of a pod is told when nothing of it runs any more: others take its resources for free then.
 *
 * @param isStopped no container lives, no sandbox holds addresses and ports, and none of them is on its way
 */
export function withheldUntilStopped(status: PodStatus, before: PodStatus | undefined, isStopped: boolean): PodStatus {
  if (!isTerminalPhase(status.phase) || isTerminalPhase(before?.phase) || isStopped) return status;
  const { reason: _reason, message: _message, ...rest } = status;
  return { ...rest, phase: before?.phase ?? "Pending" };
}
