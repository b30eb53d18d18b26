import type { CSIDriverClient } from "./csi/port.ts";
import type { VolumeMeasure } from "./port.ts";

/**
 * Asks a driver what is in one of its volumes.
 *
 * @param request as NodeGetVolumeStats wants it: the path is where the volume is published, or the file of a block device
 * @returns undefined for drivers that cannot count
 * Rejects with the driver's error.
 */
export async function measureByDriver(
  client: Pick<CSIDriverClient, "driver" | "nodeGetCapabilities" | "nodeGetVolumeStats">,
  request: Parameters<CSIDriverClient["nodeGetVolumeStats"]>[0],
  signal: AbortSignal,
): Promise<VolumeMeasure | undefined> {
  const capabilities = await client.nodeGetCapabilities({ signal });
  if (!capabilities.has("GET_VOLUME_STATS")) return undefined;
  return { kind: "driver", driver: client.driver, ...(await client.nodeGetVolumeStats(request, { signal })) };
}
