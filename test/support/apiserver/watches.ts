import type { Clock } from "../../../agent/lib/clock.ts";
import { parseVersion } from "./api.ts";
import { negotiate } from "./content.ts";
import type { Exchange } from "./exchange.ts";
import { type FaultMatch, matchesFault } from "./faults.ts";
import { isTrue } from "./request-info.ts";
import type { Matcher } from "./selectors.ts";
import { forbiddenField, invalid } from "./status.ts";
import type { Store } from "./store.ts";
import type { ResourceType } from "./types.ts";
import { WatchStream } from "./watch.ts";

// --min-request-timeout: a watch without timeoutSeconds lives between one and two times this long.
const watchSecondsMin = 1800;

export interface WatchHubOptions {
  bookmarkIntervalMs: number;
  /** Response headers wait for the first event. */
  holdHeaders: boolean;
}

/** All open watches. */
export class WatchHub {
  readonly #store: Store;
  readonly #clock: Clock;
  readonly #options: WatchHubOptions;
  readonly #open = new Set<WatchStream>();
  #silenced: FaultMatch[] = [];

  constructor(store: Store, clock: Clock, options: WatchHubOptions) {
    this.#store = store;
    this.#clock = clock;
    this.#options = options;
    store.subscribe((event) => {
      for (const watch of this.#open) {
        if (watch.resource.storage === event.storage) watch.change(event);
      }
    });
  }

  get size(): number {
    return this.#open.size;
  }

  /** Answers a watch request: past events, or the present state, then whatever happens. Throws 400 and 422. */
  watch(exchange: Exchange, resource: ResourceType, matches: Matcher): void {
    const version = exchange.query("resourceVersion") ?? "";
    const since = parseVersion(version);
    const wantsInitial = isTrue(exchange.url.searchParams.get("sendInitialEvents"));
    const allowBookmarks = isTrue(exchange.url.searchParams.get("allowWatchBookmarks"));
    checkInitialEvents(exchange);
    const seconds = Number(exchange.query("timeoutSeconds") ?? 0);
    const watch: WatchStream = new WatchStream(
      exchange,
      {
        resource,
        representation: negotiate(exchange.header("accept"), exchange.url),
        matches,
        allowBookmarks,
        ...this.#options,
        timeoutMs: (seconds > 0 ? seconds : watchSecondsMin * (1 + Math.random())) * 1000,
        nowMs: () => this.#clock.now(),
        after: (ms, fn) => this.#clock.after(ms, fn),
        revision: () => this.#store.revision,
      },
      () => this.#open.delete(watch),
    );
    const { storage } = resource;
    if (this.#silenced.some((match) => matchesFault(match, subjectOf(watch)))) watch.silence(true);
    // Without a version, or with 0, a watch begins with what there is.
    const startsFromState = wantsInitial || since === 0;
    const missed = startsFromState ? [] : this.#store.eventsAfter(storage, since);
    if (missed === undefined) {
      watch.expire(`too old resource version: ${since} (${this.#store.compactedRevision(storage)})`);
      return;
    }
    if (startsFromState) {
      for (const [, object] of this.#store.list(storage)) {
        if (matches(object)) watch.initial(object);
      }
    }
    for (const event of missed) watch.change(event);
    if (wantsInitial && allowBookmarks) watch.bookmark({ "k8s.io/initial-events-end": "true" });
    if (exchange.gone.aborted) return;
    this.#open.add(watch);
    watch.start();
  }

  /** Breaks matching watches off. Returns how many. */
  cut(match: FaultMatch, midLine: boolean): number {
    const doomed = [...this.#open].filter((watch) => matchesFault(match, subjectOf(watch)));
    for (const watch of doomed) watch.cut(midLine);
    return doomed.length;
  }

  /** Ends all watches cleanly. */
  endAll(): void {
    for (const watch of [...this.#open]) watch.end();
  }

  silence(match: FaultMatch, isSilent: boolean): void {
    if (isSilent) {
      this.#silenced.push(match);
    } else {
      this.#silenced = [];
    }
    for (const watch of this.#open) {
      if (matchesFault(match, subjectOf(watch))) watch.silence(isSilent);
    }
  }
}

function subjectOf(watch: WatchStream) {
  return { method: "GET", verb: "watch", resource: watch.resource.plural, url: watch.url, user: watch.user };
}

function checkInitialEvents(exchange: Exchange): void {
  const options = { group: "meta.k8s.io", kind: "ListOptions" };
  const match = exchange.query("resourceVersionMatch");
  const initial = exchange.query("sendInitialEvents");
  if (initial === undefined) {
    if (match === undefined || match === "") return;
    throw invalid(options, "", [
      forbiddenField(
        "resourceVersionMatch",
        "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
      ),
    ]);
  }
  if (match === "NotOlderThan") return;
  throw invalid(options, "", [
    forbiddenField("resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
  ]);
}
