import { realpath } from "node:fs/promises";
import type { KubeletSettings } from "../config/load-kubelet.ts";
import type { EventRecorder, Store } from "../kube/port.ts";
import type { Node } from "../kube/types.ts";
import { type CSIVolumes, createCSIVolumes } from "../volumes/csi/kind.ts";
import { createSELinuxMetrics } from "../volumes/csi/metrics.ts";
import type { Cluster, Surroundings } from "./cluster.ts";
import type { KubeletMetrics } from "./kubelet-metrics.ts";
import type { Plugins } from "./kubelet-plugins.ts";

export interface StartCSIVolumesOptions {
  settings: KubeletSettings;
  nodeName: string;
  recorder: EventRecorder;
  /** undefined: there is no API server. */
  cluster: Cluster | undefined;
  ownNode: Store<Node>;
  plugins: Plugins;
  selinuxEnabled: boolean;
  measures: Pick<KubeletMetrics, "registry">;
}

/** Mounts volumes of CSI drivers for pods, and unstages what nobody uses, from now on. */
export async function startCSIVolumes(
  { settings, nodeName, recorder, cluster, ownNode, plugins, selinuxEnabled, measures }: StartCSIVolumesOptions,
  { clock, log, parts }: Surroundings,
): Promise<CSIVolumes> {
  const volumes = createCSIVolumes({
    rootDir: await realpath(settings.flags.rootDir),
    nodeName,
    client: cluster?.client,
    drivers: plugins.csiDrivers,
    objects: plugins.csiDriverObjects,
    ownNode,
    selinuxEnabled,
    selinux: createSELinuxMetrics(measures.registry),
    refreshLimit: (driver, signal) => plugins.refreshLimit(driver, signal),
    event: (about, type, reason, message) => recorder.event(about, type, reason, message),
    clock,
    log,
  });
  parts.start("CSI volumes", (signal) => volumes.run(signal));
  return volumes;
}
