import { expect, test } from "vitest";
import type { NodeCapability, VolumeStats } from "../../../agent/volumes/csi/port.ts";
import { measureByDriver } from "../../../agent/volumes/csi-measure.ts";

const request = { volumeID: "v1", volumePath: "/pods/u1/mount", stagingTargetPath: "" };
const stats: VolumeStats = { usage: [{ unit: "BYTES", available: 1, total: 3, used: 2 }], condition: undefined };

function clientWith(...capabilities: NodeCapability[]) {
  const asked: unknown[] = [];
  return {
    asked,
    driver: "disk.example",
    nodeGetCapabilities: async () => new Set(capabilities),
    nodeGetVolumeStats: async (of: unknown) => {
      asked.push(of);
      return stats;
    },
  };
}

test("a driver that counts is asked, and named", async () => {
  const client = clientWith("GET_VOLUME_STATS");
  const measure = await measureByDriver(client, request, new AbortController().signal);
  expect(measure).toEqual({ kind: "driver", driver: "disk.example", ...stats });
  expect(client.asked).toEqual([request]);
});

test("one that does not is left alone", async () => {
  const client = clientWith("STAGE_UNSTAGE_VOLUME");
  expect(await measureByDriver(client, request, new AbortController().signal)).toBeUndefined();
  expect(client.asked).toEqual([]);
});
