import { backoffMs } from "../../lib/backoff.ts";
import type { Clock } from "../../lib/clock.ts";
import type { Logger } from "../../lib/log.ts";
import type { SyncRequest } from "../backend.ts";
import type { Refusal } from "./isolate.ts";

// A kernel module may be loaded, or an object mended; the first is seldom, and the second is a change that is tried at once.
const retryBaseMs = 30_000;
const retryMaxMs = 3_600_000;

/** What hears of refused services. */
export interface RefusedDeps {
  readonly clock: Clock;
  readonly log: Logger;
  /** Hears once of each service that is refused, with the reason. Must not throw. */
  readonly onRefused?: (key: string, reason: string) => void;
}

interface RefusedService {
  readonly failures: number;
  readonly retryAtMs: number;
}

/** Services whose rules the kernel does not take. They have no rules; everybody else's are programmed. */
export class RefusedServices {
  readonly #deps: RefusedDeps;
  readonly #services = new Map<string, RefusedService>();
  /** Those that the request under way leaves out. */
  #out: ReadonlySet<string> = new Set();

  constructor(deps: RefusedDeps) {
    this.#deps = deps;
  }

  /**
   * The request, without the services that are refused. One that changed is tried again, and so is one whose time has come.
   */
  request<T extends SyncRequest>(request: T): T {
    this.#out = new Set();
    if (this.#services.size === 0) return request;
    const nowMs = this.#deps.clock.monotonic();
    const isChanged = new Set(request.isFull ? [] : request.keys);
    const isOut = new Set<string>();
    const due: string[] = [];
    for (const [key, { retryAtMs }] of this.#services) {
      if (retryAtMs <= nowMs) due.push(key);
      else if (!isChanged.has(key)) isOut.add(key);
    }
    this.#out = isOut;
    const keys = request.isFull ? request.keys : [...new Set([...request.keys, ...due])].sort();
    const { describe } = request;
    return {
      ...request,
      keys,
      describe: (key) =>
        isOut.has(key) ? { key, ports: [], healthCheckNodePort: 0, localReady: 0, warnings: [] } : describe(key),
    };
  }

  /** Notes services that are refused, and tells of each that was not before. */
  add(refusals: readonly Refusal[]): void {
    const { clock, log, onRefused } = this.#deps;
    for (const { key, error } of refusals) {
      const failures = (this.#services.get(key)?.failures ?? 0) + 1;
      const retryMs = backoffMs(failures, { baseMs: retryBaseMs, maxMs: retryMaxMs });
      this.#services.set(key, { failures, retryAtMs: clock.monotonic() + retryMs });
      log.error(
        { service: key, err: error.message, retryMs },
        "the kernel refuses the rules of this service; it has none until it changes or is tried again",
      );
      if (failures === 1) onRefused?.(key, error.message);
    }
  }

  /** Forgets those that a successful sync tried again, or that are no more. */
  settle(request: SyncRequest): void {
    if (this.#services.size === 0) return;
    const isTried = new Set(request.keys);
    for (const key of [...this.#services.keys()]) {
      if (this.#out.has(key) || !(request.isFull || isTried.has(key))) continue;
      this.#services.delete(key);
      this.#deps.log.info({ service: key }, "the kernel takes the rules of this service now");
    }
  }
}
