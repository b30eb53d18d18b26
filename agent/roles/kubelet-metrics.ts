import { arch, platform } from "node:os";
import { listFeatureGates } from "../config/feature-gates.ts";
import { createRestClientMetrics, type RestClientMetrics } from "../kube/metrics.ts";
import type { Clock } from "../lib/clock.ts";
import { MetricsRegistry } from "../lib/metrics.ts";
import { registerProcessMetrics } from "../lib/metrics-process.ts";
import { goArch } from "../node/facts.ts";
import { createNodeStartup, type NodeStartup } from "../node/metrics.ts";
import { createPodMetrics, type PodMetrics } from "../pods/metrics.ts";
import { createResizeMetrics, type ResizeMetrics } from "../pods/resize/metrics.ts";
import { createImageMetrics, type ImageMetrics } from "../runtime/metrics.ts";
import { registerIdentity } from "../server/metrics/identity.ts";
import { registerVolumeStats } from "../server/metrics/volume-stats.ts";
import type { Stats } from "../stats/port.ts";
import { createVolumeMetrics, type VolumeMetrics } from "../volumes/metrics.ts";
import type { RunningParts } from "./parts.ts";

/** What the kubelet role's parts count with. Each of them gets its own; only /metrics sees the registry as a whole. */
export interface KubeletMetrics {
  /** For /metrics. */
  registry: MetricsRegistry;
  /** For /metrics/probes. */
  probes: MetricsRegistry;
  restClient: RestClientMetrics;
  startup: NodeStartup;
  pods: PodMetrics;
  resizes: ResizeMetrics;
  images: ImageMetrics;
  volumes: VolumeMetrics;
}

/** Unix ms at which this process started. */
export function processStartMs(): number {
  return Math.round(performance.timeOrigin);
}

/** Makes the role's metrics, and measures the process until the agent ends. */
export function createKubeletMetrics({ clock, parts }: { clock: Clock; parts: RunningParts }): KubeletMetrics {
  const registry = new MetricsRegistry();
  const ofProcess = registerProcessMetrics(registry, { processStartMs: processStartMs() });
  parts.defer("measuring of the event loop", () => ofProcess.close());
  return {
    registry,
    probes: new MetricsRegistry(),
    restClient: createRestClientMetrics(registry, clock),
    startup: createNodeStartup(registry, clock, { processStartMs: processStartMs() }),
    pods: createPodMetrics(registry, clock),
    resizes: createResizeMetrics(registry),
    images: createImageMetrics(registry),
    volumes: createVolumeMetrics(registry, clock),
  };
}

/** Registers what is known only once the node and its statistics are there. */
export function registerNodeMetrics(
  registry: MetricsRegistry,
  clock: Clock,
  node: { nodeName: string; cgroupVersion: 1 | 2; gates: Readonly<Record<string, boolean>>; stats: Stats },
): void {
  const { nodeName, cgroupVersion, gates, stats } = node;
  const featureGates = listFeatureGates(gates);
  registerIdentity(registry, { nodeName, cgroupVersion, platform: `${platform()}/${goArch(arch())}`, featureGates });
  registerVolumeStats(registry, { summary: async () => await stats.summary({ onlyCPUAndMemory: false }), clock });
}
