import type { EndpointSlice, Node, Service } from "../kube/types.ts";
import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import type { Commands } from "./commands.ts";
import { ConntrackCleaner, hasPinnedFlows } from "./conntrack.ts";
import type { Backend, SyncRequest } from "./backend.ts";
import { type Family, type Prefix, parseIP } from "./ip.ts";
import { type ServiceDescription, ServiceModel } from "./model.ts";
import type { ProxyOptions } from "./options.ts";
import { RuleWatch } from "./rule-watch.ts";

/** State of one family's proxy, for health and metrics. Times are Unix ms. */
export interface FamilyStats {
  readonly family: Family;
  /** End of the last good sync. */
  readonly lastSyncedAtMs: number | undefined;
  /** Since when something waits to be applied; undefined: all is applied. Health fails when this is too long ago. */
  readonly pendingSinceMs: number | undefined;
  readonly pendingServices: number;
  readonly syncs: number;
  readonly fullSyncs: number;
  readonly failures: number;
}

/** Hears of syncs. Must not throw. */
export interface SyncObserver {
  synced(event: SyncEvent): void;
}

export interface SyncEvent {
  readonly family: Family;
  readonly isFull: boolean;
  readonly isOk: boolean;
  readonly durationMs: number;
  /** For each endpoint change that is in the kernel now: ms since it happened, as far as its slice says. */
  readonly programmingLatenciesMs: readonly number[];
}

interface FamilyProxyDeps {
  readonly family: Family;
  readonly options: ProxyOptions;
  readonly backend: Backend;
  readonly commands: Commands;
  readonly clock: Clock;
  readonly log: Logger;
  readonly observer: SyncObserver | undefined;
  readonly localIPs: () => readonly string[];
  /** Hears that somebody else changed the rules, and how. Must not throw. */
  readonly onDamage?: (damage: string) => void;
}

// The reference's period. It catches what the canaries cannot see; with iptables, skipped for many endpoints, where it costs seconds.
const fullSyncPeriodMs = 3_600_000;
// More endpoints than this are the reference's "large cluster".
const endpointsOfSmallClusterMax = 1_000;
// First wait after a failed sync: long enough for another program to let go of the lock. Doubles up to syncPeriod.
const retryBaseMs = 1_000;
// Warnings about one service that are worth a line each; the rest is counted.
const warningsPerServiceMax = 3;
const zoneLabel = "topology.kubernetes.io/zone";

/**
 * The proxy of one IP family. Families share nothing: trouble in one never holds up the other.
 * Events only note what changed and wake the loop; a pass applies all that is pending.
 */
export class FamilyProxy {
  readonly family: Family;
  readonly #deps: FamilyProxyDeps;
  readonly #model: ServiceModel;
  readonly #conntrack: ConntrackCleaner;
  readonly #loop: Loop;
  readonly #watch: RuleWatch;
  #isSyncing = false;
  readonly #nodeIPs: readonly Prefix[];
  /** Services whose UDP flows are to be looked at. */
  readonly #flowsToClean = new Set<string>();
  readonly #warned = new Map<string, string>();
  #mustSyncFull = true;
  /** Something beside the services changed that rules depend on. */
  #isContextNew = false;
  #lastFullAtMs = 0;
  #nextCheckAtMs = 0;
  #pendingSinceMs: number | undefined;
  #lastSyncedAtMs: number | undefined;
  readonly #firstSync = Promise.withResolvers<void>();
  #counts = { syncs: 0, fullSyncs: 0, failures: 0 };

  constructor(deps: FamilyProxyDeps) {
    const { family, options, clock, log } = deps;
    this.family = family;
    this.#deps = deps;
    this.#nodeIPs = options.nodeIPs.map(parseIP).filter((ip) => ip !== undefined);
    this.#model = new ServiceModel(family, { name: options.nodeName, zone: undefined, ips: this.#nodeIPs });
    this.#conntrack = new ConntrackCleaner(deps.commands, family, log);
    this.#loop = new Loop({
      clock,
      pass: (signal) => this.#pass(signal),
      onError: (err) =>
        log.error({ err: messageOf(err) }, "services could not be programmed; a full sync will be tried"),
      retryMs: (failures) => backoffMs(failures, { baseMs: retryBaseMs, maxMs: options.syncPeriodMs }),
      resyncMs: options.syncPeriodMs,
      minIntervalMs: options.minSyncPeriodMs,
    });
    this.#watch = new RuleWatch({
      clock,
      log,
      look: (signal) => deps.backend.findDamage(signal),
      isBusy: () => this.#isSyncing || this.#mustSyncFull || deps.backend.needsFull,
      onDamage: (damage) => {
        this.#mustSyncFull = true;
        deps.onDamage?.(damage);
        this.#wake();
      },
      restMsMax: options.syncPeriodMs,
    });
  }

  setService(key: string, service: Service | undefined): void {
    this.#model.setService(key, service);
    this.#wakeIfPending();
  }

  setSlice(key: string, slice: EndpointSlice | undefined): void {
    this.#model.setSlice(key, slice);
    this.#wakeIfPending();
  }

  setNode(node: Node): void {
    const zone = node.metadata.labels?.[zoneLabel];
    if (!this.#model.setNode({ name: this.#deps.options.nodeName, zone, ips: this.#nodeIPs })) return;
    this.#mustSyncFull = true;
    this.#wake();
  }

  /** Asks for a sync because something changed that rules depend on, beside services and node. */
  refresh(): void {
    this.#isContextNew = true;
    this.#wake();
  }

  /** Resolves after the first good sync. */
  get firstSync(): Promise<void> {
    return this.#firstSync.promise;
  }

  /** Syncs until `signal` aborts. The rules stay. */
  async run(signal: AbortSignal): Promise<void> {
    this.#wake();
    await Promise.all([this.#loop.run(signal), this.#watch.run(signal), this.#deps.backend.run?.(signal)]);
  }

  stats(): FamilyStats {
    return {
      family: this.family,
      lastSyncedAtMs: this.#lastSyncedAtMs,
      pendingSinceMs: this.#pendingSinceMs,
      pendingServices: this.#model.pending().keys.size,
      ...this.#counts,
    };
  }

  #wakeIfPending(): void {
    if (this.#model.hasPending) this.#wake();
  }

  #wake(): void {
    this.#pendingSinceMs ??= this.#deps.clock.now();
    this.#loop.wake();
  }

  async #pass(signal: AbortSignal): Promise<undefined> {
    this.#isSyncing = true; // before waiting for the look: none may begin afterwards
    try {
      await this.#watch.idle();
      return await this.#apply(signal);
    } finally {
      this.#isSyncing = false;
    }
  }

  async #apply(signal: AbortSignal): Promise<undefined> {
    const { backend, clock, log, options } = this.#deps;
    const isCheckDue = clock.monotonic() >= this.#nextCheckAtMs;
    if (isCheckDue) {
      this.#nextCheckAtMs = clock.monotonic() + options.syncPeriodMs;
      this.#checkHour();
    }
    const isPending = this.#mustSyncFull || this.#isContextNew || this.#model.hasPending;
    if (backend.needsFull || isPending || isCheckDue) await this.#sync(signal);
    if (this.#flowsToClean.size === 0) return undefined;
    const services = [...this.#flowsToClean].map((key) => this.#describeAnyway(key));
    try {
      const removed = await this.#conntrack.clean(services, this.#deps.localIPs(), signal);
      this.#flowsToClean.clear();
      if (removed > 0) log.info({ removed }, "flows to endpoints that are gone removed");
    } catch (err) {
      if (signal.aborted) return undefined;
      log.warn({ err: messageOf(err) }, "stale flows could not be removed; trying again at the next sync");
    }
    return undefined;
  }

  /** Notices the hour of the full sync. */
  #checkHour(): void {
    const { backend, clock } = this.#deps;
    const isWorthIt = backend.syncsFullyAtAnySize ?? this.#model.endpointCount() <= endpointsOfSmallClusterMax;
    if (isWorthIt && clock.monotonic() - this.#lastFullAtMs > fullSyncPeriodMs) this.#mustSyncFull = true;
  }

  async #sync(signal: AbortSignal): Promise<void> {
    const { backend, clock, log, observer } = this.#deps;
    const isFull = this.#mustSyncFull || backend.needsFull;
    const pending = this.#model.pending();
    const startedAtMs = clock.monotonic();
    const report = (isOk: boolean, programmingLatenciesMs: number[]) => {
      const durationMs = clock.monotonic() - startedAtMs;
      observer?.synced({ family: this.family, isFull, isOk, durationMs, programmingLatenciesMs });
      return durationMs;
    };
    this.#isContextNew = false;
    this.#mustSyncFull = false; // before the sync: a change of the node during it asks for another
    try {
      const result = await backend.sync(this.#request(isFull, pending.keys), signal);
      const nowMs = clock.now();
      const durationMs = report(
        true,
        this.#model.settle(pending).map((at) => nowMs - at),
      );
      this.#counts.syncs += 1;
      this.#lastSyncedAtMs = nowMs;
      this.#firstSync.resolve();
      this.#pendingSinceMs = this.#model.hasPending || this.#mustSyncFull ? this.#pendingSinceMs : undefined;
      if (isFull) {
        this.#counts.fullSyncs += 1;
        this.#lastFullAtMs = clock.monotonic();
      }
      log[isFull ? "info" : "debug"](
        { isFull, services: pending.keys.size, durationMs: Math.round(durationMs), ...result },
        "services programmed",
      );
    } catch (err) {
      this.#mustSyncFull = true;
      this.#pendingSinceMs ??= clock.now();
      if (!signal.aborted) {
        this.#counts.failures += 1;
        report(false, []);
      }
      throw err;
    }
  }

  #request(isFull: boolean, changed: ReadonlySet<string>): SyncRequest {
    return {
      isFull,
      keys: isFull ? this.#model.keys() : [...changed].sort(),
      describe: (key) => this.#describe(key),
      endpointCount: () => this.#model.endpointCount(),
    };
  }

  /** An object so malformed that reading it throws must cost its own service only. */
  #describeAnyway(key: string): ServiceDescription {
    try {
      return this.#model.describe(key);
    } catch (err) {
      return { key, ports: [], healthCheckNodePort: 0, warnings: [`service ${key} is ignored: ${messageOf(err)}`] };
    }
  }

  #describe(key: string): ServiceDescription {
    const service = this.#describeAnyway(key);
    if (hasPinnedFlows(service)) this.#flowsToClean.add(key);
    const text = service.warnings.join("\n");
    if (text === (this.#warned.get(key) ?? "")) return service;
    if (text === "") this.#warned.delete(key);
    else this.#warned.set(key, text);
    for (const warning of service.warnings.slice(0, warningsPerServiceMax)) {
      this.#deps.log.warn({ service: key }, warning);
    }
    const more = service.warnings.length - warningsPerServiceMax;
    if (more > 0) this.#deps.log.warn({ service: key, more }, "more is malformed in this service");
    return service;
  }
}
