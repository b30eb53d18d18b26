import { isStaticPod } from "../../kube/pod-resources.ts";
import type { Node, Pod } from "../../kube/types.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { uidOf } from "../names.ts";
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
      const admission = this.#decide(pod);
      // Nearly all are decided without a wait: the pods of one delivery start together.
      const settled = isFinal(admission) ? admission : await this.#reconsider(pod, admission);
      if (!this.#waiting.delete(uidOf(pod))) continue; // it left while we thought
      if (settled.kind === "rejected") this.#deps.onRejected(pod, settled.rejection);
      else this.#deps.onAdmitted(pod);
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

  // The Node that we hold may be older than what the scheduler saw; and room may have to be made.
  async #reconsider(pod: Pod, admission: Admission): Promise<Admission> {
    if (admission.kind === "preempt") {
      await Promise.all(admission.victims.map(async (victim) => await this.#deps.preempt(victim, admission.resource)));
      return { kind: "admitted" };
    }
    try {
      const node = await this.#deps.fetchNode();
      const again = this.#decide(pod, { node });
      return isFinal(again) || again.kind === "rejected" ? again : await this.#reconsider(pod, again);
    } catch (err) {
      this.#deps.log.warn({ err: messageOf(err) }, "node not read again, deciding by what is known of it");
      return admission;
    }
  }
}

function isFinal(admission: Admission): boolean {
  if (admission.kind === "preempt") return false;
  return admission.kind === "admitted" || admission.rejection.reason !== "NodeAffinity";
}

function createdAt({ metadata }: Pod): string {
  return metadata.creationTimestamp ?? "";
}
