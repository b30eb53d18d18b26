import { isStaticPod, uidOf } from "../../kube/pod-resources.ts";
import type { Node, Pod } from "../../kube/types.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { admit } from "./admit.ts";
import type { Admission, AdmissionContext, Rejection } from "./port.ts";

export interface GateDeps {
  /** Everything but the other pods, as it is now. */
  context(): Omit<AdmissionContext, "others">;
  /** The pod with the resources that it was given before, if any: with those it is let in again. */
  given(pod: Pod): Pod;
  /** Pods that were let in and still use the node. */
  active(): readonly Pod[];
  /** The Node as the API server has it at this moment: what we hold may be a little behind. */
  fetchNode(): Promise<Node>;
  /** Ends a pod for want of `resource`; resolves when it is gone, or has had its time. */
  preempt(victim: Pod, resource: string): Promise<void>;
  onAdmitted(pod: Pod): void;
  onRejected(pod: Pod, rejection: Rejection): void;
  log: Logger;
}

/**
 * Where pods that are new to the node are let in or turned away, one after the other and the oldest first: each sees what
 * those before it took.
 */
export class AdmissionGate {
  readonly #deps: GateDeps;
  readonly #waiting = new Map<string, Pod>();
  #isOpen = false;
  #running: Promise<void> | undefined;

  constructor(deps: GateDeps) {
    this.#deps = deps;
  }

  /** True if the pod waits for its turn. */
  has(podUID: string): boolean {
    return this.#waiting.has(podUID);
  }

  /** Asks for a pod to be let in, or replaces what it looked like when it asked. */
  arrive(pod: Pod): void {
    this.#waiting.set(uidOf(pod), pod);
    this.#work();
  }

  /** The pod is gone. */
  leave(podUID: string): void {
    this.#waiting.delete(podUID);
  }

  /** Lets pods in from now on: all that the API server has are known. Static pods, which come first anyway, do not wait. */
  open(): void {
    this.#isOpen = true;
    this.#work();
  }

  /** Resolves when nobody is being decided about. */
  async settled(): Promise<void> {
    await this.#running;
  }

  #work(): void {
    if (this.#running !== undefined || this.#oldest() === undefined) return;
    this.#running = this.#drain().finally(() => {
      this.#running = undefined;
      this.#work(); // for those that came between the last look and now
    });
  }

  async #drain(): Promise<void> {
    for (let pod = this.#oldest(); pod !== undefined; pod = this.#oldest()) {
      const uid = uidOf(pod);
      const first = this.#decide(pod);
      // Nearly all are decided without a wait: the pods of one delivery start together.
      const admission = isFinal(first) ? first : await this.#reconsider(uid, first);
      const present = this.#waiting.get(uid);
      if (admission === undefined || present === undefined) continue; // it left while we thought
      this.#waiting.delete(uid);
      if (admission.kind === "rejected") this.#deps.onRejected(present, admission.rejection);
      else this.#deps.onAdmitted(present);
    }
  }

  // A pod of which we can make nothing is turned away like others: it must not hold up those behind it.
  #decide(pod: Pod, changes: Partial<AdmissionContext> = {}): Admission {
    try {
      return admit(this.#deps.given(pod), { ...this.#context(), ...changes });
    } catch (err) {
      const { name, namespace = "" } = pod.metadata;
      this.#deps.log.error({ pod: `${namespace}/${name}`, err: messageOf(err) }, "admission of a pod failed");
      return { kind: "rejected", rejection: { reason: "UnexpectedAdmissionError", message: messageOf(err) } };
    }
  }

  #oldest(): Pod | undefined {
    let oldest: Pod | undefined;
    for (const pod of this.#waiting.values()) {
      if (!this.#isOpen && !isStaticPod(pod)) continue;
      if (oldest === undefined || createdAt(pod) < createdAt(oldest)) oldest = pod;
    }
    return oldest;
  }

  #context(): AdmissionContext {
    return { ...this.#deps.context(), others: this.#deps.active() };
  }

  // The Node that we hold may be older than what the scheduler saw, and room may have to be made. Both take their time, in
  // which the pod may change: what counts is what it is then. @returns undefined if it has left
  async #reconsider(uid: string, first: Admission): Promise<Admission | undefined> {
    const ended = new Set<string>();
    let admission = first;
    let node: Node | undefined;
    while (!isFinal(admission, node !== undefined)) {
      if (admission.kind === "preempt") {
        const { victims, resource } = admission;
        await Promise.all(victims.map(async (victim) => await this.#deps.preempt(victim, resource)));
        for (const victim of victims) ended.add(uidOf(victim)); // also one that has not ended in time
      } else {
        try {
          node = await this.#deps.fetchNode();
        } catch (err) {
          this.#deps.log.warn({ err: messageOf(err) }, "node not read again, deciding by what is known of it");
          return admission;
        }
      }
      const present = this.#waiting.get(uid);
      if (present === undefined) return undefined;
      const others = this.#deps.active().filter((other) => !ended.has(uidOf(other)));
      admission = this.#decide(present, { others, ...(node === undefined ? {} : { node }) });
    }
    return admission;
  }
}

function isFinal(admission: Admission, isNodeRead = false): boolean {
  if (admission.kind === "preempt") return false;
  return isNodeRead || admission.kind === "admitted" || admission.rejection.reason !== "NodeAffinity";
}

function createdAt({ metadata }: Pod): string {
  return metadata.creationTimestamp ?? "";
}
