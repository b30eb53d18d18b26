import { quantityMilli, quantityValue } from "../../kube/quantity.ts";
import type { Container, Pod, ResourceList, ResourceRequirements } from "../../kube/types.ts";

/** Resources of one pod as they were given to it: per container, and for the pod as a whole if it states any. */
export interface PodResources {
  readonly containers: Readonly<Record<string, ResourceRequirements>>;
  readonly pod?: ResourceRequirements;
}

/** Resources that can change while a container runs. */
export const resizable = ["cpu", "memory"] as const;
export type Resizable = (typeof resizable)[number];

export type Requirement = "requests" | "limits";

/** What a pod's spec states. Ephemeral containers have no resources. */
export function resourcesOf({ spec }: Pod): PodResources {
  const containers = resizableContainers(spec).map(({ name, resources }) => [name, resources ?? {}] as const);
  return {
    containers: Object.fromEntries(containers),
    ...(spec.resources === undefined ? {} : { pod: spec.resources }),
  };
}

/** Init and regular containers, in this order. */
export function resizableContainers({ containers, initContainers = [] }: Pod["spec"]): Container[] {
  return [...initContainers, ...containers];
}

/**
 * The pod with the resources that it was given in place of those that its spec asks for.
 *
 * @returns `pod` itself where both are the same
 */
export function withResources(pod: Pod, given: PodResources | undefined): Pod {
  if (given === undefined || isSameResources(resourcesOf(pod), given)) return pod;
  const replaced = (container: Container): Container => {
    const resources = given.containers[container.name];
    if (resources === undefined) return container;
    const { claims } = container.resources ?? {}; // devices cannot be resized
    return {
      ...container,
      resources: { ...resources, ...(claims === undefined ? {} : { claims }) },
    };
  };
  const { resources: _asked, ...spec } = pod.spec;
  return {
    ...pod,
    spec: {
      ...spec,
      containers: spec.containers.map(replaced),
      ...(spec.initContainers === undefined ? {} : { initContainers: spec.initContainers.map(replaced) }),
      ...(given.pod === undefined ? {} : { resources: given.pod }),
    },
  };
}

/** True if no container that is in both, nor the pod as a whole, has other resources. */
export function isSameResources(a: PodResources, b: PodResources): boolean {
  const names = Object.keys(a.containers).filter((name) => b.containers[name] !== undefined);
  return (
    isSameRequirements(a.pod, b.pod) &&
    names.every((name) => isSameRequirements(a.containers[name], b.containers[name]))
  );
}

/** Compares amounts, not how they are written: 1 and 1000m are the same. */
export function isSameRequirements(a: ResourceRequirements = {}, b: ResourceRequirements = {}): boolean {
  return isSameList(a.requests, b.requests) && isSameList(a.limits, b.limits);
}

function isSameList(a: ResourceList = {}, b: ResourceList = {}): boolean {
  return [...new Set([...Object.keys(a), ...Object.keys(b)])].every(
    (name) => a[name] === b[name] || amountOf(a, name) === amountOf(b, name),
  );
}

/** Which of cpu and memory differ, in requests or limits. */
export function changedResources(a: ResourceRequirements = {}, b: ResourceRequirements = {}): Resizable[] {
  return resizable.filter(
    (name) =>
      amountOf(a.requests, name) !== amountOf(b.requests, name) ||
      amountOf(a.limits, name) !== amountOf(b.limits, name),
  );
}

/** Milli-CPU for cpu, whole units for all else; undefined if the list does not name it. */
export function amountOf(list: ResourceList | undefined, name: string): number | undefined {
  const quantity = list?.[name];
  if (quantity === undefined) return undefined;
  return name === "cpu" ? quantityMilli(quantity) : quantityValue(quantity);
}

/** True if anything of the pod has requests or limits: without any, it is BestEffort for ever and cannot be resized. */
export function hasResources({ containers, pod }: PodResources): boolean {
  const all = [...Object.values(containers), ...(pod === undefined ? [] : [pod])];
  return all.some(({ requests = {}, limits = {} }) => Object.keys({ ...requests, ...limits }).length > 0);
}
