import type { Pod } from "../kube/types.ts";
import { type Labels, defaultBuckets, type MetricsRegistry } from "../lib/metrics.ts";
import type { ProbeOutcome } from "./port.ts";
import type { ProbeSpec } from "./spec.ts";

/** The families of `/metrics/probes`. */
export interface ProbeMetrics {
  ran(pod: Pod, podUID: string, spec: ProbeSpec, outcome: ProbeOutcome, seconds: number): void;
  /** The probe has ended for good: its series go. */
  forget(pod: Pod, podUID: string, spec: ProbeSpec): void;
}

type DurationLabel = "probe_type" | "container" | "pod" | "namespace";
const durationLabels: readonly DurationLabel[] = ["probe_type", "container", "pod", "namespace"];
const results = ["successful", "failed", "unknown"] as const;

/** Registers them. */
export function createProbeMetrics(registry: MetricsRegistry): ProbeMetrics {
  const total = registry.counter(
    "prober_probe_total",
    "Liveness, readiness and startup probes carried out, by result.",
    [...durationLabels, "result", "pod_uid"] as const,
  );
  const duration = registry.histogram(
    "prober_probe_duration_seconds",
    "Time that a probe took, failed ones left out.",
    defaultBuckets,
    durationLabels,
  );
  const labels = ({ metadata }: Pod, { type, container }: ProbeSpec): Labels<DurationLabel> => ({
    probe_type: type,
    container: container.name,
    pod: metadata.name,
    namespace: metadata.namespace ?? "",
  });
  return {
    ran: (pod, podUID, spec, { kind }, seconds) => {
      const own = labels(pod, spec);
      const result = kind === "failure" ? "failed" : kind === "error" ? "unknown" : "successful";
      total.inc({ ...own, result, pod_uid: podUID });
      if (result === "successful") duration.observe(own, seconds);
    },
    forget: (pod, podUID, spec) => {
      const own = labels(pod, spec);
      for (const result of results) total.remove({ ...own, result, pod_uid: podUID });
      duration.remove(own);
    },
  };
}
