import type { StoreChange } from "../kube/port.ts";
import type { Pod } from "../kube/types.ts";
import { hasCode, messageOf } from "../lib/errors.ts";
import { ignoreAbort } from "../lib/loop.ts";
import type { ContainerSummary, RuntimeList } from "../runtime/port.ts";
import { Executor } from "./executor.ts";
import { instrumentExecutor } from "./instrumented-executor.ts";
import { uidOf } from "./names.ts";
import { Orphans } from "./orphans.ts";
import type { PodDeps } from "./port.ts";
import { readMaskedPaths } from "./security.ts";
import { StatusWriter } from "./status-writer.ts";
import { PodWorker, type WorkerDeps } from "./worker.ts";

// The net below the event stream: how often everything in the runtime is listed.
const relistMs = 10_000;

export interface PodManager {
  /** Runs the node's pods until `signal` aborts; resolves when every step under way has ended. Containers keep running. */
  run(signal: AbortSignal): Promise<void>;
}

/** Makes the part that turns pods bound to this node into running containers. Nothing happens before `run`. */
export function createPodManager(deps: PodDeps): PodManager {
  return { run: async (signal) => await new Manager(deps, await readMaskedPaths(), signal).run() };
}

class Manager {
  readonly #deps: PodDeps;
  readonly #workers = new Map<string, { worker: PodWorker; stop: AbortController; done: Promise<void> }>();
  readonly #writer: StatusWriter;
  readonly #workerDeps: WorkerDeps;
  readonly #orphans: Orphans;
  readonly #signal: AbortSignal;

  constructor(deps: PodDeps, maskedPaths: readonly string[], signal: AbortSignal) {
    this.#deps = deps;
    this.#signal = signal;
    const { client, clock, log } = deps;
    this.#writer = new StatusWriter({
      client,
      clock,
      log,
      onWritten: (uid) => this.#workers.get(uid)?.worker.wake(),
      ...(deps.metrics === undefined ? {} : { metrics: deps.metrics }),
    });
    this.#workerDeps = {
      ...deps,
      executor: executorOf(deps),
      writer: this.#writer,
      maskedPaths,
      onFinished: (uid) => this.#finish(uid),
    };
    this.#orphans = new Orphans(deps, (uid) => this.#workers.has(uid));
  }

  async run(): Promise<void> {
    const { pods, objects, volumes, node, runtime, metrics } = this.#deps;
    const signal = this.#signal;
    this.#writer.start(signal);
    const wakeAll = () => this.#each((worker) => worker.wake());
    const unsubscribe = [
      pods.subscribe((change) => this.#onPod(change)),
      volumes.onChange((uid) => this.#workers.get(uid)?.worker.contentChanged()),
      objects.onChange((_kind, namespace) => this.#onObject(namespace)),
      node.subscribe(wakeAll),
      metrics?.follow(() => [...this.#workers.values()].map(({ worker }) => worker.view)),
    ];
    try {
      await Promise.all([runtime.events(({ podUID }) => this.#onRuntime(podUID), signal), this.#relist()]);
    } finally {
      for (const end of unsubscribe) end?.();
      await Promise.all([...this.#workers.values()].map(({ done }) => done));
    }
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
      this.#workers.get(uid)?.worker.remove();
      return;
    }
    this.#deps.metrics?.seen(pod);
    this.#writer.observe(pod);
    const present = this.#workers.get(uid);
    if (present === undefined) this.#start(pod);
    else present.worker.update(pod);
  }

  #start(pod: Pod): void {
    const uid = uidOf(pod);
    const worker = new PodWorker(pod, this.#workerDeps);
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
    void this.#orphans.removePod(uid);
  }

  #onRuntime(podUID: string | undefined): void {
    if (podUID === undefined) this.#each((worker) => worker.runtimeChanged());
    else this.#workers.get(podUID)?.worker.runtimeChanged();
  }

  // A pod that failed for a missing ConfigMap or Secret need not wait for its retry.
  #onObject(namespace: string): void {
    for (const { worker } of this.#workers.values()) {
      if (worker.namespace === namespace) worker.objectChanged();
    }
  }

  async #relist(): Promise<void> {
    const { clock, runtime, log, pods, node } = this.#deps;
    const signal = this.#signal;
    await pods.synced(signal).catch(ignoreAbort);
    while (!signal.aborted) {
      try {
        if (node.isRuntimeReady()) {
          const list = await runtime.list();
          this.#compare(list);
          await this.#orphans.sweep(list);
        }
      } catch (err) {
        if (!hasCode(err, "Canceled")) log.warn({ err: messageOf(err) }, "runtime not listed, trying again");
      }
      await clock.sleep(relistMs, signal).catch(ignoreAbort);
    }
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

function executorOf(deps: PodDeps): Pick<Executor, "execute"> {
  const executor = new Executor(deps);
  return deps.metrics === undefined ? executor : instrumentExecutor(executor, deps.metrics, deps.clock);
}

function stateOf({ id, state }: ContainerSummary): string {
  return `${id} ${state}`;
}

function sameSet(a: readonly string[], b: readonly string[]): boolean {
  const set = new Set(a);
  return set.size === b.length && b.every((text) => set.has(text));
}
