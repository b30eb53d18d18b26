import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, lstat, mkdir, readdir, readFile, rm, stat, statfs, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import type { Pod, Volume, VolumeMount } from "../../agent/kube/types.ts";
import { messageOf } from "../../agent/lib/errors.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import {
  bindMount,
  findMountOf,
  isMountPoint,
  listMountsUnder,
  mountFilesystem,
  unmountAllUnder,
} from "../../agent/lib/mount.ts";
import { hugetlbfsMagic, tmpfsMagic } from "../../agent/volumes/empty-dir.ts";
import { removeTree } from "../../agent/volumes/remove-tree.ts";
import { isSELinuxEnabled, prepareRoot } from "../../agent/volumes/root-dir.ts";
import { makeDirsInside, openInside } from "../../agent/volumes/safe-path.ts";
import { createTmpfsProbe } from "../../agent/volumes/tmpfs-probe.ts";
import { makePod } from "../unit/volumes/support.ts";
import { modeOf, never, podUID, podWith, useVolumeRoot } from "../support/volume-root.ts";

// Real mounts under a temporary root, as root. Everything is unmounted and removed after each test, failed or not.

const hourMs = 3600_000;

const on = useVolumeRoot();

async function setUp(pod: Pod): Promise<string> {
  await on.manager.setUp(pod, never);
  return (await on.mountsOf(pod))[0] ?? "";
}

// What a hostile container would do: `x` is a directory of its own, then a link to the host, some 100 000 times a second.
const swapForEver = `
const fs = require("node:fs");
process.chdir(process.argv[1]);
process.stdout.write("ready");
const quiet = (fn) => { try { fn(); } catch {} };
for (;;) {
  quiet(() => fs.renameSync("x", "dir"));
  quiet(() => fs.renameSync("link", "x"));
  quiet(() => fs.renameSync("x", "link"));
  quiet(() => fs.renameSync("dir", "x"));
  if (fs.existsSync("dir")) quiet(() => fs.rmSync("x", { recursive: true }));
}`;

const token = { serviceAccountToken: { path: "token", expirationSeconds: 3600, audience: "vault" } };
const kubeAccess: Volume = {
  name: "kube-api-access",
  projected: {
    defaultMode: 0o644,
    sources: [
      token,
      { configMap: { name: "kube-root-ca.crt", items: [{ key: "ca.crt", path: "ca.crt" }] } },
      { downwardAPI: { items: [{ path: "namespace", fieldRef: { fieldPath: "metadata.namespace" } }] } },
    ],
  },
};

describe("volumes in memory", () => {
  test("emptyDir of medium Memory: a tmpfs of its limit that the pod may write to", async () => {
    const dir = await setUp(podWith({ name: "v", emptyDir: { medium: "Memory", sizeLimit: "1Mi" } }));
    const { type, blocks, bsize } = await statfs(dir);
    expect([type, blocks * bsize]).toEqual([tmpfsMagic, 1 << 20]);
    expect(await modeOf(dir)).toBe("1777");
    await expect(writeFile(join(dir, "big"), Buffer.alloc(2 << 20))).rejects.toThrow("ENOSPC");
  });

  test("a second set-up, and one after a restart, mount nothing and keep the content", async () => {
    const pod = podWith({ name: "v", emptyDir: { medium: "Memory" } });
    const dir = await setUp(pod);
    await writeFile(join(dir, "data"), "kept");
    await on.manager.setUp(pod, never);
    on.restart();
    await on.manager.setUp(pod, never);
    expect(await readFile(join(dir, "data"), "utf8")).toBe("kept");
    expect(await listMountsUnder(on.root)).toHaveLength(1);
  });

  test("after a reboot the mark is there and the mount is not: it is made again", async () => {
    const pod = podWith({ name: "v", emptyDir: { medium: "Memory" } });
    const dir = await setUp(pod);
    await unmountAllUnder(on.root);
    on.restart();
    await on.manager.setUp(pod, never);
    expect(await isMountPoint(dir)).toBe(true);
  });

  test("fsGroup owns an emptyDir and what is made in it", async () => {
    for (const medium of ["", "Memory"]) {
      const volume = { name: `v${medium.toLowerCase()}`, emptyDir: { medium } };
      const dir = await setUp(podWith(volume, {}, { securityContext: { fsGroup: 4321 } }));
      await writeFile(join(dir, "made-later"), "");
      expect((await stat(dir)).gid).toBe(4321);
      expect((await stat(join(dir, "made-later"))).gid).toBe(4321);
      expect(await modeOf(dir)).toBe(medium === "" ? "2777" : "3777");
    }
  });

  test("HugePages: hugetlbfs, or the reason why not", async () => {
    const dir = join(on.root, "pods", podUID, "volumes/kubernetes.io~empty-dir/v");
    const plain = podWith({ name: "v", emptyDir: { medium: "HugePages" } });
    await expect(on.manager.setUp(plain, never)).rejects.toThrow("no container requests hugepages-<size>");
    const [app] = plain.spec.containers;
    const resources = { requests: { "hugepages-2Mi": "2Mi" }, limits: { "hugepages-2Mi": "2Mi" } };
    const asking = { ...plain, spec: { ...plain.spec, containers: [{ ...app!, resources }] } };
    const failure = await on.manager.setUp(asking, never).then(
      () => undefined,
      (err: unknown) => err,
    );
    // A kernel without huge pages says so; it must not become a plain directory.
    if (failure === undefined) expect((await statfs(dir)).type).toBe(hugetlbfsMagic);
    else expect(messageOf(failure)).toContain("mount");
  });

  test("a secret never touches the disk", async () => {
    on.objects.setSecret("login", { password: "hunter2" });
    const dir = await setUp(podWith({ name: "v", secret: { secretName: "login", defaultMode: 0o400 } }));
    expect((await statfs(dir)).type).toBe(tmpfsMagic);
    expect(await readFile(join(dir, "password"), "utf8")).toBe("hunter2");
    expect(await modeOf(join(dir, "password"))).toBe("400");
    await unmountAllUnder(on.root);
    expect(await readdir(dir)).toEqual([]);
  });

  test("tmpfs with noswap is probed without leaving anything", async () => {
    expect(typeof (await createTmpfsProbe(on.root, silentLogger)())).toBe("boolean");
    expect(await readdir(on.root)).toEqual([]);
  });
});

describe("projected service-account volume", () => {
  beforeEach(() => on.objects.setConfigMap("kube-root-ca.crt", { "ca.crt": "PEM" }));

  test("has token, CA and namespace, and says when to renew", async () => {
    const dir = await setUp(podWith(kubeAccess, {}, { serviceAccountName: "builder" }));
    expect((await readdir(dir)).filter((name) => !name.startsWith("..")).sort()).toEqual([
      "ca.crt",
      "namespace",
      "token",
    ]);
    expect(await readFile(join(dir, "token"), "utf8")).toBe("token-1");
    expect(await readFile(join(dir, "namespace"), "utf8")).toBe("shop");
    expect(on.server.requests[0]?.spec.audiences).toEqual(["vault"]);
    expect(on.manager.refreshInMs(podUID)).toBeLessThanOrEqual(0.8 * hourMs);
  });

  test("a new token is in place when the old one has lived 80 %, under readers' eyes", async () => {
    const pod = podWith(kubeAccess);
    const dir = await setUp(pod);
    await on.clock.advance(0.8 * hourMs);
    expect(on.manager.refreshInMs(podUID)).toBe(0);
    await on.manager.setUp(pod, never);
    expect(await readFile(join(dir, "token"), "utf8")).toBe("token-2");
    expect((await readdir(dir)).filter((name) => /^\.\.\d/.test(name))).toHaveLength(1);
  });

  test.each([
    { name: "nothing said", spec: {}, want: { mode: "644", uid: 0, gid: 0 } },
    { name: "fsGroup", spec: { securityContext: { fsGroup: 4321 } }, want: { mode: "640", uid: 0, gid: 4321 } },
    { name: "one user", spec: { securityContext: { runAsUser: 1000 } }, want: { mode: "600", uid: 1000, gid: 0 } },
  ])("who can read a token: $name", async ({ spec, want }) => {
    const dir = await setUp(podWith(kubeAccess, {}, spec));
    const { uid, gid } = await stat(join(dir, "token"));
    expect({ mode: await modeOf(join(dir, "token")), uid, gid }).toEqual(want);
  });

  test("names everything that is missing at once", async () => {
    const sources = [{ secret: { name: "a" } }, { configMap: { name: "b" } }];
    await expect(on.manager.setUp(podWith({ name: "v", projected: { sources } }), never)).rejects.toThrow(
      'MountVolume.SetUp failed for volume "v" : [secret "a" not found, configmap "b" not found]',
    );
  });
});

describe("tearDown", () => {
  test("unmounts and removes all, also what containers mounted inside", async () => {
    on.objects.setSecret("login", { password: "hunter2" });
    const volumes: Volume[] = [
      { name: "mem", emptyDir: { medium: "Memory" } },
      { name: "disk", emptyDir: {} },
      { name: "secret", secret: { secretName: "login" } },
    ];
    const volumeMounts: VolumeMount[] = [
      ...volumes.map(({ name }) => ({ name, mountPath: `/${name}` })),
      { name: "mem", mountPath: "/sub", subPath: "deep/sub" },
    ];
    const pod = makePod({ volumes, containers: [{ name: "app", volumeMounts }] });
    await on.manager.setUp(pod, never);
    const paths = await on.mountsOf(pod);
    const disk = paths[1] ?? "";
    const outside = join(on.base, "outside");
    await mkdir(outside);
    await writeFile(join(outside, "data"), "precious");
    await mkdir(join(disk, "inner"));
    await bindMount(outside, join(disk, "inner")); // as by Bidirectional propagation
    await symlink(outside, join(disk, "link"));
    await writeFile(Buffer.concat([Buffer.from(`${disk}/latin1-`), Buffer.from([0xe9])]), "");

    on.restart(); // it must not need to remember
    await on.manager.tearDown(podUID);
    expect(await listMountsUnder(on.root)).toEqual([]);
    expect(await readdir(join(on.root, "pods", podUID))).toEqual(["plugins"]);
    expect(await readFile(join(outside, "data"), "utf8")).toBe("precious");
    await on.manager.removePodDir(podUID);
    expect(await readdir(join(on.root, "pods"))).toEqual([]);
  });

  test("what is busy stays, with a message that names it, and goes the next time", async () => {
    const pod = podWith({ name: "v", emptyDir: { medium: "Memory" } });
    const dir = await setUp(pod);
    await writeFile(join(dir, "data"), "in use");
    const cwd = process.cwd();
    process.chdir(dir);
    try {
      await expect(on.manager.tearDown(podUID)).rejects.toThrow(`cannot unmount ${dir}`);
      expect(await readFile(join(dir, "data"), "utf8")).toBe("in use");
      await expect(on.manager.removePodDir(podUID)).rejects.toThrow("its volumes are in use");
    } finally {
      process.chdir(cwd);
    }
    await on.manager.tearDown(podUID);
    await on.manager.removePodDir(podUID);
  });

  test("a mount of a kind that is not ours is left alone", async () => {
    const foreign = join(on.root, "pods", podUID, "volumes/kubernetes.io~csi/pv/mount");
    await mkdir(foreign, { recursive: true });
    await mountFilesystem({ type: "tmpfs", source: "tmpfs", target: foreign, options: ["size=4k"] });
    await expect(on.manager.tearDown(podUID)).rejects.toThrow();
    expect(await isMountPoint(foreign)).toBe(true);
  });

  test.each(["another file system", "a bind mount of the same one"])("removeTree stops at %s", async (what) => {
    const tree = join(on.base, "tree");
    const mnt = join(tree, "mnt");
    const source = join(on.base, "source");
    await mkdir(mnt, { recursive: true });
    await mkdir(source);
    if (what === "another file system") {
      await mountFilesystem({ type: "tmpfs", source: "tmpfs", target: mnt, options: ["size=4k"] });
    } else {
      await bindMount(source, mnt);
    }
    await writeFile(join(mnt, "data"), "x");
    await expect(removeTree(tree)).rejects.toThrow("something is mounted there");
    expect(await readFile(join(mnt, "data"), "utf8")).toBe("x");
  });

  test("removeTree removes what names and links make hard", async () => {
    const tree = join(on.base, "tree");
    const outside = join(on.base, "outside");
    await mkdir(join(tree, ...Array.from({ length: 60 }, () => "deep")), { recursive: true });
    await mkdir(outside);
    await writeFile(join(outside, "data"), "precious");
    await symlink(outside, join(tree, "deep/link"));
    await writeFile(Buffer.concat([Buffer.from(`${tree}/latin1-`), Buffer.from([0xe9])]), "");
    await mkdir(Buffer.concat([Buffer.from(`${tree}/dir-`), Buffer.from([0xff])]));
    await removeTree(tree);
    await removeTree(tree);
    expect(await readdir(on.base)).toEqual(["kubelet", "outside"]);
    expect(await readdir(outside)).toEqual(["data"]);
  });
});

describe("subPath", () => {
  const volume = { name: "v", emptyDir: {} };
  const subPod = (subPath: string) => podWith(volume, { subPath });
  const volumeDir = () => join(on.root, "pods", podUID, "volumes/kubernetes.io~empty-dir/v");

  test("a missing directory is made with the volume's mode, and shows the same files", async () => {
    const pod = subPod("a/b");
    const target = await setUp(pod);
    expect(target).toBe(join(on.root, "pods", podUID, "volume-subpaths/v/app/0"));
    await writeFile(join(target, "data"), "x");
    expect(await readFile(join(volumeDir(), "a/b/data"), "utf8")).toBe("x");
    expect(await modeOf(join(volumeDir(), "a"))).toBe("777");
    expect(await modeOf(join(volumeDir(), "a/b"))).toBe("777");
  });

  test("a single file, and a link that stays inside", async () => {
    const pod = subPod("link/file");
    await on.manager.setUp(pod, never);
    await mkdir(join(volumeDir(), "real"));
    await writeFile(join(volumeDir(), "real/file"), "text");
    await symlink("real", join(volumeDir(), "link"));
    const [target = ""] = await on.mountsOf(pod);
    expect(await readFile(target, "utf8")).toBe("text");
  });

  test("a container restart keeps the mount; a replaced directory is mounted anew", async () => {
    const pod = subPod("a");
    const target = await setUp(pod);
    await on.mountsOf(pod);
    expect(await listMountsUnder(target)).toHaveLength(1);
    await rm(join(volumeDir(), "a"), { recursive: true });
    await mkdir(join(volumeDir(), "a"));
    await writeFile(join(volumeDir(), "a/new"), "");
    await on.mountsOf(pod);
    expect(await readdir(target)).toEqual(["new"]);
    await rm(join(volumeDir(), "a"), { recursive: true });
    await writeFile(join(volumeDir(), "a"), "now a file");
    await on.mountsOf(pod);
    expect(await readFile(target, "utf8")).toBe("now a file");
    expect(await listMountsUnder(target)).toHaveLength(1);
  });

  test.each([
    { name: "a link to a host directory", target: "/etc", subPath: "link" },
    { name: "through a link to the host", target: "/", subPath: "link/etc/passwd" },
    { name: "a relative way out", target: "../../../../../../../../etc", subPath: "link" },
    { name: "a missing directory behind a link out", target: "/tmp", subPath: "link/nodelet-must-not-appear" },
    { name: "a dangling link", target: "/nodelet-must-not-appear", subPath: "link/x" },
    { name: "a link to itself", target: "link", subPath: "link" },
  ])("$name is refused without telling what is there", async ({ target, subPath }) => {
    const pod = subPod(subPath);
    await on.manager.setUp(pod, never);
    await symlink(target, join(volumeDir(), "link"));
    await expect(on.mountsOf(pod)).rejects.toMatchObject({
      code: "Invalid",
      message: expect.stringMatching(
        /^failed to (create subPath directory|prepare subPath) for volumeMount "v" of container "app"$/,
      ) as string,
    });
    expect(await listMountsUnder(on.root)).toEqual([]);
    await expect(lstat("/nodelet-must-not-appear")).rejects.toThrow("ENOENT");
    await expect(lstat("/tmp/nodelet-must-not-appear")).rejects.toThrow("ENOENT");
  });

  test("a container that swaps directory and link all the time never gets the host's files", async () => {
    const host = join(on.base, "host");
    await mkdir(join(host, "y"), { recursive: true });
    await writeFile(join(host, "y/key"), "host");
    const pod = subPod("x/y");
    await on.manager.setUp(pod, never);
    const x = join(volumeDir(), "x");
    await mkdir(join(x, "y"), { recursive: true });
    await symlink(host, join(volumeDir(), "link"));
    const attacker = spawn(process.execPath, ["-e", swapForEver, volumeDir()], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    try {
      await once(attacker.stdout, "data");
      let mounted = 0;
      for (let i = 0; i < 300; i += 1) {
        const [path] = await on.mountsOf(pod).catch(() => []);
        if (path === undefined) continue;
        mounted += 1;
        expect(await readdir(path)).not.toContain("key");
        await unmountAllUnder(path);
      }
      // Neither always too early nor always too late.
      expect(mounted).toBeGreaterThan(0);
      expect(mounted).toBeLessThan(300);
      expect(await readdir(host)).toEqual(["y"]);
    } finally {
      attacker.kill("SIGKILL");
      await once(attacker, "exit");
    }
  });

  test("directories are made with exact modes, and by two containers at once", async () => {
    const dir = join(on.base, "volume");
    await mkdir(dir);
    await chmod(dir, 0o2770);
    await Promise.all([makeDirsInside(dir, "a/b/c", 0o2770), makeDirsInside(dir, "a/b/d", 0o2770)]);
    const modes = await Promise.all(["a", "a/b", "a/b/c", "a/b/d"].map((path) => modeOf(join(dir, path))));
    expect(modes).toEqual(["2770", "2770", "2770", "2770"]);
    await writeFile(join(dir, "file"), "");
    await expect(makeDirsInside(dir, "file/x", 0o755)).rejects.toMatchObject({ code: "Invalid" });
    await expect(openInside(dir, "nope")).rejects.toMatchObject({ code: "NotFound" });
  });
});

describe("prepareRoot", () => {
  const options = () => ({
    podLogsDir: join(on.base, "log/pods"),
    containerLogsDir: join(on.base, "log/containers"),
    selinuxEnabled: false,
    log: silentLogger,
  });

  test("makes the directories with their modes on a shared mount, once", async () => {
    const dir = join(on.base, "fresh");
    await prepareRoot(dir, options());
    await prepareRoot(dir, options());
    const names = ["", "pods", "plugins", "plugins_registry", "pod-resources", "checkpoints"];
    const modes = await Promise.all(names.map((name) => modeOf(join(dir, name))));
    expect(modes).toEqual(["750", "750", "750", "750", "750", "700"]);
    expect(await modeOf(options().podLogsDir)).toBe("750");
    expect(await modeOf(options().containerLogsDir)).toBe("755");
    expect((await findMountOf(join(dir, "pods")))?.isShared).toBe(true);
    expect((await listMountsUnder(dir)).length).toBeLessThanOrEqual(1);
  });

  test.each(["relative", "/var/lib/kubelet/", "/var/../x", "/a//b"])("refuses %s", async (dir) => {
    await expect(prepareRoot(dir, options())).rejects.toThrow(`root directory "${dir}" must be`);
  });

  test("names the directory it cannot make", async () => {
    await writeFile(join(on.base, "file"), "");
    await expect(prepareRoot(join(on.base, "file/x"), options())).rejects.toThrow(
      `cannot make directory ${on.base}/file/x`,
    );
  });

  test("knows whether SELinux is on", async () => {
    const mounted = await readFile("/proc/mounts", "utf8");
    expect(await isSELinuxEnabled()).toBe(mounted.includes(" /sys/fs/selinux selinuxfs "));
  });
});
