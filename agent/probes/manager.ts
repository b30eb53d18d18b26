import type { Pod } from "../kube/types.ts";
import type { Clock, Timer } from "../lib/clock.ts";
import type { MetricsRegistry } from "../lib/metrics.ts";
import { afterRun, followContainer, nextDue, type ProbeState } from "./decide.ts";
import { createProbeMetrics, type ProbeMetrics } from "./metrics.ts";
import type { ProbeOutcome, Prober, ProbeTarget, ProbeType, SeenContainer, SeenPod, Verdict } from "./port.ts";
import { type ProbeSpec, probesOf } from "./spec.ts";

export interface ProbeManagerDeps {
  clock: Clock;
  prober: Prober;
  /** For the `prober_*` families. */
  metrics: MetricsRegistry;
  /** Says something about a container to people. */
  onEvent(pod: Pod, container: string, reason: "Unhealthy" | "ProbeWarning", message: string): void;
  /** A verdict changed: the pod's status, or what to do with its container, may have changed. */
  onChange(podUID: string, type: ProbeType): void;
  random?: () => number;
}

/** What the probes of one pod say about a container's instance. */
export interface ProbeVerdicts {
  verdict(container: string, containerID: string, type: ProbeType): Verdict | undefined;
}

/** Probes the containers of pods on their schedules. One pod's probes wait for nobody else's. */
export interface ProbeManager {
  /** What a look at the runtime showed. Begins the probes of a pod seen for the first time. */
  observe(podUID: string, seen: SeenPod): void;
  /** The present verdict; undefined if the container has no such probe, or another instance is probed. */
  verdict(podUID: string, container: string, containerID: string, type: ProbeType): Verdict | undefined;
  /** The pod is stopping: only readiness still counts, and all that sidecars have. */
  stopLiveness(podUID: string): void;
  /** Ends all probes of the pod. */
  remove(podUID: string): void;
  /** Ends everything; resolves when no probe runs any more. */
  close(): Promise<void>;
}

/** Makes a manager; its start is what "the agent started" means to probes of containers that ran before. */
export function createProbeManager(deps: ProbeManagerDeps): ProbeManager {
  return new Manager(deps);
}

class Manager implements ProbeManager {
  readonly #pods = new Map<string, PodProbes>();
  readonly #deps: WorkerDeps;
  readonly #running = new Set<Promise<void>>();

  constructor(deps: ProbeManagerDeps) {
    const { metrics, clock, random = Math.random, ...rest } = deps;
    this.#deps = {
      ...rest,
      clock,
      random,
      metrics: createProbeMetrics(metrics, clock.now()),
      agentStartedAtMs: clock.now(),
      track: (run) => {
        this.#running.add(run);
        void run.finally(() => this.#running.delete(run));
      },
    };
  }

  observe(podUID: string, seen: SeenPod): void {
    let probes = this.#pods.get(podUID);
    if (probes === undefined) {
      const specs = probesOf(seen.pod);
      if (specs.length === 0) return;
      probes = new PodProbes(podUID, specs, this.#deps);
      this.#pods.set(podUID, probes);
    }
    probes.observe(seen);
  }

  verdict(podUID: string, container: string, containerID: string, type: ProbeType): Verdict | undefined {
    return this.#pods.get(podUID)?.verdict(container, containerID, type);
  }

  stopLiveness(podUID: string): void {
    this.#pods.get(podUID)?.stopLiveness();
  }

  remove(podUID: string): void {
    this.#pods.get(podUID)?.close();
    this.#pods.delete(podUID);
  }

  async close(): Promise<void> {
    for (const podUID of this.#pods.keys()) this.remove(podUID);
    await Promise.allSettled(this.#running);
  }
}

interface WorkerDeps extends Omit<Required<ProbeManagerDeps>, "metrics"> {
  metrics: ProbeMetrics;
  agentStartedAtMs: number;
  track(run: Promise<void>): void;
}

class PodProbes {
  readonly #workers: Worker[];

  constructor(podUID: string, specs: readonly ProbeSpec[], deps: WorkerDeps) {
    const started = (name: string, type: ProbeType) => {
      deps.onChange(podUID, type);
      if (type === "Startup") this.#reconsider(name);
    };
    this.#workers = specs.map((spec) => new Worker(podUID, spec, deps, (type) => started(spec.container.name, type)));
  }

  observe(seen: SeenPod): void {
    for (const container of seen.containers) {
      for (const worker of this.#of(container.name)) worker.observe(seen, container, this.#isStarted(container));
    }
  }

  verdict(container: string, containerID: string, type: ProbeType): Verdict | undefined {
    return this.#of(container)
      .find((worker) => worker.spec.type === type)
      ?.verdictOf(containerID);
  }

  stopLiveness(): void {
    for (const worker of this.#workers) {
      if (!worker.spec.isSidecar && worker.spec.type !== "Readiness") worker.close();
    }
  }

  close(): void {
    for (const worker of this.#workers) worker.close();
  }

  #of(container: string): Worker[] {
    return this.#workers.filter(({ spec }) => spec.container.name === container);
  }

  // Startup comes first in the list, so that the others see what it has just learnt.
  #isStarted({ name, containerID, wasStarted }: SeenContainer): boolean {
    const startup = this.#of(name).find(({ spec }) => spec.type === "Startup");
    if (startup === undefined) return true;
    const verdict = startup.verdictOf(containerID);
    return verdict === "success" || (verdict === undefined && wasStarted);
  }

  #reconsider(container: string): void {
    for (const worker of this.#of(container)) {
      if (worker.spec.type !== "Startup") worker.reconsider((seen) => this.#isStarted(seen));
    }
  }
}

class Worker {
  readonly spec: ProbeSpec;
  readonly #podUID: string;
  readonly #deps: WorkerDeps;
  readonly #onChange: (type: ProbeType) => void;
  readonly #stop = new AbortController();
  #state: ProbeState | undefined;
  #seen: { pod: SeenPod; container: SeenContainer } | undefined;
  #timer: { dueMs: number; timer: Timer } | undefined;
  #isRunning = false;
  #isSpread = false;

  constructor(podUID: string, spec: ProbeSpec, deps: WorkerDeps, onChange: (type: ProbeType) => void) {
    this.spec = spec;
    this.#podUID = podUID;
    this.#deps = deps;
    this.#onChange = onChange;
  }

  observe(pod: SeenPod, container: SeenContainer, isStarted: boolean): void {
    if (this.#stop.signal.aborted) return;
    this.#seen = { pod, container };
    const { agentStartedAtMs } = this.#deps;
    const before = this.#state?.verdict;
    this.#state = followContainer(this.spec, this.#state, container, { isStarted, agentStartedAtMs });
    // Who observes reads the verdicts afterwards: no need to tell.
    if (before !== this.#state.verdict && this.spec.type === "Startup" && this.#state.verdict === "success") {
      this.#onChange("Startup");
    }
    this.#schedule();
  }

  /** The startup probe of the container has come to its verdict. */
  reconsider(isStarted: (seen: SeenContainer) => boolean): void {
    if (this.#seen === undefined) return;
    this.observe(this.#seen.pod, this.#seen.container, isStarted(this.#seen.container));
  }

  verdictOf(containerID: string): Verdict | undefined {
    return this.#state?.containerID === containerID ? this.#state.verdict : undefined;
  }

  close(): void {
    this.#stop.abort();
    this.#timer?.timer.cancel();
    this.#timer = undefined;
    const { pod } = this.#seen ?? {};
    if (pod !== undefined) this.#deps.metrics.forget(pod.pod, this.#podUID, this.spec);
  }

  #schedule(): void {
    const dueMs = this.#isRunning ? undefined : this.#state?.dueMs;
    if (this.#timer?.dueMs === dueMs) return;
    this.#timer?.timer.cancel();
    this.#timer = undefined;
    if (dueMs === undefined) return;
    const { clock } = this.#deps;
    const inMs = Math.max(0, dueMs - clock.now()) + this.#spread();
    this.#timer = { dueMs, timer: clock.after(inMs, () => this.#deps.track(this.#run(dueMs))) };
  }

  // Right after its own start the agent meets many containers at once: their probes need not all come together.
  #spread(): number {
    if (this.#isSpread) return 0;
    this.#isSpread = true;
    const { clock, agentStartedAtMs, random } = this.#deps;
    const startedAtMs = this.#seen?.container.startedAtMs ?? 0;
    const isFromBefore = startedAtMs < agentStartedAtMs;
    return isFromBefore && clock.now() - agentStartedAtMs < this.spec.periodMs ? random() * this.spec.periodMs : 0;
  }

  async #run(dueMs: number): Promise<void> {
    this.#timer = undefined;
    const seen = this.#seen;
    if (seen === undefined || this.#stop.signal.aborted) return;
    const { clock, prober } = this.#deps;
    const { pod, podIP } = seen.pod;
    const { containerID } = seen.container;
    const target: ProbeTarget = { pod, container: this.spec.container, containerID, podIP };
    const beganMs = clock.monotonic();
    this.#isRunning = true;
    const outcome = await prober(this.spec.probe, target, this.#stop.signal);
    this.#isRunning = false;
    if (this.#stop.signal.aborted) return;
    if (this.#state?.containerID !== containerID) {
      this.#schedule(); // the instance that this was about is history
      return;
    }
    this.#deps.metrics.ran(pod, this.#podUID, this.spec, outcome, (clock.monotonic() - beganMs) / 1_000);
    this.#say(pod, outcome);
    this.#conclude(this.#state, outcome, dueMs);
  }

  #conclude(state: ProbeState, outcome: ProbeOutcome, dueMs: number): void {
    const after = afterRun(this.spec, state, outcome);
    const isDue = state.dueMs !== undefined && !after.isHeld; // it may have been closed while the probe ran
    const next = isDue ? nextDue(dueMs, this.spec.periodMs, this.#deps.clock.now()) : undefined;
    this.#state = { ...after, dueMs: next };
    this.#schedule();
    if (after.verdict !== state.verdict) this.#onChange(this.spec.type);
  }

  #say(pod: Pod, { kind, output }: ProbeOutcome): void {
    const { type, container } = this.spec;
    const say = (reason: "Unhealthy" | "ProbeWarning", message: string) =>
      this.#deps.onEvent(pod, container.name, reason, message);
    if (kind === "failure") say("Unhealthy", `${type} probe failed: ${output}`);
    else if (kind === "warning") say("ProbeWarning", `${type} probe warning: ${output}`);
    else if (kind === "error") say("Unhealthy", `${type} probe errored and resulted in unknown state: ${output}`);
  }
}
