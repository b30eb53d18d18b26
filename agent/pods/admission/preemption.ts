import { isCriticalPod, podRequests, qosClass } from "../../kube/pod-resources.ts";
import type { Pod, QOSClass } from "../../kube/types.ts";
import type { Shortage } from "./fit.ts";

export type Preemption =
  | { kind: "enough"; victims: Pod[] }
  /** What would still be short if all went who may. */
  | { kind: "tooLittle"; short: Shortage[] };

/**
 * The pods that have to go so that `preemptor` finds what is short: as few and as unimportant as possible. Guaranteed ones
 * go only for what all others together cannot give, Burstable ones for what BestEffort ones cannot.
 */
export function choosePreempted(preemptor: Pod, short: readonly Shortage[], others: readonly Pod[]): Preemption {
  const candidates = others.filter((pod) => isPreemptable(preemptor, pod));
  const rest = without(short, candidates);
  if (rest.length > 0) return { kind: "tooLittle", short: rest };
  const of = (qos: QOSClass) => candidates.filter((pod) => qosClass(pod) === qos);
  const [bestEffort, burstable, guaranteed] = [of("BestEffort"), of("Burstable"), of("Guaranteed")];
  const fromGuaranteed = minimalSet(without(short, [...burstable, ...bestEffort]), guaranteed);
  const fromBurstable = minimalSet(without(short, [...bestEffort, ...fromGuaranteed]), burstable);
  const fromBestEffort = minimalSet(without(short, [...fromBurstable, ...fromGuaranteed]), bestEffort);
  return { kind: "enough", victims: [...fromBestEffort, ...fromBurstable, ...fromGuaranteed] };
}

function isPreemptable(preemptor: Pod, pod: Pod): boolean {
  if (isCriticalPod(preemptor) && !isCriticalPod(pod)) return true;
  const [own, its] = [preemptor.spec.priority, pod.spec.priority];
  return own !== undefined && its !== undefined && own > its;
}

// Again and again the pod that comes closest to what is still short. All of them together are enough.
function minimalSet(short: readonly Shortage[], candidates: readonly Pod[]): Pod[] {
  const chosen: Pod[] = [];
  const left = [...candidates];
  let rest = [...short];
  while (rest.length > 0) {
    const best = closest(left, rest);
    if (best === undefined) break;
    left.splice(left.indexOf(best), 1);
    chosen.push(best);
    rest = without(rest, [best]);
  }
  return chosen;
}

function closest(pods: readonly Pod[], short: readonly Shortage[]): Pod | undefined {
  return pods.reduce<Pod | undefined>((a, b) => (a === undefined || isBetter(b, a, short) ? b : a), undefined);
}

function isBetter(a: Pod, b: Pod, short: readonly Shortage[]): boolean {
  const [x, y] = [distance(a, short), distance(b, short)];
  if (x !== y) return x < y;
  const [of, than] = [podRequests(a), podRequests(b)];
  const memory = (of["memory"] ?? 0) - (than["memory"] ?? 0);
  return memory === 0 ? (of["cpu"] ?? 0) < (than["cpu"] ?? 0) : memory < 0;
}

// Sum of squares of the part of each shortage that the pod leaves.
function distance(pod: Pod, short: readonly Shortage[]): number {
  return short.reduce((sum, { resource, amount }) => {
    const part = Math.max(0, amount - requestOf(pod, resource)) / amount;
    return sum + part * part;
  }, 0);
}

function without(short: readonly Shortage[], pods: readonly Pod[]): Shortage[] {
  return short.flatMap(({ resource, amount }) => {
    const rest = pods.reduce((left, pod) => left - requestOf(pod, resource), amount);
    return rest > 0 ? [{ resource, amount: rest }] : [];
  });
}

function requestOf(pod: Pod, resource: string): number {
  return resource === "pods" ? 1 : (podRequests(pod)[resource] ?? 0);
}
