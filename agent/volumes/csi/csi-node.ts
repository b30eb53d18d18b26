import type { Clock } from "../../lib/clock.ts";
import { AgentError, hasCode, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { Loop } from "../../lib/loop.ts";
import type { ApiClient, Store } from "../../kube/port.ts";
import { csiNodes, nodes } from "../../kube/resources.ts";
import type { CSINode, Node } from "../../kube/types.ts";
import {
  csiNodeUpdates,
  isForeign,
  newCSINode,
  nodePatch,
  topologyProblems,
  type WantedDrivers,
} from "./csi-node-plan.ts";
import type { NodeInfo } from "./port.ts";

// Kubelet's retries begin at 30 ms and grow eightfold; it ends its process after six. We go on, and the node says why it is not Ready.
export const initRetry = { baseMs: 30, factor: 8, maxMs: 60_000 };
// Somebody else wrote the CSINode meanwhile: kubelet's 4 tries, 10 ms growing fivefold.
export const conflictTriesMax = 4;
const conflictBackoff = { baseMs: 10, factor: 5 };
// Nobody but us writes the CSINode, and we may not watch it; this repairs what a person did to it.
export const resyncMs = 3_600_000;
// An agent that was restarted does not take its node's readiness back while it looks for the CSINode.
export const restartGraceMs = 10_000;

/** Tells the cluster which CSI drivers the node has. */
export interface CSINodeEntries {
  /**
   * Names a driver with what it said of the node, or changes that. Resolves once it is written, or once it is clear that the API
   * server cannot be asked now: then it is written later. Rejects if it is refused: Forbidden, Invalid, or Conflict when the driver's
   * topology contradicts the Node's labels.
   */
  set(driver: string, info: NodeInfo): Promise<void>;
  /** Takes a driver out again, as soon as the API server takes it. */
  remove(driver: string): void;
}

/** Keeps the CSINode object, and what is said of drivers on the Node. */
export interface CSINodeKeeper extends CSINodeEntries {
  /** Why storage is not ready: there is no CSINode yet. undefined: it is. */
  problem(): string | undefined;
  /** Calls `listener` when {@link problem} has changed. @returns ends it */
  subscribe(listener: () => void): () => void;
  /** Keeps it until `signal` aborts. Never gives up. */
  run(signal: AbortSignal): Promise<void>;
}

export interface CSINodeKeeperOptions {
  nodeName: string;
  client: Pick<ApiClient, "get" | "create" | "update" | "patch" | "delete">;
  /** Holds at most one object: the own Node. */
  nodeStore: Store<Node>;
  clock: Clock;
  log: Logger;
}

/** Makes the keeper; nothing is read or sent before `run`. */
export function createCSINodeKeeper(options: CSINodeKeeperOptions): CSINodeKeeper {
  return new Keeper(options);
}

class Keeper implements CSINodeKeeper {
  readonly #options: CSINodeKeeperOptions;
  readonly #loop: Loop;
  /** All drivers that were ever set here; undefined: gone again. Others in the CSINode are from before our start. */
  readonly #wanted = new Map<string, NodeInfo | undefined>();
  readonly #waiting = new Map<string, PromiseWithResolvers<void>>();
  readonly #listeners = new Set<() => void>();
  readonly #startedAtMs: number;
  #isInitialized = false;
  #failure: string | undefined;

  constructor(options: CSINodeKeeperOptions) {
    this.#options = options;
    this.#startedAtMs = options.clock.monotonic();
    const { nodeName, log } = options;
    this.#loop = new Loop({
      clock: options.clock,
      resyncMs,
      retryMs: (failures) => growing(failures, initRetry),
      onError: (err) => log.warn({ node: nodeName, err: messageOf(err) }, "cannot tell the cluster about CSI drivers"),
      pass: (signal) => this.#pass(signal),
    });
  }

  async set(driver: string, info: NodeInfo): Promise<void> {
    this.#wanted.set(driver, info);
    this.#settle(driver); // whoever waits is told by the newer call
    const waiting = Promise.withResolvers<void>();
    this.#waiting.set(driver, waiting);
    this.#loop.wake();
    await waiting.promise;
  }

  remove(driver: string): void {
    this.#wanted.set(driver, undefined);
    this.#settle(driver);
    this.#loop.wake();
  }

  problem(): string | undefined {
    if (this.#isInitialized) return undefined;
    if (this.#failure !== undefined) return `failed to initialize CSINode: ${this.#failure}`;
    const { clock, nodeStore, nodeName } = this.#options;
    const mayHaveBeenReady = !nodeStore.hasSynced || isReady(nodeStore.get(nodeName));
    const isInGrace = clock.monotonic() - this.#startedAtMs < restartGraceMs;
    return mayHaveBeenReady && isInGrace ? undefined : "CSINode is not yet initialized";
  }

  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  async run(signal: AbortSignal): Promise<void> {
    const { nodeStore } = this.#options;
    const unsubscribe = nodeStore.subscribe(({ old, object }) => {
      if (object === undefined) return;
      const isOther = old?.metadata.uid !== object.metadata.uid;
      if (isOther || nodePatch(object, this.#possible(object), "add") !== undefined) this.#loop.wake();
    });
    try {
      await this.#loop.run(signal);
    } finally {
      unsubscribe();
      for (const driver of [...this.#waiting.keys()]) this.#settle(driver); // the next agent writes it
    }
  }

  /** Without the drivers whose topology the Node contradicts: nothing is written of them. */
  #possible(node: Node): WantedDrivers {
    const problems = topologyProblems(node, this.#wanted);
    return new Map([...this.#wanted].filter(([driver]) => !problems.has(driver)));
  }

  async #pass(signal: AbortSignal): Promise<undefined> {
    const { nodeStore, nodeName, log } = this.#options;
    const node = nodeStore.get(nodeName);
    if (node === undefined) {
      // Its coming wakes us. Until then there is nothing that a CSINode could belong to.
      if (nodeStore.hasSynced) for (const driver of [...this.#waiting.keys()]) this.#settle(driver);
      return;
    }
    const wanted = new Map(this.#wanted);
    const waiting = new Map(this.#waiting);
    for (const [driver, why] of topologyProblems(node, wanted)) {
      wanted.delete(driver);
      this.#settle(driver, new AgentError("Conflict", why));
    }
    try {
      await this.#patchNode(node, wanted, "add", signal);
      await this.#writeCSINode(node, wanted, signal);
      await this.#patchNode(node, wanted, "remove", signal);
    } catch (err) {
      if (signal.aborted) throw err;
      const refusal = hasCode(err, "Forbidden", "Invalid") ? err : undefined;
      for (const [driver, one] of waiting) if (this.#waiting.get(driver) === one) this.#settle(driver, refusal);
      if (!this.#isInitialized && this.#failure !== messageOf(err)) {
        this.#failure = messageOf(err);
        this.#tell();
      }
      throw err;
    }
    for (const [driver, one] of waiting) if (this.#waiting.get(driver) === one) this.#settle(driver);
    if (this.#isInitialized) return;
    this.#isInitialized = true;
    log.info({ node: nodeName }, "CSINode is there");
    this.#tell();
  }

  async #patchNode(node: Node, wanted: WantedDrivers, part: "add" | "remove", signal: AbortSignal): Promise<void> {
    const { client, nodeName, nodeStore } = this.#options;
    const newest = nodeStore.get(nodeName);
    const current = newest?.metadata.uid === node.metadata.uid ? newest : undefined;
    const patch = nodePatch(current ?? node, wanted, part);
    if (patch === undefined) return;
    await client.patch(nodes, { name: nodeName }, patch, { type: "strategic", subresource: "status", signal });
  }

  async #writeCSINode(node: Node, wanted: WantedDrivers, signal: AbortSignal): Promise<void> {
    const { clock } = this.#options;
    for (let tries = 1; ; tries += 1) {
      try {
        await this.#tryWrite(node, wanted, signal);
        return;
      } catch (err) {
        if (!hasCode(err, "Conflict", "AlreadyExists", "NotFound") || tries === conflictTriesMax) throw err;
        await clock.sleep(growing(tries, conflictBackoff), signal);
      }
    }
  }

  async #tryWrite(node: Node, wanted: WantedDrivers, signal: AbortSignal): Promise<void> {
    const { client, nodeName, log } = this.#options;
    const key = { name: nodeName };
    let existing: CSINode | undefined;
    try {
      existing = await client.get(csiNodes, key, { signal });
    } catch (err) {
      if (!hasCode(err, "NotFound")) throw err;
    }
    if (existing !== undefined && isForeign(existing, node)) {
      log.info({ node: nodeName }, "CSINode belongs to an earlier Node of this name, making it anew");
      const { uid } = existing.metadata;
      await client.delete(csiNodes, key, { signal, ...(uid === undefined ? {} : { uid }) });
      existing = undefined;
    }
    if (existing === undefined) {
      await client.create(csiNodes, newCSINode(node, wanted), { signal });
      return;
    }
    let { resourceVersion } = existing.metadata;
    for (const update of csiNodeUpdates(existing, wanted)) {
      const metadata = { ...update.metadata, ...(resourceVersion === undefined ? {} : { resourceVersion }) };
      ({ resourceVersion } = (await client.update(csiNodes, { ...update, metadata }, { signal })).metadata);
    }
  }

  #settle(driver: string, refusal?: AgentError): void {
    const waiting = this.#waiting.get(driver);
    this.#waiting.delete(driver);
    if (refusal === undefined) waiting?.resolve();
    else waiting?.reject(refusal);
  }

  #tell(): void {
    for (const listener of [...this.#listeners]) listener();
  }
}

function isReady(node: Node | undefined): boolean {
  return node?.status?.conditions?.some(({ type, status }) => type === "Ready" && status === "True") === true;
}

function growing(failures: number, { baseMs, factor, maxMs = Number.POSITIVE_INFINITY }: Growth): number {
  return Math.min(maxMs, baseMs * factor ** (failures - 1));
}

interface Growth {
  baseMs: number;
  factor: number;
  maxMs?: number;
}
