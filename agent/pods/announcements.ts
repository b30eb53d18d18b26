import type { EventRecorder } from "../kube/port.ts";
import type { Pod, PodStatus } from "../kube/types.ts";
import { deadlineExceeded } from "./ending.ts";
import { describePod, podReference, specContainers } from "./names.ts";
import type { Plan } from "./plan.ts";
import type { NodeView } from "./port.ts";

// So many failures in a row, about a second, are worth an event.
const failedLooksMax = 4;

export interface AnnouncementsDeps {
  recorder: Pick<EventRecorder, "event">;
  node: Pick<NodeView, "isNetworkReady" | "isRuntimeReady" | "networkProblem">;
}

/** Tells people what a worker finds out about its pod: each thing once, although every pass finds it again. */
export class Announcements {
  readonly #deps: AnnouncementsDeps;
  /** Until when the crash backoff that was told last goes on, by container. */
  readonly #backoff = new Map<string, number>();
  #saidNetworkNotReady = false;
  #failedLooks = 0;
  #hasNewSandbox = false;

  constructor(deps: AnnouncementsDeps) {
    this.#deps = deps;
  }

  /** The runtime has made a sandbox. */
  sandboxMade(): void {
    this.#hasNewSandbox = true;
  }

  /** The runtime told how the pod is. */
  looked(): void {
    this.#failedLooks = 0;
    this.#hasNewSandbox = false;
  }

  /** A runtime that answers for others did not tell how this pod is. */
  notLooked(pod: Pod, why: string): void {
    if (this.#hasNewSandbox) {
      this.#hasNewSandbox = false;
      this.#warn(pod, "FailedPodSandBoxStatus", `Unable to get pod sandbox status: ${why}`);
    }
    this.#failedLooks += 1;
    if (this.#failedLooks !== failedLooksMax || !this.#deps.node.isRuntimeReady()) return;
    this.#warn(pod, "FailedSync", `error determining status: ${why}`);
  }

  /** What the plan came to: which containers wait to be started again. */
  planned(pod: Pod, { backoff }: Pick<Plan, "backoff">): void {
    for (const [name, { untilMs }] of backoff) {
      if (this.#backoff.get(name) === untilMs) continue;
      this.#backoff.set(name, untilMs);
      const fieldPath = specContainers(pod).find(({ container }) => container.name === name)?.fieldPath;
      const message = `Back-off restarting failed container ${name} in pod ${describePod(pod)}`;
      this.#warn(pod, "BackOff", message, fieldPath);
    }
  }

  /** Whether the pod waits for the network, now. */
  network(pod: Pod, isStopping: boolean): void {
    const { node } = this.#deps;
    const isBlocked = !isStopping && pod.spec.hostNetwork !== true && !node.isNetworkReady();
    if (isBlocked && !this.#saidNetworkNotReady) {
      this.#warn(pod, "NetworkNotReady", `network is not ready: ${node.networkProblem()}`);
    }
    this.#saidNetworkNotReady = isBlocked;
  }

  /** The node's addresses, where `before` is the status that was reported last. */
  hostIPs(pod: Pod, before: PodStatus, [hostIP]: readonly string[]): void {
    const { hostIP: old = "" } = before;
    if (old === "" || hostIP === undefined || familyOf(old) === familyOf(hostIP)) return;
    const message =
      `Kubelet detected an ${familyOf(old)} node IP (${old}), but the cloud provider selected an ${familyOf(hostIP)} ` +
      `node IP (${hostIP}); pass an explicit \`--node-ip\` to kubelet to fix this.`;
    this.#warn(pod, "HostIPsIPFamilyMismatch", message);
  }

  /** The pod has run for as long as it may. */
  deadline(pod: Pod): void {
    this.#deps.recorder.event(podReference(pod), "Normal", deadlineExceeded.reason, deadlineExceeded.message);
  }

  /** The node does not take the pod after all. */
  rejected(pod: Pod, reason: string, message: string): void {
    this.#warn(pod, reason, message);
  }

  #warn(pod: Pod, reason: string, message: string, fieldPath?: string): void {
    this.#deps.recorder.event(podReference(pod, fieldPath), "Warning", reason, message);
  }
}

function familyOf(ip: string): "IPv4" | "IPv6" {
  return ip.includes(":") ? "IPv6" : "IPv4";
}
