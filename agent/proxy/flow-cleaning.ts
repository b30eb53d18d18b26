import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import type { Commands } from "./commands.ts";
import { ConntrackCleaner, type Flow, isServed, type Targets, targetsOf } from "./conntrack.ts";
import type { Family } from "./ip.ts";
import type { ServiceDescription } from "./model.ts";

interface FlowCleaningDeps {
  readonly family: Family;
  readonly commands: Commands;
  readonly clock: Clock;
  readonly log: Logger;
  /** This machine's addresses, asked for at each look. */
  readonly localIPs: () => readonly string[];
  /** Hears of each look, whether or not there was a stale flow. Must not throw. */
  readonly onCleaned: (event: { readonly durationMs: number; readonly removed: number }) => void;
  /** Longest rest after failures. */
  readonly retryMsMax: number;
}

// A look reads all flows of the machine: after one that failed, also a sync waits this long. Doubles up to the maximum.
const retryBaseMs = 5_000;

// Failures name the endpoint: of so many different ones, each is told again.
const toldMax = 100;

/**
 * Removes stale flows after syncs, beside them: a table of a million flows takes seconds to look through, for which no change of a
 * service should wait. What a sync renders is staged; it counts once that sync is in the kernel.
 */
export class FlowCleaning {
  readonly #deps: FlowCleaningDeps;
  readonly #cleaner: ConntrackCleaner;
  readonly #loop: Loop;
  #staged = new Map<string, Targets>();
  #pending = new Map<string, Targets>();
  readonly #told = new Set<string>();

  constructor(deps: FlowCleaningDeps) {
    const { clock, log, retryMsMax } = deps;
    this.#deps = deps;
    this.#cleaner = new ConntrackCleaner(deps);
    const rest = (failures: number) => backoffMs(failures, { baseMs: retryBaseMs, maxMs: retryMsMax });
    this.#loop = new Loop({
      clock,
      pass: (signal) => this.#pass(signal),
      onError: (err) => {
        const text = messageOf(err);
        log[this.#told.has(text) ? "debug" : "warn"]({ err: text }, "stale flows could not be removed; trying again");
        if (this.#told.size >= toldMax) this.#told.clear();
        this.#told.add(text);
      },
      retryMs: rest,
      failureFloorMs: rest,
      resyncMs: retryMsMax,
    });
  }

  /** Begins with a sync: what an earlier one left that failed is forgotten, for the next one is full. */
  reset(): void {
    this.#staged = new Map();
  }

  /** Notes a service as a sync renders it. */
  note(service: ServiceDescription): void {
    const targets = targetsOf(service);
    if (targets.size > 0 || this.#pending.has(service.key) || this.#cleaner.knows(service.key)) {
      this.#staged.set(service.key, targets);
    }
  }

  /** The sync is in the kernel. */
  settle(): void {
    if (this.#staged.size === 0) return;
    for (const [key, targets] of this.#staged) {
      this.#cleaner.learn(key, targets);
      this.#pending.set(key, targets);
    }
    this.reset();
    this.#loop.wake();
  }

  async run(signal: AbortSignal): Promise<void> {
    await this.#loop.run(signal);
  }

  async #pass(signal: AbortSignal): Promise<undefined> {
    const services = this.#pending;
    if (services.size === 0) return;
    this.#pending = new Map();
    const { clock, log, localIPs, onCleaned } = this.#deps;
    const startedAtMs = clock.monotonic();
    try {
      const addresses = localIPs();
      // A look takes a while. An endpoint may be back by now, and so may flows to it that work: their answers would be lost.
      const isKept = (flow: Flow) => isServed(flow, [...this.#pending.values(), ...this.#staged.values()], addresses);
      const removed = await this.#cleaner.clean(services, addresses, signal, isKept);
      onCleaned({ durationMs: clock.monotonic() - startedAtMs, removed });
      this.#told.clear();
      if (removed > 0) log.info({ removed }, "flows to endpoints that are gone removed");
    } catch (err) {
      this.#pending = new Map([...services, ...this.#pending]); // what came meanwhile is newer
      throw err;
    }
  }
}
