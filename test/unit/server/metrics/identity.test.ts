import { expect, test } from "vitest";
import { listFeatureGates } from "../../../../agent/config/feature-gates.ts";
import { MetricsRegistry } from "../../../../agent/lib/metrics.ts";
import { renderMetrics } from "../../../../agent/lib/metrics-text.ts";
import { registerIdentity } from "../../../../agent/server/metrics/identity.ts";
import { kubeletVersion } from "../../../../agent/version.ts";

test("the agent says which node, version and gates it has", async () => {
  const registry = new MetricsRegistry();
  const featureGates = listFeatureGates({ KubeletPSI: true, ContextualLogging: false, AllAlpha: true });
  registerIdentity(registry, { nodeName: "n1", cgroupVersion: 2, platform: "linux/amd64", featureGates });
  const shown = [...renderMetrics(await registry.families())].join("");
  expect(shown).toContain('\nkubelet_node_name{node="n1"} 1\n');
  expect(shown).toContain("\nkubelet_cgroup_version 2\n");
  expect(shown).toMatch(
    new RegExp(`\nkubernetes_build_info{.*git_version="${kubeletVersion}",.*platform="linux/amd64"} 1\n`),
  );
  expect(shown).toContain('\nkubernetes_feature_enabled{name="KubeletPSI",stage=""} 1\n');
  expect(shown).toContain('\nkubernetes_feature_enabled{name="ContextualLogging",stage="BETA"} 0\n');
  expect(shown).toContain('\nkubernetes_feature_enabled{name="PodsAPI",stage="ALPHA"} 1\n');
  expect(shown).toContain('\nkubernetes_feature_enabled{name="GitRepoVolumeDriver",stage="DEPRECATED"} 0\n');
  expect(shown).toContain('\nregistered_metrics_total{deprecated_version="",stability_level="ALPHA"} 9\n');
});
