import type { MetricsRegistry } from "../../lib/metrics.ts";
import type { CSICall } from "./client.ts";
import { csiPluginName } from "./paths.ts";

// The reference's, in seconds.
const operationBuckets = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600];

/** Registers `csi_operations_seconds`. @returns what it is to be told of */
export function createCSIMetrics(registry: MetricsRegistry): (call: CSICall) => void {
  const seconds = registry.histogram("csi_operations_seconds", "Time of calls to CSI drivers.", operationBuckets, [
    "driver_name",
    "method_name",
    "grpc_status_code",
    "migrated",
  ]);
  return ({ driver, method, status, seconds: value }) =>
    seconds.observe({ driver_name: driver, method_name: method, grpc_status_code: status, migrated: "false" }, value);
}

/** Volumes that are mounted with an SELinux label as a whole, and those that cannot be. */
export interface SELinuxMetrics {
  /** A volume of a pod was mounted with the label that the pod asks for. */
  admitted(driver: string): void;
  /** The pod's containers ask for different labels; told at each attempt. */
  podMismatch(): void;
  /** The volume is mounted with another label, for another pod; told at each attempt. */
  volumeMismatch(driver: string): void;
}

/** Registers `volume_manager_selinux_*`. Gauges that only grow, as in the reference. */
export function createSELinuxMetrics(registry: MetricsRegistry): SELinuxMetrics {
  // The only mode with which a volume is mounted so, under the reference's short name for ReadWriteOncePod.
  const access_mode = "RWOP";
  const admitted = registry.gauge(
    "volume_manager_selinux_volumes_admitted_total",
    "Volumes that were mounted with the SELinux label that their pod asks for.",
    ["access_mode", "volume_plugin"],
  );
  const podMismatch = registry.gauge(
    "volume_manager_selinux_pod_context_mismatch_errors_total",
    "Attempts that failed because a pod's containers ask for different SELinux labels of one volume.",
    ["access_mode"],
  );
  const volumeMismatch = registry.gauge(
    "volume_manager_selinux_volume_context_mismatch_errors_total",
    "Attempts that failed because a volume is mounted with another SELinux label, for another pod.",
    ["access_mode", "volume_plugin"],
  );
  const pluginOf = (driver: string) => `${csiPluginName}/${driver}`;
  return {
    admitted: (driver) => admitted.add({ access_mode, volume_plugin: pluginOf(driver) }),
    podMismatch: () => podMismatch.add({ access_mode }),
    volumeMismatch: (driver) => volumeMismatch.add({ access_mode, volume_plugin: pluginOf(driver) }),
  };
}
