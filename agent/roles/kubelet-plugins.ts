import { join } from "node:path";
import type { KubeletSettings } from "../config/load-kubelet.ts";
import { emptyStore } from "../kube/absent.ts";
import type { Store } from "../kube/port.ts";
import { csiDrivers } from "../kube/resources.ts";
import type { Node } from "../kube/types.ts";
import { createPluginManager } from "../plugins/manager.ts";
import { registerPluginMetrics } from "../plugins/metrics.ts";
import { refreshAllocatable, refreshDriver } from "../volumes/csi/allocatable.ts";
import { csiClientOpener } from "../volumes/csi/client.ts";
import { createCSINodeKeeper } from "../volumes/csi/csi-node.ts";
import { csiDriverObjects } from "../volumes/csi/driver-objects.ts";
import { createCSIDrivers } from "../volumes/csi/drivers.ts";
import { createCSIMetrics } from "../volumes/csi/metrics.ts";
import type { CSIDriverObjects, CSIDrivers } from "../volumes/csi/port.ts";
import type { Cluster, Surroundings } from "./cluster.ts";
import type { KubeletMetrics } from "./kubelet-metrics.ts";

export interface StartPluginsOptions {
  settings: KubeletSettings;
  nodeName: string;
  /** undefined: there is no API server. */
  cluster: Cluster | undefined;
  ownNode: Store<Node>;
  measures: KubeletMetrics;
}

/** Plugins of the node, found and registered from now on. */
export interface Plugins {
  csiDrivers: CSIDrivers;
  csiDriverObjects: CSIDriverObjects;
  /** Asks a driver anew how many volumes the node takes, and tells the cluster. Never rejects. */
  refreshLimit(driver: string, signal: AbortSignal): Promise<void>;
  /** Whether the cluster can know of the node's drivers yet, for the Node's Ready condition. */
  storage: StorageReadiness;
}

export interface StorageReadiness {
  /** Why storage is not ready; undefined: it is. */
  problem(): string | undefined;
  /** Calls `listener` when {@link problem} has changed. @returns ends it */
  subscribe(listener: () => void): () => void;
}

/** Watches ROOT/plugins_registry, which must exist, and keeps the CSINode. Waits for nothing. */
export function startPlugins(options: StartPluginsOptions, { clock, log, parts }: Surroundings): Plugins {
  const { settings, nodeName, cluster, ownNode, measures } = options;
  const keeper =
    cluster === undefined
      ? undefined
      : createCSINodeKeeper({ nodeName, client: cluster.client, nodeStore: ownNode, clock, log });
  if (keeper !== undefined) parts.start("CSINode", (signal) => keeper.run(signal));

  const objects = csiDriverObjects(cluster?.follow(csiDrivers) ?? emptyStore());
  const open = csiClientOpener(clock, createCSIMetrics(measures.registry));
  const drivers = createCSIDrivers({ csiNode: keeper, log, open });
  parts.defer("connections to CSI drivers", () => drivers.close());
  const refreshed = keeper === undefined ? undefined : { drivers, objects, csiNode: keeper, clock, log };
  if (refreshed !== undefined) {
    parts.start("CSI drivers' limits", (signal) => refreshAllocatable(refreshed, signal));
  }

  const dir = join(settings.flags.rootDir, "plugins_registry");
  const manager = createPluginManager({ dir, handlers: { CSIPlugin: drivers.handler }, clock, log });
  registerPluginMetrics(measures.registry, manager);
  parts.start("plugin registration", (signal) => manager.run(signal));
  return {
    csiDrivers: drivers,
    csiDriverObjects: objects,
    refreshLimit: async (driver, signal) => {
      if (refreshed !== undefined) await refreshDriver(driver, refreshed, signal);
    },
    storage: keeper ?? { problem: () => undefined, subscribe: () => () => {} },
  };
}
