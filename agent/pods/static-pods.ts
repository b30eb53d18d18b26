import { isStaticPod, uidOf } from "../kube/pod-resources.ts";
import { keyOf, type StoreChange } from "../kube/port.ts";
import type { Pod } from "../kube/types.ts";
import { hashOf, Mirrors } from "./mirror.ts";
import { podReference } from "./names.ts";
import type { PodDeps } from "./port.ts";
import { StaticTurns } from "./sources/turns.ts";
import type { StatusWriter } from "./status-writer.ts";

export interface StaticPodsDeps extends Pick<PodDeps, "pods" | "mirrors" | "client" | "node" | "clock" | "log"> {
  writer: Pick<StatusWriter, "hold" | "observeMirror" | "forgetMirror">;
  /** True while the pod's worker brings it to its end, because its source has it no more. */
  isEnding(podUID: string): boolean;
}

/**
 * What is different about static pods: those of one name take turns, and what the API server shows of each is a mirror
 * pod, which is also where its status is written.
 */
export class StaticPods {
  readonly #deps: StaticPodsDeps;
  readonly #turns = new StaticTurns();
  readonly #mirrors: Mirrors | undefined;

  constructor(deps: StaticPodsDeps) {
    const { client, mirrors, node, clock, log } = deps;
    this.#deps = deps;
    if (mirrors === undefined) return;
    this.#mirrors = new Mirrors({
      client,
      mirrors: mirrors.pods,
      ownNode: mirrors.ownNode,
      nodeName: node.nodeName,
      names: () => [...deps.pods.list()].filter(isStaticPod).map(({ metadata }) => keyOf(metadata)),
      wanted: (key) => this.#wantedMirror(key),
      onCreated: (mirror) => deps.writer.observeMirror(hashOf(mirror) ?? "", mirror),
      clock,
      log,
    });
  }

  /** Follows mirror pods, and keeps them as they should be until `signal` aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const end = this.#deps.mirrors?.pods.subscribe((change) => this.#onMirror(change));
    await this.#mirrors?.run(signal);
    end?.();
  }

  /** A static pod is there, or has changed: its status is kept from now on. */
  observe(pod: Pod): void {
    const { mirrors, writer } = this.#deps;
    const key = keyOf(pod.metadata);
    const mirror = mirrors?.pods.get(key);
    writer.hold(pod);
    if (mirror !== undefined && hashOf(mirror) === uidOf(pod)) writer.observeMirror(uidOf(pod), mirror);
    this.#mirrors?.wake(key);
  }

  /** @returns true if the pod may be worked on now; false: it waits for others of its name. Pods of other sources may. */
  enter(pod: Pod): boolean {
    if (this.#turns.enter(pod)) return true;
    this.#deps.log.info({ pod: podReference(pod) }, "static pod waits for the one of its name to end");
    return false;
  }

  /** Nothing of a pod is left, or it has gone while it waited. @returns the pod that may be worked on now instead */
  leave(pod: Pod): Pod | undefined {
    if (!isStaticPod(pod)) return undefined;
    const next = this.#turns.leave(pod);
    this.#mirrors?.wake(keyOf(pod.metadata));
    return next;
  }

  /** All sources have told what they have: mirror pods that stand for nothing can be told now. */
  allKnown(): void {
    this.#mirrors?.resync();
  }

  #wantedMirror(key: string): Pod | "keep" | undefined {
    const { pods, isEnding } = this.#deps;
    const uid = this.#turns.started(key);
    if (uid === undefined) return pods.hasSynced ? undefined : "keep";
    return isEnding(uid) ? "keep" : (pods.byUID(uid) ?? "keep");
  }

  #onMirror({ old, object }: StoreChange<Pod>): void {
    const { pods, writer } = this.#deps;
    const mirror = object ?? old;
    const uid = mirror === undefined ? undefined : hashOf(mirror);
    if (mirror === undefined || uid === undefined) return;
    const pod = pods.byUID(uid);
    if (pod === undefined || !isStaticPod(pod)) return;
    if (object === undefined) writer.forgetMirror(pod, mirror);
    else writer.observeMirror(uid, object);
  }
}
