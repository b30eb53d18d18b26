import { isGateOn } from "../config/feature-gates.ts";
import type { EventRecorder, Store } from "../kube/port.ts";
import type { Node, Pod } from "../kube/types.ts";
import type { MetricsRegistry } from "../lib/metrics.ts";
import { podReference } from "../pods/names.ts";
import type { VolumeKind } from "../volumes/kind.ts";
import { createPodCertificates, type PodCertificates } from "../volumes/pod-certificates.ts";
import { createProjectedKind } from "../volumes/projected.ts";
import { createTrustBundles } from "../volumes/trust-bundles.ts";
import type { Cluster, Surroundings } from "./cluster.ts";

export interface ProjectedKindOptions {
  featureGates: Readonly<Record<string, boolean>>;
  cluster: Cluster;
  nodeName: string;
  ownNode: Store<Node>;
  recorder: EventRecorder;
  registry: MetricsRegistry;
}

/** The kind of projected volumes with the sources that feature gates switch on. */
export function openProjectedKind(options: ProjectedKindOptions, surroundings: Surroundings): VolumeKind {
  const { featureGates, cluster } = options;
  const { clock, parts } = surroundings;
  const hasBundles = isGateOn(featureGates, "ClusterTrustBundleProjection");
  const trustBundles = hasBundles ? createTrustBundles({ ...cluster, clock }) : undefined;
  if (trustBundles !== undefined) parts.defer("watch of ClusterTrustBundles", () => trustBundles.close());
  const hasCertificates = isGateOn(featureGates, "PodCertificateRequest");
  const podCertificates = hasCertificates ? openCertificates(options, surroundings) : undefined;
  return createProjectedKind({
    ...(trustBundles === undefined ? {} : { trustBundles }),
    ...(podCertificates === undefined ? {} : { podCertificates }),
  });
}

function openCertificates(
  { cluster, nodeName, ownNode, recorder, registry }: ProjectedKindOptions,
  { clock, log, parts }: Surroundings,
): PodCertificates {
  const { client, startInformer } = cluster;
  const certificates = createPodCertificates({
    client,
    startInformer,
    nodeName,
    nodeUID: () => ownNode.get(nodeName)?.metadata.uid,
    clock,
    log,
    onEvent: (pod: Pod, { reason, message }) => recorder.event(podReference(pod), "Warning", reason, message),
  });
  parts.defer("watch of PodCertificateRequests", () => certificates.close());
  const name = "kubelet_podcertificate_states";
  const help = "Certificates of pods, by signer and by where they stand.";
  registry.collect(name, () => {
    const counts = new Map<string, { labels: Record<string, string>; value: number }>();
    for (const { signerName, state } of certificates.states()) {
      const labels = { signer_name: signerName, state: state.toLowerCase() };
      const key = JSON.stringify(labels);
      counts.set(key, { labels, value: (counts.get(key)?.value ?? 0) + 1 });
    }
    return [{ name, help, type: "gauge", samples: [...counts.values()] }];
  });
  return certificates;
}
