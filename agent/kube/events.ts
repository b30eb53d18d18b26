import { randomUUID } from "node:crypto";
import { addAbortListener } from "node:events";
import type { Timer } from "../lib/clock.ts";
import { hasCode, isAbort, messageOf } from "../lib/errors.ts";
import { ApiError } from "./api-error.ts";
import { type CorrelatedEvent, type CorrelatorLimits, EventCorrelator, type Occurrence } from "./event-correlator.ts";
import type { ApiClient, EventRecorder, KubeDeps } from "./port.ts";
import { RateLimiter } from "./rate-limit.ts";
import { events } from "./resources.ts";
import type { CoreEvent, ObjectReference } from "./types.ts";
import { rfc3339 } from "../lib/rfc3339.ts";

export interface EventRecorderOptions extends KubeDeps {
  client: Pick<ApiClient, "create" | "patch">;
  /** `kubelet`, `kube-proxy`: event source and reporting component. */
  component: string;
  /** The node's name. */
  host: string;
  /** eventRecordQPS and eventBurst; 0 is client-go's default, negative unlimited. */
  qps: number;
  burst: number;
  limits?: Partial<EventLimits>;
  correlatorLimits?: CorrelatorLimits;
}

export interface EventLimits {
  queueMax: number;
  triesMax: number;
  retryMs: number;
  flushMs: number;
}

export const eventLimits: EventLimits = {
  queueMax: 1000, // client-go's event queue
  triesMax: 12, // client-go: 12 tries, 10 s apart
  retryMs: 10_000,
  flushMs: 2_000, // what is left at the agent's end is sent for this long
};

/** An {@link EventRecorder} with its own sender. */
export interface RunningEventRecorder extends EventRecorder {
  /** Sends events until `signal` aborts, then what is queued for a moment. Call once. Never rejects. */
  run(signal: AbortSignal): Promise<void>;
  /** Events lost so far: pushed out of the full queue, taken for spam, refused, or given up. */
  readonly dropped: number;
}

/** Makes a recorder; events wait in its queue until `run` is called. */
export function createEventRecorder(options: EventRecorderOptions): RunningEventRecorder {
  return new Recorder(options);
}

class Recorder implements RunningEventRecorder {
  readonly #options: EventRecorderOptions;
  readonly #limits: EventLimits;
  readonly #limiter: RateLimiter;
  readonly #correlator: EventCorrelator;
  #queue: Occurrence[] = [];
  #wake: (() => void) | undefined;
  #lastNanos = 0n;
  #dropped = 0;

  constructor(options: EventRecorderOptions) {
    this.#options = options;
    this.#limits = { ...eventLimits, ...options.limits };
    this.#limiter = new RateLimiter(options);
    this.#correlator = new EventCorrelator((occurrence) => this.#nameOf(occurrence), options.correlatorLimits);
  }

  get dropped(): number {
    return this.#dropped;
  }

  event(about: ObjectReference, type: "Normal" | "Warning", reason: string, message: string, action?: string): void {
    const { clock, log } = this.#options;
    if (this.#queue.length >= this.#limits.queueMax) {
      this.#queue.shift(); // the newest are the ones that explain the present
      this.#drop("the queue is full");
    }
    this.#queue.push({ about, type, reason, message, action, atMs: clock.now() });
    log.debug({ ...named({ about, reason }), type, message }, "event");
    this.#wake?.();
  }

  async run(signal: AbortSignal): Promise<void> {
    const end = new AbortController();
    let timer: Timer | undefined;
    const link = addAbortListener(signal, () => {
      timer = this.#options.clock.after(this.#limits.flushMs, () => end.abort());
      this.#wake?.();
    });
    for (;;) {
      const next = this.#queue.shift();
      if (next !== undefined) await this.#record(next, end.signal);
      else if (signal.aborted) break;
      else await this.#untilWoken(signal);
    }
    link[Symbol.dispose]();
    timer?.cancel();
  }

  async #untilWoken(signal: AbortSignal): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#wake = resolve;
    if (this.#queue.length === 0 && !signal.aborted) await promise;
    this.#wake = undefined;
  }

  async #record(occurrence: Occurrence, signal: AbortSignal): Promise<void> {
    const event = this.#correlator.correlate(occurrence);
    if (event === undefined) {
      this.#drop("too many about this object", named(occurrence));
      return;
    }
    const { clock, log } = this.#options;
    for (let tries = 1; ; tries += 1) {
      try {
        await this.#limiter.acquire(signal);
        await this.#send(occurrence, event, signal);
        return;
      } catch (err) {
        if (hasCode(err, "AlreadyExists")) return; // an earlier try had arrived after all
        const mayRetry = hasCode(err, "Unavailable", "DeadlineExceeded", "TooManyRequests");
        if (isAbort(err) || !mayRetry || tries >= this.#limits.triesMax) {
          const refused = { ...named(occurrence), err: messageOf(err) };
          log.debug(refused, "event was not recorded");
          if (!isOfEndingNamespace(err)) this.#drop("the API server did not take it", refused);
          return;
        }
        await clock.sleep(this.#limits.retryMs, signal).catch(() => {});
        if (signal.aborted) {
          this.#drop("the agent stops");
          return;
        }
      }
    }
  }

  async #send(occurrence: Occurrence, event: CorrelatedEvent, signal: AbortSignal): Promise<void> {
    const { client } = this.#options;
    const object = buildEvent(occurrence, event, this.#options);
    const { name, namespace = "default" } = object.metadata;
    if (event.count > 1) {
      const { count, message, lastTimestamp } = object;
      try {
        await client.patch(
          events,
          { namespace, name },
          { count, message, lastTimestamp },
          { type: "strategic", signal },
        );
        return;
      } catch (err) {
        if (!hasCode(err, "NotFound")) throw err; // it expired on the server, or its creation failed: make it again
      }
    }
    await client.create(events, object, { signal });
  }

  /** `<object>.<hex nanoseconds>`, never the same twice; a UUID where that is no valid name. */
  #nameOf({ about, atMs }: Occurrence): string {
    const nanos = BigInt(Math.trunc(atMs)) * 1_000_000n;
    this.#lastNanos = nanos > this.#lastNanos ? nanos : this.#lastNanos + 1n;
    const name = `${about.name ?? ""}.${this.#lastNanos.toString(16)}`;
    return name.length <= nameLengthMax && subdomain.test(name) ? name : randomUUID();
  }

  #drop(why: string, about: Record<string, unknown> = {}): void {
    this.#dropped += 1;
    if (this.#dropped === 1 || this.#dropped % droppedPerLine === 0) {
      this.#options.log.warn({ dropped: this.#dropped, why, ...about }, "events are being dropped");
    }
  }
}

/** What identifies it in the log. */
function named({ about: { kind, namespace, name }, reason }: Pick<Occurrence, "about" | "reason">) {
  return { kind, namespace, name, reason };
}

// Its pods end with it and have events to the last; that the server refuses them is as it should be and nobody's loss.
function isOfEndingNamespace(err: unknown): boolean {
  return hasCode(err, "NotFound") || (err instanceof ApiError && err.causes.includes("NamespaceTerminating"));
}

// One line for the first loss, then one for each hundred.
const droppedPerLine = 100;

const nameLengthMax = 253;
const subdomain = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;

/** The object that a recorder sends. Pure. */
export function buildEvent(
  { about, type, reason, action }: Occurrence,
  { name, message, count, firstAtMs, lastAtMs }: CorrelatedEvent,
  { component, host }: { component: string; host: string },
): CoreEvent {
  const namespace = about.namespace === undefined || about.namespace === "" ? "default" : about.namespace;
  return {
    apiVersion: "v1",
    kind: "Event",
    metadata: { name, namespace },
    involvedObject: about,
    reason,
    message,
    source: { component, host },
    firstTimestamp: rfc3339(firstAtMs),
    lastTimestamp: rfc3339(lastAtMs),
    eventTime: null,
    count,
    type,
    ...(action === undefined ? {} : { action }),
    reportingComponent: component,
    reportingInstance: host,
  };
}
