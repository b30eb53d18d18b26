import { pipeline } from "node:stream/promises";
import { setImmediate } from "node:timers/promises";
import { constants, createGzip } from "node:zlib";
import { errnoOf } from "../../lib/errno.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Collector, MetricFamily, MetricsRegistry } from "../../lib/metrics.ts";
import { processStartFamily } from "../../lib/metrics-process.ts";
import { encodeMetrics } from "../../lib/metrics-protobuf.ts";
import { renderMetrics } from "../../lib/metrics-text.ts";
import { type Exchange, type Handler, HttpError } from "../port.ts";
import { negotiate } from "./negotiate.ts";
import type { HealthSLIs } from "./slis.ts";

export interface OwnMetricsOptions {
  /** The component's own metrics, for /metrics. */
  registry: MetricsRegistry;
  slis: HealthSLIs;
  /** Unix ms. */
  processStartMs: number;
}

export interface MetricsHandlersOptions extends OwnMetricsOptions {
  /** `prober_*`, see /metrics/probes. */
  probes: Collector;
  /** See /metrics/resource. */
  resource: Collector;
  /** See /metrics/cadvisor. */
  cadvisor: Collector;
}

/** What every component shows of itself. */
export interface OwnMetricsHandlers {
  metrics: Handler;
  /** GET shows, DELETE starts counting anew. */
  slis: Handler;
}

/** One handler for each endpoint. Routing and authorization are the server's. */
export interface MetricsHandlers extends OwnMetricsHandlers {
  cadvisor: Handler;
  resource: Handler;
  probes: Handler;
}

/**
 * Makes the handlers. An exposition is written piece by piece: between pieces the event loop has its turn, and a slow
 * reader is waited for, so that neither thousands of series nor thousands of readers hold up the pods. What a collector
 * cannot read fails the scrape with 500.
 */
export function createMetricsHandlers(options: MetricsHandlersOptions): MetricsHandlers {
  const { probes, resource, cadvisor, processStartMs } = options;
  return {
    ...createOwnMetricsHandlers(options),
    cadvisor: show(cadvisor, processStartMs),
    resource: show(resource, processStartMs),
    probes: show(async () => withStart([...(await probes())], processStartMs), processStartMs),
  };
}

/** As {@link createMetricsHandlers}, but only those that every component has. */
export function createOwnMetricsHandlers({ registry, slis, processStartMs }: OwnMetricsOptions): OwnMetricsHandlers {
  const showSLIs = show(async () => withStart(await slis.families(), processStartMs), processStartMs);
  const reset: Handler = async ({ response }) => {
    slis.reset();
    response.setHeader("Content-Type", "text/plain; charset=utf-8");
    response.setHeader("X-Content-Type-Options", "nosniff");
    response.end("metrics reset\n");
  };
  return {
    metrics: show(async () => await registry.families(), processStartMs),
    slis: async (exchange) => await (exchange.request.method === "DELETE" ? reset : showSLIs)(exchange),
  };
}

function show(collect: Collector, processStartMs: number): Handler {
  return async (exchange) => {
    const families = await (async () => await collect())().catch((err: unknown) => {
      throw new HttpError(500, `An error has occurred while serving metrics:\n\n${messageOf(err)}`);
    });
    await expose(families, processStartMs, exchange);
  };
}

function withStart(families: MetricFamily[], processStartMs: number): MetricFamily[] {
  const start = processStartFamily(processStartMs);
  return families.some(({ name }) => name === start.name) ? families : [...families, start];
}

// How it looks when a reader does not wait for the end.
const goneCodes = ["ERR_STREAM_PREMATURE_CLOSE", "ERR_STREAM_DESTROYED", "ECONNRESET", "EPIPE"];

async function expose(
  families: Iterable<MetricFamily>,
  processStartMs: number,
  { request, response, signal }: Exchange,
): Promise<void> {
  const { accept, "accept-encoding": acceptEncoding } = request.headers;
  const encodings = Array.isArray(acceptEncoding) ? acceptEncoding.join(",") : acceptEncoding;
  const { format, contentType, gzip } = negotiate(accept, encodings);
  response.setHeader("Content-Type", contentType);
  response.setHeader("Process-Start-Time-Unix", Math.floor(processStartMs / 1_000));
  if (gzip) response.setHeader("Content-Encoding", "gzip");
  const pieces = inTurns(format === "text" ? renderMetrics(families) : encodeMetrics(families));
  try {
    // Scrapes are frequent and inside the cluster: the fastest level is the cheapest in all.
    if (gzip) await pipeline(pieces, createGzip({ level: constants.Z_BEST_SPEED }), response, { signal });
    else await pipeline(pieces, response, { signal });
  } catch (err) {
    if (!signal.aborted && !goneCodes.includes(errnoOf(err) ?? "")) throw err; // the answer is broken off already
  }
}

async function* inTurns(pieces: Iterable<string | Uint8Array>): AsyncGenerator<string | Uint8Array> {
  for (const piece of pieces) {
    if (piece.length > 0) yield piece;
    await setImmediate();
  }
}
