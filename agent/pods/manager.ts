import { isStaticPod, uidOf } from "../kube/pod-resources.ts";
import { keyOf, type StoreChange } from "../kube/port.ts";
import { nodes } from "../kube/resources.ts";
import type { Pod, PodStatus } from "../kube/types.ts";
import { hasCode, messageOf } from "../lib/errors.ts";
import { ignoreAbort, untilAborted } from "../lib/loop.ts";
import { createProbeManager, type ProbeManager } from "../probes/manager.ts";
import type { ContainerSummary, RuntimeEvent, RuntimeList } from "../runtime/port.ts";
import { missingForUpdate } from "./admission/features.ts";
import { AdmissionGate } from "./admission/gate.ts";
import type { Rejection } from "./admission/port.ts";
import { collectIntervalMs, deadContainersToRemove } from "./container-gc.ts";
import { removeDeadLinks } from "./container-logs.ts";
import { type PodEnding, rejection } from "./ending.ts";
import { Executor, type ExecutorDeps } from "./executor.ts";
import type { PodFacts, WorkerFacts } from "./explain.ts";
import { instrumentExecutor } from "./instrumented-executor.ts";
import type { WorkerView } from "./metrics-gauges.ts";
import { nodeReference, podReference, specContainers } from "./names.ts";
import { Orphans } from "./orphans.ts";
import type { PodDeps } from "./port.ts";
import { Predecessors } from "./predecessors.ts";
import { replacementsIn } from "./replacements.ts";
import { Resizes } from "./resize/resizes.ts";
import { readMaskedPaths } from "./security.ts";
import { StaticPods } from "./static-pods.ts";
import { isTerminalPhase } from "./status.ts";
import { StatusWriter } from "./status-writer.ts";
import { UserNamespaces } from "./user-namespaces.ts";
import { PodWorker, type WorkerDeps } from "./worker.ts";

// The net below the event stream: how often everything in the runtime is listed.
const relistMs = 10_000;
// How long the admission of one pod may wait for a newer Node: others wait behind it.
const fetchNodeTimeoutMs = 5_000;

/** The pods that the node holds, for those who show them. Empty before `run`. */
export interface HeldPods {
  /** Pods of the API server without mirror pods, and static pods. */
  list(): readonly Pod[];
  find(namespace: string, name: string): Pod | undefined;
  /** The status as the worker last made it out; until then, the object's own. */
  status(pod: Pod): PodStatus | undefined;
  /** The pod with the resources that it was given, which may not be those that its spec asks for by now. */
  given(pod: Pod): Pod;
  /** False as long as a source of pods has not told yet what it has. */
  isComplete(): boolean;
  /** What is known of each pod, those included that are gone from their source but not from the node. */
  facts(): PodFacts[];
}

export interface PodManager {
  readonly held: HeldPods;
  /** Runs the node's pods until `signal` aborts; resolves when every step under way has ended. Containers keep running. */
  run(signal: AbortSignal): Promise<void>;
}

/** Makes the part that turns pods bound to this node into running containers. Nothing happens before `run`. */
export function createPodManager(deps: PodDeps): PodManager {
  let manager: Manager | undefined;
  return {
    held: {
      list: () => [...deps.pods.list()],
      find: (namespace, name) => deps.pods.find(namespace, name),
      status: (pod) => manager?.status(uidOf(pod)) ?? pod.status,
      given: (pod) => manager?.given(pod) ?? pod,
      isComplete: () => deps.pods.hasSynced,
      facts: () => manager?.facts() ?? [],
    },
    run: async (signal) => {
      manager = new Manager(deps, await readMaskedPaths(), signal);
      await manager.load();
      await manager.run();
    },
  };
}

const preempted: PodEnding = {
  reason: "Preempting",
  message: "Preempted in order to admit critical pod",
  disruption: "Pod was preempted by Kubelet to accommodate a critical pod.",
};
const exceededGrace = "Container runtime did not kill the pod within specified grace period.";
// kubelet waits so long for a pod that it ends, and half as long again as its grace.
const killWaitMsMin = 10_000;
const killWaitPerGrace = 1.5;

class Manager {
  readonly #deps: PodDeps;
  readonly #workers = new Map<string, { worker: PodWorker; stop: AbortController; done: Promise<void> }>();
  readonly #writer: StatusWriter;
  readonly #workerDeps: WorkerDeps;
  readonly #orphans: Orphans;
  readonly #probes: ProbeManager;
  readonly #gate: AdmissionGate;
  readonly #resizes: Resizes;
  readonly #static: StaticPods;
  /** UIDs of pods of which, or of whose predecessors, the last traces are being removed: nothing begins before that. */
  readonly #removing = new Set<string>();
  readonly #predecessors: Predecessors;
  /** UIDs of static pods in whose way nothing is. */
  readonly #cleared = new Set<string>();
  #hasSwept = false;
  #hasListed = false;
  readonly #signal: AbortSignal;
  #collectDueMs = 0;

  constructor(deps: PodDeps, maskedPaths: readonly string[], signal: AbortSignal) {
    this.#deps = deps;
    this.#signal = signal;
    const { client, clock, log } = deps;
    this.#writer = new StatusWriter({
      client: deps.timelines?.patches(client) ?? client,
      clock,
      log,
      onWritten: (uid) => this.#workers.get(uid)?.worker.wake(),
      ...(deps.metrics === undefined ? {} : { metrics: deps.metrics }),
    });
    this.#probes = createProbeManager({
      clock,
      prober: deps.prober,
      metrics: deps.probeMetrics,
      onEvent: (pod, name, reason, message) => {
        const fieldPath = specContainers(pod).find(({ container }) => container.name === name)?.fieldPath;
        deps.recorder.event(podReference(pod, fieldPath), "Warning", reason, message);
      },
      onChange: (uid) => this.#workers.get(uid)?.worker.wake(),
    });
    this.#resizes = this.#createResizes();
    this.#gate = this.#createGate();
    const userNamespaces = new UserNamespaces({
      rootDir: deps.settings.rootDir,
      log,
      idsPerPod: deps.settings.userNamespaceIDs,
    });
    this.#workerDeps = {
      ...deps,
      probes: this.#probes,
      resizes: this.#resizes,
      executor: executorOf({ ...deps, resizes: this.#resizes, userNamespaces }),
      replacements: replacementsIn(deps.settings.rootDir),
      writer: this.#writer,
      maskedPaths,
      onFinished: (uid) => this.#finish(uid),
    };
    this.#orphans = new Orphans(
      { ...deps, userNamespaces },
      (uid) => this.#workers.has(uid) || this.#removing.has(uid) || this.#gate.has(uid),
    );
    this.#predecessors = new Predecessors({
      remove: async (pod) => await this.#orphans.removePredecessors(pod),
      clock,
      log,
    });
    this.#static = new StaticPods({
      ...deps,
      writer: this.#writer,
      isEnding: (uid) => this.#workers.get(uid)?.worker.isGone === true,
    });
  }

  given(pod: Pod): Pod {
    return this.#resizes.given(pod);
  }

  /** Reads what the agent before this one left. Never rejects. */
  async load(): Promise<void> {
    await this.#resizes.load();
  }

  status(podUID: string): PodStatus | undefined {
    return this.#writer.wanted(podUID);
  }

  facts(): PodFacts[] {
    const { pods, timelines } = this.#deps;
    const waiting = [...pods.list()].flatMap((pod): WorkerFacts[] => {
      if (this.#workers.has(uidOf(pod))) return [];
      const unknown = { observed: undefined, local: undefined, lastWords: new Map(), networkProblem: "" };
      const obstacle = this.#predecessors.obstacle(uidOf(pod));
      const isQueued = !this.#gate.has(uidOf(pod));
      return [{ pod, status: pod.status ?? {}, isQueued, ...unknown, ...(obstacle === undefined ? {} : { obstacle }) }];
    });
    return [...waiting, ...[...this.#workers.values()].map(({ worker }) => worker.facts)].map((facts) => ({
      ...facts,
      state: timelines?.state(uidOf(facts.pod)),
      timeline: timelines?.timelines.get(uidOf(facts.pod)),
    }));
  }

  async run(): Promise<void> {
    const { pods, objects, volumes, node, runtime, metrics } = this.#deps;
    const signal = this.#signal;
    this.#writer.start(signal);
    const wakeAll = () => this.#each((worker) => worker.wake());
    const unsubscribe = [
      pods.subscribe((change) => this.#onPod(change)),
      volumes.onChange((uid) => this.#workers.get(uid)?.worker.contentChanged()),
      objects.onChange((kind, namespace, name) => this.#onObject(kind, namespace, name)),
      node.subscribe(wakeAll),
      metrics?.follow(() => [...this.#workers].map(([uid, { worker }]) => this.#viewOf(uid, worker))),
    ];
    try {
      await Promise.all([
        runtime.events((event) => this.#onRuntime(event), signal),
        this.#relist(),
        this.#static.run(signal),
        this.#drain(),
      ]);
    } finally {
      for (const end of unsubscribe) end?.();
      await this.#gate.settled();
      await Promise.all([...this.#workers.values()].map(({ done }) => done));
      await this.#probes.close();
      await this.#resizes.close();
    }
  }

  /** Steps that wait for what the runtime runs end with that, in time for the agent's own end. */
  async #drain(): Promise<void> {
    await untilAborted(this.#signal);
    await this.#deps.runtime.drain?.();
  }

  #each(act: (worker: PodWorker) => void): void {
    for (const { worker } of this.#workers.values()) act(worker);
  }

  #onPod({ old, object }: StoreChange<Pod>): void {
    if (this.#signal.aborted) return;
    const pod = object ?? old;
    if (pod === undefined) return;
    const uid = uidOf(pod);
    if (object === undefined) {
      this.#deps.metrics?.gone(uid);
      this.#writer.forget(uid);
      this.#gate.leave(uid);
      const entry = this.#workers.get(uid);
      if (entry !== undefined) entry.worker.remove();
      else if (this.#removing.has(uid)) this.#predecessors.leave(uid);
      else this.#leave(pod);
      return;
    }
    const present = this.#workers.get(uid);
    // Taken away and there again with the same UID: it begins anew when it has ended.
    if (this.#removing.has(uid) || present?.worker.isGone === true) return;
    const removal = present === undefined ? this.#orphans.underWay(uid) : undefined;
    if (removal !== undefined) {
      void this.#beginAfter(uid, removal);
      return;
    }
    this.#deps.metrics?.seen(pod);
    this.#observe(pod);
    if (present !== undefined) {
      const before = present.worker.pod;
      this.#checkFeatures(before, pod);
      present.worker.update(pod);
      this.#resizes.updated(before, pod);
    } else if (!this.#static.enter(pod)) return;
    else if (isStaticPod(pod) && !this.#hasSwept && !this.#cleared.has(uid)) void this.#clear(pod);
    // What is over or about to be needs no admission, only an end.
    else if (pod.metadata.deletionTimestamp !== undefined || isTerminalPhase(pod.status?.phase)) {
      this.#gate.leave(uid);
      this.#start(pod);
    } else this.#gate.arrive(pod);
  }

  // The API server refuses such a change if it knows of the feature: only a person can tell what was meant.
  #checkFeatures(before: Pod, pod: Pod): void {
    if (before.metadata.generation === pod.metadata.generation) return;
    const missing = missingForUpdate(before, pod, this.#deps.admission().declaredFeatures);
    if (missing.length === 0) return;
    const message = `Pod requires node features that are not available: ${missing.join(", ")}`;
    this.#deps.recorder.event(podReference(pod), "Warning", "FailedNodeDeclaredFeaturesCheck", message);
  }

  // A pod is there again of which the remains are just being removed, as of one that is gone: it begins when they are.
  async #beginAfter(uid: string, removal: Promise<unknown>): Promise<void> {
    this.#removing.add(uid);
    await removal;
    this.#removing.delete(uid);
    const present = this.#deps.pods.byUID(uid);
    if (present !== undefined) this.#onPod({ key: keyOf(present.metadata), old: undefined, object: present });
  }

  // What ran before this agent in the place of a static pod goes first. Never rejects.
  async #clear(pod: Pod): Promise<void> {
    const uid = uidOf(pod);
    this.#removing.add(uid);
    const isClear = await this.#predecessors.clear(pod, this.#signal);
    this.#removing.delete(uid);
    if (this.#signal.aborted) return;
    const present = this.#deps.pods.byUID(uid);
    if (isClear && present !== undefined) this.#cleared.add(uid);
    if (present === undefined) this.#leave(pod);
    else this.#onPod({ key: keyOf(present.metadata), old: undefined, object: present });
  }

  #observe(pod: Pod): void {
    if (isStaticPod(pod)) this.#static.observe(pod);
    else this.#writer.observe(pod);
  }

  #active(): Pod[] {
    return [...this.#workers.values()].flatMap(({ worker }) => (worker.isActive ? [worker.pod] : []));
  }

  #createResizes(): Resizes {
    const { clock, log, recorder, settings, admission, resizeMetrics } = this.#deps;
    return new Resizes({
      clock,
      log,
      recorder,
      rootDir: settings.rootDir,
      policy: { ...settings.staticPolicies, resources: settings.resources },
      admission,
      active: () => this.#active(),
      onChange: (uid) => this.#workers.get(uid)?.worker.wake(),
      ...(resizeMetrics === undefined ? {} : { metrics: resizeMetrics }),
    });
  }

  #createGate(): AdmissionGate {
    const { admission, client, node, recorder, log } = this.#deps;
    return new AdmissionGate({
      context: admission,
      given: (pod) => this.#resizes.reserved(pod),
      active: () => this.#active().map((pod) => this.#resizes.reserved(pod)),
      fetchNode: async () =>
        await client.get(nodes, { name: node.nodeName }, { signal: this.#signal, timeoutMs: fetchNodeTimeoutMs }),
      preempt: async (victim, resource) => await this.#preempt(victim, resource),
      onAdmitted: (pod) => {
        this.#deps.timelines?.admitted(pod);
        this.#resizes.admitted(pod);
        this.#start(pod);
        this.#resizes.evaluate("pods_added");
      },
      onRejected: (pod, { reason, message }: Rejection) => {
        recorder.event(podReference(pod), "Warning", reason, message);
        this.#deps.metrics?.rejected(reason);
        log.info({ pod: podReference(pod), reason, why: message }, "pod rejected");
        this.#start(pod, rejection(reason, message));
      },
      log,
    });
  }

  async #preempt(victim: Pod, resource: string): Promise<void> {
    const { recorder, clock, metrics } = this.#deps;
    const uid = uidOf(victim);
    recorder.event(podReference(victim), "Warning", preempted.reason, preempted.message);
    const graceSeconds = victim.spec.terminationGracePeriodSeconds ?? 0;
    const waitMs = Math.max(killWaitMsMin, graceSeconds * killWaitPerGrace * 1_000);
    const ended = this.#workers.get(uid)?.worker.end(preempted);
    const over = new AbortController();
    const isLate = clock.sleep(waitMs, AbortSignal.any([over.signal, this.#signal])).then(
      () => true,
      () => false,
    );
    if ((await Promise.race([ended, isLate])) === true) {
      recorder.event(podReference(victim), "Warning", "ExceededGracePeriod", exceededGrace);
    }
    over.abort();
    metrics?.preemptions.inc({ preemption_signal: resource });
  }

  #start(pod: Pod, ending?: PodEnding): void {
    if (this.#signal.aborted) return;
    const uid = uidOf(pod);
    const worker = new PodWorker(pod, this.#workerDeps);
    if (ending !== undefined) void worker.end(ending);
    const stop = new AbortController();
    const done = worker.run(AbortSignal.any([this.#signal, stop.signal]));
    this.#workers.set(uid, { worker, stop, done });
  }

  // Runs inside the worker's own pass: it must not be waited for here.
  #finish(uid: string): void {
    const entry = this.#workers.get(uid);
    if (entry === undefined) return;
    entry.stop.abort();
    this.#workers.delete(uid);
    this.#removing.add(uid);
    // Never rejects.
    void this.#orphans.removePod(uid).then(() => {
      this.#removing.delete(uid);
      this.#leave(entry.worker.pod);
      const again = this.#deps.pods.byUID(uid);
      if (again === undefined || this.#signal.aborted) return;
      this.#deps.metrics?.restartedPods.inc({ static: isStaticPod(again) ? "true" : "" });
      this.#onPod({ key: keyOf(again.metadata), old: undefined, object: again });
    });
  }

  #viewOf(uid: string, worker: PodWorker): WorkerView {
    return { ...worker.view, hasMirror: isStaticPod(worker.pod) && this.#writer.isStored(uid) };
  }

  // Nothing of a pod is left: who waited for that may begin.
  #leave(pod: Pod): void {
    this.#cleared.delete(uidOf(pod));
    this.#deps.timelines?.ended(uidOf(pod));
    this.#resizes.removed(uidOf(pod));
    const next = this.#static.leave(pod);
    if (next !== undefined) this.#onPod({ key: keyOf(next.metadata), old: undefined, object: next });
  }

  #onRuntime(event: RuntimeEvent): void {
    if (event.podUID === undefined) this.#each((worker) => worker.runtimeChanged());
    else this.#workers.get(event.podUID)?.worker.runtimeChanged(event);
  }

  // A pod that failed for a missing ConfigMap or Secret need not wait for its retry.
  #onObject(kind: "ConfigMap" | "Secret", namespace: string, name: string): void {
    for (const { worker } of this.#workers.values()) {
      if (worker.namespace !== namespace) continue;
      worker.objectChanged({ kind, name });
    }
  }

  async #relist(): Promise<void> {
    const { clock, runtime, log, pods, node } = this.#deps;
    const signal = this.#signal;
    const synced = new AbortController();
    // A manifest's URL may be out of reach for long: the pods of the API server must not wait for what it would say.
    const admitting = pods
      .apiSynced(signal)
      .then(() => this.#gate.open())
      .catch(ignoreAbort);
    const opened = pods
      .synced(signal)
      .then(() => {
        this.#resizes.open((uid) => pods.byUID(uid) !== undefined || this.#workers.has(uid));
        this.#static.allKnown();
        synced.abort();
      })
      .catch(ignoreAbort);
    while (!signal.aborted) {
      // Before all sources have told what they have, nothing may be taken for superfluous.
      const maySweep = pods.hasSynced;
      try {
        if (!node.isRuntimeReady()) {
          // One that has never answered has nothing to collect.
          if (this.#hasListed && maySweep) this.#notCollected("the container runtime is not ready");
        } else {
          const list = await runtime.list();
          this.#hasListed = true;
          this.#compare(list);
          if (maySweep) {
            await this.#collect(list);
            // Until one has removed all, what ran in a static pod's place may be there.
            if (await this.#orphans.sweep(list)) this.#hasSwept = true;
          }
        }
      } catch (err) {
        if (!hasCode(err, "Canceled")) {
          log.warn({ err: messageOf(err) }, "runtime not listed, trying again");
          if (maySweep) this.#notCollected(messageOf(err));
        }
      }
      const rest = maySweep ? signal : AbortSignal.any([signal, synced.signal]);
      await clock.sleep(relistMs, rest).catch(ignoreAbort);
    }
    await Promise.all([admitting, opened]);
  }

  // Now and then, dead containers of which there are too many go. Their workers see to it: each owns its pod. Links to logs may
  // be left by an agent that was killed, or by another one.
  async #collect({ containers }: RuntimeList): Promise<void> {
    const { clock, settings, log } = this.#deps;
    if (!this.#isCollectDue()) return;
    const useOf = (uid: string) => this.#workers.get(uid)?.worker.remainsUse;
    const doomed = deadContainersToRemove(containers, settings.deadContainers, useOf, clock.now());
    for (const [uid, ids] of doomed) this.#workers.get(uid)?.worker.condemn(ids);
    await removeDeadLinks(containers, this.#deps).catch((err: unknown) => {
      log.debug({ err: messageOf(err) }, "dead links to logs not removed, trying again in a minute");
    });
  }

  #isCollectDue(): boolean {
    const nowMs = this.#deps.clock.monotonic();
    if (nowMs < this.#collectDueMs) return false;
    this.#collectDueMs = nowMs + collectIntervalMs;
    return true;
  }

  #notCollected(why: string): void {
    const { recorder, node } = this.#deps;
    if (!this.#isCollectDue()) return;
    recorder.event(nodeReference(node.nodeName), "Warning", "ContainerGCFailed", why);
  }

  // Wakes the pods whose containers are not as their worker last saw them: an event was lost.
  #compare({ sandboxes, containers }: RuntimeList): void {
    const listed = new Map<string, string[]>();
    const note = (uid: string, text: string) => listed.set(uid, [...(listed.get(uid) ?? []), text]);
    for (const { podUID, id, ready } of sandboxes) note(podUID, `${id} ${ready}`);
    for (const container of containers) note(container.podUID, stateOf(container));
    this.#each((worker) => {
      const { observed } = worker;
      if (observed === undefined) return;
      const seen = [
        ...observed.sandboxes.map(({ id, ready }) => `${id} ${ready}`),
        ...observed.containers.map(stateOf),
      ];
      if (!sameSet(seen, listed.get(worker.uid) ?? [])) worker.runtimeChanged();
    });
  }
}

function executorOf(deps: ExecutorDeps): Pick<Executor, "execute"> {
  const plain = new Executor(deps);
  const executor = deps.timelines?.executor(plain) ?? plain;
  return deps.metrics === undefined ? executor : instrumentExecutor(executor, deps.metrics, deps.clock);
}

function stateOf({ id, state }: ContainerSummary): string {
  return `${id} ${state}`;
}

function sameSet(a: readonly string[], b: readonly string[]): boolean {
  const set = new Set(a);
  return set.size === b.length && b.every((text) => set.has(text));
}
