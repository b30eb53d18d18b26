import { readdir } from "node:fs/promises";
import { type Counter, defaultBuckets, type Gauge, type Histogram, type MetricsRegistry } from "../lib/metrics.ts";

/** Calls to the runtime, by CRI's names of operations. */
export interface RuntimeMetrics {
  operations: Counter<"operation_type">;
  operationErrors: Counter<"operation_type">;
  operationSeconds: Histogram<"operation_type">;
  sandboxSeconds: Histogram<"runtime_handler">;
  sandboxErrors: Counter<"runtime_handler">;
}

/** How the pods' workers hear of what runs. */
export interface PLEGMetrics {
  relistSeconds: Histogram;
  relistIntervalSeconds: Histogram;
  podRelistSeconds: Histogram;
  eventConnections: Counter;
  /** From what happened to the wake of its pod. */
  eventSeconds: Histogram;
  /** Unix seconds at which the runtime last told what runs: by a list, a look at a pod, or an event. */
  lastSeenSeconds: Gauge;
}

// The reference's: 5 ms growing by 2.5 to 745 s.
const operationBuckets = Array.from({ length: 14 }, (_, i) => 0.005 * 2.5 ** i);

/** Registers `kubelet_runtime_operations_*` and `kubelet_run_podsandbox_*`. */
export function createRuntimeMetrics(registry: MetricsRegistry): RuntimeMetrics {
  const byOperation = ["operation_type"] as const;
  const byHandler = ["runtime_handler"] as const;
  return {
    operations: registry.counter("kubelet_runtime_operations_total", "Calls to the runtime.", byOperation),
    operationErrors: registry.counter(
      "kubelet_runtime_operations_errors_total",
      "Calls to the runtime that failed.",
      byOperation,
    ),
    operationSeconds: registry.histogram(
      "kubelet_runtime_operations_duration_seconds",
      "Time that calls to the runtime took.",
      operationBuckets,
      byOperation,
    ),
    sandboxSeconds: registry.histogram(
      "kubelet_run_podsandbox_duration_seconds",
      "Time to run a sandbox.",
      defaultBuckets,
      byHandler,
    ),
    sandboxErrors: registry.counter(
      "kubelet_run_podsandbox_errors_total",
      "Sandboxes that could not be run.",
      byHandler,
    ),
  };
}

/** Registers `kubelet_pleg_*` and `kubelet_evented_pleg_*`. */
export function createPLEGMetrics(registry: MetricsRegistry): PLEGMetrics {
  // Events are wakes without content: none is ever dropped for want of room.
  registry.counter("kubelet_pleg_discard_events", "Always 0: no event has to be discarded.");
  registry.counter("kubelet_evented_pleg_connection_error_count", "Always 0: the stream is made anew by itself.");
  return {
    relistSeconds: registry.histogram(
      "kubelet_pleg_relist_duration_seconds",
      "Time to list everything in the runtime.",
      defaultBuckets,
    ),
    relistIntervalSeconds: registry.histogram(
      "kubelet_pleg_relist_interval_seconds",
      "Time between two lists of everything in the runtime.",
      defaultBuckets,
    ),
    podRelistSeconds: registry.histogram(
      "kubelet_pleg_pod_relist_duration_seconds",
      "Time to look at all sandboxes and containers of one pod.",
      defaultBuckets,
    ),
    eventConnections: registry.counter(
      "kubelet_evented_pleg_connection_success_count",
      "Times that the runtime's event stream was opened.",
    ),
    eventSeconds: registry.histogram(
      "kubelet_evented_pleg_connection_latency_seconds",
      "Time from an event in the runtime until its pod is woken.",
      defaultBuckets,
    ),
    lastSeenSeconds: registry.gauge(
      "kubelet_pleg_last_seen_seconds",
      "Unix time at which the runtime last told what runs, in seconds.",
    ),
  };
}

/** Who asked for which image, and what pulls cost. */
export interface ImageMetrics {
  ensured: Counter<"pull_policy" | "present_locally" | "pull_required">;
  pulled(seconds: number, imageBytes: number | undefined): void;
}

/** Why an image was removed: nobody used it for too long, or the disk was too full. */
export type ImageGarbageReason = "age" | "space";

export interface ImageGarbageMetrics {
  collected: Counter<"reason">;
}

/** Registers what is counted about images that nobody needs. */
export function createImageGarbageMetrics(registry: MetricsRegistry): ImageGarbageMetrics {
  return {
    collected: registry.counter(
      "kubelet_image_garbage_collected_total",
      "Images that were removed because nobody used them, by why.",
      ["reason"],
    ),
  };
}

// The reference's, in seconds.
const pullBuckets = [1, 5, 10, 20, 30, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600];

const MB = 1 << 20;
const GB = 1 << 30;
/** Upper bounds of the reference's sizes of images, and what it calls them. */
const imageSizes: readonly (readonly [number, string])[] = [
  [10 * MB, "0-10MB"],
  [100 * MB, "10MB-100MB"],
  [500 * MB, "100MB-500MB"],
  [GB, "500MB-1GB"],
  [5 * GB, "1GB-5GB"],
  [10 * GB, "5GB-10GB"],
  [20 * GB, "10GB-20GB"],
  [30 * GB, "20GB-30GB"],
  [40 * GB, "30GB-40GB"],
  [60 * GB, "40GB-60GB"],
  [100 * GB, "60GB-100GB"],
];

/** The label that stands for an image's size. @param bytes undefined or 0: not known */
export function imageSizeLabel(bytes: number | undefined): string {
  if (bytes === undefined || bytes <= 0) return "N/A";
  return imageSizes.find(([bound]) => bytes <= bound)?.[1] ?? "GT100GB";
}

/** Registers what is counted about images. */
export function createImageMetrics(registry: MetricsRegistry): ImageMetrics {
  const seconds = registry.histogram(
    "kubelet_image_pull_duration_seconds",
    "Time that pulls took which succeeded, by the image's size.",
    pullBuckets,
    ["image_size_in_bytes"],
  );
  return {
    ensured: registry.counter(
      "kubelet_image_manager_ensure_image_requests_total",
      "Times that a container asked for its image, by whether it was there and had to be pulled.",
      ["pull_policy", "present_locally", "pull_required"],
    ),
    pulled: (took, bytes) => seconds.observe({ image_size_in_bytes: imageSizeLabel(bytes) }, took),
  };
}

/** How a check went whether a pod may use an image that is there. */
type MustPullResult = "credentialPolicyAllowed" | "credentialRecordFound" | "mustAuthenticate" | "error";

export interface PullRecordMetrics {
  checked(result: MustPullResult): void;
}

/** Registers what is counted about records of pulls. @param dirs of the intents and of the records; counted at a scrape */
export function createPullRecordMetrics(
  registry: MetricsRegistry,
  dirs: { intents: string; pulled: string },
): PullRecordMetrics {
  const files = (name: string, help: string, dir: string) =>
    registry.collect(name, async () => {
      // A directory that cannot be read has other ways to tell; it must not take all other metrics with it.
      const found = await readdir(dir).catch(() => undefined);
      const value = found?.filter((file) => !file.endsWith(".tmp")).length;
      return [{ name, help, type: "gauge", samples: value === undefined ? [] : [{ labels: {}, value }] }];
    });
  files("kubelet_imagemanager_ondisk_pullintents", "Pulls that are under way, on disk.", dirs.intents);
  files("kubelet_imagemanager_ondisk_pulledrecords", "Records of pulled images on disk.", dirs.pulled);
  // Read when they are asked for: there is no cache that could be full.
  const notCached = "Always 0: they are kept on disk only.";
  registry.gaugeOf("kubelet_imagemanager_inmemory_pullintents_usage_percent", notCached, () => 0);
  registry.gaugeOf("kubelet_imagemanager_inmemory_pulledrecords_usage_percent", notCached, () => 0);
  const checks = registry.counter(
    "kubelet_imagemanager_image_mustpull_checks_total",
    "Checks whether a pod has to show that it may use an image that is there.",
    ["result"],
  );
  return { checked: (result) => checks.inc({ result }) };
}
