import { mkdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { deviceDirOf, stagingPathOf } from "../../../agent/volumes/csi/paths.ts";
import type { CSIDriverClient, NodeCapability } from "../../../agent/volumes/csi/port.ts";
import { type TargetData, writeVolumeData } from "../../../agent/volumes/csi/volume-data.ts";
import { createVolumeMeasures } from "../../../agent/volumes/measure.ts";
import type { MountedVolume } from "../../../agent/volumes/pod-states.ts";
import { makeTempDir } from "./support.ts";

const never = new AbortController().signal;
let rootDir: string;
let cleanUp: () => Promise<void>;
beforeEach(async () => {
  ({ dir: rootDir, cleanUp } = await makeTempDir());
});
afterEach(() => cleanUp());

const mounted = (pluginName: string, changes: Partial<MountedVolume> = {}): MountedVolume => ({
  pluginName,
  specName: "pv1",
  bound: undefined,
  isBlock: false,
  hostPath: "/there",
  isReadOnly: false,
  isRelabelled: false,
  isRefreshed: false,
  supplementalGroup: undefined,
  ...changes,
});

/** Asks for the volume `v` of pod `u1`, which is this one. */
async function measure(volume: MountedVolume | undefined, capabilities: NodeCapability[] = ["GET_VOLUME_STATS"]) {
  const asked: unknown[] = [];
  const client = {
    driver: "disk.example",
    nodeGetCapabilities: async () => new Set(capabilities),
    nodeGetVolumeStats: async (request: unknown) => {
      asked.push(request);
      return { usage: [], condition: undefined };
    },
  } as unknown as CSIDriverClient;
  const statsOf = createVolumeMeasures({
    rootDir,
    volumes: { mounted: (podUID, name) => (podUID === "u1" && name === "v" ? volume : undefined) },
    drivers: { client: (driver) => ({ ...client, driver }) },
  });
  return { asked, answer: await statsOf("u1", "v", never) };
}

const data: TargetData = {
  driverName: "disk.example",
  volumeHandle: "vol-1",
  specVolID: "pv1",
  nodeName: "n1",
  attachmentID: "csi-1",
  volumeLifecycleMode: "Persistent",
};

test.each([
  ["kubernetes.io/nfs", {}, { kind: "filesystem", path: "/there" }],
  ["kubernetes.io/local-volume", {}, { kind: "filesystem", path: "/there" }],
  ["kubernetes.io/local-volume", { isBlock: true }, { kind: "block", path: "/there" }],
  ["kubernetes.io/host-path", {}, undefined],
  ["kubernetes.io/image", { hostPath: "" }, undefined],
] as const)("%s with %o", async (plugin, changes, want) => {
  expect((await measure(mounted(plugin, changes))).answer).toEqual(want);
});

test("what is not mounted is not measured", async () => {
  expect((await measure(undefined)).answer).toBeUndefined();
});

test("the driver of a CSI volume is asked for what it has published", async () => {
  const hostPath = join(rootDir, "pods/u1/volumes/kubernetes.io~csi/pv1/mount");
  await mkdir(hostPath, { recursive: true });
  await writeVolumeData(dirname(hostPath), data);
  const { asked, answer } = await measure(mounted("kubernetes.io/csi", { hostPath }));
  expect(answer).toEqual({ kind: "driver", driver: "disk.example", usage: [], condition: undefined });
  expect(asked).toEqual([{ volumeID: "vol-1", volumePath: hostPath, stagingTargetPath: "" }]);
});

test("a driver that stages is told where, as CSI wants it; not of what is the pod's alone", async () => {
  const hostPath = join(rootDir, "pods/u1/volumes/kubernetes.io~csi/pv1/mount");
  await mkdir(hostPath, { recursive: true });
  const asked = async (volumeData: TargetData) => {
    await writeVolumeData(dirname(hostPath), volumeData);
    const volume = mounted("kubernetes.io/csi", { hostPath });
    return (await measure(volume, ["GET_VOLUME_STATS", "STAGE_UNSTAGE_VOLUME"])).asked;
  };
  const stagingTargetPath = stagingPathOf(deviceDirOf(rootDir, "disk.example", "vol-1"));
  expect(await asked(data)).toMatchObject([{ stagingTargetPath }]);
  expect(await asked({ ...data, volumeLifecycleMode: "Ephemeral" })).toMatchObject([{ stagingTargetPath: "" }]);
});

test("a driver that does not count is left alone", async () => {
  const hostPath = join(rootDir, "pods/u1/volumes/kubernetes.io~csi/pv1/mount");
  await mkdir(hostPath, { recursive: true });
  await writeVolumeData(dirname(hostPath), data);
  const { asked, answer } = await measure(mounted("kubernetes.io/csi", { hostPath }), ["STAGE_UNSTAGE_VOLUME"]);
  expect([asked, answer]).toEqual([[], undefined]);
});

test("of a block device, it is the file that is held open for the pod", async () => {
  const own = join(rootDir, "plugins/kubernetes.io/csi/volumeDevices/pv1");
  await mkdir(join(own, "data"), { recursive: true });
  await writeVolumeData(join(own, "data"), data);
  const { asked } = await measure(mounted("kubernetes.io/csi", { isBlock: true }));
  expect(asked).toEqual([{ volumeID: "vol-1", volumePath: join(own, "dev/u1"), stagingTargetPath: "" }]);
});

test("a CSI volume of which nothing is written down is not measured", async () => {
  const { asked, answer } = await measure(mounted("kubernetes.io/csi", { hostPath: join(rootDir, "x/mount") }));
  expect([asked, answer]).toEqual([[], undefined]);
});
