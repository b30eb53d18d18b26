import type { Pod } from "../kube/types.ts";
import type { PodSnapshot, ContainerStatus as RuntimeContainer, RuntimeEvent } from "../runtime/port.ts";
import { restartCountOf } from "./container-annotations.ts";
import { readTerminationMessage } from "./container-logs.ts";
import { unknownExitCode } from "./container-status.ts";
import { specContainers } from "./names.ts";
import type { PodAction } from "./plan.ts";
import type { PodDeps } from "./port.ts";

// The runtime learns of an exit and of the kernel's out-of-memory killer by different ways; the reason may come later.
const oomReasonMs = 150;

/** Keeps what the runtime last showed of one pod, and looks again only if something may have changed. */
export class PodObserver {
  readonly #podUID: string;
  readonly #deps: Pick<PodDeps, "runtime" | "clock" | "node" | "metrics">;
  readonly #lastWords = new Map<string, string>();
  #snapshot: PodSnapshot | undefined;
  #isDirty = true;
  #isLooking = false;
  /** What a look that is under way has to show, or there is another one. */
  readonly #expected: ((observed: PodSnapshot) => boolean)[] = [];
  #podIPs: string[] = [];

  constructor(podUID: string, deps: Pick<PodDeps, "runtime" | "clock" | "node" | "metrics">) {
    this.#podUID = podUID;
    this.#deps = deps;
  }

  /** The runtime's view that decisions are based on. */
  get snapshot(): PodSnapshot | undefined {
    return this.#snapshot;
  }

  /** Termination messages of exited containers, by container ID. */
  get lastWords(): ReadonlyMap<string, string> {
    return this.#lastWords;
  }

  /** The pod's own addresses as last seen; the first of the node's primary family, then the first of the other. */
  get podIPs(): readonly string[] {
    return this.#podIPs;
  }

  /** Something may have changed in the runtime. */
  invalidate(): void {
    this.#isDirty = true;
  }

  /**
   * Something has happened in the runtime. It does not make a view out of date that shows it already: of an end we hear twice, by
   * the runtime's event and by its answer to our call.
   */
  expect(isShown: (observed: PodSnapshot) => boolean): void {
    if (this.#isLooking) this.#expected.push(isShown);
    else if (this.#snapshot === undefined || !isShown(this.#snapshot)) this.#isDirty = true;
  }

  /**
   * The present view. A step or an event during a look makes it out of date, as what it did may be missing from it.
   *
   * @param isBeingKilled whether we ourselves stop this container just now
   */
  async observe(pod: Pod, isBeingKilled: (containerID: string) => boolean): Promise<PodSnapshot> {
    for (;;) {
      if (!this.#isDirty && this.#snapshot !== undefined) return this.#snapshot;
      await this.#look(pod, isBeingKilled);
    }
  }

  async #look(pod: Pod, isBeingKilled: (containerID: string) => boolean): Promise<void> {
    const { runtime, clock, node, metrics } = this.#deps;
    this.#isDirty = false;
    this.#isLooking = true;
    try {
      let observed = inOrder(await runtime.podSnapshot(this.#podUID));
      if (observed.containers.some((container) => this.#mayBeOOM(pod, container, isBeingKilled))) {
        await clock.sleep(oomReasonMs);
        observed = inOrder(await runtime.podSnapshot(this.#podUID));
      }
      await this.#readLastWords(observed);
      const [newest] = observed.sandboxes;
      if (newest?.ready === true && newest.ips.length > 0) this.#podIPs = publishedIPs(newest.ips, node.hostIPs());
      metrics?.looked(pod, this.#snapshot, observed);
      this.#snapshot = observed;
      if (!this.#expected.every((isShown) => isShown(observed))) this.#isDirty = true;
    } catch (err) {
      this.#isDirty = true;
      throw err;
    } finally {
      this.#isLooking = false;
      this.#expected.length = 0;
    }
  }

  // Killed just now, by nobody that we know of, in a container that memory is rationed for: the kernel may have done it.
  #mayBeOOM(
    pod: Pod,
    { id, name, state, exitCode, reason }: RuntimeContainer,
    isBeingKilled: (containerID: string) => boolean,
  ): boolean {
    if (state !== "exited" || exitCode !== unknownExitCode || reason !== "Error") return false;
    if (this.#lastWords.has(id) || isBeingKilled(id)) return false;
    const limits = specContainers(pod).find(({ container }) => container.name === name)?.container.resources?.limits;
    return limits?.memory !== undefined;
  }

  async #readLastWords(observed: PodSnapshot): Promise<void> {
    for (const container of observed.containers) {
      if (container.state !== "exited" || this.#lastWords.has(container.id)) continue;
      this.#lastWords.set(container.id, await readTerminationMessage(container));
    }
    for (const id of this.#lastWords.keys()) {
      if (!observed.containers.some((container) => container.id === id)) this.#lastWords.delete(id);
    }
  }
}

/** True if this view of the runtime has what `action`, which has succeeded, did there. */
export function isStepShown(action: PodAction, observed: PodSnapshot): boolean {
  switch (action.kind) {
    case "EnsureImage":
    case "PreStop":
    case "TearDownVolumes":
    case "CleanUp":
      return true; // it does nothing that a view would show
    case "KillContainer":
      return hasEnded(action.containerID, observed);
    case "StopSandbox":
      return hasEnded(action.sandboxID, observed);
    default:
      return false;
  }
}

/** True if this view of the runtime has what `event` tells. */
export function isEventShown({ kind, containerID }: RuntimeEvent, observed: PodSnapshot): boolean {
  return kind === "exited" && containerID !== undefined && hasEnded(containerID, observed);
}

// Of a container or a sandbox. One that is not there may have ended, or may not be seen yet.
function hasEnded(id: string, { containers, sandboxes }: PodSnapshot): boolean {
  const container = containers.find((one) => one.id === id);
  return container === undefined
    ? sandboxes.find((one) => one.id === id)?.ready === false
    : container.state === "exited";
}

// Newest first by their count: the machine's clock may have been set back between two instances.
function inOrder(observed: PodSnapshot): PodSnapshot {
  const containers = observed.containers.toSorted(
    (a, b) => restartCountOf(b) - restartCountOf(a) || b.createdAtMs - a.createdAtMs,
  );
  return { ...observed, containers };
}

function publishedIPs(ips: readonly string[], hostIPs: readonly string[]): string[] {
  const isV6 = (ip: string) => ip.includes(":");
  const primary = isV6(hostIPs[0] ?? ips[0] ?? "");
  const ofFamily = (family: boolean) => ips.filter((ip) => isV6(ip) === family).slice(0, 1);
  return [...ofFamily(primary), ...ofFamily(!primary)];
}
