import type { Clock } from "../lib/clock.ts";
import type { Counter, Gauge, Histogram, MetricsRegistry } from "../lib/metrics.ts";
import type { HttpRequest, HttpResponse } from "./connection.ts";
import { createExecPluginMetrics, type ExecPluginMetrics } from "./exec-metrics.ts";
import type { Transport } from "./transport.ts";

/** Calls to API servers, under client-go's names. `host` is the server's with its port, `verb` the HTTP method. */
export interface RestClientMetrics {
  /** `code`: the status, or `<error>` if there was no answer. Watches count here alone. */
  requests: Counter<"code" | "method" | "host">;
  /** Tries after the first of one call, by what came of the try before. */
  retries: Counter<"code" | "verb" | "host">;
  /** Until the answer's headers. */
  requestSeconds: Histogram<"verb" | "host">;
  /** Waiting for the rate limit. */
  throttleSeconds: Histogram<"verb" | "host">;
  requestBytes: Histogram<"verb" | "host">;
  responseBytes: Histogram<"verb" | "host">;
  /** Sets of connections to API servers that are open. */
  transports: Gauge;
  /** Clients made, by whether they share connections (`hit`) or have their own (`miss`). */
  transportCreations: Counter<"result">;
  execPlugins: ExecPluginMetrics;
}

// client-go's.
const secondBuckets = [0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60];
const byteBuckets = [64, 256, 512, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216];
/** The code of a request that was not answered. */
export const noAnswerCode = "<error>";

/** Registers `rest_client_*`. */
export function createRestClientMetrics(registry: MetricsRegistry, clock: Clock): RestClientMetrics {
  const seconds = (name: string, help: string) => registry.histogram(name, help, secondBuckets, ["verb", "host"]);
  const bytes = (name: string, help: string) => registry.histogram(name, help, byteBuckets, ["verb", "host"]);
  return {
    requests: registry.counter("rest_client_requests_total", "Requests to API servers.", ["code", "method", "host"]),
    retries: registry.counter("rest_client_request_retries_total", "Requests that were tried again.", [
      "code",
      "verb",
      "host",
    ]),
    requestSeconds: seconds("rest_client_request_duration_seconds", "Time until an API server answered."),
    throttleSeconds: seconds("rest_client_rate_limiter_duration_seconds", "Time that requests waited for their turn."),
    requestBytes: bytes("rest_client_request_size_bytes", "Size of requests' bodies."),
    responseBytes: bytes("rest_client_response_size_bytes", "Size of answers' bodies."),
    transports: registry.gauge(
      "rest_client_transport_cache_entries",
      "Sets of connections to API servers that are open; clients with the same credentials share one.",
    ),
    transportCreations: registry.counter(
      "rest_client_transport_create_calls_total",
      "Clients made, by whether they share connections (hit) or have their own (miss).",
      ["result"],
    ),
    execPlugins: createExecPluginMetrics(registry, clock),
  };
}

/** The host label of an API server. @param server its base URL */
export function hostLabel(server: string): string {
  return new URL(server).host;
}

/** The transport, with itself and what goes over it counted and timed. */
export function instrumentTransport(transport: Transport, metrics: RestClientMetrics, clock: Clock): Transport {
  const host = hostLabel(transport.access.server);
  metrics.transportCreations.inc({ result: "miss" });
  metrics.transports.add({});
  let isOpen = true;
  const send = async (request: HttpRequest): Promise<HttpResponse> => {
    const { method, body, isWatch = false } = request;
    const of = { verb: method, host };
    if (body !== undefined) metrics.requestBytes.observe(of, Buffer.byteLength(body));
    const startedAtMs = clock.monotonic();
    let code = noAnswerCode;
    try {
      const response = await transport.send(request);
      code = String(response.status);
      return isWatch ? response : { ...response, body: measured(response.body, metrics.responseBytes, of) };
    } finally {
      metrics.requests.inc({ code, method, host });
      if (!isWatch) metrics.requestSeconds.observe(of, (clock.monotonic() - startedAtMs) / 1_000);
    }
  };
  return {
    access: transport.access,
    send,
    reset: () => transport.reset(),
    renew: async () => await transport.renew(),
    [Symbol.asyncDispose]: async () => {
      if (isOpen) metrics.transports.add({}, -1);
      isOpen = false;
      await transport[Symbol.asyncDispose]();
    },
  };
}

async function* measured(
  body: AsyncIterable<Buffer>,
  sizes: Histogram<"verb" | "host">,
  of: { verb: string; host: string },
): AsyncGenerator<Buffer, void, void> {
  let bytes = 0;
  for await (const chunk of body) {
    bytes += chunk.length;
    yield chunk;
  }
  sizes.observe(of, bytes);
}
