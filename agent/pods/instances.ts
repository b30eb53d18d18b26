import type { PodSnapshot } from "../runtime/port.ts";
import { type CrashBackoff, type CrashBackoffLimits, lastCrash, noteRestart } from "./crash-backoff.ts";
import type { HookProgress, PodLocal } from "./local.ts";
import { isAlive, type PodAction } from "./plan.ts";

type Remembered = Pick<
  PodLocal,
  "announced" | "crash" | "replaced" | "endedAtMs" | "condemned" | "hooks" | "stoppedSandboxes"
>;

/** What a worker remembers of its pod's container instances: their ends, their hooks, who replaces them and when. */
export class Instances implements Remembered {
  readonly announced = new Map<string, string>();
  readonly crash = new Map<string, CrashBackoff>();
  readonly replaced = new Set<string>();
  readonly endedAtMs = new Map<string, number>();
  readonly condemned = new Set<string>();
  readonly stoppedSandboxes = new Set<string>();
  readonly hooks = new Map<string, HookProgress & { stop: AbortController }>();
  readonly #limits: CrashBackoffLimits;

  constructor(limits: CrashBackoffLimits) {
    this.#limits = limits;
  }

  /**
   * Takes in what the runtime has, and forgets what it has no more.
   *
   * @param nowMs  on the worker's own clock, as everything that is remembered
   * @param wallMs on the machine's, as what the runtime says
   */
  observe({ containers, sandboxes }: PodSnapshot, nowMs: number, wallMs: number): void {
    for (const [id, { stop }] of this.hooks) {
      const status = containers.find((container) => container.id === id);
      if (status === undefined || !isAlive(status)) stop.abort();
      if (status === undefined) this.hooks.delete(id);
    }
    for (const known of [this.announced, this.replaced, this.condemned, this.endedAtMs]) {
      for (const id of known.keys()) if (!containers.some((container) => container.id === id)) known.delete(id);
    }
    for (const id of this.stoppedSandboxes) {
      if (!sandboxes.some((sandbox) => sandbox.id === id)) this.stoppedSandboxes.delete(id);
    }
    // When an instance ended is told once; from then on it is as long ago as time has passed.
    for (const { id, state, finishedAtMs } of containers) {
      if (state !== "exited" || this.endedAtMs.has(id)) continue;
      const agoMs = finishedAtMs === 0 ? 0 : Math.max(0, wallMs - finishedAtMs);
      this.endedAtMs.set(id, nowMs - agoMs);
    }
  }

  /** A step begins. */
  begin(action: PodAction, observed: PodSnapshot, nowMs: number): void {
    if (action.kind === "StartContainer") this.#noteRestart(action.container, observed, nowMs);
    if (action.kind === "KillContainer" || action.kind === "PreStop") {
      this.announced.set(action.containerID, action.why);
      if (action.replaces === true) this.replaced.add(action.containerID);
    }
    if (action.kind === "PreStop") {
      this.hooks.set(action.containerID, { beganAtMs: nowMs, isDone: false, stop: new AbortController() });
    }
  }

  /** A step has succeeded. */
  done(action: PodAction): void {
    if (action.kind === "StopSandbox") this.stoppedSandboxes.add(action.sandboxID);
  }

  /** The hook of an instance is over, however it ended. */
  hookEnded(containerID: string): void {
    const hook = this.hooks.get(containerID);
    if (hook !== undefined) hook.isDone = true;
  }

  /** Waits for no hook any longer. */
  abortHooks(): void {
    for (const { stop } of this.hooks.values()) stop.abort();
  }

  /** Names of containers whose present instance is replaced. */
  replacedNames({ containers }: PodSnapshot): Set<string> {
    return new Set(containers.flatMap(({ id, name }) => (this.replaced.has(id) ? [name] : [])));
  }

  #noteRestart(name: string, observed: PodSnapshot, nowMs: number): void {
    const newest = observed.containers.find((container) => container.name === name);
    const crash = newest?.state === "exited" ? lastCrash(newest, observed, this) : undefined;
    if (crash === undefined) return;
    const endedAtMs = this.endedAtMs.get(crash.id) ?? crash.finishedAtMs;
    this.crash.set(name, noteRestart(this.crash.get(name), endedAtMs, nowMs, this.#limits));
  }
}
