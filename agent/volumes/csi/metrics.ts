import type { MetricsRegistry } from "../../lib/metrics.ts";
import type { CSICall } from "./client.ts";

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
