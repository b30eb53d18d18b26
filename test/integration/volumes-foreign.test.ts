import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { bindMount, isMountPoint, mountFilesystem, unmountAllUnder } from "../../agent/lib/mount.ts";
import { podUID, useVolumeRoot } from "../support/volume-root.ts";

// Volumes that another agent of this node has left, of kinds that nodelet has not: with real mounts, as root.

const on = useVolumeRoot();

describe.each(["kubernetes.io~iscsi", "kubernetes.io~rbd", "example.com~flexvolume"])("a volume of %s", (plugin) => {
  const volume = () => join(on.podDir, "volumes", plugin, "pv");

  test("that is mounted keeps all that is in it, and the pod's directory", async () => {
    await mkdir(volume(), { recursive: true });
    await mountFilesystem({ type: "tmpfs", source: "tmpfs", target: volume(), options: ["size=64k"] });
    // A database's, which it does not make again.
    for (const name of ["pg_notify", "pg_wal/archive_status"]) await mkdir(join(volume(), name), { recursive: true });
    await expect(on.manager.tearDown(podUID)).rejects.toThrow(`${volume()} is mounted`);
    await expect(on.manager.removePodDir(podUID)).rejects.toThrow(`${volume()} is still mounted`);
    expect((await readdir(volume(), { recursive: true })).sort()).toEqual([
      "pg_notify",
      "pg_wal",
      "pg_wal/archive_status",
    ]);
    expect(await isMountPoint(volume())).toBe(true);

    await unmountAllUnder(volume());
    await on.manager.tearDown(podUID);
    await on.manager.removePodDir(podUID);
    expect(await readdir(join(on.root, "pods"))).toEqual([]);
  });

  test("that is a bind mount of the same file system is one, too", async () => {
    const data = join(on.base, "data");
    await mkdir(join(data, "empty/deeper"), { recursive: true });
    await mkdir(volume(), { recursive: true });
    await bindMount(data, volume());
    await expect(on.manager.tearDown(podUID)).rejects.toThrow(`${volume()} is mounted`);
    expect((await readdir(data, { recursive: true })).sort()).toEqual(["empty", "empty/deeper"]);
  });

  test("that is not mounted loses its own directory, and none that is in it", async () => {
    await mkdir(join(volume(), "lost+found"), { recursive: true });
    await expect(on.manager.tearDown(podUID)).rejects.toThrow("cannot remove");
    expect(await readdir(volume())).toEqual(["lost+found"]);
  });
});
