import type { MetricFamily, MetricsRegistry } from "../../lib/metrics.ts";
import { kubeletVersion, nodeletVersion } from "../../version.ts";

export interface IdentityOptions extends BuildOptions {
  nodeName: string;
  cgroupVersion: 1 | 2;
}

export interface BuildOptions {
  /** `linux/amd64`. */
  platform: string;
  /** Every known gate with its stage ("" for general availability). */
  featureGates: readonly { name: string; stage: string; isOn: boolean }[];
}

/** Registers what this kubelet is: the constants that dashboards join with and fleets are counted by. */
export function registerIdentity(registry: MetricsRegistry, options: IdentityOptions): void {
  const { nodeName, cgroupVersion } = options;
  const families: MetricFamily[] = [
    constant("kubelet_node_name", "The node's name, to join other metrics with.", { node: nodeName }),
    constant("kubelet_metrics_provider", "Where figures of containers come from.", { provider: "cadvisor" }),
    {
      name: "kubelet_cgroup_version",
      help: "Version of the cgroup hierarchy, 1 or 2.",
      type: "gauge",
      samples: [{ labels: {}, value: cgroupVersion }],
    },
  ];
  for (const family of families) registry.collect(family.name, () => [family]);
  registerBuild(registry, options);
}

/** Registers what every component says of itself: versions, feature gates, and how many metrics it has. */
export function registerBuild(registry: MetricsRegistry, { platform, featureGates }: BuildOptions): void {
  const [, major = "", minor = ""] = /^v(\d+)\.(\d+)\./.exec(kubeletVersion) ?? [];
  const build = {
    build_date: "",
    compiler: "v8",
    git_commit: "",
    git_tree_state: "",
    git_version: kubeletVersion,
    go_version: process.version,
    major,
    minor,
    platform,
  };
  const families: MetricFamily[] = [
    constant("kubernetes_build_info", "The Kubernetes version that the agent stands in for.", build),
    constant("nodelet_build_info", "nodelet's own version.", { node: process.version, version: nodeletVersion }),
    {
      name: "kubernetes_feature_enabled",
      help: "1 if the feature gate is on.",
      type: "gauge",
      samples: featureGates.map(({ name, stage, isOn }) => ({ labels: { name, stage }, value: isOn ? 1 : 0 })),
    },
  ];
  for (const family of families) registry.collect(family.name, () => [family]);
  for (const name of ["hidden_metrics_total", "disabled_metrics_total"]) {
    registry.counter(name, "Always 0: no metric is ever hidden or switched off.");
  }
  registry.collect("registered_metrics_total", () => [
    {
      name: "registered_metrics_total",
      help: "Names of metrics that parts of the agent have registered.",
      type: "counter",
      samples: [{ labels: { deprecated_version: "", stability_level: "ALPHA" }, value: registry.size }],
    },
  ]);
}

function constant(name: string, help: string, labels: Record<string, string>): MetricFamily {
  return { name, help, type: "gauge", samples: [{ labels, value: 1 }] };
}
