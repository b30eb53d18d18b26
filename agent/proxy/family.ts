import type { EndpointSlice, Node, Service } from "../kube/types.ts";
import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import type { Commands } from "./commands.ts";
import { type Backend, type BackendFigures, endpointsOfSmallClusterMax, type SyncRequest } from "./backend.ts";
import { FlowCleaning } from "./flow-cleaning.ts";
import type { HealthCheckPorts } from "./health-check-ports.ts";
import { type Family, type Prefix, parseIP } from "./ip.ts";
import { type ChangeCounts, type ServiceDescription, ServiceModel } from "./model.ts";
import type { ProxyOptions } from "./options.ts";
import { RuleWatch } from "./rule-watch.ts";
import { type NoLocalCounts, ServiceNotes } from "./service-notes.ts";

/** State of one family's proxy, for health and metrics. Times are Unix ms. */
export interface FamilyStats {
  readonly family: Family;
  readonly startedAtMs: number;
  /** End of the last good sync. */
  readonly lastSyncedAtMs: number | undefined;
  /** When a sync was asked for last. */
  readonly lastQueuedAtMs: number | undefined;
  /** Since when something waits to be applied; undefined: all is applied. */
  readonly pendingSinceMs: number | undefined;
  /** How long that has been, whatever happened to the machine's clock. Health fails when it is too long. */
  readonly pendingForMs: number | undefined;
  readonly pendingServices: number;
  readonly changes: ChangeCounts;
  readonly noLocal: NoLocalCounts;
  readonly syncs: number;
  readonly fullSyncs: number;
  readonly failures: number;
  /** Those of `failures` that were not full. */
  readonly partialFailures: number;
  readonly backend: BackendFigures;
}

/** Hears of syncs. Must not throw. */
export interface SyncObserver {
  synced(event: SyncEvent): void;
  /** Stale flows were looked for, whether or not there were any. */
  flowsCleaned?(event: FlowsEvent): void;
}

export interface FlowsEvent {
  readonly family: Family;
  readonly durationMs: number;
  readonly removed: number;
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
  /** Serves healthCheckNodePorts; told of them after each good sync. */
  readonly healthChecks?: Pick<HealthCheckPorts, "update"> | undefined;
}

/** A moment, by both clocks. */
interface Instant {
  readonly unixMs: number;
  readonly monotonicMs: number;
}

// The reference's period. It catches what the canaries cannot see; with iptables, skipped for many endpoints, where it costs seconds.
const fullSyncPeriodMs = 3_600_000;
// First wait after a failed sync: long enough for another program to let go of the lock. Doubles up to syncPeriod.
const retryBaseMs = 1_000;
// After failures a change waits for the retry, but no longer than this: a full sync of a large cluster costs seconds, and most
// changes do not take away why the last one failed.
const failureFloorMaxMs = 10_000;
// A flow that is left costs its client until it times out, minutes at most.
const flowRetryMaxMs = 60_000;
// Warnings about one service that are worth a line each; the rest is counted.
const warningsPerServiceMax = 3;
// A new Service with its endpoints is a handful of changes within a second. Until it is programmed its address leads nowhere, and who
// asks too early hangs. Syncs of changes are cheap; storms still get one per minSyncPeriod.
export const syncBurst = 10;
const zoneLabel = "topology.kubernetes.io/zone";

/**
 * The proxy of one IP family. Families share nothing: trouble in one never holds up the other.
 * Events only note what changed and wake the loop; a pass applies all that is pending.
 */
export class FamilyProxy {
  readonly family: Family;
  readonly #deps: FamilyProxyDeps;
  readonly #model: ServiceModel;
  readonly #flows: FlowCleaning;
  readonly #loop: Loop;
  readonly #watch: RuleWatch;
  #isSyncing = false;
  readonly #warned = new Map<string, string>();
  readonly #notes = new ServiceNotes();
  readonly #startedAtMs: number;
  #mustSyncFull = true;
  /** Something beside the services changed that rules depend on. */
  #isContextNew = false;
  #lastFullAtMs = 0;
  #nextCheckAtMs = 0;
  #pendingSince: Instant | undefined;
  #lastQueuedAtMs: number | undefined;
  #lastSyncedAtMs: number | undefined;
  readonly #firstSync = Promise.withResolvers<void>();
  #counts = { syncs: 0, fullSyncs: 0, failures: 0, partialFailures: 0 };

  constructor(deps: FamilyProxyDeps) {
    const { family, options, clock, log } = deps;
    this.family = family;
    this.#deps = deps;
    this.#startedAtMs = clock.now();
    this.#model = new ServiceModel(family, { name: options.nodeName, zone: undefined, ips: nodeIPsOf(options) });
    this.#flows = new FlowCleaning({
      family,
      commands: deps.commands,
      clock,
      log,
      localIPs: deps.localIPs,
      onCleaned: (event) => deps.observer?.flowsCleaned?.({ family, ...event }),
      retryMsMax: flowRetryMaxMs,
    });
    this.#loop = new Loop({
      clock,
      pass: (signal) => this.#pass(signal),
      onError: (err) =>
        log.error({ err: messageOf(err) }, "services could not be programmed; a full sync will be tried"),
      retryMs: (failures) => backoffMs(failures, { baseMs: retryBaseMs, maxMs: options.syncPeriodMs }),
      failureFloorMs: (failures) =>
        backoffMs(failures, { baseMs: retryBaseMs, maxMs: Math.min(failureFloorMaxMs, options.syncPeriodMs) }),
      resyncMs: options.syncPeriodMs,
      minIntervalMs: options.minSyncPeriodMs,
      burst: syncBurst,
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
    const { options } = this.#deps;
    if (!this.#model.setNode({ name: options.nodeName, zone, ips: nodeIPsOf(options) })) return;
    this.#mustSyncFull = true;
    this.#wake();
  }

  /**
   * Asks for a sync because something changed that rules depend on, beside services and what `setNode` takes.
   * `isFull`: the rules of each service depend on it.
   */
  refresh({ isFull = false } = {}): void {
    if (isFull) this.#mustSyncFull = true;
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
    await Promise.all([
      this.#loop.run(signal),
      this.#flows.run(signal),
      this.#watch.run(signal),
      this.#deps.backend.run?.(signal),
    ]);
  }

  stats(): FamilyStats {
    const pending = this.#pendingSince;
    const { backend } = this.#deps;
    return {
      family: this.family,
      startedAtMs: this.#startedAtMs,
      lastSyncedAtMs: this.#lastSyncedAtMs,
      lastQueuedAtMs: this.#lastQueuedAtMs,
      pendingSinceMs: pending?.unixMs,
      pendingForMs: pending === undefined ? undefined : this.#deps.clock.monotonic() - pending.monotonicMs,
      pendingServices: this.#model.pendingCount,
      changes: this.#model.changes(),
      noLocal: this.#notes.noLocal,
      // Counted when somebody looks: health is asked for by anybody, and does not.
      get backend() {
        return backend.figures?.() ?? {};
      },
      ...this.#counts,
    };
  }

  #wakeIfPending(): void {
    if (this.#model.hasPending) this.#wake();
  }

  #wake(): void {
    const now = this.#now();
    this.#pendingSince ??= now;
    this.#lastQueuedAtMs = now.unixMs;
    this.#loop.wake();
  }

  #now(): Instant {
    const { clock } = this.#deps;
    return { unixMs: clock.now(), monotonicMs: clock.monotonic() };
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
    const { backend, clock, options } = this.#deps;
    const isCheckDue = clock.monotonic() >= this.#nextCheckAtMs;
    if (isCheckDue) {
      this.#nextCheckAtMs = clock.monotonic() + options.syncPeriodMs;
      this.#checkHour();
    }
    const isPending = this.#mustSyncFull || this.#isContextNew || this.#model.hasPending;
    if (backend.needsFull || isPending || isCheckDue) await this.#sync(signal);
    return undefined;
  }

  /** Notices the hour of the full sync. */
  #checkHour(): void {
    const { backend, clock } = this.#deps;
    const isWorthIt = backend.syncsFullyAtAnySize ?? this.#model.endpointCount() <= endpointsOfSmallClusterMax;
    if (isWorthIt && clock.monotonic() - this.#lastFullAtMs > fullSyncPeriodMs) this.#mustSyncFull = true;
  }

  async #sync(signal: AbortSignal): Promise<void> {
    const { backend, clock, log, observer, healthChecks } = this.#deps;
    const isFull = this.#mustSyncFull || backend.needsFull;
    const pending = this.#model.pending();
    const started = this.#now();
    const startedAtMs = started.monotonicMs;
    const report = (isOk: boolean, programmingLatenciesMs: number[]) => {
      const durationMs = clock.monotonic() - startedAtMs;
      observer?.synced({ family: this.family, isFull, isOk, durationMs, programmingLatenciesMs });
      return durationMs;
    };
    this.#isContextNew = false;
    this.#mustSyncFull = false; // before the sync: a change of the node during it asks for another
    this.#notes.reset();
    this.#flows.reset();
    try {
      const result = await backend.sync(this.#request(isFull, pending.keys), signal);
      const nowMs = clock.now();
      const durationMs = report(true, this.#programmingLatencies(this.#model.settle(pending), nowMs));
      this.#counts.syncs += 1;
      this.#lastSyncedAtMs = nowMs;
      this.#firstSync.resolve();
      // What came during the sync waits since then, not since what the sync has applied.
      const isPending = this.#model.hasPending || this.#mustSyncFull || this.#isContextNew;
      this.#pendingSince = isPending ? started : undefined;
      this.#notes.settle(isFull);
      this.#flows.settle();
      healthChecks?.update(this.#notes.healthChecks());
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
      this.#pendingSince ??= started;
      if (!signal.aborted) {
        this.#counts.failures += 1;
        if (!isFull) this.#counts.partialFailures += 1;
        report(false, []);
      }
      throw err;
    }
  }

  /** What changed before our start was programmed by whoever ran then: how old it is says nothing about us. */
  #programmingLatencies(triggeredAtMs: readonly number[], nowMs: number): number[] {
    return triggeredAtMs.filter((at) => at >= this.#startedAtMs).map((at) => Math.max(0, nowMs - at));
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
      const warnings = [`service ${key} is ignored: ${messageOf(err)}`];
      return { key, ports: [], healthCheckNodePort: 0, localReady: 0, warnings };
    }
  }

  #describe(key: string): ServiceDescription {
    const service = this.#describeAnyway(key);
    this.#notes.note(service);
    this.#flows.note(service);
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

function nodeIPsOf({ nodeIPs }: ProxyOptions): Prefix[] {
  return nodeIPs.map(parseIP).filter((ip) => ip !== undefined);
}
