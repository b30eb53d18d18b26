import { isDeepStrictEqual } from "node:util";
import { pods } from "../kube/resources.ts";
import type { Condition, Container, Pod, PodStatus } from "../kube/types.ts";
import { backoffMs } from "../lib/backoff.ts";
import { hasCode, isAbort, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import type { PodSnapshot, ContainerStatus as RuntimeContainer } from "../runtime/port.ts";
import { ownConditionTypes } from "./conditions.ts";
import { readTerminationMessage } from "./container-logs.ts";
import { unknownExitCode } from "./container-status.ts";
import { type CrashBackoff, formatDelay, noteRestart } from "./crash-backoff.ts";
import { decide, isOver } from "./decide.ts";
import { type Executor, StepError } from "./executor.ts";
import type { Attempt, PodLocal, ReadyImage, Termination } from "./local.ts";
import type { WorkerView } from "./metrics-gauges.ts";
import { describePod, podReference, specContainers, uidOf } from "./names.ts";
import { actionKey, isAlive, type Plan, type PodAction } from "./plan.ts";
import type { PodDeps } from "./port.ts";
import { sandboxState } from "./sandbox.ts";
import { buildPodStatus, isTerminalPhase } from "./status.ts";
import type { StatusWriter } from "./status-writer.ts";

/** Rest after a failed step, in ms: 1 s doubling to the 10 s after which kubelet tries a pod again. */
export const stepRetry = { baseMs: 1_000, maxMs: 10_000, jitter: 0.2 };
/** Rest after a failed read of the runtime's state. */
export const observeRetry = { baseMs: 100, maxMs: 5_000, jitter: 0.2 };
// Longest rest between two looks at a pod of which nothing is heard: kubelet's syncFrequency.
const resyncMs = 60_000;
const graceSecondsDefault = 30;
// The runtime learns of an exit and of the kernel's out-of-memory killer by different ways; the reason may come later.
const oomReasonMs = 150;
// kubelet's floor for the whole pod's grace.
const graceSecondsMin = 1;

export interface WorkerDeps extends PodDeps {
  executor: Pick<Executor, "execute">;
  writer: StatusWriter;
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
  readonly #log: Logger;
  readonly #loop: Loop;
  readonly #attempts = new Map<string, Attempt>();
  readonly #images = new Map<string, ReadyImage>();
  readonly #crash = new Map<string, CrashBackoff>();
  readonly #lastWords = new Map<string, string>();
  readonly #announced = new Map<string, number>();
  readonly #steps = new Set<Promise<void>>();
  // Ends pulls and volume work when the pod has to go; other steps finish first.
  readonly #waits = new AbortController();
  #pod: Pod;
  #observed: PodSnapshot | undefined;
  #isDirty = true;
  #volumes: PodLocal["volumes"] = "unknown";
  #volumesDueMs: number | undefined;
  #termination: Termination | undefined;
  #isGone = false;
  #isCleanedUp = false;
  #deletion: "none" | "underWay" | "done" = "none";
  #contentChanges = 0;
  #podIPs: string[] = [];
  #saidNetworkNotReady = false;

  constructor(pod: Pod, deps: WorkerDeps) {
    this.uid = uidOf(pod);
    this.namespace = pod.metadata.namespace ?? "";
    this.#pod = pod;
    this.#deps = deps;
    this.#log = deps.log.child({ pod: `${pod.metadata.namespace ?? ""}/${pod.metadata.name}`, podUID: this.uid });
    this.#loop = new Loop({
      clock: deps.clock,
      pass: async () => await this.#pass(),
      onError: (err) => this.#log.warn({ err: messageOf(err) }, "pod not synced, trying again"),
      retryMs: (failures) => backoffMs(failures, observeRetry),
      resyncMs,
    });
  }

  /** Works until `signal` aborts and every step under way has ended. Containers keep running. */
  async run(signal: AbortSignal): Promise<void> {
    const stop = () => this.#waits.abort();
    signal.addEventListener("abort", stop, { once: true });
    try {
      await this.#loop.run(signal);
      await Promise.allSettled(this.#steps);
    } finally {
      signal.removeEventListener("abort", stop);
    }
  }

  /** The API server has this object now. */
  update(pod: Pod): void {
    const before = this.#pod;
    this.#pod = pod;
    // What failed for the old spec may work with the new one.
    if (pod.metadata.generation !== before.metadata.generation) this.#forgetFailures();
    for (const { container } of specContainers(pod)) {
      const old = specContainers(before).find((candidate) => candidate.container.name === container.name)?.container;
      if (old !== undefined && old.image !== container.image) this.#forgetImage(container.name);
    }
    const isSameText =
      isDeepStrictEqual(before.metadata.labels, pod.metadata.labels) &&
      isDeepStrictEqual(before.metadata.annotations, pod.metadata.annotations);
    if (!isSameText) this.#contentIsOld(); // downward API volumes show both
    this.#loop.wake();
  }

  /** The API server has no such object any more. */
  remove(): void {
    this.#isGone = true;
    this.#loop.wake();
  }

  /** Something may have changed in the runtime. */
  runtimeChanged(): void {
    this.#isDirty = true;
    this.#loop.wake();
  }

  /** Content of volumes is out of date. */
  contentChanged(): void {
    this.#contentIsOld();
    this.objectChanged();
  }

  #contentIsOld(): void {
    this.#contentChanges += 1;
    if (this.#volumes === "ready") this.#volumes = "stale";
  }

  // Another image is another program: its pulls and crashes begin from zero.
  #forgetImage(name: string): void {
    this.#images.delete(name);
    this.#crash.delete(name);
    if (this.#attempts.get(`image/${name}`)?.state === "failed") this.#attempts.delete(`image/${name}`);
  }

  /** An object changed that the pod may refer to: what failed for want of it is tried again. */
  objectChanged(): void {
    this.#forgetFailures();
    this.#loop.wake();
  }

  wake(): void {
    this.#loop.wake();
  }

  /** What gauges show of the pod. */
  get view(): WorkerView {
    const isStopped = this.#observed !== undefined && !this.#observed.containers.some(isAlive);
    const lifecycle = this.#termination === undefined ? "sync" : isStopped ? "terminated" : "terminating";
    return { pod: this.#pod, isGone: this.#isGone, lifecycle, observed: this.#observed };
  }

  /** The runtime's view that decisions are based on. */
  get observed(): PodSnapshot | undefined {
    return this.#observed;
  }

  #forgetFailures(): void {
    for (const [key, attempt] of this.#attempts) {
      // Pulls have their own backoff, which a change elsewhere does not shorten.
      if (attempt.state === "failed" && !key.startsWith("image/")) this.#attempts.delete(key);
    }
  }

  async #pass(): Promise<number | undefined> {
    const { clock, writer, node } = this.#deps;
    const observed = await this.#observe();
    const pod = this.#pod;
    const nowMs = clock.now();
    this.#updateTermination(pod, observed, nowMs);
    if (this.#volumesDueMs !== undefined && this.#volumesDueMs <= nowMs) {
      this.#volumesDueMs = undefined; // the next set-up says when the one after it is due
      if (this.#volumes === "ready") this.#volumes = "stale";
    }
    if (this.#termination === undefined && node.isRuntimeReady()) this.#deps.objects.register(pod);

    let plan = decide(pod, observed, this.#local(), nowMs);
    const status = this.#status(pod, observed, plan, nowMs);
    if (!this.#isGone) {
      writer.set(this.uid, withheldWhileAlive(status, writer.wanted(this.uid) ?? pod.status, observed));
    }
    if (this.#termination === undefined && (isTerminalPhase(status.phase) || isOver(pod, observed))) {
      this.#beginTermination(pod, nowMs);
      plan = decide(pod, observed, this.#local(), nowMs);
    }
    this.#sayNetworkNotReady(pod);
    for (const [name, { untilMs }] of plan.backoff) this.#announceBackoff(pod, name, untilMs);
    for (const action of plan.actions) this.#begin(action, observed, nowMs);
    this.#deleteIfDone(pod);
    if (plan.isFinished) this.#deps.onFinished(this.uid);
    const dueMs = Math.min(plan.wakeAtMs ?? Number.POSITIVE_INFINITY, this.#volumesDueMs ?? Number.POSITIVE_INFINITY);
    return Math.min(resyncMs, Math.max(1, dueMs - nowMs));
  }

  async #observe(): Promise<PodSnapshot> {
    // A step or an event during a look makes it out of date: what it did may be missing from it.
    for (;;) {
      if (!this.#isDirty && this.#observed !== undefined) return this.#observed;
      await this.#look();
    }
  }

  async #look(): Promise<void> {
    this.#isDirty = false;
    try {
      let observed = await this.#deps.runtime.podSnapshot(this.uid);
      if (observed.containers.some((container) => this.#mayBeOOM(container))) {
        await this.#deps.clock.sleep(oomReasonMs);
        observed = await this.#deps.runtime.podSnapshot(this.uid);
      }
      await this.#readLastWords(observed);
      const [newest] = observed.sandboxes;
      if (newest?.ready === true && newest.ips.length > 0) {
        this.#podIPs = publishedIPs(newest.ips, this.#deps.node.hostIPs());
      }
      this.#deps.metrics?.looked(this.#pod, this.#observed, observed);
      this.#observed = observed;
    } catch (err) {
      this.#isDirty = true;
      throw err;
    }
  }

  // Killed just now, by nobody that we know of, in a container that memory is rationed for: the kernel may have done it.
  #mayBeOOM({ id, name, state, exitCode, reason }: RuntimeContainer): boolean {
    if (state !== "exited" || exitCode !== unknownExitCode || reason !== "Error") return false;
    if (this.#lastWords.has(id) || this.#hasStep(`kill/${id}/`)) return false;
    const limits = specContainers(this.#pod).find(({ container }) => container.name === name)?.container.resources
      ?.limits;
    return limits?.memory !== undefined;
  }

  async #readLastWords(observed: PodSnapshot): Promise<void> {
    for (const container of observed.containers) {
      if (container.state !== "exited" || this.#lastWords.has(container.id)) continue;
      this.#lastWords.set(container.id, await readTerminationMessage(container));
    }
    for (const id of this.#lastWords.keys()) {
      if (!observed.containers.some((container) => container.id === id)) this.#lastWords.delete(id);
    }
  }

  #updateTermination(pod: Pod, observed: PodSnapshot, nowMs: number): void {
    const known = this.#deps.writer.known(this.uid)?.status?.phase;
    const isOver = isTerminalPhase(known) || isTerminalPhase(pod.status?.phase);
    if (this.#isGone || pod.metadata.deletionTimestamp !== undefined || isOver) this.#beginTermination(pod, nowMs);
    const { deletionGracePeriodSeconds } = pod.metadata;
    if (this.#termination !== undefined && deletionGracePeriodSeconds !== undefined) {
      const graceSeconds = Math.max(graceSecondsMin, deletionGracePeriodSeconds);
      if (graceSeconds < this.#termination.graceSeconds) this.#termination = { sinceMs: nowMs, graceSeconds };
    }
    // Something runs although all was cleaned up: a step that ended late.
    if (this.#isCleanedUp && observed.sandboxes.some(({ ready }) => ready)) this.#isCleanedUp = false;
  }

  #beginTermination(pod: Pod, nowMs: number): void {
    if (this.#termination !== undefined) return;
    const seconds =
      pod.metadata.deletionGracePeriodSeconds ?? pod.spec.terminationGracePeriodSeconds ?? graceSecondsDefault;
    this.#termination = { sinceMs: nowMs, graceSeconds: Math.max(graceSecondsMin, seconds) };
    this.#waits.abort();
    this.#volumesDueMs = undefined;
    this.#log.info({ graceSeconds: this.#termination.graceSeconds }, "pod is stopping");
  }

  #local(): PodLocal {
    return {
      attempts: this.#attempts,
      images: this.#images,
      crash: this.#crash,
      volumes: this.#volumes,
      terminating: this.#termination,
      isCleanedUp: this.#isCleanedUp,
      isGone: this.#isGone,
      isRuntimeReady: this.#deps.node.isRuntimeReady(),
      isNetworkReady: this.#deps.node.isNetworkReady(),
    };
  }

  #status(pod: Pod, observed: PodSnapshot, plan: Plan, nowMs: number) {
    const { node, writer } = this.#deps;
    const isHost = pod.spec.hostNetwork === true;
    const sandbox = sandboxState(pod, observed);
    // After a restart of the agent, containers prove that their volumes were ready.
    const hasSandbox =
      sandbox.kind === "ready" &&
      (this.#volumes !== "unknown" || observed.containers.some(({ sandboxID }) => sandboxID === sandbox.sandbox.id));
    const hostIPs = node.hostIPs();
    const isTerminated =
      this.#termination !== undefined && !observed.containers.some(isAlive) && !this.#hasStep("sandbox", "start/");
    return buildPodStatus(
      {
        pod,
        observed,
        previous: previousStatus(writer.wanted(this.uid), writer.known(this.uid)?.status ?? pod.status ?? {}),
        waiting: this.#waiting(pod, plan),
        terminationMessages: this.#lastWords,
        hasSandbox,
        podIPs: isHost ? hostIPs : hasSandbox ? this.#podIPs : [],
        hostIPs,
        runtimeName: node.runtimeName,
        isTerminated,
        isStarted: () => true,
        isReady: () => true,
      },
      nowMs,
    );
  }

  #waiting(pod: Pod, plan: Plan): Map<string, { reason: string; message: string }> {
    const waiting = new Map<string, { reason: string; message: string }>();
    for (const { container } of specContainers(pod)) {
      const { name } = container;
      const backoff = plan.backoff.get(name);
      const attempt = [this.#attempts.get(`start/${name}`), this.#attempts.get(`image/${name}`)].find(
        (candidate) => candidate?.state === "failed" && candidate.reason !== "ContainerCreating",
      );
      if (attempt?.state === "failed") waiting.set(name, { reason: attempt.reason, message: attempt.message });
      if (backoff !== undefined) {
        waiting.set(name, { reason: "CrashLoopBackOff", message: crashMessage(pod, name, backoff.delayMs) });
      }
    }
    return waiting;
  }

  #begin(action: PodAction, observed: PodSnapshot, nowMs: number): void {
    const key = actionKey(action);
    const previous = this.#attempts.get(key);
    const failures = previous?.state === "failed" ? previous.failures : 0;
    this.#attempts.set(key, { state: "running" });
    const contentChanges = this.#contentChanges;
    if (action.kind === "StartContainer") this.#noteRestart(action.container, observed, nowMs);
    this.#log.debug({ action }, "step begins");
    const step = this.#run(action, observed).then(
      () => this.#succeeded(action, key, contentChanges),
      (err: unknown) => this.#failed(key, failures + 1, err),
    );
    this.#steps.add(step);
    void step.finally(() => this.#steps.delete(step));
  }

  async #run(action: PodAction, observed: PodSnapshot): Promise<void> {
    await this.#deps.executor.execute(action, {
      pod: this.#pod,
      observed,
      podIPs: this.#pod.spec.hostNetwork === true ? this.#deps.node.hostIPs() : this.#podIPs,
      images: this.#images,
      maskedPaths: this.#deps.maskedPaths,
      signal: this.#waits.signal,
    });
  }

  #noteRestart(name: string, observed: PodSnapshot, nowMs: number): void {
    const newest = observed.containers.find((container) => container.name === name);
    if (newest?.state !== "exited") return;
    const state = this.#crash.get(name);
    this.#crash.set(name, noteRestart(state, newest.finishedAtMs, nowMs, this.#deps.settings.crashBackoff));
  }

  #succeeded(action: PodAction, key: string, contentChanges: number): void {
    this.#attempts.delete(key);
    if (action.kind === "SetUpVolumes") {
      this.#volumes = contentChanges === this.#contentChanges ? "ready" : "stale";
      const inMs = this.#deps.volumes.refreshInMs(this.uid);
      this.#volumesDueMs = inMs === undefined ? undefined : this.#deps.clock.now() + inMs;
    } else if (action.kind === "CleanUp") this.#isCleanedUp = true;
    else if (action.kind !== "EnsureImage") this.#isDirty = true;
    this.#loop.wake();
  }

  #failed(key: string, failures: number, err: unknown): void {
    const now = this.#deps.clock.now();
    // Only what waits is ended by us. A runtime that shuts down says "canceled", too, and that step rests like any other.
    const isOurs = isAbort(err) && this.#waits.signal.aborted && (key === "volumes" || key.startsWith("image/"));
    const reason = err instanceof StepError ? err.reason : "";
    // The ordinary retry is never put off: during an image's backoff it finds out cheaply whether the image has come.
    const own = (err instanceof StepError ? err.retryAtMs : undefined) ?? Number.POSITIVE_INFINITY;
    const retryAtMs = Math.min(own, now + backoffMs(failures, stepRetry));
    if (isOurs) this.#attempts.delete(key);
    else {
      this.#attempts.set(key, { state: "failed", reason, message: messageOf(err), retryAtMs, failures });
      this.#log.info({ step: key, err: messageOf(err), retryInMs: Math.round(retryAtMs - now) }, "step failed");
    }
    this.#isDirty = true;
    this.#loop.wake();
  }

  #hasStep(...prefixes: string[]): boolean {
    for (const [key, { state }] of this.#attempts) {
      if (state === "running" && prefixes.some((prefix) => key.startsWith(prefix))) return true;
    }
    return false;
  }

  #announceBackoff(pod: Pod, name: string, untilMs: number): void {
    if (this.#announced.get(name) === untilMs) return;
    this.#announced.set(name, untilMs);
    const fieldPath = specContainers(pod).find(
      ({ container }: { container: Container }) => container.name === name,
    )?.fieldPath;
    const message = `Back-off restarting failed container ${name} in pod ${describePod(pod)}`;
    this.#deps.recorder.event(podReference(pod, fieldPath), "Warning", "BackOff", message);
  }

  #sayNetworkNotReady(pod: Pod): void {
    const { node, recorder } = this.#deps;
    const isBlocked = this.#termination === undefined && pod.spec.hostNetwork !== true && !node.isNetworkReady();
    if (isBlocked && !this.#saidNetworkNotReady) {
      recorder.event(podReference(pod), "Warning", "NetworkNotReady", `network is not ready: ${node.networkProblem()}`);
    }
    this.#saidNetworkNotReady = isBlocked;
  }

  // The object goes once the API server knows how the pod ended and nothing of it is left on the node.
  #deleteIfDone(pod: Pod): void {
    if (this.#isGone || !this.#isCleanedUp || this.#deletion !== "none") return;
    const known = this.#deps.writer.known(this.uid);
    if (known?.metadata.deletionTimestamp === undefined || !isTerminalPhase(known.status?.phase)) return;
    this.#deletion = "underWay";
    const { name, namespace = "" } = pod.metadata;
    const step = this.#deps.client
      .delete(pods, { namespace, name }, { gracePeriodSeconds: 0, uid: this.uid })
      .catch((err: unknown) => {
        if (!hasCode(err, "NotFound", "Conflict")) throw err;
      })
      .then(
        () => {
          this.#deletion = "done";
        },
        (err: unknown) => {
          this.#log.warn({ err: messageOf(err) }, "pod not deleted from the API server, trying again");
          this.#deps.clock.after(stepRetry.baseMs, () => {
            this.#deletion = "none";
            this.#loop.wake();
          });
        },
      );
    this.#steps.add(step);
    void step.finally(() => this.#steps.delete(step));
  }
}

// The end of a pod is told when nothing of it runs any more: others take its resources for free then.
function withheldWhileAlive(status: PodStatus, before: PodStatus | undefined, observed: PodSnapshot): PodStatus {
  if (!isTerminalPhase(status.phase) || isTerminalPhase(before?.phase) || !observed.containers.some(isAlive)) {
    return status;
  }
  const { reason: _reason, message: _message, ...rest } = status;
  return { ...rest, phase: before?.phase ?? "Pending" };
}

// What we said last, with the conditions of others as the API server has them now.
function previousStatus(wanted: PodStatus | undefined, known: PodStatus): PodStatus {
  if (wanted === undefined) return known;
  const isOwn = ({ type }: Condition) => ownConditionTypes.includes(type);
  const own = (wanted.conditions ?? []).filter(isOwn);
  return { ...wanted, conditions: [...own, ...(known.conditions ?? []).filter((condition) => !isOwn(condition))] };
}

function crashMessage(pod: Pod, container: string, delayMs: number): string {
  return `back-off ${formatDelay(delayMs)} restarting failed container=${container} pod=${describePod(pod)}`;
}

// First address of the node's primary family, then the first of the other.
function publishedIPs(ips: readonly string[], hostIPs: readonly string[]): string[] {
  const isV6 = (ip: string) => ip.includes(":");
  const primary = isV6(hostIPs[0] ?? ips[0] ?? "");
  const ofFamily = (family: boolean) => ips.filter((ip) => isV6(ip) === family).slice(0, 1);
  return [...ofFamily(primary), ...ofFamily(!primary)];
}
