import { isSidecar } from "../kube/pod-resources.ts";
import type { Container, Pod, Probe } from "../kube/types.ts";
import type { ProbeType } from "./port.ts";

/** A probe with the API's defaults filled in; durations in ms. */
export interface ProbeSpec {
  readonly type: ProbeType;
  readonly container: Container;
  readonly isSidecar: boolean;
  readonly probe: Probe;
  readonly initialDelayMs: number;
  readonly periodMs: number;
  readonly successThreshold: number;
  readonly failureThreshold: number;
}

/** Every probe of a pod: those of regular containers and of sidecars, in spec order. */
export function probesOf({ spec }: Pod): ProbeSpec[] {
  const sidecars = (spec.initContainers ?? []).filter(isSidecar);
  return [...sidecars, ...spec.containers].flatMap((container) => {
    const { startupProbe, livenessProbe, readinessProbe } = container;
    const candidates: [ProbeType, Probe | undefined][] = [
      ["Startup", startupProbe],
      ["Liveness", livenessProbe],
      ["Readiness", readinessProbe],
    ];
    return candidates.flatMap(([type, probe]) =>
      probe === undefined ? [] : [withDefaults(type, container, probe, sidecars.includes(container))],
    );
  });
}

/** How long one run of `probe` may take, in ms; the API's default is 1 s. */
export function probeTimeoutMs({ timeoutSeconds }: Probe): number {
  return positive(timeoutSeconds, 1) * 1_000;
}

// Static pods have passed no API server: what it would have filled in is missing there.
function withDefaults(type: ProbeType, container: Container, probe: Probe, sidecar: boolean): ProbeSpec {
  return {
    type,
    container,
    isSidecar: sidecar,
    probe,
    initialDelayMs: Math.max(0, probe.initialDelaySeconds ?? 0) * 1_000,
    periodMs: positive(probe.periodSeconds, 10) * 1_000,
    successThreshold: positive(probe.successThreshold, 1),
    failureThreshold: positive(probe.failureThreshold, 3),
  };
}

function positive(value: number | undefined, otherwise: number): number {
  return value !== undefined && value > 0 ? value : otherwise;
}
