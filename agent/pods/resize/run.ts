import { linuxResources, podSandboxResources, uidOf } from "../../kube/pod-resources.ts";
import type { Pod } from "../../kube/types.ts";
import { hasCode, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { PodSnapshot, Runtime } from "../../runtime/port.ts";
import type { PodCgroupPort, PodSettings } from "../port.ts";
import { type ActuationInputs, planActuation, type ResizeStep, refusedShrink, shrinkingMemory } from "./actuate.ts";
import { type PodResources, resizableContainers } from "./allocation.ts";
import type { PodResizes } from "./port.ts";

export interface ResizeRunDeps {
  runtime: Pick<Runtime, "updateContainerResources" | "updatePodSandboxResources" | "containerStats">;
  cgroups: Pick<PodCgroupPort, "limitsOf" | "setLimits">;
  settings: Pick<PodSettings, "resources">;
  /** Tells of attempts before this one that did not come to their end. */
  resizes?: Pick<PodResizes, "progress">;
  log: Logger;
}

/**
 * Gives a pod's cgroup and running containers the resources in the pod's spec. Rejects at the first step that fails; all
 * of it may be done again from the start.
 *
 * @param from what the pod had before; undefined if nobody knows
 */
export async function runResize(
  pod: Pod,
  from: PodResources | undefined,
  observed: PodSnapshot,
  deps: ResizeRunDeps,
): Promise<void> {
  const { cgroups, resizes } = deps;
  const { attempted = [] } = resizes?.progress(uidOf(pod)) ?? {};
  const inputs: ActuationInputs = {
    pod,
    actual: from ?? { containers: {} },
    attempted,
    containers: observed.containers,
    limitsOf: (of) => cgroups.limitsOf(of),
  };
  await checkMemory(inputs, deps);
  for (const step of planActuation(inputs)) await take(step, pod, deps);
  // Where nothing is known of what was before, the cgroup's limits may be anything.
  if (from === undefined) await cgroups.setLimits(pod, cgroups.limitsOf(pod));
  await tellSandbox(pod, observed, deps);
}

// The kernel would make room by killing: a limit is only set if what is used fits in.
async function checkMemory(inputs: ActuationInputs, { runtime }: ResizeRunDeps): Promise<void> {
  const shrinks = shrinkingMemory(inputs);
  if (shrinks.length === 0) return;
  const own = new Set(inputs.containers.map(({ id }) => id));
  const usage = new Map<string, number>();
  for (const { containerID, memory } of await runtime.containerStats()) {
    const bytes = memory?.usageBytes ?? memory?.workingSetBytes;
    if (own.has(containerID) && bytes !== undefined) usage.set(containerID, bytes);
  }
  const podUsage = [...usage.values()].reduce((sum, bytes) => sum + bytes, 0);
  const refused = refusedShrink(shrinks, usage, podUsage);
  if (refused !== undefined) throw new Error(refused);
}

async function take(step: ResizeStep, pod: Pod, { runtime, cgroups, settings }: ResizeRunDeps): Promise<void> {
  if (step.kind === "podCgroup") {
    await cgroups.setLimits(pod, step.values);
    return;
  }
  const spec = resizableContainers(pod.spec).find(({ name }) => name === step.container);
  if (spec === undefined) return;
  const whole = withPodLevel(pod, step.podLevel);
  const resources = linuxResources(whole, { ...spec, resources: step.resources }, settings.resources);
  await runtime.updateContainerResources(step.containerID, resources);
}

function withPodLevel(pod: Pod, resources: Pod["spec"]["resources"]): Pod {
  const { resources: _old, ...spec } = pod.spec;
  return { ...pod, spec: { ...spec, ...(resources === undefined ? {} : { resources }) } };
}

// For runtimes that run pods in virtual machines. Others need not care.
async function tellSandbox(pod: Pod, { sandboxes }: PodSnapshot, { runtime, settings, log }: ResizeRunDeps) {
  const [sandbox] = sandboxes;
  if (sandbox?.ready !== true) return;
  try {
    await runtime.updatePodSandboxResources(sandbox.id, podSandboxResources(pod, settings.resources));
  } catch (err) {
    if (hasCode(err, "Unimplemented")) return;
    log.warn({ sandboxID: sandbox.id, err: messageOf(err) }, "runtime not told of the pod's new resources");
  }
}
