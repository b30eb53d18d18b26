import { configMirrorAnnotation, uidOf } from "../kube/pod-resources.ts";
import type { ApiClient, Store } from "../kube/port.ts";
import { pods } from "../kube/resources.ts";
import type { Node, Pod } from "../kube/types.ts";
import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { hasCode, isAbort, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import type { MirrorSet } from "./sources/port.ts";

/** Calls under way at once: a node's first hundred static pods are shown quickly, and others get their turn. */
export const callsInFlightMax = 8;
/** Rest after a failed call: 200 ms doubling to half a minute. */
export const mirrorRetry = { baseMs: 200, maxMs: 30_000, jitter: 0.2 };
// The net below the watches: kubelet's syncFrequency, at which it looks after each static pod's mirror.
const resyncMs = 60_000;

/** What is to be done about the mirror pod of one name. */
export type MirrorAction =
  | { kind: "none" }
  | { kind: "create"; node: Node; pod: Pod }
  | { kind: "delete"; mirror: Pod };

/**
 * What the mirror pod of one name needs. Pure.
 *
 * @param wanted the static pod that is worked on; "keep" while that is ending or not known; undefined: there is none
 * @param node our Node as the API server has it: it owns the mirror pod, so there is none without it
 */
export function decideMirror(
  wanted: Pod | "keep" | undefined,
  mirror: Pod | undefined,
  node: Node | undefined,
): MirrorAction {
  if (wanted === "keep") return { kind: "none" };
  if (mirror !== undefined) {
    const isGood = wanted !== undefined && hashOf(mirror) === uidOf(wanted);
    return isGood && mirror.metadata.deletionTimestamp === undefined ? { kind: "none" } : { kind: "delete", mirror };
  }
  if (wanted === undefined || node?.metadata.uid === undefined) return { kind: "none" };
  return node.metadata.deletionTimestamp === undefined ? { kind: "create", node, pod: wanted } : { kind: "none" };
}

/** The object that shows a static pod on the API server. Pure. */
export function buildMirrorPod({ metadata, spec }: Pod, node: Node): Pod {
  const { name, namespace = "", labels, annotations, uid = "" } = metadata;
  const { uid: nodeUID = "", name: nodeName } = node.metadata;
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: {
      name,
      namespace,
      ...(labels === undefined ? {} : { labels }),
      annotations: { ...annotations, [configMirrorAnnotation]: uid },
      ownerReferences: [{ apiVersion: "v1", kind: "Node", name: nodeName, uid: nodeUID, controller: true }],
    },
    spec,
  };
}

/** The UID of the static pod that a mirror pod stands for. */
export function hashOf(mirror: Pod): string | undefined {
  return mirror.metadata.annotations?.[configMirrorAnnotation];
}

export interface MirrorDeps {
  client: Pick<ApiClient, "create" | "delete" | "get">;
  mirrors: MirrorSet;
  ownNode: Pick<Store<Node>, "get" | "subscribe">;
  nodeName: string;
  /** Names (`namespace/name`) of the static pods that there are. */
  names(): Iterable<string>;
  /** As for {@link decideMirror}. */
  wanted(key: string): Pod | "keep" | undefined;
  /** A mirror pod was made; the watch will show it, too, a moment later. */
  onCreated(mirror: Pod): void;
  clock: Clock;
  log: Logger;
}

/** Keeps the mirror pods as they should be. */
export class Mirrors {
  readonly #deps: MirrorDeps;
  readonly #loop: Loop;
  readonly #dirty = new Set<string>();
  readonly #failures = new Map<string, { count: number; retryAtMs: number; message: string }>();
  /** Made by us and not yet shown by the watch: UIDs of their static pods, by name. */
  readonly #created = new Map<string, string>();
  #resyncAtMs = 0;

  constructor(deps: MirrorDeps) {
    const { clock, log } = deps;
    this.#deps = deps;
    this.#loop = new Loop({
      clock,
      pass: async (signal) => await this.#pass(signal),
      onError: (err) => log.warn({ err: messageOf(err) }, "mirror pods not looked at, trying again"),
      retryMs: (failures) => backoffMs(failures, mirrorRetry),
      resyncMs,
    });
  }

  /** The static pod of this name, `namespace/name`, has changed, or is worked on from now on, or is no more. */
  wake(key: string): void {
    this.#dirty.add(key);
    this.#failures.delete(key);
    this.#loop.wake();
  }

  /** Something has changed that concerns all of them. */
  resync(): void {
    this.#resyncAtMs = 0;
    this.#loop.wake();
  }

  /** Works until `signal` aborts. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const { mirrors, ownNode } = this.#deps;
    try {
      await mirrors.synced(signal);
    } catch {
      return; // the agent ends
    }
    const unsubscribe = [
      mirrors.subscribe(({ key }) => {
        this.#created.delete(key);
        this.wake(key);
      }),
      ownNode.subscribe(({ old, object }) => {
        const shown = (node: Node | undefined) => [node?.metadata.uid, node?.metadata.deletionTimestamp].join(" ");
        if (shown(old) !== shown(object)) this.resync();
      }),
    ];
    await this.#loop.run(signal);
    for (const end of unsubscribe) end();
  }

  async #pass(signal: AbortSignal): Promise<number> {
    const { clock, names, mirrors } = this.#deps;
    const nowMs = clock.monotonic();
    if (nowMs >= this.#resyncAtMs) {
      this.#resyncAtMs = nowMs + resyncMs;
      this.#created.clear();
      for (const key of names()) this.#dirty.add(key);
      for (const { metadata } of mirrors.list()) this.#dirty.add(`${metadata.namespace ?? ""}/${metadata.name}`);
    }
    for (const [key, { retryAtMs }] of this.#failures) if (retryAtMs <= nowMs) this.#dirty.add(key);
    const next = this.#dirty.values();
    const work = async () => {
      for (const key of next) {
        this.#dirty.delete(key);
        if ((this.#failures.get(key)?.retryAtMs ?? 0) <= nowMs) await this.#sync(key, signal);
      }
    };
    await Promise.all(Array.from({ length: callsInFlightMax }, work));
    const dues = [...this.#failures.values()].map(({ retryAtMs }) => retryAtMs);
    return Math.max(1, Math.min(this.#resyncAtMs, ...dues) - clock.monotonic());
  }

  async #sync(key: string, signal: AbortSignal): Promise<void> {
    const { mirrors, ownNode, nodeName, wanted, log } = this.#deps;
    const action = decideMirror(wanted(key), mirrors.get(key), ownNode.get(nodeName));
    try {
      if (action.kind === "create") await this.#create(key, action, signal);
      if (action.kind === "delete") await this.#delete(action.mirror, signal);
      this.#failures.delete(key);
    } catch (err) {
      if (isAbort(err)) return;
      const message = messageOf(err);
      const before = this.#failures.get(key);
      const count = (before?.count ?? 0) + 1;
      const retryMs = backoffMs(count, mirrorRetry);
      this.#failures.set(key, { count, message, retryAtMs: this.#deps.clock.monotonic() + retryMs });
      if (message !== before?.message) log.warn({ pod: key, err: message, retryMs }, `mirror pod not ${action.kind}d`);
    }
  }

  async #create(key: string, { pod, node }: MirrorAction & { kind: "create" }, signal: AbortSignal): Promise<void> {
    if (this.#created.get(key) === uidOf(pod)) return;
    const mirror = await this.#createOrFind(pod, node, signal);
    // The watch may have been faster, and even have shown its end already.
    if (this.#deps.mirrors.get(key) === undefined) this.#created.set(key, uidOf(pod));
    this.#deps.log.info({ pod: key, podUID: uidOf(pod), mirrorUID: uidOf(mirror) }, "mirror pod created");
    this.#deps.onCreated(mirror);
  }

  // The answer to a call that did its work may have been lost, and the watch may be silent.
  async #createOrFind(pod: Pod, node: Node, signal: AbortSignal): Promise<Pod> {
    const { client } = this.#deps;
    const wanted = buildMirrorPod(pod, node);
    try {
      return await client.create(pods, wanted, { signal });
    } catch (err) {
      if (!hasCode(err, "AlreadyExists")) throw err;
      const { name, namespace = "" } = wanted.metadata;
      const present = await client.get(pods, { namespace, name }, { signal });
      if (hashOf(present) !== uidOf(pod) || present.metadata.deletionTimestamp !== undefined) throw err;
      return present;
    }
  }

  async #delete({ metadata }: Pod, signal: AbortSignal): Promise<void> {
    const { name, namespace = "", uid } = metadata;
    const options = { signal, gracePeriodSeconds: 0, ...(uid === undefined ? {} : { uid }) };
    await this.#deps.client.delete(pods, { namespace, name }, options).catch((err: unknown) => {
      if (!hasCode(err, "NotFound", "Conflict")) throw err; // gone, or replaced
    });
  }
}
