import type { ServerResponse } from "node:http";
import type { Timer } from "../../../agent/lib/clock.ts";
import { metadataOnly, objectText, type Representation } from "./content.ts";
import type { Exchange } from "./exchange.ts";
import type { Matcher } from "./selectors.ts";
import { failure } from "./status.ts";
import type { StoreEvent } from "./store.ts";
import { tableOf } from "./tables.ts";
import type { ApiObject, ResourceType } from "./types.ts";

export interface WatchOptions {
  resource: ResourceType;
  representation: Representation;
  /** Objects this watch is about: namespace and selectors. */
  matches: Matcher;
  allowBookmarks: boolean;
  bookmarkIntervalMs: number;
  holdHeaders: boolean;
  timeoutMs: number;
  nowMs(): number;
  after(ms: number, fn: () => void): Timer;
  /** The newest revision, which bookmarks carry. */
  revision(): number;
}

/**
 * One open watch. The answer's headers leave at once, as the real server's do: some clients wait for them. With
 * `holdHeaders` they leave with the first event, as through a proxy that buffers: no client should need them.
 */
export class WatchStream {
  readonly resource: ResourceType;
  readonly user: string;
  readonly url: string;
  readonly #exchange: Exchange;
  readonly #options: WatchOptions;
  readonly #timers: Timer[] = [];
  #isSilent = false;
  #held: string[] = [];
  #hasHeaders = false;
  #sentColumns = false;
  #isOver = false;
  readonly #onEnd: () => void;

  constructor(exchange: Exchange, options: WatchOptions, onEnd: () => void) {
    this.#exchange = exchange;
    this.#options = options;
    this.#onEnd = onEnd;
    this.resource = options.resource;
    this.user = exchange.user.name;
    this.url = `${exchange.url.pathname}${exchange.url.search}`;
    exchange.gone.addEventListener("abort", () => this.#finish(), { once: true });
    if (exchange.gone.aborted) this.#finish();
  }

  /** Starts the clock: bookmarks, and the end after the timeout. */
  start(): void {
    if (this.#isOver) return;
    if (!this.#options.holdHeaders && !this.#isSilent) this.#headers();
    this.#timers.push(this.#options.after(this.#options.timeoutMs, () => this.end()));
    if (this.#options.allowBookmarks) this.#scheduleBookmark();
  }

  /** Tells the client about a committed change, as far as it concerns this watch. */
  change(event: StoreEvent): void {
    const { matches } = this.#options;
    const isMatch = event.type !== "DELETED" && matches(event.object);
    const wasMatch = event.previous !== undefined && matches(event.previous);
    if (isMatch) this.#event(wasMatch ? "MODIFIED" : "ADDED", event.object);
    // Leaving the selection looks like a deletion, with the state from before and the version of now.
    else if (wasMatch) {
      this.#event("DELETED", event.type === "DELETED" ? event.object : atVersion(event.previous, event));
    }
  }

  /** An object that was there before the watch began. */
  initial(object: ApiObject): void {
    this.#event("ADDED", object);
  }

  bookmark(annotations?: Record<string, string>, revision = this.#options.revision()): void {
    const { resource } = this.#options;
    const metadata = {
      resourceVersion: String(revision),
      creationTimestamp: null,
      ...(annotations === undefined ? {} : { annotations }),
    };
    const apiVersion = resource.group === "" ? resource.version : `${resource.group}/${resource.version}`;
    const object = { kind: resource.kind, apiVersion, metadata, ...emptyFields[resource.plural] };
    const shown =
      this.#options.representation.kind === "table"
        ? {
            kind: "Table",
            apiVersion: "meta.k8s.io/v1",
            metadata: { resourceVersion: metadata.resourceVersion },
            rows: [],
            columnDefinitions: null,
          }
        : object;
    this.#line(`{"type":"BOOKMARK","object":${JSON.stringify(shown)}}\n`);
  }

  /** Ends with the ERROR event that says that history is gone. */
  expire(message: string): void {
    this.#line(`{"type":"ERROR","object":${JSON.stringify(failure(410, "Expired", message))}}\n`);
    this.end();
  }

  /** Ends cleanly: the client sees the end of the body. */
  end(): void {
    if (this.#isOver) return;
    this.#headers();
    this.#exchange.response.end();
    this.#finish();
  }

  /** Breaks off; with `midLine`, in the middle of an event. */
  cut(midLine: boolean): void {
    if (this.#isOver) return;
    if (!midLine) {
      this.#exchange.cut();
      return;
    }
    // The half line must reach the client before the end does.
    this.#headers();
    (this.#exchange.response as ServerResponse).end('{"type":"MODIFIED","object":{"kind":"' + this.resource.kind);
    this.#finish();
  }

  /** Holds all events back; `false` lets them out. */
  silence(isSilent: boolean): void {
    this.#isSilent = isSilent;
    if (isSilent) return;
    const held = this.#held;
    this.#held = [];
    for (const line of held) this.#line(line);
  }

  #event(type: string, object: ApiObject): void {
    const { resource, representation, nowMs } = this.#options;
    const served = resource.toServed?.(object) ?? object;
    let text: string;
    switch (representation.kind) {
      case "object":
        text = objectText(served);
        break;
      case "metadata":
        text = JSON.stringify(metadataOnly(served));
        break;
      case "table": {
        const resourceVersion = object.metadata.resourceVersion ?? "";
        const table = tableOf(resource, [served], {
          nowMs: nowMs(),
          includeObject: representation.includeObject,
          resourceVersion,
        });
        // Later tables of the same watch leave the columns out.
        text = JSON.stringify(this.#sentColumns ? { ...table, columnDefinitions: null } : table);
        this.#sentColumns = true;
      }
    }
    this.#line(`{"type":"${type}","object":${text}}\n`);
  }

  #line(line: string): void {
    if (this.#isOver) return;
    if (this.#isSilent) {
      this.#held.push(line);
      return;
    }
    this.#headers();
    (this.#exchange.response as ServerResponse).write(line);
  }

  #headers(): void {
    if (this.#hasHeaders) return;
    this.#hasHeaders = true;
    this.#exchange.code = 200;
    const response = this.#exchange.response as ServerResponse;
    response.writeHead(200, { "content-type": "application/json" });
    response.flushHeaders();
  }

  #scheduleBookmark(): void {
    const timer = this.#options.after(this.#options.bookmarkIntervalMs, () => {
      if (this.#isOver) return;
      if (!this.#isSilent) this.bookmark();
      this.#timers.splice(this.#timers.indexOf(timer), 1);
      this.#scheduleBookmark();
    });
    this.#timers.push(timer);
  }

  #finish(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    for (const timer of this.#timers) timer.cancel();
    this.#held = [];
    this.#onEnd();
  }
}

// Fields that the API's types always write, so also in the empty object of a bookmark.
const emptyFields: Readonly<Record<string, Record<string, unknown>>> = {
  pods: { spec: { containers: null }, status: {} },
  services: { spec: {}, status: { loadBalancer: {} } },
  nodes: { spec: {}, status: { daemonEndpoints: { kubeletEndpoint: { Port: 0 } } } },
  endpointslices: { addressType: "", endpoints: null, ports: null },
  leases: { spec: {} },
  runtimeclasses: { handler: "" },
};

function atVersion(previous: ApiObject | undefined, { revision, object }: StoreEvent): ApiObject {
  const base = previous ?? object;
  return { ...base, metadata: { ...base.metadata, resourceVersion: String(revision) } };
}
