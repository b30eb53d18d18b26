import { killAfter } from "../support/killable.ts"; // first: it takes the place of functions that others import
import fs, { chmod, lstat, mkdir, open, readdir, readFile, statfs, symlink, writeFile } from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import type { VolumeMount } from "../../agent/kube/types.ts";
import { exec } from "../../agent/lib/exec.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import {
  bindMount,
  findMountOf,
  isMountPoint,
  listMountsUnder,
  mountFilesystem,
  unmountAllUnder,
} from "../../agent/lib/mount.ts";
import { Orphans, type OrphansDeps } from "../../agent/pods/orphans.ts";
import { tmpfsMagic } from "../../agent/volumes/empty-dir.ts";
import { kindTable } from "../../agent/volumes/kinds.ts";
import { removePodDir, tearDownPodVolumes } from "../../agent/volumes/pod-dirs.ts";
import { depthMax, removeTree } from "../../agent/volumes/remove-tree.ts";
import { prepareRoot } from "../../agent/volumes/root-dir.ts";
import { createTmpfsProbe } from "../../agent/volumes/tmpfs-probe.ts";
import { FakeClock, makePod } from "../unit/volumes/support.ts";
import { modeOf, never, podUID, podWith, useVolumeRoot } from "../support/volume-root.ts";

// How what is in the agent's root directory comes and goes although somebody is in the way: with real mounts, as root.

const on = useVolumeRoot();

/** Every path below a directory with its mode and owner, and what is mounted there. */
async function picture(dir: string): Promise<string[]> {
  const paths = (await readdir(dir, { recursive: true })).sort();
  const mounts = (await listMountsUnder(dir)).map(({ mountPoint, fsType }) => `${mountPoint} ${fsType}`).sort();
  const entries = paths.map(async (path) => {
    const { mode, gid } = await lstat(join(dir, path));
    return `${path} ${mode.toString(8)} ${gid}`;
  });
  return [...(await Promise.all(entries)), ...mounts];
}

describe("killed at any step", () => {
  const volumeMounts: VolumeMount[] = [
    { name: "disk", mountPath: "/disk" },
    { name: "memory", mountPath: "/memory" },
    { name: "disk", mountPath: "/dir", subPath: "a/b" },
    { name: "memory", mountPath: "/sub", subPath: "c" },
  ];
  const pod = makePod({
    securityContext: { fsGroup: 4321 },
    volumes: [
      { name: "disk", emptyDir: {} },
      { name: "memory", emptyDir: { medium: "Memory", sizeLimit: "1Mi" } },
    ],
    containers: [{ name: "app", volumeMounts }],
  });
  const setUp = async () => {
    await on.manager.setUp(pod, never);
    await on.mountsOf(pod);
  };
  const tearDown = async () => {
    await on.manager.tearDown(podUID);
    await on.manager.removePodDir(podUID);
  };
  const fill = async () => {
    await mkdir(join(on.volumeDir("disk"), "a/b/deep"), { recursive: true });
    for (const path of ["file", "a/b/deep/file"]) await writeFile(join(on.volumeDir("disk"), path), "data");
    await writeFile(join(on.volumeDir("memory"), "c/file"), "data");
  };
  const expectNothingLeft = async () => {
    expect(await readdir(join(on.root, "pods")).catch((): string[] => [])).toEqual([]);
    expect(await listMountsUnder(on.root)).toEqual([]);
  };

  /** Kills `work` after one step, then after two, and so on until it gets through; `check` sees each of these ends. */
  async function atEachStep(prepare: () => Promise<void>, work: () => Promise<void>, check: () => Promise<void>) {
    let steps = 0;
    for (; ; steps += 1) {
      await prepare();
      const end = await killAfter(steps, work);
      on.restart();
      await check();
      if (end === "done") break;
    }
    return steps;
  }
  const nothing = async () => {};

  test("of a set-up: the next one makes what is missing", async () => {
    await setUp();
    const want = await picture(on.root);
    await tearDown();
    const steps = await atEachStep(nothing, setUp, async () => {
      await setUp();
      expect(await picture(on.root)).toEqual(want);
      await tearDown();
      await expectNothingLeft();
    });
    expect(steps).toBeGreaterThan(15);
  });

  test("of a set-up, and the pod is deleted meanwhile: nothing is left", async () => {
    await atEachStep(nothing, setUp, async () => {
      await tearDown();
      await expectNothingLeft();
    });
  });

  test("of a set-up while the containers run: their files stay", async () => {
    await setUp();
    await fill();
    const want = await picture(on.root);
    await atEachStep(nothing, setUp, async () => {
      await setUp();
      expect(await picture(on.root)).toEqual(want);
    });
  });

  test("of a tear-down: the next one goes on, and nothing of anybody else's goes", async () => {
    const outside = join(on.base, "outside");
    await mkdir(outside);
    await writeFile(join(outside, "data"), "precious");
    const prepare = async () => {
      await setUp();
      await fill();
      await symlink(outside, join(on.volumeDir("disk"), "a/link"));
      await mkdir(join(on.volumeDir("disk"), "inner"));
      await bindMount(outside, join(on.volumeDir("disk"), "inner")); // as by Bidirectional propagation
    };
    const steps = await atEachStep(prepare, tearDown, async () => {
      await tearDown();
      await expectNothingLeft();
      expect(await readFile(join(outside, "data"), "utf8")).toBe("precious");
    });
    expect(steps).toBeGreaterThan(15);
  });

  test("of a tear-down, and the pod is back, as static pods are: it gets its volumes", async () => {
    await setUp();
    const want = await picture(on.root);
    await tearDown();
    await atEachStep(setUp, tearDown, async () => {
      await setUp();
      expect(await picture(on.root)).toEqual(want);
    });
  });

  test("of the trial mount that tells whether a tmpfs can stay out of swap: nothing is left", async () => {
    const oldKernel = "5.10.0"; // newer ones need no trial
    const want = await createTmpfsProbe(on.root, silentLogger, oldKernel)();
    const work = async () => void (await createTmpfsProbe(on.root, silentLogger, oldKernel)());
    const steps = await atEachStep(nothing, work, async () => {
      expect(await createTmpfsProbe(on.root, silentLogger, oldKernel)()).toBe(want);
      expect(await readdir(on.root)).toEqual([]);
      expect(await listMountsUnder(on.root)).toEqual([]);
    });
    expect(steps).toBe(4);
  });

  test("of the preparation of the root: one mount over it, shared", async () => {
    const options = {
      podLogsDir: join(on.base, "log"),
      containerLogsDir: join(on.base, "links"),
      selinuxEnabled: false,
    };
    const privately = join(on.base, "private");
    await mkdir(privately);
    await mountFilesystem({ type: "tmpfs", source: "tmpfs", target: privately, options: ["size=1m"] });
    expect((await exec("mount", ["--make-private", privately], { timeoutMs: 10_000 })).failure).toBeUndefined();
    const dir = join(privately, "kubelet");
    const work = async () => await prepareRoot(dir, { ...options, log: silentLogger });
    const prepare = async () => {
      await unmountAllUnder(dir);
      await removeTree(dir);
    };
    const steps = await atEachStep(prepare, work, async () => {
      await work();
      expect((await listMountsUnder(dir)).map(({ mountPoint, isShared }) => [mountPoint, isShared])).toEqual([
        [dir, true],
      ]);
      expect((await findMountOf(join(dir, "pods")))?.isShared).toBe(true);
    });
    expect(steps).toBeGreaterThan(5);
  });
});

describe("the root directory", () => {
  const options = () => ({
    podLogsDir: join(on.base, "log/pods"),
    containerLogsDir: join(on.base, "log/containers"),
    selinuxEnabled: false,
    log: silentLogger,
  });

  test.each([
    "log/pods",
    "fresh/pods",
    "fresh/plugins",
    "fresh/plugins_registry",
    "fresh/pod-resources",
    "fresh/checkpoints",
  ])("is of no use if %s cannot be made", async (path) => {
    await mkdir(join(on.base, path, ".."), { recursive: true });
    await writeFile(join(on.base, path), "");
    await expect(prepareRoot(join(on.base, "fresh"), options())).rejects.toThrow(
      `cannot make directory ${join(on.base, path)}`,
    );
  });

  test("on a disk of its own is made shared as it is", async () => {
    const dir = join(on.base, "disk");
    await mkdir(dir);
    await mountFilesystem({ type: "tmpfs", source: "tmpfs", target: dir, options: ["size=1m"] });
    expect((await exec("mount", ["--make-private", dir], { timeoutMs: 10_000 })).failure).toBeUndefined();
    await prepareRoot(dir, options());
    expect((await listMountsUnder(dir)).map(({ fsType, isShared }) => [fsType, isShared])).toEqual([["tmpfs", true]]);
  });

  test("keeps the modes that somebody gave its directories", async () => {
    await mkdir(join(on.base, "fresh/plugins"), { recursive: true });
    await chmod(join(on.base, "fresh/plugins"), 0o755);
    await prepareRoot(join(on.base, "fresh"), options());
    expect(await modeOf(join(on.base, "fresh/plugins"))).toBe("755");
  });
});

describe("removeTree", () => {
  test("stops at a file that something is mounted at, and names it as people know it", async () => {
    const tree = join(on.base, "tree");
    await mkdir(join(tree, "dir"), { recursive: true });
    await writeFile(join(tree, "dir/file"), "");
    await writeFile(join(on.base, "precious"), "data");
    await bindMount(join(on.base, "precious"), join(tree, "dir/file"));
    await expect(removeTree(tree)).rejects.toThrow(`will not delete ${tree}/dir/file: something is mounted there`);
    expect(await readFile(join(on.base, "precious"), "utf8")).toBe("data");
  });

  test("is not led into what is mounted while it is under way", async () => {
    const tree = join(on.base, "tree");
    const precious = join(on.base, "precious");
    await mkdir(precious);
    await writeFile(join(precious, "data"), "data");
    for (let steps = 0; ; steps += 1) {
      await mkdir(join(tree, "dir/inner"), { recursive: true });
      await writeFile(join(tree, "dir/inner/file"), "");
      // It stops at each step once, and then somebody mounts.
      const isDone = (await killAfter(steps, async () => await removeTree(tree))) === "done";
      const dir = join(tree, "dir");
      if (isDone) break;
      if ((await lstat(dir).catch(() => undefined)) === undefined) continue;
      await bindMount(precious, dir);
      await expect(removeTree(tree)).rejects.toThrow("something is mounted there");
      await unmountAllUnder(tree);
    }
    expect(await readdir(precious)).toEqual(["data"]);
  });

  test("is not led into what is mounted between two looks at a directory", async () => {
    const tree = join(on.base, "tree");
    const precious = join(on.base, "precious");
    await mkdir(join(tree, "dir/inner"), { recursive: true });
    await mkdir(precious);
    await writeFile(join(precious, "data"), "data");
    const realOpen = fs.open;
    const restore = () => {
      fs.open = realOpen;
      syncBuiltinESMExports();
    };
    onTestFinished(restore);
    fs.open = async (path, ...more) => {
      if (String(path).endsWith("/dir")) {
        restore();
        await bindMount(precious, join(tree, "dir")); // of the same file system: no device number tells
      }
      return await realOpen(path, ...more);
    };
    syncBuiltinESMExports();
    await expect(removeTree(tree)).rejects.toThrow(`will not delete ${tree}/dir: something is mounted there`);
    expect(await readdir(precious)).toEqual(["data"]);
  });

  test("removes what is nested deeper than a process may have files open", async () => {
    const tree = join(on.base, "tree");
    await mkdir(tree);
    // In steps, since a path may not be longer than 4 096 bytes.
    const script = 'i=0; while [ $i -lt "$1" ]; do mkdir d e && : > f && cd d || exit 1; i=$((i+1)); done';
    const deep = String(depthMax * 8);
    const made = await exec("sh", ["-c", script, "sh", deep], { cwd: tree, timeoutMs: 30_000 });
    expect(made.failure).toBeUndefined();
    const before = (await readdir("/proc/self/fd")).length;
    await removeTree(tree);
    expect(await readdir(on.base)).toEqual(["kubelet"]);
    expect((await readdir("/proc/self/fd")).length).toBeLessThanOrEqual(before);
  });
});

describe("a pod's directory", () => {
  const outside = () => join(on.base, "outside");
  beforeEach(async () => {
    await mkdir(join(outside(), "kubernetes.io~empty-dir/v"), { recursive: true });
    await writeFile(join(outside(), "kubernetes.io~empty-dir/v/data"), "precious");
    await mkdir(join(outside(), "mnt"));
    await mountFilesystem({ type: "tmpfs", source: "tmpfs", target: join(outside(), "mnt"), options: ["size=4k"] });
  });
  const expectUntouched = async () => {
    expect(await readFile(join(outside(), "kubernetes.io~empty-dir/v/data"), "utf8")).toBe("precious");
    expect(await isMountPoint(join(outside(), "mnt"))).toBe(true);
  };

  test.each(["", "volumes", "volume-subpaths"])("with a link at its %j leads nowhere", async (name) => {
    await mkdir(join(on.podDir, "volumes"), { recursive: true });
    await removeTree(join(on.podDir, name));
    await symlink(outside(), join(on.podDir, name));
    await expect(tearDownPodVolumes(on.podDir, kindTable())).rejects.toThrow(
      `will not delete ${join(on.podDir, name)}: it is not a directory`,
    );
    await expect(removePodDir(on.podDir)).rejects.toThrow("it is not a directory");
    await expectUntouched();
  });

  test("loses links to elsewhere, and not what they lead to", async () => {
    for (const path of ["plugins", "containers", "volumeDevices/kubernetes.io~csi"]) {
      await mkdir(join(on.podDir, path), { recursive: true });
      await symlink(outside(), join(on.podDir, path, "link"));
    }
    await mkdir(join(on.podDir, "volumes"));
    await symlink(join(outside(), "kubernetes.io~empty-dir"), join(on.podDir, "volumes/kubernetes.io~empty-dir"));
    await symlink(outside(), join(on.podDir, "etc-hosts"));
    await tearDownPodVolumes(on.podDir, kindTable());
    await removePodDir(on.podDir);
    expect(await readdir(join(on.root, "pods"))).toEqual([]);
    await expectUntouched();
  });

  test.each([
    { name: "a file among the volumes", path: "volumes/data", why: "is not a directory" },
    { name: "a file of a foreign kind", path: "volumes/example.com~disk/v/data", why: "is not a directory" },
  ])("stays with $name", async ({ path, why }) => {
    await mkdir(join(on.podDir, path, ".."), { recursive: true });
    await writeFile(join(on.podDir, path), "precious");
    await writeFile(join(on.podDir, "etc-hosts"), "");
    await expect(removePodDir(on.podDir)).rejects.toThrow(why);
    expect((await readdir(on.podDir)).sort()).toEqual(["etc-hosts", "volumes"]);
    expect(await readFile(join(on.podDir, path), "utf8")).toBe("precious");
  });

  test("stays whole with a mount anywhere in it", async () => {
    await mkdir(join(on.podDir, "containers/app"), { recursive: true });
    await writeFile(join(on.podDir, "etc-hosts"), "");
    await bindMount(outside(), join(on.podDir, "containers/app"));
    await expect(removePodDir(on.podDir)).rejects.toThrow(`${join(on.podDir, "containers/app")} is still mounted`);
    expect((await readdir(on.podDir)).sort()).toEqual(["containers", "etc-hosts"]);
    await expectUntouched();
  });
});

describe("what pods of another time left", () => {
  function orphans(): Orphans {
    const deps = {
      clock: new FakeClock(),
      volumes: on.manager,
      cgroups: { destroy: async () => {}, podUIDsOnDisk: async () => new Map() },
      settings: { podLogsDir: join(on.base, "log") },
      log: silentLogger,
      userNamespaces: { release: async () => {} },
    } as unknown as OrphansDeps;
    return new Orphans(deps, () => false);
  }
  const sweep = async () => await orphans().sweep({ sandboxes: [], containers: [] });

  test("goes, of two hundred of them", async () => {
    for (let i = 0; i < 200; i += 1) {
      const dir = join(on.root, "pods", `old-${i}`);
      const volume = join(dir, "volumes/kubernetes.io~empty-dir/v");
      await mkdir(volume, { recursive: true });
      await mkdir(join(dir, "containers/app"), { recursive: true });
      await writeFile(join(dir, "etc-hosts"), "");
      await writeFile(join(dir, "containers/app/0badcafe"), "");
      if (i % 10 === 0) {
        await mountFilesystem({ type: "tmpfs", source: "tmpfs", target: volume, options: ["size=64k"] });
      }
      await mkdir(join(volume, "a/b"), { recursive: true });
      await writeFile(join(volume, "a/b/file"), "data");
    }
    await symlink(on.base, join(on.root, "pods/not-a-pod"));
    await sweep();
    expect(await readdir(join(on.root, "pods"))).toEqual(["not-a-pod"]);
    expect(await listMountsUnder(on.root)).toEqual([]);
  });

  test("goes when it is busy no more", async () => {
    await on.manager.setUp(podWith({ name: "v", emptyDir: { medium: "Memory" } }), never);
    on.restart();
    await writeFile(join(on.volumeDir(), "data"), "in use");
    const file = await open(join(on.volumeDir(), "data"));
    try {
      await sweep();
      expect((await statfs(on.volumeDir())).type).toBe(tmpfsMagic);
      expect(await readFile(join(on.volumeDir(), "data"), "utf8")).toBe("in use");
    } finally {
      await file.close();
    }
    await sweep();
    expect(await readdir(join(on.root, "pods"))).toEqual([]);
  });
});
