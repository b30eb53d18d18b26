import type { Clock } from "../../lib/clock.ts";
import type { Logger } from "../../lib/log.ts";
import type { SyncRequest } from "../backend.ts";
import type { EndpointSets } from "../endpoints.ts";
import type { ServiceDescription } from "../model.ts";
import { Pacer } from "../pacer.ts";
import { refusalRetryMs, refusalText } from "../refusal.ts";
import type { Nft } from "./exec.ts";
import { baseChains, type FixedContext, renderFixed } from "./fixed.ts";
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

/** What is programmed for a service that is refused: that it has no endpoints, or nothing if the kernel does not take that either. */
type Substitute = "rejecting" | "nothing";

interface RefusedService {
  /** What it looked like when it was refused. */
  readonly look: string;
  readonly failures: number;
  readonly retryAtMs: number;
  readonly substitute: Substitute;
  /** The sync under way has it as it is. */
  isTried: boolean;
}

/**
 * Services whose rules the kernel refuses. Everything that is rendered is checked before, so there should be none; but one that
 * slips through must not hold up the others, for ever, on every node. Its clients are refused at once where possible: nothing
 * meant for it leaves the node untranslated.
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
    if (refused.look !== lookOf(service)) {
      this.#refused.delete(service.key);
      return service;
    }
    refused.isTried = refused.retryAtMs <= this.#deps.clock.monotonic();
    return refused.isTried ? service : substituteFor(service, refused.substitute);
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
   * @returns how many were found; 0: none of them is to blame
   */
  async find(request: TrialRequest, signal: AbortSignal): Promise<number> {
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
      const describe = () => substituteFor(service, "rejecting");
      const refusal = await this.#tryOut({ ...request, keys: [key], describe }, signal);
      this.#add(service, refusal === undefined ? "rejecting" : "nothing", why);
    }
    return found.size;
  }

  #add(service: ServiceDescription, substitute: Substitute, why: string): void {
    const { clock, log, onRefused } = this.#deps;
    const { key } = service;
    const failures = (this.#refused.get(key)?.failures ?? 0) + 1;
    const retryMs = refusalRetryMs(failures);
    const retryAtMs = clock.monotonic() + retryMs;
    this.#refused.set(key, { look: lookOf(service), failures, retryAtMs, substitute, isTried: false });
    log.error({ service: key, err: why, retryMs }, refusalText(substitute === "rejecting" ? "refusal" : "nothing"));
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

function substituteFor(service: ServiceDescription, substitute: Substitute): ServiceDescription {
  if (substitute === "nothing") return { ...service, ports: [] };
  return { ...service, ports: service.ports.map((port) => ({ ...port, endpoints: noEndpoints })) };
}

const noEndpoints: EndpointSets = { cluster: [], local: [], reachable: [], hasAny: false };

function lookOf({ ports }: ServiceDescription): string {
  return JSON.stringify(ports);
}
