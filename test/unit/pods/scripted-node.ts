import { uidOf } from "../../../agent/kube/pod-resources.ts";
import type { ApiClient } from "../../../agent/kube/port.ts";
import type { Condition, Container, Pod, PodStatus } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { annotations } from "../../../agent/pods/container-annotations.ts";
import { StepError } from "../../../agent/pods/executor.ts";
import type { PodAction } from "../../../agent/pods/plan.ts";
import type { PodResizes } from "../../../agent/pods/resize/port.ts";
import { StatusWriter } from "../../../agent/pods/status-writer.ts";
import { PodWorker, type WorkerDeps } from "../../../agent/pods/worker.ts";
import type { ProbeType, Verdict } from "../../../agent/probes/port.ts";
import type { ContainerStatus, PodSnapshot, RuntimeEvent, SandboxStatus } from "../../../agent/runtime/port.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";
import { containerOf, sandboxOf } from "./support.ts";

/** Time whose wall clock can be set, as people and NTP do; what waits does not notice. */
export class JumpyClock extends FakeClock {
  skewMs = 0;
  override now = (): number => this.monotonic() + this.skewMs;
}

interface RunningPod {
  worker: PodWorker;
  stop: AbortController;
  done: Promise<void>;
}

type Faulty = PodAction["kind"] | "podSnapshot" | "patch" | "delete";

/**
 * A node in memory: a runtime that does what it is told, in its own time and with the faults of a script, an API server
 * that keeps statuses, and pod workers between them.
 */
export class ScriptedNode {
  readonly clock = new JumpyClock();
  readonly events: string[] = [];
  /** Why containers are stopped, as told to people. */
  readonly killings: string[] = [];
  /** "start app", "stop app 30", … in the order in which the runtime heard it. */
  readonly calls: string[] = [];
  /** What of pods was taken away, in order. */
  readonly removals: string[] = [];
  readonly workers = new Map<string, RunningPod>();
  readonly api = new Map<string, Pod>();
  /** What probes say, by `<container ID>/<type>`. */
  readonly verdicts = new Map<string, Verdict>();
  /** Containers that do not end on SIGTERM. */
  readonly stubborn = new Set<string>();
  /** Containers whose hook does not end, or after so many ms. */
  readonly hookMs = new Map<string, number>();
  losesEvents = false;
  /** How often the runtime was asked what there is of a pod. */
  looks = 0;
  /** When the API server was asked to remove an object. */
  readonly deletionsMs: number[] = [];
  /** What is on disk about instances that are replaced, by container: it is there after a restart of the agent, too. */
  readonly replaced = new Map<string, string>();
  /** Pods whose liveness probes count no more. */
  readonly stoppedProbes = new Set<string>();
  /** Who gives pods their resources; by default, everybody has what they ask for. */
  resizes: PodResizes = {
    given: (pod) => pod,
    progress: () => undefined,
    states: () => ({}),
    observed: () => {},
    cgroupMade: () => {},
    starting: async () => {},
    completed: async () => {},
    failed: () => {},
    ended: () => {},
  };
  patchesInFlightMost = 0;
  readonly #sandboxes: SandboxStatus[] = [];
  #containers: ContainerStatus[] = [];
  /** The node's addresses. */
  hostIPs = ["192.168.0.1"];
  /** Containers hold their volumes no longer than they run. */
  hasPlainContainers = true;
  isRuntimeReady = true;
  isNetworkReady = true;
  readonly #errors = new Map<Faulty, number>();
  readonly #reasons = new Map<Faulty, string>();
  readonly #delays = new Map<Faulty, number>();
  readonly #writer: StatusWriter;
  readonly #stop = new AbortController();
  #version = 1;
  #inFlight = 0;

  constructor() {
    const patch = async (_resource: unknown, { name }: { name: string }, body: { status: PodStatus }) =>
      await this.#patch(name, body.status);
    const remove = async (_resource: unknown, { name }: { name: string }) => {
      this.deletionsMs.push(this.clock.monotonic());
      await this.#fault("delete");
      this.#vanish(name);
    };
    this.#writer = new StatusWriter({
      client: { patch } as unknown as ApiClient,
      clock: this.clock,
      log: silentLogger,
      onWritten: (uid) => this.workers.get(uid)?.worker.wake(),
    });
    this.#writer.start(this.#stop.signal);
    this.#client = { delete: remove } as unknown as ApiClient;
  }

  readonly #client: ApiClient;

  /** The next `count` calls of this kind fail, as steps for this reason. */
  fail(kind: Faulty, count = 1, reason = ""): void {
    this.#errors.set(kind, count);
    this.#reasons.set(kind, reason);
  }

  /** Calls of this kind take so long. */
  delay(kind: Faulty, ms: number): void {
    this.#delays.set(kind, ms);
  }

  /** Gives a pod to the node. */
  async start(pod: Pod): Promise<void> {
    this.api.set(pod.metadata.name, pod);
    this.#writer.observe(pod);
    const worker = new PodWorker(pod, this.#deps());
    const stop = new AbortController();
    this.workers.set(uidOf(pod), { worker, stop, done: worker.run(stop.signal) });
    await settle();
  }

  /** The agent ends and begins anew: what it knew is gone. */
  async restart(name: string): Promise<void> {
    const pod = this.pod(name);
    await this.end(uidOf(pod));
    this.#writer.forget(uidOf(pod));
    await this.start(pod);
  }

  async end(uid: string): Promise<void> {
    const running = this.workers.get(uid);
    this.workers.delete(uid);
    running?.stop.abort();
    await this.clock.advance(60_000); // steps under way end first
    await running?.done;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const uid of [...this.workers.keys()]) {
      this.workers.get(uid)?.stop.abort();
      this.hookMs.clear();
    }
    await this.clock.advance(120_000);
    await Promise.all([...this.workers.values()].map(({ done }) => done));
    this.#stop.abort();
  }

  /** As `kubectl delete` does. */
  async delete(name: string, graceSeconds: number): Promise<void> {
    const pod = this.pod(name);
    const metadata = {
      ...pod.metadata,
      deletionTimestamp: "2026-01-01T00:00:00Z",
      deletionGracePeriodSeconds: graceSeconds,
    };
    await this.update({ ...pod, metadata });
  }

  async update(pod: Pod): Promise<void> {
    this.#version += 1;
    const newer = { ...pod, metadata: { ...pod.metadata, resourceVersion: String(this.#version) } };
    this.api.set(pod.metadata.name, newer);
    this.#writer.observe(newer);
    this.workers.get(uidOf(pod))?.worker.update(newer);
    await settle();
  }

  pod(name: string): Pod {
    const pod = this.api.get(name);
    if (pod === undefined) throw new Error(`the API server has no pod ${name}`);
    return pod;
  }

  status(name = "web"): PodStatus {
    return this.pod(name).status ?? {};
  }

  /** Containers as the runtime has them, newest first. */
  containers(name?: string): readonly ContainerStatus[] {
    return name === undefined ? this.#containers : this.#containers.filter((container) => container.name === name);
  }

  /** Nothing is left of pod web, here or at the API server, and nothing of any other pod here. */
  isOver(): boolean {
    return !this.api.has("web") && this.workers.size === 0 && this.containers().length === 0;
  }

  isRunning(name: string): boolean {
    return this.containers(name)[0]?.state === "running";
  }

  /** A container runs that was made by another definition. */
  hash(name: string, hash: string): void {
    this.#containers = this.#containers.map((container) =>
      container.name === name
        ? { ...container, annotations: { ...container.annotations, [annotations.hash]: hash } }
        : container,
    );
    this.workers.get("u1")?.worker.runtimeChanged(); // of which no runtime tells by an event
  }

  /** A container ends by itself. */
  async exit(name: string, exitCode: number): Promise<void> {
    const [newest] = this.containers(name);
    if (newest !== undefined) this.#exit(newest.id, exitCode);
    await settle();
  }

  /** The runtime loses a container without a trace. */
  async forget(name: string): Promise<void> {
    const forgotten = this.containers(name);
    this.#containers = this.#containers.filter((container) => !forgotten.includes(container));
    for (const { id } of forgotten) this.#tell("u1", "deleted", id);
    await settle();
  }

  /** Something in the runtime makes a sandbox that nobody knows of any more. */
  async reviveSandbox(podUID: string): Promise<void> {
    this.#sandboxes.unshift(sandboxOf({ id: `${podUID}-late`, podUID, attempt: 9 }));
    this.#tell(podUID, "started", `${podUID}-late`);
    await settle();
  }

  /** Somebody starts a container again behind the agent's back. */
  async reviveContainer(name: string): Promise<void> {
    const [newest] = this.containers(name);
    this.#containers = this.#containers.map((one) => (one === newest ? { ...one, state: "running" } : one));
    this.#tell("u1", "started", newest?.id);
    await settle();
  }

  async killSandbox(): Promise<void> {
    for (const { id, podUID } of this.#sandboxes) this.#endSandbox(podUID, id);
    for (const { id, state } of this.#containers) if (state === "running") this.#exit(id, 137);
    await settle();
  }

  #deps(): WorkerDeps {
    const nothing = () => {};
    const deps = {
      clock: this.clock,
      log: silentLogger,
      client: this.#client,
      recorder: {
        event: (_about: unknown, type: string, reason: string) => void this.events.push(`${type} ${reason}`),
      },
      runtime: {
        podSnapshot: async (uid: string) => await this.#snapshot(uid),
        hasPlainContainers: () => this.hasPlainContainers,
      },
      volumes: { refreshInMs: () => undefined },
      objects: { register: nothing },
      node: {
        runtimeName: "containerd",
        hostIPs: () => this.hostIPs,
        isRuntimeReady: () => this.isRuntimeReady,
        isNetworkReady: () => this.isNetworkReady,
        networkProblem: () => "no CNI plugin",
        hasRecursiveReadOnly: () => false,
      },
      settings: {
        crashBackoff: { initialMs: 10_000, maxMs: 300_000 },
        deadContainers: { perContainer: 1, total: -1, ageMsMin: 0 },
      },
      probes: {
        observe: nothing,
        stopLiveness: (uid: string) => void this.stoppedProbes.add(uid),
        remove: (uid: string) => void this.stoppedProbes.delete(uid),
        verdict: (_uid: string, _container: string, id: string, type: ProbeType) => this.verdicts.get(`${id}/${type}`),
      },
      executor: {
        execute: async (action: PodAction, context: Parameters<WorkerDeps["executor"]["execute"]>[1]) =>
          await this.#execute(action, context),
      },
      writer: this.#writer,
      resizes: this.resizes,
      replacements: {
        note: async (_uid: string, name: string, id: string) => {
          this.replaced.set(name, id);
          await Promise.resolve();
        },
        read: async (_uid: string, name: string) => await Promise.resolve(this.replaced.get(name)),
      },
      maskedPaths: [],
      onFinished: (uid: string) => {
        this.workers.get(uid)?.stop.abort();
        this.workers.delete(uid);
      },
    };
    return deps as unknown as WorkerDeps;
  }

  async #fault(kind: Faulty): Promise<void> {
    const ms = this.#delays.get(kind);
    if (ms !== undefined) await this.clock.sleep(ms);
    const left = this.#errors.get(kind) ?? 0;
    if (left === 0) return;
    this.#errors.set(kind, left - 1);
    throw kind === "podSnapshot" || kind === "patch" || kind === "delete"
      ? new AgentError("Unavailable", `${kind}: as the script says`)
      : new StepError(this.#reasons.get(kind) ?? "", `${kind}: as the script says`);
  }

  async #snapshot(podUID: string): Promise<PodSnapshot> {
    this.looks += 1;
    await this.#fault("podSnapshot");
    return {
      podUID,
      observedAtMs: this.clock.now(),
      sandboxes: this.#sandboxes.filter((sandbox) => sandbox.podUID === podUID).map((sandbox) => ({ ...sandbox })),
      containers: this.#containers
        .filter((container) => container.podUID === podUID)
        .toSorted((a, b) => b.createdAtMs - a.createdAtMs),
    };
  }

  async #execute(
    action: PodAction,
    { pod, observed, images, hookSignal }: Parameters<WorkerDeps["executor"]["execute"]>[1],
  ): Promise<void> {
    const uid = uidOf(pod);
    await this.#fault(action.kind);
    switch (action.kind) {
      case "SetUpVolumes":
        return;
      case "TearDownVolumes":
      case "CleanUp":
        this.removals.push(action.kind === "CleanUp" ? "cgroup" : "volumes");
        return;
      case "EnsureImage":
        images.set(action.container, { imageRef: "sha256:1", image: undefined, wanted: "image:1" });
        return;
      case "CreateSandbox":
        this.resizes.cgroupMade(pod);
        this.#sandboxes.unshift(sandboxOf({ id: `${uid}-s${action.attempt}`, podUID: uid, attempt: action.attempt }));
        return this.#tell(uid, "started", `${uid}-s${action.attempt}`);
      case "ResizePod":
        this.calls.push("resize");
        return await this.resizes.completed(pod);
      case "StartContainer":
        await this.resizes.starting(pod, containerNamed(pod, action.container));
        return this.#startContainer(action, uid, observed);
      case "PreStop":
        this.calls.push(`hook ${action.container}`);
        this.killings.push(action.why);
        return await this.clock.sleep(this.hookMs.get(action.container) ?? 0, hookSignal).catch(() => {});
      case "KillContainer":
        if (action.isAnnounced !== true) this.killings.push(action.why);
        return await this.#kill(action.containerID, action.container, action.timeoutSeconds ?? action.graceSeconds);
      case "StopSandbox":
        this.removals.push("sandbox");
        return this.#endSandbox(uid, action.sandboxID);
      case "RemoveContainer":
        this.#containers = this.#containers.filter(({ id }) => id !== action.containerID);
        return this.#tell(uid, "deleted", action.containerID);
      case "RemoveSandbox":
        this.#sandboxes.splice(
          this.#sandboxes.findIndex(({ id }) => id === action.sandboxID),
          1,
        );
        return this.#tell(uid, "deleted", action.sandboxID);
    }
  }

  #startContainer(
    { container: name, sandboxID }: PodAction & { kind: "StartContainer" },
    podUID: string,
    observed: PodSnapshot,
  ): void {
    const attempt =
      observed.containers.filter((container) => container.name === name).length === 0
        ? 0
        : this.#attempts(podUID, name);
    const nowMs = this.clock.now();
    const id = `${podUID}-${name}-${attempt}`;
    this.calls.push(`start ${name}`);
    this.#containers.unshift(
      containerOf({ name, podUID, sandboxID, attempt, id, createdAtMs: nowMs, startedAtMs: nowMs }),
    );
    this.#tell(podUID, "created", id);
    this.#tell(podUID, "started", id);
  }

  #attempts(podUID: string, name: string): number {
    const attempts = this.#containers
      .filter((c) => c.podUID === podUID && c.name === name)
      .map(({ attempt }) => attempt);
    return Math.max(-1, ...attempts) + 1;
  }

  async #kill(id: string, name: string, graceSeconds: number): Promise<void> {
    this.calls.push(`stop ${name} ${graceSeconds}`);
    if (this.stubborn.has(name)) await this.clock.sleep(graceSeconds * 1_000);
    this.#exit(id, this.stubborn.has(name) ? 137 : 143);
  }

  #exit(id: string, exitCode: number): void {
    this.#containers = this.#containers.map((container) =>
      container.id === id && container.state === "running"
        ? {
            ...container,
            state: "exited",
            exitCode,
            reason: exitCode === 0 ? "Completed" : "Error",
            finishedAtMs: this.clock.now(),
          }
        : container,
    );
    const podUID = this.#containers.find((container) => container.id === id)?.podUID;
    if (podUID !== undefined) this.#tell(podUID, "exited", id);
  }

  #endSandbox(podUID: string, id: string): void {
    for (const sandbox of this.#sandboxes) if (sandbox.id === id) sandbox.ready = false;
    this.#tell(podUID, "exited", id);
  }

  #tell(podUID: string, kind: RuntimeEvent["kind"], containerID: string | undefined): void {
    if (this.losesEvents) return;
    this.workers.get(podUID)?.worker.runtimeChanged({ kind, podUID, containerID });
  }

  async #patch(name: string, status: PodStatus): Promise<Pod> {
    this.#inFlight += 1;
    this.patchesInFlightMost = Math.max(this.patchesInFlightMost, this.#inFlight);
    try {
      await this.#fault("patch");
      const pod = this.pod(name);
      const { conditions: changed = [], ...rest } = status;
      const conditions: Condition[] = (pod.status?.conditions ?? []).filter(
        ({ type }) => !changed.some((c) => c.type === type),
      );
      for (const one of changed) {
        if ("$patch" in one) continue; // deleted
        const old = pod.status?.conditions?.find(({ type }) => type === one.type);
        conditions.push({ ...old, ...one });
      }
      this.#version += 1;
      const patched = {
        ...pod,
        metadata: { ...pod.metadata, resourceVersion: String(this.#version) },
        status: withoutNulls({ ...pod.status, ...rest, conditions }),
      };
      this.api.set(name, patched);
      return patched;
    } finally {
      this.#inFlight -= 1;
    }
  }

  #vanish(name: string): void {
    const pod = this.api.get(name);
    if (pod === undefined) return;
    this.api.delete(name);
    this.#writer.forget(uidOf(pod));
    this.workers.get(uidOf(pod))?.worker.remove();
  }
}

// In a patch, null removes a field.
function withoutNulls(status: PodStatus): PodStatus {
  const fields = Object.entries(JSON.parse(JSON.stringify(status)) as PodStatus).filter(([, value]) => value !== null);
  return Object.fromEntries(fields) as PodStatus;
}

function containerNamed({ spec }: Pod, name: string): Container {
  const { initContainers = [], containers, ephemeralContainers = [] } = spec;
  const found = [...initContainers, ...containers, ...ephemeralContainers].find((container) => container.name === name);
  if (found === undefined) throw new Error(`the pod has no container ${name}`);
  return found;
}
