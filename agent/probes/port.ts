import type { Container, Pod, Probe } from "../kube/types.ts";

export type ProbeType = "Liveness" | "Readiness" | "Startup";

/** What one run of a probe came to. `output` is text for people. */
export type ProbeOutcome =
  | { kind: "success"; output: string }
  /** Counts as success; said in an event. */
  | { kind: "warning"; output: string }
  | { kind: "failure"; output: string }
  /** The probe could not be carried out: says nothing about the container. */
  | { kind: "error"; output: string };

/** What a probe is aimed at. */
export interface ProbeTarget {
  pod: Pod;
  container: Container;
  /** The runtime's ID of the instance. */
  containerID: string;
  /** "" while the pod has no address. */
  podIP: string;
}

/** Carries out one kind of probe. Never rejects; ends within the probe's timeout. */
export type Prober = (probe: Probe, target: ProbeTarget, signal: AbortSignal) => Promise<ProbeOutcome>;

/** What is known of a container that has probes, after a look at the runtime. */
export interface SeenContainer {
  name: string;
  /** The newest instance. */
  containerID: string;
  isRunning: boolean;
  /** Unix ms; 0: not yet. */
  startedAtMs: number;
  /** The status last reported of this very instance said so. */
  wasStarted: boolean;
  wasReady: boolean;
}

/** What is known of a pod, after a look at the runtime. */
export interface SeenPod {
  pod: Pod;
  podIP: string;
  containers: readonly SeenContainer[];
}

/** `unknown`: no verdict yet, or none that counts. */
export type Verdict = "success" | "failure" | "unknown";
