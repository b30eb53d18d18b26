import type { Pod } from "../kube/types.ts";
import type { Clock, Timer } from "../lib/clock.ts";
import type { MetricsRegistry } from "../lib/metrics.ts";
import { afterRun, followContainer, nextDue, type ProbeState, type Surroundings } from "./decide.ts";
import { createProbeMetrics, type ProbeMetrics } from "./metrics.ts";
import type { ProbeOutcome, Prober, ProbeType, SeenContainer, SeenPod, Verdict } from "./port.ts";
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

/** Probes the containers of pods on their schedules. One pod's probes wait for nobody else's. */
export interface ProbeManager {
  /** What a look at the runtime showed. Begins the probes of a pod seen for the first time. */
  observe(podUID: string, seen: SeenPod): void;
  /** The present verdict; undefined if the container has no such probe, or another instance is probed. */
  verdict(podUID: string, container: string, containerID: string, type: ProbeType): Verdict | undefined;
  /** The pod is stopping: only readiness still counts, and all that sidecars have. Also for a pod not seen yet. */
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
  readonly #stopping = new Set<string>();
  readonly #deps: WorkerDeps;
  readonly #running = new Set<Promise<void>>();

  constructor(deps: ProbeManagerDeps) {
    const { metrics, clock, random = Math.random, ...rest } = deps;
    this.#deps = {
      ...rest,
      clock,
      random,
      metrics: createProbeMetrics(metrics),
      startedAt: { nowMs: clock.now(), monotonicMs: clock.monotonic() },
      track: (run) => {
        this.#running.add(run);
        void run.finally(() => this.#running.delete(run));
      },
    };
  }

  observe(podUID: string, seen: SeenPod): void {
    const present = this.#pods.get(podUID);
    if (present !== undefined) {
      present.observe(seen);
      return;
    }
    const specs = probesOf(seen.pod);
    if (specs.length === 0) return;
    const probes = new PodProbes(podUID, specs, this.#deps);
    this.#pods.set(podUID, probes);
    probes.observe(seen);
    // Only now: what was reported of it holds until its end.
    if (this.#stopping.has(podUID)) probes.stopLiveness();
  }

  verdict(podUID: string, container: string, containerID: string, type: ProbeType): Verdict | undefined {
    return this.#pods.get(podUID)?.verdict(container, containerID, type);
  }

  stopLiveness(podUID: string): void {
    this.#stopping.add(podUID);
    this.#pods.get(podUID)?.stopLiveness();
  }

  remove(podUID: string): void {
    this.#pods.get(podUID)?.close();
    this.#pods.delete(podUID);
    this.#stopping.delete(podUID);
  }

  async close(): Promise<void> {
    for (const podUID of this.#pods.keys()) this.remove(podUID);
    await Promise.allSettled(this.#running);
  }
}

interface WorkerDeps extends Omit<Required<ProbeManagerDeps>, "metrics"> {
  metrics: ProbeMetrics;
  /** When the agent started, by both clocks. */
  startedAt: Pick<Surroundings, "nowMs" | "monotonicMs">;
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
  #isStarted({ name, containerID }: SeenContainer): boolean {
    const startup = this.#of(name).find(({ spec }) => spec.type === "Startup");
    return startup === undefined || startup.verdictOf(containerID) === "success";
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
  // Ends the run under way, when the instance that it is about is history.
  #instance = new AbortController();
  #state: ProbeState | undefined;
  #seen: { pod: SeenPod; container: SeenContainer } | undefined;
  #timer: { dueMs: number; timer: Timer } | undefined;
  #isRunning = false;
  #isClosed = false;

  constructor(podUID: string, spec: ProbeSpec, deps: WorkerDeps, onChange: (type: ProbeType) => void) {
    this.spec = spec;
    this.#podUID = podUID;
    this.#deps = deps;
    this.#onChange = onChange;
  }

  /** Whoever observes reads the verdicts afterwards: nobody is told of a change. */
  observe(pod: SeenPod, container: SeenContainer, isStarted: boolean): void {
    if (this.#isClosed) return;
    const { clock } = this.#deps;
    const before = this.#state;
    this.#seen = { pod, container };
    this.#state = followContainer(this.spec, before, container, {
      isStarted,
      nowMs: clock.now(),
      monotonicMs: clock.monotonic(),
      spreadMs: before === undefined ? this.#spreadMs(container) : 0,
    });
    if (!container.isRunning || before?.containerID !== container.containerID) {
      this.#instance.abort();
      this.#instance = new AbortController();
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
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#instance.abort();
    this.#timer?.timer.cancel();
    this.#timer = undefined;
    if (this.#seen !== undefined) this.#deps.metrics.forget(this.#seen.pod.pod, this.#podUID, this.spec);
  }

  // Right after its own start the agent meets many containers at once: their probes need not all come together.
  #spreadMs({ startedAtMs }: SeenContainer): number {
    const { clock, startedAt, random } = this.#deps;
    const { periodMs } = this.spec;
    const isJustUp = clock.monotonic() - startedAt.monotonicMs < periodMs;
    return isJustUp && startedAtMs < startedAt.nowMs ? random() * periodMs : 0;
  }

  #schedule(): void {
    const dueMs = this.#isRunning || this.#isClosed ? undefined : this.#state?.dueMs;
    if (this.#timer?.dueMs === dueMs) return;
    this.#timer?.timer.cancel();
    this.#timer = undefined;
    if (dueMs === undefined) return;
    const { clock } = this.#deps;
    const inMs = Math.max(0, dueMs - clock.monotonic());
    this.#timer = { dueMs, timer: clock.after(inMs, () => this.#deps.track(this.#run(dueMs))) };
  }

  async #run(dueMs: number): Promise<void> {
    this.#timer = undefined;
    if (this.#seen === undefined) return;
    const { clock, prober, metrics } = this.#deps;
    const { container, probe } = this.spec;
    const { pod, podIP } = this.#seen.pod;
    const { containerID } = this.#seen.container;
    const { signal } = this.#instance;
    const beganMs = clock.monotonic();
    this.#isRunning = true;
    const outcome = await prober(probe, { pod, container, containerID, podIP }, signal);
    this.#isRunning = false;
    if (!signal.aborted && this.#state !== undefined) {
      metrics.ran(pod, this.#podUID, this.spec, outcome, (clock.monotonic() - beganMs) / 1_000);
      this.#say(pod, outcome);
      this.#conclude(this.#state, outcome, dueMs);
    }
    this.#schedule();
  }

  #conclude(state: ProbeState, outcome: ProbeOutcome, dueMs: number): void {
    const after = afterRun(this.spec, state, outcome);
    const next = nextDue(dueMs, this.spec.periodMs, this.#deps.clock.monotonic());
    this.#state = after.isHeld ? after : { ...after, dueMs: next };
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
