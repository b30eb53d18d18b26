import { isSidecar } from "../../kube/pod-resources.ts";
import type { Pod } from "../../kube/types.ts";
import { isSameRequirements } from "../resize/allocation.ts";

// The control plane and its nodes differ in version during an upgrade: a pod that needs what its node does not declare must
// not run there as if it did not. Which features a pod needs is the reference's list, by name.
const neededToRun: Readonly<Record<string, (pod: Pod) => boolean>> = {
  RestartAllContainersOnContainerExits: ({ spec: { containers, initContainers = [] } }) =>
    [...initContainers, ...containers].some(({ restartPolicyRules = [] }) =>
      restartPolicyRules.some(({ action }) => action === "RestartAllContainers"),
    ),
  UserNamespacesHostNetworkSupport: ({ spec }) => spec.hostNetwork === true && spec.hostUsers === false,
};
const neededToChange: Readonly<Record<string, (before: Pod, pod: Pod) => boolean>> = {
  InPlacePodLevelResourcesVerticalScaling: (before, pod) =>
    !isSameRequirements(before.spec.resources, pod.spec.resources),
  InPlacePodVerticalScalingInitContainers: (before, pod) =>
    (pod.spec.initContainers ?? []).some((container) => {
      const old = before.spec.initContainers?.find(({ name }) => name === container.name);
      return !isSidecar(container) && old !== undefined && !isSameRequirements(old.resources, container.resources);
    }),
};

/**
 * Features that a pod needs and its node does not declare, sorted by name. Pure.
 *
 * @param declared undefined: the node declares none by configuration, and nothing is asked of it
 */
export function missingFeatures(pod: Pod, declared: readonly string[] | undefined): string[] {
  return missing(declared, neededToRun, (needs) => needs(pod));
}

/** Features that a change of a pod's spec needs and its node does not declare, as {@link missingFeatures}. */
export function missingForUpdate(before: Pod, pod: Pod, declared: readonly string[] | undefined): string[] {
  return missing(declared, neededToChange, (needs) => needs(before, pod));
}

function missing<T>(
  declared: readonly string[] | undefined,
  features: Readonly<Record<string, T>>,
  isNeeded: (needs: T) => boolean,
): string[] {
  if (declared === undefined) return [];
  return Object.entries(features)
    .filter(([name, needs]) => !declared.includes(name) && isNeeded(needs))
    .map(([name]) => name)
    .sort();
}
