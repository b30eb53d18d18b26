import type { ContainerStatus } from "../runtime/port.ts";
import type { Pod } from "../kube/types.ts";
import type { PodLocal } from "./local.ts";
import { specContainers } from "./names.ts";
import type { KillAction, PlanBuilder } from "./plan.ts";

export interface Kill {
  status: ContainerStatus;
  graceSeconds: number;
  why: string;
  /** Unix ms from which the grace counts; absent: from when the hook began. */
  sinceMs?: number;
  replaces?: true;
}

/**
 * Stops a container: its preStop hook first, then the stop signal. Both share the grace; a hook that does not end in it is
 * waited for no longer.
 */
export function wantKill(kill: Kill, pod: Pod, local: PodLocal, plan: PlanBuilder): void {
  const { status, graceSeconds, why, replaces } = kill;
  const own: KillAction = {
    kind: "KillContainer",
    containerID: status.id,
    container: status.name,
    graceSeconds,
    why,
    ...(replaces === undefined ? {} : { replaces }),
    // Once, however often it has to be told: a grace that shrinks is told the runtime anew, and so is one that it refused.
    ...(local.announced.get(status.id) === why ? { isAnnounced: true } : {}),
  };
  if (wantHook(kill, pod, local, plan) === "underWay") return;
  const hook = local.hooks.get(status.id);
  const sinceMs = Math.max(hook?.beganAtMs ?? 0, kill.sinceMs ?? 0);
  if (hook === undefined && kill.sinceMs === undefined) plan.want(own);
  else {
    const spentSeconds = Math.floor(Math.max(0, plan.nowMs - sinceMs) / 1_000);
    const timeoutSeconds = Math.max(0, graceSeconds - spentSeconds);
    plan.want({ ...own, timeoutSeconds });
  }
}

/** Begins a container's preStop hook if it has one. @returns whether the stop signal has to wait for it */
export function wantHook(
  { status, graceSeconds, why, sinceMs = 0, replaces }: Kill,
  pod: Pod,
  local: PodLocal,
  plan: PlanBuilder,
): "underWay" | "over" {
  const hook = local.hooks.get(status.id);
  if (hook === undefined) {
    const spec = specContainers(pod).find(({ container }) => container.name === status.name)?.container;
    if (spec?.lifecycle?.preStop === undefined || graceSeconds <= 0 || status.state !== "running") return "over";
    const replacing = replaces === undefined ? {} : { replaces };
    plan.want({ kind: "PreStop", containerID: status.id, container: status.name, graceSeconds, why, ...replacing });
    return "underWay";
  }
  const deadlineMs = Math.max(hook.beganAtMs, sinceMs) + graceSeconds * 1_000;
  if (hook.isDone || deadlineMs <= plan.nowMs) return "over";
  plan.wakeAt(deadlineMs);
  return "underWay";
}
