import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { hasCode, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { ignoreAbort, Loop } from "../lib/loop.ts";
import type { ApiClient, EventRecorder, Store } from "../kube/port.ts";
import { nodes } from "../kube/resources.ts";
import type { Node, ObjectReference } from "../kube/types.ts";
import type { ImageInfo, Runtime } from "../runtime/port.ts";
import { readAddressSources } from "./address-sources.ts";
import { type AddressOptions, type AddressSources, chooseAddresses } from "./addresses.ts";
import { type CapacityOptions, nodeCapacity, type Reservations } from "./capacity.ts";
import { nodeEvent, nodeEvents } from "./conditions.ts";
import type { NodeFacts } from "./facts.ts";
import { buildInitialNode, type InitialNodeOptions, reconcileExistingNode } from "./initial-node.ts";
import type { NodeStartup } from "./metrics.ts";
import { buildNodePatch } from "./patch.ts";
import type { RuntimeHealth } from "./runtime-health.ts";
import { type BuiltNode, buildNodeStatus, type LocalNodeState } from "./status.ts";

// Registration retries: kubelet's 100 ms doubling to 7 s.
const registerBackoff = { baseMs: 100, maxMs: 7_000 };
// Heartbeats are spread over 4 % of the period, as the reference's, so that nodes started together drift apart.
const updateJitter = 0.04;
// Reports of an unchanged status are spread by half the period either way: kubelet's value.
const reportJitter = 0.5;
// Tries per heartbeat before the next tick: kubelet's nodeStatusUpdateRetry.
const updateTriesMax = 5;
// A burst of runtime or Node changes becomes one heartbeat.
const updateIntervalMsMin = 100;
// The first heartbeat waits this long for the runtime's first answer, so that a restarted agent never reports a
// healthy node as not Ready. CRI Status normally takes a few milliseconds.
const firstAnswerWaitMs = 3_000;

/** What the configuration says about the Node object. */
export interface NodeSettings extends InitialNodeOptions, AddressOptions, CapacityOptions {
  registerNode: boolean;
  reservations: Reservations;
  /** Version shown as the kubelet's, `v1.36.2`. */
  kubeletVersion: string;
  kubeletPort: number;
  /** nodeStatusUpdateFrequency. */
  statusUpdateMs: number;
  /** nodeStatusReportFrequency. */
  statusReportMs: number;
  /** nodeStatusMaxImages. */
  imagesMax: number;
  declaredFeatures: readonly string[];
  /** True while there is no checkpoint of devices: extended resources on an existing Node are then set to 0. */
  resetExtendedResources: boolean;
}

export interface NodeAgentDeps {
  settings: NodeSettings;
  facts: NodeFacts;
  /** The heartbeat client: no rate limit. */
  client: ApiClient;
  /** Holds at most one object: the own Node. */
  nodeStore: Store<Node>;
  health: RuntimeHealth;
  runtime: Pick<Runtime, "updateRuntimeConfig">;
  /** Present images, see images.ts. */
  images: () => readonly ImageInfo[];
  /** What eviction, volumes, shutdown and pod workers have to report. Call `wake()` when it changes. */
  local: () => LocalNodeState;
  startup?: NodeStartup;
  /** The Node that we would register is complete or has changed; the API server may not have it for long. */
  onInitial?: () => void;
  clock: Clock;
  log: Logger;
  recorder: EventRecorder;
  random?: () => number;
  /** Reads interfaces, routes and resolver; replaced by tests. */
  readAddresses?: () => Promise<AddressSources>;
}

/** Registers the Node and keeps its status. */
export interface NodeAgent {
  /** The Node as far as known: the API server's, or before that the one we would register. */
  node(): Node;
  /** Resolves once the Node is known to be on the API server; rejects with an AbortError when `signal` aborts. */
  registered(signal?: AbortSignal): Promise<void>;
  /** Computes the status now and posts it if it changed. */
  wake(): void;
  /** Registers, then reports until `signal` aborts. */
  run(signal: AbortSignal): Promise<void>;
}

/** Makes the node agent; nothing is read or sent before `run`. */
export function createNodeAgent(deps: NodeAgentDeps): NodeAgent {
  return new NodeReporter(deps);
}

class NodeReporter implements NodeAgent {
  readonly #deps: NodeAgentDeps;
  readonly #about: ObjectReference;
  readonly #loop: Loop;
  readonly #registered = Promise.withResolvers<void>();
  /** What we would register; complete with status from the first try on. */
  #initial: Node;
  #isRegistered = false;
  /** The newest Node that a call of ours returned; the watch may lag behind it. */
  #stored: Node | undefined;
  #resolvedIPs: readonly string[] = [];
  #lastReportMs: number | undefined;
  #reportDelayMs = 0;
  #podCIDR = "";
  #wasUnschedulable = false;
  #toldReboot = false;
  #failures = 0;
  #problems = "";

  constructor(deps: NodeAgentDeps) {
    this.#deps = deps;
    this.#about = { apiVersion: "v1", kind: "Node", name: deps.settings.nodeName };
    this.#initial = buildInitialNode(deps.settings, deps.facts);
    this.#loop = new Loop({
      clock: deps.clock,
      resyncMs: deps.settings.statusUpdateMs,
      retryMs: (failures) => backoffMs(failures, registerBackoff),
      minIntervalMs: updateIntervalMsMin,
      onError: (err) =>
        deps.log.warn({ node: deps.settings.nodeName, err: messageOf(err) }, "cannot register the node"),
      pass: (signal) => this.#pass(signal),
    });
  }

  node(): Node {
    return this.#newest() ?? this.#initial;
  }

  async registered(signal?: AbortSignal): Promise<void> {
    if (signal === undefined) return this.#registered.promise;
    signal.throwIfAborted();
    const { promise, reject } = Promise.withResolvers<never>();
    const onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      await Promise.race([this.#registered.promise, promise]);
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  wake(): void {
    this.#loop.wake();
  }

  async run(signal: AbortSignal): Promise<void> {
    const { health, nodeStore, recorder } = this.#deps;
    recorder.event(this.#about, "Normal", "Starting", "Starting kubelet.");
    await this.#firstAnswer(signal);
    const unsubscribe = [
      health.subscribe(() => this.wake()),
      nodeStore.subscribe(({ old, object }) => {
        if (object !== undefined && needsLook(old, object)) this.wake();
      }),
    ];
    try {
      await this.#loop.run(signal);
    } finally {
      for (const stop of unsubscribe) stop();
    }
  }

  async #firstAnswer(signal: AbortSignal): Promise<void> {
    const { health, clock } = this.#deps;
    const answered = new AbortController();
    const isAnswered = () => health.state.runtimeReady !== undefined;
    const unsubscribe = health.subscribe(() => {
      if (isAnswered()) answered.abort();
    });
    try {
      if (!isAnswered()) await clock.sleep(firstAnswerWaitMs, AbortSignal.any([signal, answered.signal]));
    } catch (err) {
      ignoreAbort(err);
    } finally {
      unsubscribe();
    }
  }

  async #pass(signal: AbortSignal): Promise<number> {
    const { settings, random = Math.random } = this.#deps;
    // Pods that need no API server want to know the node's addresses.
    if (!this.#isRegistered) this.#setInitial((await this.#build(this.#initial)).node);
    if (settings.registerNode && !this.#isRegistered) await this.#register(signal);
    await this.#update(signal);
    await this.#syncPodCIDR();
    return settings.statusUpdateMs * (1 + updateJitter * random());
  }

  #setInitial(node: Node): void {
    const hasChanged = buildNodePatch(this.#initial, node, { ignoreHeartbeat: true }) !== undefined;
    this.#initial = node;
    if (hasChanged) this.#deps.onInitial?.();
  }

  async #register(signal: AbortSignal): Promise<void> {
    const { client, settings, log, startup } = this.#deps;
    const initial = this.#initial;
    startup?.attempted();
    const options = { signal, timeoutMs: settings.statusUpdateMs };
    try {
      this.#stored = await client.create(nodes, initial, options);
      log.info({ node: settings.nodeName }, "registered the node");
      startup?.registered();
      this.#noteReady(this.#stored);
      this.#tellEvents(undefined, this.#stored);
      this.#noteReport(true);
    } catch (err) {
      if (!hasCode(err, "AlreadyExists", "Forbidden")) throw err;
      const existing = await client.get(nodes, { name: settings.nodeName }, options).catch((getErr: unknown) => {
        // Forbidden to create and nothing there to update: the first refusal is the one to show.
        throw hasCode(getErr, "NotFound") ? err : getErr;
      });
      const wanted = reconcileExistingNode(existing, initial, settings);
      const patch = buildNodePatch(existing, wanted);
      const key = { name: settings.nodeName };
      this.#stored =
        patch === undefined
          ? existing
          : await client.patch(nodes, key, patch, { ...options, type: "strategic", subresource: "status" });
      log.info({ node: settings.nodeName, corrected: patch !== undefined }, "the node was registered before");
    }
    this.#noteRegistered();
  }

  /** One heartbeat. Failure is logged, not thrown: the next tick tries again. */
  async #update(signal: AbortSignal): Promise<void> {
    const { client, settings, log } = this.#deps;
    for (let attempt = 1; attempt <= updateTriesMax; attempt += 1) {
      try {
        await this.#tryUpdate(attempt === 1 ? this.#newest() : undefined, signal);
        if (this.#failures > 0) log.info({ node: settings.nodeName }, "the node status is updated again");
        this.#failures = 0;
        return;
      } catch (err) {
        if (signal.aborted) throw err;
        this.#failures += 1;
        if (hasCode(err, "NotFound")) {
          const why = this.#isRegistered ? "was deleted; restart the agent to register it again" : "does not exist yet";
          log.warn({ node: settings.nodeName }, `cannot update the node status: the Node ${why}`);
          return;
        }
        const fields = { node: settings.nodeName, attempt, err: messageOf(err) };
        log.warn(
          fields,
          attempt < updateTriesMax ? "cannot update the node status" : "giving up until the next heartbeat",
        );
        // The connection may be dead without knowing it.
        if (attempt > 1) client.resetConnections();
      }
    }
  }

  async #tryUpdate(known: Node | undefined, signal: AbortSignal): Promise<void> {
    const { client, settings, clock } = this.#deps;
    const options = { signal, timeoutMs: settings.statusUpdateMs };
    const key = { name: settings.nodeName };
    const existing = known ?? (await client.get(nodes, key, options));
    if (!this.#isRegistered) this.#noteRegistered();
    this.#stored = existing;
    this.#tellSchedulable(existing);
    const { node } = await this.#build(existing);
    const hasChanged = buildNodePatch(existing, node, { ignoreHeartbeat: true }) !== undefined;
    const dueMs = (this.#lastReportMs ?? Number.NEGATIVE_INFINITY) + settings.statusReportMs + this.#reportDelayMs;
    if (!hasChanged && clock.now() < dueMs) return;
    const patch = buildNodePatch(existing, node);
    if (patch === undefined) return;
    this.#stored = await client.patch(nodes, key, patch, { ...options, type: "strategic", subresource: "status" });
    this.#noteReady(this.#stored);
    this.#noteReport(hasChanged || this.#lastReportMs === undefined);
    this.#tellEvents(existing, node);
  }

  async #build(existing: Node): Promise<BuiltNode> {
    const { settings, facts, health, local, clock, log, images } = this.#deps;
    const addresses = chooseAddresses(settings, await this.#readAddresses(), existing.status?.addresses ?? []);
    const built = buildNodeStatus(
      existing,
      {
        ...settings,
        facts,
        addresses,
        providedNodeIPs:
          settings.cloudProvider !== "external"
            ? undefined
            : settings.nodeIPs.length === 0
              ? null
              : settings.nodeIPs.join(","),
        capacity: nodeCapacity(facts, settings),
        runtime: health.state,
        images: images(),
        local: local(),
      },
      clock.now(),
    );
    const problems = built.problems.join("; ");
    if (problems !== this.#problems && problems !== "") {
      log.warn({ node: settings.nodeName, problems: built.problems }, "part of the node status cannot be computed");
    }
    this.#problems = problems;
    return built;
  }

  async #readAddresses(): Promise<AddressSources> {
    const { readAddresses, settings, clock } = this.#deps;
    const sources = await (readAddresses?.() ?? readAddressSources(settings, clock));
    // A resolver that is away must not move the node to another address: what it said last still counts.
    if (sources.resolvedIPs.length === 0) return { ...sources, resolvedIPs: this.#resolvedIPs };
    this.#resolvedIPs = sources.resolvedIPs;
    return sources;
  }

  async #syncPodCIDR(): Promise<void> {
    const { runtime, log } = this.#deps;
    const { podCIDRs, podCIDR = "" } = this.#newest()?.spec ?? {};
    const wanted = podCIDRs?.join(",") ?? podCIDR;
    if (wanted === "" || wanted === this.#podCIDR) return;
    try {
      await runtime.updateRuntimeConfig({ podCIDR: wanted });
      this.#podCIDR = wanted;
      log.info({ podCIDR: wanted }, "told the runtime the pod CIDR");
    } catch (err) {
      log.warn(
        { podCIDR: wanted, err: messageOf(err) },
        "cannot tell the runtime the pod CIDR; trying again with the next heartbeat",
      );
    }
  }

  #newest(): Node | undefined {
    const watched = this.#deps.nodeStore.get(this.#deps.settings.nodeName);
    const own = this.#stored;
    if (watched === undefined || own === undefined) return watched ?? own;
    return own.metadata.uid === watched.metadata.uid && revision(own) > revision(watched) ? own : watched;
  }

  #noteRegistered(): void {
    this.#isRegistered = true;
    this.#registered.resolve();
  }

  #noteReady({ status }: Node): void {
    const isReady = status?.conditions?.some((condition) => condition.type === "Ready" && condition.status === "True");
    if (isReady === true) this.#deps.startup?.ready();
  }

  #noteReport(hasChanged: boolean): void {
    const { clock, settings, random = Math.random } = this.#deps;
    this.#lastReportMs = clock.now();
    this.#reportDelayMs = hasChanged ? settings.statusReportMs * reportJitter * (2 * random() - 1) : 0;
  }

  #tellEvents(old: Node | undefined, now: Node): void {
    const { recorder, settings, facts } = this.#deps;
    const tell = (type: "Normal" | "Warning", reason: string, message: string) =>
      recorder.event(this.#about, type, reason, message);
    for (const { type, reason, message } of nodeEvents(settings.nodeName, old, now)) tell(type, reason, message);
    const bootIDBefore = old?.status?.nodeInfo?.bootID ?? "";
    if (!this.#toldReboot && bootIDBefore !== "" && bootIDBefore !== facts.bootID) {
      this.#toldReboot = true;
      tell("Warning", "Rebooted", `Node ${settings.nodeName} has been rebooted, boot id: ${facts.bootID}`);
    }
  }

  #tellSchedulable(node: Node): void {
    const isUnschedulable = node.spec?.unschedulable === true;
    if (isUnschedulable === this.#wasUnschedulable) return;
    this.#wasUnschedulable = isUnschedulable;
    const reason = isUnschedulable ? "NodeNotSchedulable" : "NodeSchedulable";
    const { type, message } = nodeEvent(this.#deps.settings.nodeName, reason);
    this.#deps.recorder.event(this.#about, type, reason, message);
  }
}

/** True if somebody changed what we act on; our own status patches come back here and must not wake us. */
function needsLook(old: Node | undefined, now: Node): boolean {
  const shown = ({ spec, metadata }: Node) =>
    JSON.stringify([
      spec?.podCIDRs,
      spec?.unschedulable,
      metadata.labels?.["kubernetes.io/os"],
      metadata.labels?.["kubernetes.io/arch"],
    ]);
  return old === undefined || shown(old) !== shown(now);
}

function revision(node: Node): bigint {
  const text = node.metadata.resourceVersion ?? "";
  return /^\d+$/.test(text) ? BigInt(text) : 0n;
}
