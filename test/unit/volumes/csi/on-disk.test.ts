import { mkdir, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { isMountedAt, sameMountsUnder, takesLabels } from "../../../../agent/volumes/csi/mount-table.ts";
import {
  attachmentName,
  blockPathsOf,
  deviceDirOf,
  ephemeralHandle,
  stagingPathOf,
  uniqueVolumeName,
} from "../../../../agent/volumes/csi/paths.ts";
import { readVolumeData, removeVolumeData, writeVolumeData } from "../../../../agent/volumes/csi/volume-data.ts";
import { makeTempDir } from "../support.ts";

describe("paths and names, as others look for them", () => {
  test("a staged volume lies under its driver by the hash of its handle", () => {
    // printf abc | sha256sum
    const sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const path = stagingPathOf(deviceDirOf("/root", "csi.test", "abc"));
    expect(path).toBe(`/root/plugins/kubernetes.io/csi/csi.test/${sum}/globalmount`);
  });

  test("a driver's name that leads elsewhere is refused", () => {
    for (const name of ["..", "a/b", "", ".hidden", "volumeDevices", "x".repeat(64)]) {
      expect(() => deviceDirOf("/root", name, "h")).toThrow(`"${name}" is not the name of a CSI driver`);
    }
  });

  test("a block volume's places", () => {
    expect(blockPathsOf("/root", "pv")).toEqual({
      stagingPath: "/root/plugins/kubernetes.io/csi/volumeDevices/staging/pv",
      publishDir: "/root/plugins/kubernetes.io/csi/volumeDevices/publish/pv",
      mapDir: "/root/plugins/kubernetes.io/csi/volumeDevices/pv/dev",
      dataDir: "/root/plugins/kubernetes.io/csi/volumeDevices/pv/data",
      ownDir: "/root/plugins/kubernetes.io/csi/volumeDevices/pv",
    });
  });

  test("names", () => {
    expect(uniqueVolumeName("csi.test", "vol^1")).toBe("kubernetes.io/csi/csi.test^vol^1");
    // printf 'a''b''c' | sha256sum
    const sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    expect(attachmentName("a", "b", "c")).toBe(`csi-${sum}`);
    expect(ephemeralHandle("a", "bc")).toBe(`csi-${sum}`);
  });
});

describe("vol_data.json", () => {
  let dir: string;
  let cleanUp: () => Promise<void>;
  beforeEach(async () => {
    ({ dir, cleanUp } = await makeTempDir());
  });
  afterEach(() => cleanUp());

  test("is a flat map of strings that only root can read", async () => {
    await writeVolumeData(dir, { volumeHandle: "h", driverName: "csi.test" });
    expect(await readFile(join(dir, "vol_data.json"), "utf8")).toBe('{"volumeHandle":"h","driverName":"csi.test"}');
    expect((await stat(join(dir, "vol_data.json"))).mode & 0o777).toBe(0o600);
    expect(await readVolumeData(dir)).toMatchObject({ volumeHandle: "h", driverName: "csi.test" });
  });

  test("one of the reference is understood", async () => {
    const text =
      '{"attachmentID":"csi-1","driverName":"csi.test","nodeName":"n1","specVolID":"pv","volumeHandle":"h",' +
      '"volumeLifecycleMode":"Ephemeral"}\n';
    await writeFile(join(dir, "vol_data.json"), text);
    expect(await readVolumeData(dir)).toMatchObject({ specVolID: "pv", volumeLifecycleMode: "Ephemeral" });
  });

  test("nothing there is no error; what says nothing is", async () => {
    expect(await readVolumeData(dir)).toBeUndefined();
    for (const text of ["", "[]", "null", '{"driverName":"csi.test"}', '{"driverName":1,"volumeHandle":"h"}']) {
      await writeFile(join(dir, "vol_data.json"), text);
      await expect(readVolumeData(dir)).rejects.toThrow("vol_data.json does not say of what driver and volume it is");
    }
  });

  test("goes with its directory and what a cut-off write left, but not with anything else", async () => {
    const own = join(dir, "own");
    await mkdir(own);
    await writeVolumeData(own, { volumeHandle: "h", driverName: "csi.test" });
    await writeFile(join(own, "vol_data.json.0123456789ab.tmp"), "{");
    await writeFile(join(own, "precious"), "data");
    await expect(removeVolumeData(own)).rejects.toThrow("ENOTEMPTY");
    expect(await readdir(own)).toEqual(["precious"]);
    await removeVolumeData(join(dir, "missing"));
  });
});

describe("the mount table, read as text", () => {
  const table = [
    "20 1 0:50 / /root/plugins/kubernetes.io/csi/d/1/globalmount rw - tmpfs csi rw,seclabel",
    "21 1 0:50 / /root/pods/u/volumes/kubernetes.io~csi/pv/mount rw,relatime shared:1 - tmpfs csi rw",
    "22 1 0:50 / /var/lib/driver/pv rw - tmpfs csi rw",
    "23 1 0:50 /sub /root/pods/u/volume-subpaths/pv/app/0 rw - tmpfs csi rw",
    "24 1 0:51 / /root/pods/a\\040b rw - tmpfs csi rw",
    "",
  ].join("\n");
  const staging = "/root/plugins/kubernetes.io/csi/d/1/globalmount";

  test("what is mounted where", () => {
    expect(isMountedAt(table, staging)).toBe(true);
    expect(isMountedAt(table, "/root/pods/a b")).toBe(true);
    expect(isMountedAt(table, "/root/pods")).toBe(false);
  });

  test("the same elsewhere counts only where pods have it", () => {
    expect(sameMountsUnder(table, staging, "/root/pods")).toEqual(["/root/pods/u/volumes/kubernetes.io~csi/pv/mount"]);
    expect(sameMountsUnder(table, "/not/mounted", "/root/pods")).toEqual([]);
  });

  test("labels of files", () => {
    expect(takesLabels(table, staging)).toBe(true);
    expect(takesLabels(table, "/var/lib/driver/pv")).toBe(false);
    expect(takesLabels(table, "/not/mounted")).toBe(false);
  });
});
