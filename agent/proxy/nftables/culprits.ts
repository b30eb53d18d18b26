import type { Clock } from "../../lib/clock.ts";
import type { Logger } from "../../lib/log.ts";
import type { SyncRequest } from "../backend.ts";
import type { EndpointSets } from "../endpoints.ts";
import type { ServiceDescription } from "../model.ts";
import { Pacer } from "../pacer.ts";
import { decideStandIn, refusalRetryMs, refusalText, type StandIn } from "../refusal.ts";
import type { Nft } from "./exec.ts";
import { baseChains, type FixedContext, renderFixed } from "./fixed.ts";
import type { RenderedService } from "./render.ts";
import { TableText } from "./text.ts";
import { stageAll, type StageRequest, writeChanges, writeElements } from "./write.ts";

// Never made: the kernel is only asked whether it would take what is written for it.
const trialTable = "kube-proxy-trial";
// If more services than this are refused at once the fault is hardly theirs. Each one costs some fifteen trials.
const foundMax = 32;

interface CulpritsDeps {
  readonly nft: Nft;
  readonly clock: Pick<Clock, "monotonic">;
  readonly log: Logger;
  /** Hears once of each service that is refused, with the reason. Must not throw. */
  readonly onRefused?: (key: string, reason: string) => void;
}

type TrialRequest = StageRequest & { readonly fixed: FixedContext };

interface RefusedService {
  /** What it looked like when it was refused. */
  readonly look: string;
  readonly failures: number;
  readonly retryAtMs: number;
  readonly standIn: StandIn;
  /** The rules that it had before. */
  readonly last: RenderedService | undefined;
  /** The sync under way has it as it is. */
  isTried: boolean;
}

/**
 * Services whose rules the kernel refuses. Everything that is rendered is checked before, so there should be none; but one that
 * slips through must not hold up the others, for ever, on every node. It keeps what worked, if anything did; else its clients are
 * refused at once where possible: nothing meant for it leaves the node untranslated.
 */
export class Culprits {
  readonly #deps: CulpritsDeps;
  readonly #refused = new Map<string, RefusedService>();

  constructor(deps: CulpritsDeps) {
    this.#deps = deps;
  }

  /** Services that are to be tried again. */
  due(): string[] {
    const nowMs = this.#deps.clock.monotonic();
    return [...this.#refused].filter(([, { retryAtMs }]) => retryAtMs <= nowMs).map(([key]) => key);
  }

  /** The service; what stands for it while it looks as it did when it was refused, and is not to be tried again. */
  withoutRefused(service: ServiceDescription): ServiceDescription {
    const refused = this.#refused.get(service.key);
    if (refused === undefined) return service;
    const look = lookOf(service);
    if (refused.look !== look) {
      this.#refused.set(service.key, { ...refused, look, failures: 0, retryAtMs: 0, isTried: true });
      return service;
    }
    refused.isTried = refused.retryAtMs <= this.#deps.clock.monotonic();
    return refused.isTried ? service : substituteFor(service, refused.standIn);
  }

  /** The rules that a refused service had before, if it is to have them in the place of its own. */
  lastRules(key: string): RenderedService | undefined {
    const refused = this.#refused.get(key);
    return refused?.standIn === "last" && !refused.isTried ? refused.last : undefined;
  }

  /** A sync is in the kernel, with what was tried again; `isFull`: and with all services that there are. */
  settle({ isFull, keys }: Pick<SyncRequest, "isFull" | "keys">): void {
    if (this.#refused.size === 0) return;
    const isThere = new Set(isFull ? keys : this.#refused.keys());
    for (const [key, { isTried }] of [...this.#refused]) {
      if (isThere.has(key) && !isTried) continue;
      this.#refused.delete(key);
      if (isTried) this.#deps.log.info({ service: key }, "the kernel takes the rules of this service now");
    }
  }

  /**
   * Looks for services that the kernel refuses, by halves, in a table that does not exist. Those that are found have a substitute
   * from now on, until they change or their time has come.
   *
   * @param had what the kernel has of a service
   * @returns how many were found; 0: none of them is to blame
   */
  async find(
    request: TrialRequest,
    had: (key: string) => RenderedService | undefined,
    signal: AbortSignal,
  ): Promise<number> {
    const found = new Map<string, string>();
    const search = async (keys: readonly string[]): Promise<void> => {
      if (found.size >= foundMax) return;
      const refusal = await this.#tryOut({ ...request, keys }, signal);
      const [only] = keys;
      if (refusal === undefined || only === undefined) return;
      if (keys.length === 1) {
        found.set(only, refusal);
        return;
      }
      const middle = keys.length >> 1;
      await search(keys.slice(0, middle));
      await search(keys.slice(middle));
    };
    if ((await this.#tryOut({ ...request, keys: [] }, signal)) === undefined) await search(request.keys);
    for (const [key, why] of found) {
      const service = request.describe(key);
      const describe = () => substituteFor(service, "refusal");
      const refusal = await this.#tryOut({ ...request, keys: [key], describe, lastRules: () => undefined }, signal);
      const known = this.#refused.get(key);
      // What stands for it already is not what it had; and it may be just its last rules that are refused now.
      const last = known === undefined ? had(key) : this.lastRules(key) === undefined ? known.last : undefined;
      const standIn = decideStandIn({ hasLast: last !== undefined, takesRefusal: refusal === undefined });
      this.#add(service, { standIn, last }, why);
    }
    return found.size;
  }

  #add(service: ServiceDescription, instead: Pick<RefusedService, "standIn" | "last">, why: string): void {
    const { clock, log, onRefused } = this.#deps;
    const { key } = service;
    const failures = (this.#refused.get(key)?.failures ?? 0) + 1;
    const retryMs = refusalRetryMs(failures);
    const retryAtMs = clock.monotonic() + retryMs;
    this.#refused.set(key, { look: lookOf(service), failures, retryAtMs, ...instead, isTried: false });
    log.error({ service: key, err: why, retryMs }, refusalText(instead.standIn));
    if (failures === 1) onRefused?.(key, why);
  }

  async #tryOut(request: TrialRequest, signal: AbortSignal): Promise<string | undefined> {
    const pacer = new Pacer();
    const { state, changes } = await stageAll(request, pacer);
    const fixed = [...renderFixed(request.fixed)].filter(([chain]) => !(chain in baseChains));
    const text = new TableText(request.render.family, trialTable);
    text.addTable();
    text.addSharedSets();
    for (const [chain] of fixed) text.addChain(chain);
    writeChanges(changes, text);
    for (const [chain, rules] of fixed) text.writeChain(chain, rules);
    await writeElements(state, text, pacer);
    return await this.#deps.nft.tryOut(text.toString(), signal);
  }
}

/** The description is what its last rules are told apart by, too: it is not rendered then. */
function substituteFor(service: ServiceDescription, standIn: StandIn): ServiceDescription {
  if (standIn === "last") return service;
  if (standIn === "nothing") return { ...service, ports: [] };
  return { ...service, ports: service.ports.map((port) => ({ ...port, endpoints: noEndpoints })) };
}

const noEndpoints: EndpointSets = { cluster: [], local: [], reachable: [], hasAny: false };

function lookOf({ ports }: ServiceDescription): string {
  return JSON.stringify(ports);
}
