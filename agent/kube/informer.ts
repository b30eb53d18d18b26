import { addAbortListener } from "node:events";
import type { Clock, Timer } from "../lib/clock.ts";
import { AgentError, hasCode, isAbort, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { ignoreAbort } from "../lib/loop.ts";
import { ApiError, watchError } from "./api-error.ts";
import { type Breathe, createBreather } from "./breathe.ts";
import type { KubeClient, ListQuery } from "./client.ts";
import { JsonLines } from "./json-lines.ts";
import {
  type Informer,
  type InformerOptions,
  type KubeDeps,
  keyOf,
  type Resource,
  type StartInformer,
} from "./port.ts";
import { ObjectStore } from "./store.ts";
import type { KubeObject } from "./types.ts";
import { parseWatchEvent, type WatchEvent } from "./watch-events.ts";
import { type InformerLimits, informerLimits, planRetry, type RetryState } from "./watch-retry.ts";

export interface InformerDeps extends KubeDeps {
  client: Pick<KubeClient, "listPages" | "watch">;
  limits?: Partial<InformerLimits>;
  random?: () => number;
  /** Calls `listener` when what made attempts fail may be over: credentials are there, or new. @returns ends it */
  subscribeRetry?: (listener: () => void) => () => void;
}

/** What the informers of one server learn together: until when (monotonic ms) initial objects are listed, not watched. */
interface ServerTraits {
  avoidWatchListUntilMs: number;
}

/** Makes the function that starts informers against one server. */
export function createInformerFactory(deps: InformerDeps): StartInformer {
  const traits: ServerTraits = { avoidWatchListUntilMs: 0 };
  const limits = { ...informerLimits, ...deps.limits };
  return <T extends KubeObject>(resource: Resource<T>, options: InformerOptions<T>, stop: AbortSignal): Informer<T> => {
    const reflector = new Reflector({ ...deps, limits }, traits, resource, options);
    return {
      store: reflector.store,
      stopped: reflector.run(stop),
      get lastHeardAtMs() {
        return reflector.lastHeardAtMs;
      },
    };
  };
}

/**
 * Keeps one store current, one request at a time:
 *
 *     no resourceVersion ── WatchList, or list ──▶ store replaced ── watch ──▶ events applied
 *            ▲                                                         │  ▲
 *            └────────────────────── 410 ──────────────────────────────┘  └── ended, broken, silent: from the last
 *                                                                             good resourceVersion, after a backoff
 */
class Reflector<T extends KubeObject> {
  readonly store: ObjectStore<T>;
  lastHeardAtMs = 0;
  readonly #deps: InformerDeps & { limits: InformerLimits };
  readonly #traits: ServerTraits;
  readonly #resource: Resource<T>;
  readonly #options: InformerOptions<T>;
  readonly #log: Logger;
  readonly #breathe: Breathe;
  /** Absent: everything has to be read (again). */
  #resourceVersion: string | undefined;
  #attemptStartMs = 0;
  #reported: string | undefined;

  constructor(
    deps: InformerDeps & { limits: InformerLimits },
    traits: ServerTraits,
    resource: Resource<T>,
    options: InformerOptions<T>,
  ) {
    this.#deps = deps;
    this.#traits = traits;
    this.#resource = resource;
    this.#options = options;
    this.#log = deps.log.child({ resource: resource.plural });
    this.#breathe = createBreather(deps.clock);
    const onError = (err: unknown) => this.#log.error({ err: messageOf(err) }, "a store's listener or index failed");
    const { indexes } = options;
    this.store = new ObjectStore<T>({ breathe: this.#breathe, onError, ...(indexes === undefined ? {} : { indexes }) });
  }

  /** Resolves when `stop` has aborted and everything has ended. Never rejects. */
  async run(stop: AbortSignal): Promise<void> {
    const { clock, limits, random } = this.#deps;
    let state: RetryState = { failures: 0, refusals: 0 };
    while (!stop.aborted) {
      this.#attemptStartMs = clock.monotonic();
      let error: unknown;
      try {
        await this.#attempt(stop);
      } catch (err) {
        error = err;
      }
      if (stop.aborted) return;
      const livedMs = clock.monotonic() - this.#attemptStartMs;
      const plan = planRetry({ error, livedMs }, state, limits, random);
      state = plan;
      if (plan.relist) this.#resourceVersion = undefined;
      if (error !== undefined) this.#report(error, plan.delayMs);
      if (plan.delayMs > 0) await this.#rest(plan.delayMs, stop);
    }
  }

  /** Waits, unless there is a reason to go on sooner. */
  async #rest(ms: number, stop: AbortSignal): Promise<void> {
    const { clock, subscribeRetry } = this.#deps;
    const rest = new AbortController();
    const link = addAbortListener(stop, () => rest.abort());
    const unsubscribe = subscribeRetry?.(() => rest.abort());
    try {
      await clock.sleep(ms, rest.signal).catch(ignoreAbort);
    } finally {
      unsubscribe?.();
      link[Symbol.dispose]();
    }
  }

  /** Reads everything if need be, then follows the changes until the watch ends. */
  async #attempt(stop: AbortSignal): Promise<void> {
    const { clock } = this.#deps;
    if (this.#resourceVersion === undefined) {
      if (clock.monotonic() >= this.#traits.avoidWatchListUntilMs) {
        const untilMs = await this.#watchList(stop);
        if (untilMs === undefined) return;
        await this.#list(stop);
        this.#traits.avoidWatchListUntilMs = untilMs; // only now: had the list failed too, the server would just be away
        const isForGood = untilMs === Number.POSITIVE_INFINITY;
        this.#log.info({ isForGood }, "API server sends no initial events on watches, listing instead");
      } else {
        await this.#list(stop);
      }
      this.#attemptStartMs = clock.monotonic();
    }
    await this.#follow(stop, undefined);
  }

  /**
   * Initial objects as a stream, which then goes on as a watch.
   * @returns if the server cannot do that: until when (monotonic ms) not to ask again
   */
  async #watchList(stop: AbortSignal): Promise<number | undefined> {
    const { clock, limits } = this.#deps;
    try {
      await this.#follow(stop, new Map());
      return undefined;
    } catch (err) {
      if (this.#resourceVersion !== undefined) throw err; // the initial objects were complete; this is about the watch
      if (err instanceof NoInitialEvents) return clock.monotonic() + limits.watchListAvoidMs;
      if (hasCode(err, "Invalid") && err instanceof ApiError) return Number.POSITIVE_INFINITY;
      throw err;
    }
  }

  async #list(stop: AbortSignal): Promise<void> {
    const { client } = this.#deps;
    const objects = new Map<string, T>();
    const resourceVersion = await client.listPages(
      this.#resource,
      this.#query(),
      async (page) => {
        this.#heard();
        if (page.isFirst) objects.clear();
        for (const object of page.items) {
          this.#collect(objects, object);
          const pause = this.#breathe();
          if (pause !== undefined) await pause;
        }
      },
      { signal: stop, timeoutMs: listTimeoutMs },
    );
    await this.store.replace(objects);
    this.#resourceVersion = resourceVersion;
    this.#healthy();
  }

  /**
   * One watch, from opening to its end. Returns when the server ended it in good order.
   * @param initial collects the initial objects of a WatchList; undefined for a watch from the last resourceVersion
   */
  async #follow(stop: AbortSignal, initial: Map<string, T> | undefined): Promise<void> {
    const { client, clock, limits, random = Math.random } = this.#deps;
    const attempt = new AbortController();
    const link = addAbortListener(stop, () => attempt.abort());
    const silence = new SilenceTimer(clock, initial === undefined ? limits.silentMs : limits.initialQuietMs, () =>
      attempt.abort(),
    );
    let pending = initial;
    try {
      const response = await client.watch(
        this.#resource,
        {
          ...this.#query(),
          timeoutSeconds: Math.round((this.#options.watchSecondsMin ?? limits.watchSecondsMin) * (1 + random())),
          ...(this.#resourceVersion === undefined
            ? { sendInitialEvents: true }
            : { resourceVersion: this.#resourceVersion }),
        },
        attempt.signal,
      );
      const lines = new JsonLines();
      for await (const chunk of response.body) {
        this.#heard();
        silence.kick();
        for (const value of lines.push(chunk)) {
          if (value === undefined) continue;
          const event = parseWatchEvent<T>(value);
          if (pending === undefined) this.#apply(event);
          else if (await this.#applyInitial(event, pending)) {
            pending = undefined;
            silence.setLimit(limits.silentMs);
          }
          const pause = this.#breathe();
          if (pause !== undefined) await pause;
        }
      }
      if (lines.hasRest) throw new AgentError("Unavailable", "the watch ended in the middle of an event");
      if (pending !== undefined) {
        throw new AgentError("Unavailable", "the watch ended before all initial objects were there");
      }
    } catch (err) {
      if (!silence.isOver || stop.aborted || !isAbort(err)) throw err;
      if (pending !== undefined) throw new NoInitialEvents();
      throw new AgentError("Unavailable", `nothing heard for ${limits.silentMs} ms, not even a bookmark`);
    } finally {
      silence.stop();
      link[Symbol.dispose]();
      attempt.abort(); // lets go of the stream, however we left
    }
  }

  #apply(event: WatchEvent<T>): void {
    if (event.type === "ERROR") throw watchError(`watch ${this.#resource.plural}`, event.status);
    this.#healthy();
    if (event.type === "BOOKMARK") {
      this.#resourceVersion = event.resourceVersion;
      return;
    }
    const { resourceVersion } = event.object.metadata;
    if (event.type === "DELETED") this.store.delete(keyOf(event.object.metadata));
    else {
      const object = this.#trimmed(event.object);
      if (object !== undefined) this.store.put(object);
    }
    if (resourceVersion !== undefined) this.#resourceVersion = resourceVersion;
  }

  /** @returns true when the initial objects are complete and in the store */
  async #applyInitial(event: WatchEvent<T>, pending: Map<string, T>): Promise<boolean> {
    if (event.type === "ERROR") throw watchError(`watch ${this.#resource.plural}`, event.status);
    if (event.type === "BOOKMARK") {
      // Servers that know the parameter send no other bookmark before the one that marks the end.
      if (!event.isInitialEnd) throw new NoInitialEvents();
      await this.store.replace(pending);
      this.#resourceVersion = event.resourceVersion;
      this.#healthy();
      return true;
    }
    if (event.type === "DELETED") pending.delete(keyOf(event.object.metadata));
    else this.#collect(pending, event.object);
    return false;
  }

  #collect(objects: Map<string, T>, object: T): void {
    const kept = this.#trimmed(object);
    if (kept !== undefined) objects.set(keyOf(kept.metadata), kept);
  }

  /** What is kept of an object, or undefined if it is too malformed for `trim`; the others go on. */
  #trimmed(object: T): T | undefined {
    const { trim } = this.#options;
    try {
      // Often half of an object, and read by nobody here. Being the last field, its removal keeps the object compact.
      if (typeof object.metadata.name !== "string") throw new AgentError("Invalid", "object has no name");
      delete (object.metadata as { managedFields?: unknown }).managedFields;
      return trim === undefined ? object : trim(object);
    } catch (err) {
      const { namespace, name } = (object as Partial<T> | null)?.metadata ?? {};
      this.#log.warn({ err: messageOf(err), namespace, name }, "object is malformed, ignoring it");
      return undefined;
    }
  }

  #query(): ListQuery {
    const { namespace, labelSelector, fieldSelector } = this.#options;
    return {
      ...(namespace === undefined ? {} : { namespace }),
      ...(labelSelector === undefined ? {} : { labelSelector }),
      ...(fieldSelector === undefined ? {} : { fieldSelector }),
    };
  }

  #heard(): void {
    this.lastHeardAtMs = this.#deps.clock.now();
  }

  /** Logs on change only: trouble repeats for as long as the server is away. */
  #report(error: unknown, delayMs: number): void {
    const err = messageOf(error);
    if (err === this.#reported) return;
    this.#reported = err;
    const isRoutine = hasCode(error, "Gone");
    this.#log[isRoutine ? "info" : "warn"](
      { err, retryInMs: Math.round(delayMs) },
      "watch ended, keeping the last known state",
    );
  }

  #healthy(): void {
    if (this.#reported === undefined) return;
    this.#reported = undefined;
    this.#log.info("watch is healthy again");
  }
}

// A whole list, all pages. Large clusters behind a loaded server take a while; a list cut short would begin anew.
const listTimeoutMs = 60_000;

/** The server did not send initial events up to their marker: it does not know WatchList, or something holds it back. */
class NoInitialEvents extends AgentError {
  constructor() {
    super("Unimplemented", "the API server sent no complete initial events");
  }
}

/** Calls `onSilent` once when nothing was heard for `limitMs`. Kicks are cheap: the timer is moved only when it fires. */
class SilenceTimer {
  readonly #clock: Clock;
  readonly #onSilent: () => void;
  #limitMs: number;
  #heardMs: number;
  #timer: Timer;
  isOver = false;

  constructor(clock: Clock, limitMs: number, onSilent: () => void) {
    this.#clock = clock;
    this.#limitMs = limitMs;
    this.#onSilent = onSilent;
    this.#heardMs = clock.monotonic();
    this.#timer = clock.after(limitMs, () => this.#check());
  }

  kick(): void {
    this.#heardMs = this.#clock.monotonic();
  }

  setLimit(ms: number): void {
    this.#limitMs = ms;
    this.#timer.cancel();
    this.#timer = this.#clock.after(ms, () => this.#check());
  }

  stop(): void {
    this.#timer.cancel();
  }

  #check(): void {
    const restMs = this.#heardMs + this.#limitMs - this.#clock.monotonic();
    if (restMs > 0) {
      this.#timer = this.#clock.after(restMs, () => this.#check());
      return;
    }
    this.isOver = true;
    this.#onSilent();
  }
}
