import type { Clock } from "../../lib/clock.ts";
import type { Logger } from "../../lib/log.ts";
import type { SyncRequest } from "../backend.ts";
import type { EndpointSets } from "../endpoints.ts";
import type { ServiceDescription } from "../model.ts";
import { decideStandIn, refusalRetryMs, refusalText, type StandIn } from "../refusal.ts";
import type { Refusal } from "./isolate.ts";
import type { AppliedService } from "./state.ts";

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
  readonly standIn: StandIn;
  /** The rules that it had before. */
  readonly last: AppliedService | undefined;
  /** `chainPrint` of these rules' chains, as they were found after the refusal. */
  prints?: ReadonlyMap<string, number | undefined>;
}

const noEndpoints: EndpointSets = { cluster: [], local: [], reachable: [], hasAny: false };

/** Services whose rules the kernel does not take. They keep what worked, if anything did; everybody else's are programmed. */
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
      describe: (key) => (isOut.has(key) ? this.#describeStandIn(key, describe) : describe(key)),
    };
  }

  /**
   * The rules that a refused service had before, if they are in the kernel still, in what the request under way leaves out.
   *
   * @param present `chainPrint` by chain of the nat table
   */
  lastRules(key: string, present: ReadonlyMap<string, number>): AppliedService | undefined {
    const service = this.#services.get(key);
    if (service?.standIn !== "last" || service.last === undefined || !this.#out.has(key)) return undefined;
    const chains = [...service.last.chains.keys()];
    // Right after the refusal they are as they were: a text is applied whole or not at all.
    const prints = (service.prints ??= new Map(chains.map((chain) => [chain, present.get(chain)])));
    const isThere = chains.every((chain) => present.has(chain) && present.get(chain) === prints.get(chain));
    return isThere ? service.last : undefined;
  }

  #describeStandIn(key: string, describe: SyncRequest["describe"]): ServiceDescription {
    if (this.#services.get(key)?.standIn === "nothing") {
      return { key, ports: [], healthCheckNodePort: 0, localReady: 0, warnings: [] };
    }
    const service = describe(key);
    return { ...service, ports: service.ports.map((port) => ({ ...port, endpoints: noEndpoints })) };
  }

  /**
   * Notes services that are refused, and tells of each that was not before.
   *
   * @param lastApplied what the kernel has of a service
   */
  add(refusals: readonly Refusal[], lastApplied: (key: string) => AppliedService | undefined): void {
    const { clock, log, onRefused } = this.#deps;
    for (const { key, error, isDispatch } of refusals) {
      const known = this.#services.get(key);
      const failures = (known?.failures ?? 0) + 1;
      const retryMs = refusalRetryMs(failures);
      const last = lastApplied(key) ?? known?.last;
      // With a dispatch rule refused, its chains may be new already, and no longer fit what led to them.
      const standIn = decideStandIn({ hasLast: last !== undefined, takesRefusal: isDispatch !== true });
      this.#services.set(key, { failures, retryAtMs: clock.monotonic() + retryMs, standIn, last });
      log.error({ service: key, err: error.message, retryMs }, refusalText(standIn));
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
