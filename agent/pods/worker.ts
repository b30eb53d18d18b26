import { isStaticPod, uidOf } from "../kube/pod-resources.ts";
import type { Container, Pod, PodStatus } from "../kube/types.ts";
import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { isAbort, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import type { ProbeManager } from "../probes/manager.ts";
import type { PodSnapshot, ContainerStatus as RuntimeContainer, RuntimeEvent } from "../runtime/port.ts";
import { Announcements } from "./announcements.ts";
import { deadContainersKept, type RemainsUse } from "./container-gc.ts";
import { decide, isOver } from "./decide.ts";
import { type ChangedObject, isOneOf, stepsNeeding } from "./dependents.ts";
import { activeDeadlineMs, deadlineExceeded, type PodEnding, rejection } from "./ending.ts";
import { attachLimitReason, type Executor } from "./executor.ts";
import type { WorkerFacts } from "./explain.ts";
import { Instances } from "./instances.ts";
import type { PodLocal, ReadyImage } from "./local.ts";
import type { WorkerView } from "./metrics-gauges.ts";
import { graceSecondsOf, specContainers } from "./names.ts";
import { ObjectDeletion } from "./object-deletion.ts";
import { isEventShown, isStepShown, PodObserver } from "./observer.ts";
import { actionKey, instanceOf, isAlive, type Plan, type PodAction } from "./plan.ts";
import { podChanges, resizedContainers } from "./pod-changes.ts";
import { PodEnd } from "./pod-end.ts";
import type { PodDeps } from "./port.ts";
import type { Replacements } from "./replacements.ts";
import { isResizeDue } from "./resize/actuate.ts";
import { resizableContainers } from "./resize/allocation.ts";
import type { PodResizes } from "./resize/port.ts";
import { buildPodStatus, isTerminalPhase } from "./status.ts";
import {
  finishedContainers,
  hasReadySandbox,
  previousStatus,
  probedContainers,
  waitingReasons,
  withheldUntilStopped,
  withoutPostStart,
} from "./status-inputs.ts";
import type { StatusWriter } from "./status-writer.ts";
import { steadyClock } from "./steady-clock.ts";
import { Steps } from "./steps.ts";
import { VolumeProgress } from "./volume-progress.ts";

/** Rest after a failed read of the runtime's state. */
export const observeRetry = { baseMs: 100, maxMs: 5_000, jitter: 0.2 };
// Longest rest between two looks at a pod of which nothing is heard: kubelet's syncFrequency.
const resyncMs = 60_000;

export interface WorkerDeps extends PodDeps {
  executor: Pick<Executor, "execute">;
  writer: StatusWriter;
  probes: ProbeManager;
  resizes: PodResizes;
  replacements: Replacements;
  maskedPaths: readonly string[];
  /** The worker has nothing left to do and its pod is gone. */
  onFinished(podUID: string): void;
}

/**
 * Owns one pod, from the moment it is bound to the node until nothing of it is left:
 *
 *     sync ──(deleted, finished, gone)──► terminating ──(nothing runs)──► cleaned up ──(object gone)──► finished
 *
 * Each pass looks at the runtime (only if something may have changed there), decides, reports, and begins the steps that
 * the plan names. Steps run beside each other; the end of each causes another pass.
 */
export class PodWorker {
  readonly uid: string;
  readonly namespace: string;
  readonly #deps: WorkerDeps;
  /** What the worker notes and compares is on this clock; only what the API server gets is on the machine's. */
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #loop: Loop;
  readonly #observer: PodObserver;
  readonly #steps: Steps;
  readonly #images = new Map<string, ReadyImage>();
  readonly #instances: Instances;
  readonly #announcements: Announcements;
  readonly #volumes = new VolumeProgress();
  readonly #end = new PodEnd();
  readonly #deletion: ObjectDeletion;
  // Ends pulls, volume work and postStart hooks when the pod has to go; other steps finish first.
  readonly #waits = new AbortController();
  #pod: Pod;
  #given: Pod | undefined;
  #isGone = false;
  #knowsReplaced = false;

  constructor(pod: Pod, deps: WorkerDeps) {
    this.uid = uidOf(pod);
    this.namespace = pod.metadata.namespace ?? "";
    this.#pod = pod;
    this.#deps = deps;
    this.#clock = steadyClock(deps.clock);
    this.#log = deps.log.child({ pod: `${pod.metadata.namespace ?? ""}/${pod.metadata.name}`, podUID: this.uid });
    this.#observer = new PodObserver(this.uid, deps);
    this.#announcements = new Announcements(deps);
    this.#instances = new Instances(deps.settings.crashBackoff);
    this.#steps = new Steps(this.#clock, deps.clock, this.#log);
    const { client, clock } = deps;
    this.#deletion = new ObjectDeletion({ client, clock, log: this.#log, onRetry: () => this.#loop.wake() });
    this.#loop = new Loop({
      clock,
      pass: async () => await this.#pass(),
      onError: (err) => {
        this.#log.warn({ err: messageOf(err) }, "pod not synced, trying again");
        deps.timelines?.notSynced(this.#pod, messageOf(err));
        this.#announcements.notLooked(this.#pod, messageOf(err));
      },
      retryMs: (failures) => backoffMs(failures, observeRetry),
      resyncMs,
    });
  }

  /** Works until `signal` aborts and every step under way has ended. Containers keep running. */
  async run(signal: AbortSignal): Promise<void> {
    const stop = () => {
      this.#waits.abort();
      this.#instances.abortHooks();
    };
    signal.addEventListener("abort", stop, { once: true });
    try {
      await this.#loop.run(signal);
      await this.#steps.settled();
    } finally {
      signal.removeEventListener("abort", stop);
      this.#deps.probes.remove(this.uid);
      this.#end.settle();
    }
  }

  /** The API server has this object now. */
  update(pod: Pod): void {
    const changes = podChanges(this.#pod, pod);
    this.#pod = pod;
    if (changes.spec) this.#forgetFailures(); // what failed for the old one may work with the new one
    for (const name of changes.images) this.#forgetImage(name);
    if (changes.texts) {
      this.#contentIsOld(); // downward API volumes show both, or lacked what is there now
      this.#steps.forgetFailures((key) => key.startsWith("start/")); // and variables, from which subPathExpr is made
    }
    this.#loop.wake();
  }

  /** The API server has no such object any more. */
  remove(): void {
    this.#isGone = true;
    this.#loop.wake();
  }

  /** Something may have changed in the runtime: what `event` says, or anything. */
  runtimeChanged(event?: RuntimeEvent): void {
    if (event === undefined) this.#observer.invalidate();
    else this.#observer.expect((observed) => isEventShown(event, observed));
    this.#loop.wake();
  }

  /**
   * The node ends the pod, within `graceSeconds` if given. The first reason counts.
   *
   * @returns resolves when nothing of it runs any more
   */
  async end(ending: PodEnding, graceSeconds?: number): Promise<void> {
    this.#end.because(ending);
    this.#beginTermination(this.#pod, this.#clock.now());
    if (graceSeconds !== undefined) this.#end.shorten(graceSeconds, this.#clock.now());
    this.#loop.wake();
    await this.#end.settled();
  }

  /** True until nothing of the pod runs any more, for good: until then it uses what the node has. */
  get isActive(): boolean {
    return !this.#end.isStopped && this.#end.reason?.isRejection !== true;
  }

  get pod(): Pod {
    return this.#pod;
  }

  /** Its source has the pod no more: nothing will make it start again. */
  get isGone(): boolean {
    return this.#isGone;
  }

  /** Content of volumes is out of date. */
  contentChanged(): void {
    this.#contentIsOld();
    this.#loop.wake();
  }

  #contentIsOld(): void {
    this.#volumes.changed();
    this.#steps.forgetFailures((key) => key === "volumes");
  }

  // Another image is another program: its pulls and crashes begin from zero.
  #forgetImage(name: string): void {
    this.#images.delete(name);
    this.#instances.crash.delete(name);
    this.#steps.forgetFailures((key) => key === `image/${name}`);
  }

  /** An object of its namespace changed: what failed and may have failed for want of it is tried again. */
  objectChanged(changed: ChangedObject): void {
    const meant = stepsNeeding(this.#pod, changed);
    if (meant.length === 0) return;
    this.#steps.forgetFailures((key) => isOneOf(key, meant));
    this.#loop.wake();
  }

  wake(): void {
    this.#loop.wake();
  }

  /** These dead containers have to go, by ID. */
  condemn(containerIDs: readonly string[]): void {
    for (const id of containerIDs) this.#instances.condemned.add(id);
    this.#loop.wake();
  }

  /** What the records of its dead containers are still good for. */
  get remainsUse(): RemainsUse {
    if (!this.#end.isCleanedUp) return "needed";
    const { phase, reason } = this.#deps.writer.known(this.uid)?.status ?? {};
    return phase === "Failed" && reason === "Evicted" ? "useless" : "shown";
  }

  /** What gauges show of the pod. */
  get view(): WorkerView {
    const { observed } = this;
    const isStopped = observed !== undefined && !observed.containers.some(isAlive);
    const lifecycle = this.#end.termination === undefined ? "sync" : isStopped ? "terminated" : "terminating";
    return { pod: this.#pod, isGone: this.#isGone, lifecycle, observed };
  }

  /** What explains the pod's state; the rest is in its timeline. */
  get facts(): WorkerFacts {
    const { writer, node, resizes } = this.#deps;
    return {
      pod: resizes.given(this.#pod),
      status: writer.wanted(this.uid) ?? this.#pod.status ?? {},
      observed: this.observed,
      local: this.#local(),
      nowMs: this.#clock.now(),
      lastWords: this.#observer.lastWords,
      networkProblem: node.networkProblem(),
    };
  }

  /** The runtime's view that decisions are based on. */
  get observed(): PodSnapshot | undefined {
    return this.#observer.snapshot;
  }

  #forgetFailures(): void {
    // Pulls have their own backoff, which a change elsewhere does not shorten.
    this.#steps.forgetFailures((key) => !key.startsWith("image/"));
  }

  async #pass(): Promise<number | undefined> {
    const { clock, writer, node } = this.#deps;
    const observed = await this.#observer.observe(this.#pod, (id) => this.#steps.isRunning(`kill/${id}/`));
    this.#announcements.looked();
    await this.#recallReplaced(observed);
    const pod = this.#givenPod();
    const nowMs = this.#clock.now();
    const wallMs = clock.now();
    this.#instances.observe(observed, nowMs, wallMs);
    this.#forgetGone(observed);
    this.#observeProbes(pod, observed);
    this.#updateTermination(pod, observed, nowMs, wallMs);
    this.#rejectIfFull(pod, observed, nowMs);
    this.#volumes.look(pod, nowMs);
    if (this.#end.termination === undefined && node.isRuntimeReady()) this.#deps.objects.register(pod);

    let plan = decide(pod, observed, this.#local(), nowMs);
    this.#noteResize(pod, observed);
    const status = this.#status(pod, observed, plan, wallMs);
    if (!this.#isGone) {
      writer.set(
        this.uid,
        withheldUntilStopped(status, writer.wanted(this.uid) ?? pod.status, this.#isStill(observed)),
      );
    }
    if (
      this.#end.termination === undefined &&
      (isTerminalPhase(status.phase) || isOver(pod, observed, this.#local()))
    ) {
      this.#beginTermination(pod, nowMs);
      plan = decide(pod, observed, this.#local(), nowMs);
    }
    this.#end.observed(this.#isStill(observed));
    this.#announcements.network(pod, this.#end.termination !== undefined);
    this.#announcements.planned(pod, plan);
    for (const action of plan.actions) this.#begin(action, observed, nowMs);
    this.#deleteIfDone(pod);
    if (plan.isFinished) this.#deps.onFinished(this.uid);
    const deadlineMs = this.#end.termination === undefined ? activeDeadlineMs(pod, status) : undefined;
    const dueMs = Math.min(plan.wakeAtMs ?? Number.POSITIVE_INFINITY, this.#volumes.dueMs ?? Number.POSITIVE_INFINITY);
    const restMs = Math.min(dueMs - nowMs, (deadlineMs ?? Number.POSITIVE_INFINITY) - wallMs);
    return Math.min(resyncMs, Math.max(1, restMs));
  }

  // With the resources that it was given, which may not be those that its spec asks for by now.
  #givenPod(): Pod {
    const before = this.#given;
    const pod = this.#deps.resizes.given(this.#pod);
    this.#given = pod;
    if (before === undefined || before === pod) return pod;
    const changed = resizedContainers(before, pod);
    // With other resources it may live: what it crashed for may be over.
    for (const name of changed) this.#instances.crash.delete(name);
    if (changed.length > 0) {
      this.#contentIsOld(); // downward API volumes show them
      this.#forgetFailures();
    }
    return pod;
  }

  // Steps about what is not there any more are not wanted again: what failed of them is of no interest.
  #forgetGone({ containers, sandboxes }: PodSnapshot): void {
    const present = new Set([...containers, ...sandboxes].map(({ id }) => id));
    this.#steps.forgetFailures((key) => {
      const id = instanceOf(key);
      return id !== undefined && !present.has(id);
    });
  }

  // Which instances an agent before this one stopped to replace them. Once: from then on it is known.
  async #recallReplaced({ containers }: PodSnapshot): Promise<void> {
    if (this.#knowsReplaced) return;
    for (const { container } of specContainers(this.#pod)) {
      const newest = containers.find(({ name }) => name === container.name);
      if (newest?.state !== "exited") continue;
      const id = await this.#deps.replacements.read(this.uid, container.name);
      if (id === newest.id) this.#instances.replaced.add(id);
    }
    this.#knowsReplaced = true;
  }

  async #noteReplaced(action: PodAction): Promise<void> {
    if ((action.kind !== "PreStop" && action.kind !== "KillContainer") || action.replaces !== true) return;
    const { containerID, container } = action;
    await this.#deps.replacements.note(this.uid, container, containerID).catch((err: unknown) => {
      // It has to stop all the same; only an agent that is killed now would miss the note.
      this.#log.warn({ containerID, err: messageOf(err) }, "replacement of a container not noted");
    });
  }

  // Nothing of the pod runs, and nothing is on its way.
  #isStill({ containers, sandboxes }: PodSnapshot): boolean {
    const isQuiet = !this.#steps.isRunning("sandbox", "start/");
    return isQuiet && !containers.some(isAlive) && !sandboxes.some(({ ready }) => ready);
  }

  #noteResize(pod: Pod, { containers }: PodSnapshot): void {
    const progress = this.#deps.resizes.progress(this.uid);
    if (progress === undefined || this.#end.termination !== undefined) return;
    const isReplacing = resizableContainers(pod.spec).some(({ name }) => {
      const newest = containers.find((container) => container.name === name);
      return newest?.state === "exited" && this.#instances.replaced.has(newest.id);
    });
    this.#deps.resizes.observed(pod, isReplacing || isResizeDue(pod, progress, containers));
  }

  #observeProbes(pod: Pod, observed: PodSnapshot): void {
    if (this.#end.isCleanedUp) return;
    const [podIP = ""] = this.#podIPs(pod);
    const containers = probedContainers(pod, observed, this.#previous(pod), this.#steps.attempts);
    if (containers.length > 0) this.#deps.probes.observe(this.uid, { pod, podIP, containers });
  }

  #podIPs(pod: Pod): readonly string[] {
    return pod.spec.hostNetwork === true ? this.#deps.node.hostIPs() : this.#observer.podIPs;
  }

  // What we said last; before that, what the API server has.
  #previous(pod: Pod): PodStatus {
    const { writer } = this.#deps;
    return previousStatus(writer.wanted(this.uid), this.#shown(pod) ?? pod.status ?? {});
  }

  // As the API server has it. That a static pod has ended once means nothing, as to kubelet: after a shutdown of the machine,
  // say, it begins anew.
  #shown(pod: Pod): PodStatus | undefined {
    const status = this.#deps.writer.known(this.uid)?.status;
    return isStaticPod(pod) && isTerminalPhase(status?.phase) ? undefined : status;
  }

  #updateTermination(pod: Pod, observed: PodSnapshot, nowMs: number, wallMs: number): void {
    const isOver = isTerminalPhase(this.#shown(pod)?.phase) || isTerminalPhase(pod.status?.phase);
    const isDue = isOver || (activeDeadlineMs(pod, this.#previous(pod)) ?? Number.POSITIVE_INFINITY) <= wallMs;
    if (isDue && !isOver && this.#end.reason === undefined && this.#end.termination === undefined) {
      this.#end.because(deadlineExceeded);
      this.#announcements.deadline(pod);
    }
    if (this.#isGone || pod.metadata.deletionTimestamp !== undefined || isDue) this.#beginTermination(pod, nowMs);
    const { deletionGracePeriodSeconds } = pod.metadata;
    if (deletionGracePeriodSeconds !== undefined) this.#end.shorten(deletionGracePeriodSeconds, this.#clock.now());
    // Clean-up made the probes forget that the pod is stopping.
    if (this.#end.reopen(observed)) this.#deps.probes.stopLiveness(this.uid);
  }

  // The scheduler counted on room for volumes that others have taken: elsewhere the pod may have it. One that ran here
  // has its volumes.
  #rejectIfFull(pod: Pod, { containers }: PodSnapshot, nowMs: number): void {
    const attempt = this.#steps.attempts.get("volumes");
    if (attempt?.state !== "failed" || attempt.reason !== attachLimitReason) return;
    if (this.#end.termination !== undefined || containers.length > 0) return;
    this.#end.because(rejection(attachLimitReason, attempt.message));
    this.#announcements.rejected(pod, attachLimitReason, attempt.message);
    this.#deps.metrics?.rejected(attachLimitReason);
    this.#beginTermination(pod, nowMs);
  }

  #beginTermination(pod: Pod, nowMs: number): void {
    if (!this.#end.begin(pod.metadata.deletionGracePeriodSeconds ?? graceSecondsOf(pod), nowMs)) return;
    this.#waits.abort();
    this.#volumes.stop();
    this.#deps.probes.stopLiveness(this.uid);
    this.#log.info({ graceSeconds: this.#end.termination?.graceSeconds }, "pod is stopping");
  }

  #local(): PodLocal {
    return {
      attempts: this.#steps.attempts,
      images: this.#images,
      crash: this.#instances.crash,
      replaced: this.#instances.replaced,
      endedAtMs: this.#instances.endedAtMs,
      finished: finishedContainers(this.#pod, this.#previous(this.#pod)),
      condemned: this.#instances.condemned,
      announced: this.#instances.announced,
      stoppedSandboxes: this.#instances.stoppedSandboxes,
      hooks: this.#instances.hooks,
      deadContainersMax: deadContainersKept(this.#deps.settings.deadContainers),
      verdict: (container, id, type) => this.#deps.probes.verdict(this.uid, container, id, type),
      volumes: this.#volumes.state,
      awaitedVolumes: this.#volumes.awaited,
      terminating: this.#end.termination,
      areVolumesGone: this.#end.areVolumesGone,
      isCleanedUp: this.#end.isCleanedUp,
      isGone: this.#isGone,
      resize: this.#deps.resizes.progress(this.uid),
      hasPlainContainers: this.#deps.runtime.hasPlainContainers?.() === true,
      isRuntimeReady: this.#deps.node.isRuntimeReady(),
      isNetworkReady: this.#deps.node.isNetworkReady(),
    };
  }

  #status(pod: Pod, observed: PodSnapshot, plan: Plan, wallMs: number) {
    const { node } = this.#deps;
    const isHost = pod.spec.hostNetwork === true;
    const { attempts } = this.#steps;
    const hasSandbox = hasReadySandbox(pod, observed, this.#volumes.state);
    const hostIPs = node.hostIPs();
    const previous = this.#previous(pod);
    this.#announcements.hostIPs(pod, previous, hostIPs);
    const isTerminated =
      this.#end.termination !== undefined &&
      !observed.containers.some(isAlive) &&
      !this.#steps.isRunning("sandbox", "start/");
    return buildPodStatus(
      {
        pod,
        observed: withoutPostStart(pod, observed, attempts),
        previous,
        waiting: waitingReasons(pod, attempts, plan),
        terminationMessages: this.#observer.lastWords,
        hasSandbox,
        podIPs: isHost ? hostIPs : hasSandbox ? this.#observer.podIPs : [],
        hostIPs,
        runtimeName: node.runtimeName,
        isTerminated,
        replaced: this.#instances.replacedNames(observed),
        hasRecursiveReadOnly: (handler) => node.hasRecursiveReadOnly(handler),
        hasVolumeImages: this.#deps.settings.imageVolumeWithDigest,
        hasStopSignals: this.#deps.settings.stopSignals,
        hasReadyToStart: this.#deps.settings.readyToStartCondition,
        ending: isTerminated ? this.#end.reason : undefined,
        resize: {
          actual: this.#deps.resizes.progress(this.uid)?.actual,
          states: this.#deps.resizes.states(this.uid),
        },
        isStarted: (container, status) => this.#passes(container, status, "Startup"),
        isReady: (container, status) => this.#passes(container, status, "Readiness"),
      },
      wallMs,
    );
  }

  // Without such a probe, what runs is good.
  #passes(container: Container, status: RuntimeContainer | undefined, type: "Startup" | "Readiness"): boolean {
    const probe = type === "Startup" ? container.startupProbe : container.readinessProbe;
    if (probe === undefined) return true;
    return status !== undefined && this.#deps.probes.verdict(this.uid, container.name, status.id, type) === "success";
  }

  #begin(action: PodAction, observed: PodSnapshot, nowMs: number): void {
    const onVolumes = action.kind === "SetUpVolumes" ? this.#volumes.begin() : undefined;
    this.#instances.begin(action, observed, nowMs);
    this.#log.debug({ action }, "step begins");
    this.#steps.begin(actionKey(action), async () => await this.#run(action, observed), {
      // A runtime that shuts down says "canceled", too, and that step rests like any other.
      isGivenUp: (err) => isAbort(err) && this.#waits.signal.aborted && isOnlyWaiting(action),
      onEnd: (isSuccess) => {
        if (isSuccess && onVolumes !== undefined) onVolumes(this.#volumesDueMs());
        else if (isSuccess) this.#succeeded(action);
        else this.#observer.invalidate();
        if (action.kind === "PreStop") this.#instances.hookEnded(action.containerID);
        this.#loop.wake();
      },
    });
  }

  async #run(action: PodAction, observed: PodSnapshot): Promise<void> {
    const hook = action.kind === "PreStop" ? this.#instances.hooks.get(action.containerID) : undefined;
    await this.#noteReplaced(action);
    await this.#deps.executor.execute(action, {
      pod: this.#givenPod(),
      observed,
      podIPs: this.#podIPs(this.#pod),
      images: this.#images,
      maskedPaths: this.#deps.maskedPaths,
      signal: this.#waits.signal,
      hookSignal: hook?.stop.signal ?? this.#waits.signal,
    });
  }

  #volumesDueMs(): number | undefined {
    const inMs = this.#deps.volumes.refreshInMs(this.uid);
    return inMs === undefined ? undefined : this.#clock.now() + inMs;
  }

  #succeeded(action: PodAction): void {
    this.#instances.done(action);
    if (action.kind === "CreateSandbox") this.#announcements.sandboxMade();
    // What would not let go of a volume may have been the sandbox.
    if (action.kind === "StopSandbox") this.#steps.forgetFailures((key) => key === "teardown");
    if (action.kind === "TearDownVolumes") this.#end.volumesTornDown();
    if (action.kind === "CleanUp") {
      this.#end.cleanedUp();
      this.#deps.probes.remove(this.uid);
      this.#deps.resizes.ended(this.uid);
    }
    this.#observer.expect((observed) => isStepShown(action, observed));
  }

  // The object goes once the API server knows how the pod ended and nothing of it is left on the node.
  #deleteIfDone(pod: Pod): void {
    if (this.#isGone || !this.#end.isCleanedUp) return;
    const deletion = this.#deletion.begin(pod, this.#deps.writer.known(this.uid));
    if (deletion !== undefined) this.#steps.track(deletion);
  }
}

// Steps that change nothing by themselves: they may be dropped at any time.
function isOnlyWaiting({ kind }: PodAction): boolean {
  return kind === "SetUpVolumes" || kind === "EnsureImage";
}
