import type { MetricsRegistry } from "../../lib/metrics.ts";
import { amountOf, type PodResources, type Requirement, type Resizable, resizable } from "./allocation.ts";
import type { ResizeStates } from "./conditions.ts";
import type { InfeasibleDetail } from "./evaluate.ts";

/** What made pending resizes be looked at again, in the reference's words. */
export type RetryTrigger =
  | "pod_updated"
  | "pod_resized"
  | "pods_added"
  | "pods_removed"
  | "pod_terminated"
  | "periodic_retry";

type Operation = "add" | "remove" | "increase" | "decrease";

/** One change of one amount that a new spec asks for. */
export interface RequestedChange {
  resource: Resizable;
  requirement: Requirement;
  operation: Operation;
}

export interface ResizeMetrics {
  requested(changes: readonly RequestedChange[]): void;
  /** A resize ended, or an attempt failed, so long after it was accepted. */
  took(ms: number, isSuccess: boolean): void;
  infeasible(detail: InfeasibleDetail): void;
  deferredAccepted(trigger: RetryTrigger): void;
  /** Gauges are read from this from now on. */
  follow(states: () => Iterable<ResizeStates>): void;
}

// The reference's, in ms.
const durationBuckets = [
  10, 50, 100, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 60_000, 120_000, 300_000, 600_000,
];

/** Registers the kubelet's metrics about resizes. */
export function createResizeMetrics(registry: MetricsRegistry): ResizeMetrics {
  const requested = registry.counter(
    "kubelet_container_requested_resizes_total",
    "Changes of containers' resources that were asked for.",
    ["resource", "requirement", "operation"],
  );
  const duration = registry.histogram(
    "kubelet_pod_resize_duration_milliseconds",
    "Time from the acceptance of a resize until all containers have it, or an attempt failed.",
    durationBuckets,
    ["success"],
  );
  const infeasible = registry.counter("kubelet_pod_infeasible_resizes_total", "Resizes that can never be, by why.", [
    "reason_detail",
  ]);
  const accepted = registry.counter(
    "kubelet_pod_deferred_accepted_resizes_total",
    "Resizes that were accepted after they had to wait, by what made room.",
    ["retry_trigger"],
  );
  let states: () => Iterable<ResizeStates> = () => [];
  registry.collect("kubelet_pod_pending_resizes and others", () => {
    const all = [...states()];
    const pending = Map.groupBy(
      all.flatMap((state) => (state.pending === undefined ? [] : [state.pending.reason.toLowerCase()])),
      (reason) => reason,
    );
    const samples = [...pending].map(([reason, found]) => ({
      labels: { reason },
      value: found.length,
    }));
    const inProgress = all.filter((state) => state.inProgress !== undefined).length;
    return [
      {
        name: "kubelet_pod_pending_resizes",
        help: "Resizes that wait, by why.",
        type: "gauge",
        samples,
      },
      {
        name: "kubelet_pod_in_progress_resizes",
        help: "Resizes that are under way.",
        type: "gauge",
        samples: [{ labels: {}, value: inProgress }],
      },
    ];
  });
  return {
    requested: (changes) => {
      for (const change of changes) requested.inc({ ...change });
    },
    took: (ms, isSuccess) => duration.observe({ success: String(isSuccess) }, ms),
    infeasible: (detail) => infeasible.inc({ reason_detail: detail }),
    deferredAccepted: (trigger) => accepted.inc({ retry_trigger: trigger }),
    follow: (follow) => {
      states = follow;
    },
  };
}

/** How what a pod asks for has changed, container by container. Pure. */
export function requestedChanges(before: PodResources, after: PodResources): RequestedChange[] {
  return Object.entries(after.containers).flatMap(([name, now]) =>
    (["requests", "limits"] as const).flatMap((requirement) =>
      resizable.flatMap((resource): RequestedChange[] => {
        const old = amountOf(before.containers[name]?.[requirement], resource) ?? 0;
        const next = amountOf(now[requirement], resource) ?? 0;
        if (old === next) return [];
        const operation = old === 0 ? "add" : next === 0 ? "remove" : next > old ? "increase" : "decrease";
        return [{ resource, requirement, operation }];
      }),
    ),
  );
}
