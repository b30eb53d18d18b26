import type { Container, Pod, ResourceRequirements } from "../../kube/types.ts";
import type { ContainerStatus } from "../../runtime/port.ts";
import { isAlive } from "../plan.ts";
import type { ResizeProgress } from "./resizes.ts";
import {
  amountOf,
  changedResources,
  type PodResources,
  type Resizable,
  resizableContainers,
  withResources,
} from "./allocation.ts";

/** Limits of a pod's cgroup that a resize changes, as the node computes them. What is left out is not limited. */
export interface PodLimits {
  cpuShares: number;
  cpuQuotaUs?: number;
  cpuPeriodUs?: number;
  memoryBytes?: number;
}

/** One step of a resize, in the order in which they have to be taken. */
export type ResizeStep =
  | { kind: "podCgroup"; values: Partial<PodLimits> }
  /** `resources` and `podLevel`: what the container, and its pod as a whole, have after this step. */
  | {
      kind: "container";
      container: string;
      containerID: string;
      resources: ResourceRequirements;
      podLevel: ResourceRequirements | undefined;
    };

/** True if the container has to be restarted to get `wanted`, by its resize policy for what changes. */
export function needsRestart(
  { resizePolicy = [] }: Container,
  wanted: ResourceRequirements | undefined,
  actual: ResourceRequirements | undefined,
): boolean {
  return changedResources(wanted, actual).some((name) =>
    resizePolicy.some(
      ({ resourceName, restartPolicy }) => resourceName === name && restartPolicy === "RestartContainer",
    ),
  );
}

/**
 * True if a container, or the pod as a whole, has not yet got what it was given; also if nobody knows what it has.
 *
 * @param pod with the resources that it was given
 * @param progress how far it has come
 */
export function isResizeDue(
  { spec }: Pod,
  { from: actual, attempted = [] }: Pick<ResizeProgress, "from" | "attempted">,
  containers: readonly ContainerStatus[],
): boolean {
  if (attempted.length > 0) return true; // nobody knows how far it came
  if (actual !== undefined && changedResources(spec.resources, actual.pod).length > 0) return true;
  return resizableContainers(spec).some(({ name, resources }) => {
    const has = actual?.containers[name];
    if (has !== undefined) return changedResources(resources, has).length > 0;
    const newest = containers.find((container) => container.name === name);
    return newest !== undefined && isAlive(newest) && (states(resources) || states(spec.resources));
  });
}

export interface ActuationInputs {
  /** With the resources that it was given. */
  pod: Pod;
  /** What containers have; one that is not in it has nobody knows what. */
  actual: PodResources;
  /** What parts of the pod may have instead, after attempts that did not come to their end. */
  attempted?: readonly PodResources[];
  /** The runtime's containers, newest first. */
  containers: readonly ContainerStatus[];
  limitsOf(pod: Pod): PodLimits;
}

/**
 * The steps from what the pod has to what it was given; memory first, then cpu. For each: a pod's cgroup grows before
 * its containers do and shrinks after them, limits before requests when growing; of the containers, those that shrink go
 * first. Pure; the steps may be repeated from the start at any time.
 */
export function planActuation(inputs: ActuationInputs): ResizeStep[] {
  const { pod, actual, attempted = [], limitsOf } = inputs;
  const before = limitsOf(withResources(pod, actual));
  const after = limitsOf(pod);
  const maybe = attempted.map((one) => limitsOf(withResources(pod, one)));
  const steps: ResizeStep[] = [];
  for (const resource of ["memory", "cpu"] as const) {
    const [grow, shrink] =
      maybe.length === 0 ? podSteps(resource, before, after) : unsurePodSteps(resource, [before, ...maybe], after);
    steps.push(...grow, ...containerSteps(resource, inputs), ...shrink);
  }
  return steps;
}

// Memory comes first: when it changes, cpu is as it was; when cpu changes, memory is as it will be.
function containerSteps(
  changes: Resizable,
  { pod, actual, attempted = [], containers }: ActuationInputs,
): ResizeStep[] {
  const { resources: whole } = pod.spec;
  const podLevel = changes === "memory" ? mixed(whole, actual.pod) : whole;
  const steps = resizableContainers(pod.spec).flatMap(({ name, resources }) => {
    const newest = containers.find((container) => container.name === name);
    if (newest === undefined || !isAlive(newest)) return [];
    const has = actual.containers[name];
    const mayHave = [has, ...attempted.map((one) => one.containers[name])];
    const isInherited =
      amountOf(resources?.limits, changes) === undefined &&
      [actual, ...attempted].some(
        ({ pod: podLevel }) => amountOf(whole?.limits, changes) !== amountOf(podLevel?.limits, changes),
      );
    // What is not known is written once, all of it: that changes nothing if it is right.
    const isMeant =
      has === undefined
        ? changes === "memory" && (states(resources) || states(whole))
        : isInherited || mayHave.some((one) => one !== undefined && changedResources(resources, one).includes(changes));
    if (!isMeant) return [];
    const next = has === undefined || changes === "cpu" ? (resources ?? {}) : mixed(resources, has);
    const by = limitOf(changes, next, whole) - limitOf(changes, has, actual.pod);
    const step: ResizeStep = {
      kind: "container",
      container: name,
      containerID: newest.id,
      resources: next,
      podLevel: has === undefined ? whole : podLevel,
    };
    return [{ step, by }];
  });
  return steps.toSorted((a, b) => a.by - b.by).map(({ step }) => step);
}

function states({ requests = {}, limits = {} }: ResourceRequirements = {}): boolean {
  return ["cpu", "memory"].some((name) => requests[name] !== undefined || limits[name] !== undefined);
}

// A container without a limit of its own has its pod's; one without any is told apart by what it asks for.
function limitOf(name: Resizable, own: ResourceRequirements = {}, podLevel: ResourceRequirements = {}): number {
  return amountOf(own.limits, name) ?? amountOf(podLevel.limits, name) ?? amountOf(own.requests, name) ?? 0;
}

// Memory as it was given, the rest as it is.
function mixed(given: ResourceRequirements = {}, has: ResourceRequirements = {}): ResourceRequirements {
  const pick = (part: "requests" | "limits") => {
    const { memory: _old, ...rest } = has[part] ?? {};
    const memory = given[part]?.["memory"];
    const list = memory === undefined ? rest : { ...rest, memory };
    return Object.keys(list).length === 0 ? {} : { [part]: list };
  };
  return { ...pick("requests"), ...pick("limits") };
}

function podSteps(
  resource: Resizable,
  before: PodLimits,
  after: PodLimits,
): [grow: ResizeStep[], shrink: ResizeStep[]] {
  const grow: ResizeStep[] = [];
  const shrink: ResizeStep[] = [];
  const step = (values: Partial<PodLimits>): ResizeStep => ({
    kind: "podCgroup",
    values,
  });
  if (resource === "memory") {
    const { memoryBytes } = after;
    // A limit that is not there any more stays: taking one away is not supported.
    if (memoryBytes === undefined) return [grow, shrink];
    const values = step({ memoryBytes });
    if (memoryBytes > (before.memoryBytes ?? Number.POSITIVE_INFINITY)) grow.push(values);
    else if (memoryBytes < (before.memoryBytes ?? Number.POSITIVE_INFINITY)) shrink.push(values);
    return [grow, shrink];
  }
  const { cpuQuotaUs, cpuPeriodUs, cpuShares } = after;
  const had = before.cpuQuotaUs ?? Number.POSITIVE_INFINITY;
  const quota = step({
    ...(cpuQuotaUs === undefined ? {} : { cpuQuotaUs }),
    ...(cpuPeriodUs === undefined ? {} : { cpuPeriodUs }),
  });
  if (cpuQuotaUs !== undefined && cpuQuotaUs > had) grow.push(quota);
  if (cpuShares > before.cpuShares) grow.push(step({ cpuShares }));
  if (cpuShares < before.cpuShares) shrink.push(step({ cpuShares }));
  if (cpuQuotaUs !== undefined && cpuQuotaUs < had) shrink.push(quota);
  return [grow, shrink];
}

// The cgroup may have any of these limits, and so may containers: it gets room for all of them first.
function unsurePodSteps(
  resource: Resizable,
  maybe: readonly PodLimits[],
  after: PodLimits,
): [grow: ResizeStep[], shrink: ResizeStep[]] {
  const most = (key: "memoryBytes" | "cpuQuotaUs") =>
    Math.max(...[after, ...maybe].flatMap(({ [key]: value }) => (value === undefined ? [] : [value])));
  const step = (values: Partial<PodLimits>): ResizeStep => ({ kind: "podCgroup", values });
  const { memoryBytes, cpuQuotaUs, cpuPeriodUs, cpuShares } = after;
  if (resource === "memory") {
    if (memoryBytes === undefined) return [[], []];
    return [[step({ memoryBytes: most("memoryBytes") })], [step({ memoryBytes })]];
  }
  const period = cpuPeriodUs === undefined ? {} : { cpuPeriodUs };
  if (cpuQuotaUs === undefined) return [[], [step({ cpuShares })]];
  return [
    [step({ cpuQuotaUs: most("cpuQuotaUs"), ...period })],
    [step({ cpuShares }), step({ cpuQuotaUs, ...period })],
  ];
}

/** Which memory limits of the pod's running containers shrink, and to how many bytes; `undefined` as name: the pod's own. */
export function shrinkingMemory({
  pod,
  actual,
  attempted = [],
  containers,
  limitsOf,
}: ActuationInputs): MemoryShrink[] {
  const shrinks: MemoryShrink[] = [];
  const podBytes = limitsOf(pod).memoryBytes;
  const podHad = [actual, ...attempted].map((one) => limitsOf(withResources(pod, one)).memoryBytes);
  if (podBytes !== undefined && podHad.some((had) => podBytes < (had ?? Number.POSITIVE_INFINITY))) {
    shrinks.push({ container: undefined, bytes: podBytes });
  }
  for (const { name, resources } of resizableContainers(pod.spec)) {
    const newest = containers.find((container) => container.name === name);
    const bytes = amountOf(resources?.limits, "memory");
    const had = actual.containers[name];
    // One of which nothing is known has its limit already, but for an accident; a full cache would look like too much use.
    if (newest === undefined || !isAlive(newest) || bytes === undefined || had === undefined) continue;
    const mayHave = [had, ...attempted.flatMap((one) => one.containers[name] ?? [])];
    if (mayHave.some(({ limits }) => bytes < (amountOf(limits, "memory") ?? Number.POSITIVE_INFINITY))) {
      shrinks.push({ container: { name, id: newest.id }, bytes });
    }
  }
  return shrinks;
}

export interface MemoryShrink {
  container: { name: string; id: string } | undefined;
  bytes: number;
}

/** The reason why memory cannot shrink now, if any: what is used does not fit. */
export function refusedShrink(
  shrinks: readonly MemoryShrink[],
  usageBytes: ReadonlyMap<string, number>,
  podUsageBytes: number,
): string | undefined {
  for (const { container, bytes } of shrinks) {
    const used = container === undefined ? podUsageBytes : usageBytes.get(container.id);
    if (used === undefined || used < bytes) continue;
    const what = container === undefined ? "pod" : `container "${container.name}"`;
    return `attempting to set ${what} memory limit (${bytes}) below current usage (${used})`;
  }
  return undefined;
}
