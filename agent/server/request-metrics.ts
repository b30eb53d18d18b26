import type { Clock } from "../lib/clock.ts";
import { defaultBuckets, type Labels, type MetricsRegistry } from "../lib/metrics.ts";

type RequestLabel = "method" | "path" | "server_type" | "long_running";
type RequestLabels = Labels<RequestLabel>;
export type ServerType = "readwrite" | "readonly";

const methods = new Set(["OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT"]);
const paths = new Set(
  (
    "healthz pods stats metrics metrics/cadvisor metrics/probes metrics/resource run exec attach portForward " +
    "containerLogs configz runningpods checkpoint flagz statusz logs debug"
  ).split(" "),
);
// "portforward" in lower case is the reference's: its own route, portForward, counts as short.
const longRunning = new Set(["exec", "attach", "portforward", "debug"]);

/** Labels of a request. Each has few values, whatever a client sends. @param url the request line's target */
export function requestLabels(method: string, url: string, serverType: ServerType): RequestLabels {
  const [path = ""] = url.split(/[?#]/, 1);
  const [first = "", second] = path.replace(/^\//, "").split("/", 2);
  const name = first === "metrics" && second !== undefined ? `metrics/${second}` : first;
  return {
    method: methods.has(method) ? method : "other",
    path: paths.has(name) ? name : "other",
    server_type: serverType,
    long_running: String(longRunning.has(name)),
  };
}

/** Counts requests of all listeners. */
export interface RequestMetrics {
  /** Call it when a request came in, before anything else. @returns call it once, when the handler has ended */
  begin(labels: RequestLabels): () => void;
}

/** Registers the metrics of the kubelet API on `registry`. */
export function createRequestMetrics(registry: MetricsRegistry, clock: Clock): RequestMetrics {
  const names = ["method", "path", "server_type", "long_running"] as const;
  const requests = registry.counter<RequestLabel>(
    "kubelet_http_requests_total",
    "Requests to the kubelet API, whatever came of them.",
    names,
  );
  const durations = registry.histogram<RequestLabel>(
    "kubelet_http_requests_duration_seconds",
    "Time to serve a request of the kubelet API.",
    defaultBuckets,
    names,
  );
  const inflight = registry.gauge<RequestLabel>(
    "kubelet_http_inflight_requests",
    "Requests of the kubelet API that are being served.",
    names,
  );
  return {
    begin(labels) {
      const start = clock.monotonic();
      requests.inc(labels);
      inflight.add(labels, 1);
      return () => {
        inflight.add(labels, -1);
        durations.observe(labels, (clock.monotonic() - start) / 1000);
      };
    },
  };
}
