import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmod,
  lstat,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  statfs,
  symlink,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import type { Pod, Volume } from "../../agent/kube/types.ts";
import { messageOf } from "../../agent/lib/errors.ts";
import { exec } from "../../agent/lib/exec.ts";
import { isMountPoint, listMountsUnder, mountFilesystem, unmountAllUnder } from "../../agent/lib/mount.ts";
import { hugetlbfsMagic } from "../../agent/volumes/empty-dir.ts";
import { removeTree } from "../../agent/volumes/remove-tree.ts";
import { makePod } from "../unit/volumes/support.ts";
import { mountSilent } from "../support/silent-mount.ts";
import { modeOf, never, podUID, podWith, useVolumeRoot } from "../support/volume-root.ts";

// Kinds that are made on the node itself, with real mounts, as root.

const on = useVolumeRoot();

describe("emptyDir of huge pages", () => {
  const asking = (pages: string[], medium: string): Pod => {
    const limits = Object.fromEntries(pages.map((size) => [`hugepages-${size}`, size]));
    const containers = [
      { name: "app", volumeMounts: [{ name: "v", mountPath: "/v" }], resources: { requests: limits, limits } },
    ];
    return makePod({ containers, volumes: [{ name: "v", emptyDir: { medium } }] });
  };

  test("is a hugetlbfs of the size asked for, as often as it is set up, and is left as it is", async () => {
    if (!(await hasHugePages("2048kB"))) {
      await expect(on.manager.setUp(asking(["2Mi"], "HugePages"), never)).rejects.toThrow("mount exited with");
      return;
    }
    for (const medium of ["HugePages", "HugePages-2Mi"]) {
      for (let i = 0; i < 2; i += 1) {
        await on.manager.setUp(asking(["2Mi"], medium), never);
        on.restart();
      }
      const { type, bsize } = await statfs(on.volumeDir());
      expect([type, bsize]).toEqual([hugetlbfsMagic, 2 << 20]);
      expect(await listMountsUnder(on.root)).toHaveLength(1);
      await on.manager.tearDown(podUID);
      expect(await listMountsUnder(on.root)).toEqual([]);
    }
  });

  test("of another size than is mounted there is an error, also after a restart", async () => {
    if (!(await hasHugePages("2048kB")) || !(await hasHugePages("1048576kB"))) {
      await expect(on.manager.setUp(asking(["1Gi"], "HugePages-1Gi"), never)).rejects.toThrow("mount exited with");
      return;
    }
    await on.manager.setUp(asking(["2Mi"], "HugePages-2Mi"), never);
    on.restart();
    await expect(on.manager.setUp(asking(["1Gi"], "HugePages-1Gi"), never)).rejects.toThrow(
      "is mounted with huge pages of 2097152 bytes, not of 1Gi",
    );
  });
});

async function hasHugePages(size: string): Promise<boolean> {
  return (await readdir("/sys/kernel/mm/hugepages").catch((): string[] => [])).includes(`hugepages-${size}`);
}

describe("emptyDir", () => {
  test.each([
    { name: "the directory is gone", spoil: async () => await removeTree(on.volumeDir()) },
    { name: "the mark is gone", spoil: async () => await removeTree(join(on.podDir, "plugins")) },
    { name: "its mode was changed before the mark was set", spoil: async () => await spoilMode() },
  ])("is made again when $name", async ({ spoil }) => {
    const pod = podWith({ name: "v", emptyDir: {} }, {}, { securityContext: { fsGroup: 4321 } });
    await on.manager.setUp(pod, never);
    await spoil();
    on.restart();
    await on.manager.setUp(pod, never);
    expect([await modeOf(on.volumeDir()), (await stat(on.volumeDir())).gid]).toEqual(["2777", 4321]);
    expect(await readdir(join(on.podDir, "plugins/kubernetes.io~empty-dir/v"))).toEqual(["ready"]);
    expect(await modeOf(join(on.podDir, "plugins/kubernetes.io~empty-dir/v"))).toBe("750");
  });
  const spoilMode = async () => {
    await removeTree(join(on.podDir, "plugins"));
    await chmod(on.volumeDir(), 0o700);
  };

  test("gives everybody everything, whatever the umask", async () => {
    const umask = process.umask(0o077);
    try {
      for (const medium of ["", "Memory"]) {
        const name = `v${medium.toLowerCase()}`;
        await on.manager.setUp(podWith({ name, emptyDir: { medium } }), never);
        expect((await stat(on.volumeDir(name))).mode & 0o777).toBe(0o777);
      }
    } finally {
      process.umask(umask);
    }
  });

  test("on a full disk says so, and comes when there is room; what was there goes in any case", async () => {
    await mountFilesystem({ type: "tmpfs", source: "tmpfs", target: on.root, options: ["size=1m,nr_inodes=16"] });
    await mkdir(join(on.root, "fillers"));
    let made = 0;
    try {
      for (; ; made += 1) await writeFile(join(on.root, `fillers/${made}`), "");
    } catch (err) {
      expect(messageOf(err)).toContain("ENOSPC");
    }
    const pod = podWith({ name: "v", emptyDir: {} });
    // Room for one more thing at a time: it ends at every step once.
    const messages = new Set<string>();
    for (;;) {
      const message = await on.manager.setUp(pod, never).then(
        () => undefined,
        (err: unknown) => messageOf(err),
      );
      if (message === undefined) break;
      messages.add(message);
      expect(message).toContain("ENOSPC: no space left on device");
      made -= 1;
      await rm(join(on.root, `fillers/${made}`));
    }
    expect([...messages].some((text) => text.startsWith('MountVolume.SetUp failed for volume "v" : ENOSPC'))).toBe(
      true,
    );
    await writeFile(join(on.volumeDir(), "data"), "").catch(() => {});
    for (; ; made += 1) {
      const full = await writeFile(join(on.root, `fillers/${made}`), "").then(
        () => false,
        () => true,
      );
      if (full) break;
    }
    await on.manager.tearDown(podUID);
    await on.manager.removePodDir(podUID);
    expect(await readdir(join(on.root, "pods"))).toEqual([]);
  });
});

describe("a file system that does not answer", () => {
  test("holds up the volume on it, and none of the same pod", async () => {
    const silent = join(on.base, "silent");
    await mkdir(silent);
    const release = await mountSilent(silent);
    const stop = new AbortController();
    const volumes: Volume[] = [
      { name: "silent", hostPath: { path: silent, type: "Directory" } },
      { name: "disk", emptyDir: {} },
      { name: "memory", emptyDir: { medium: "Memory" } },
    ];
    const volumeMounts = volumes.map(({ name }) => ({ name, mountPath: `/${name}` }));
    const pod = makePod({ volumes, containers: [{ name: "app", volumeMounts }] });
    const setUp = on.manager.setUp(pod, stop.signal);
    setUp.catch(() => {});
    try {
      const isReady = async (name: string) =>
        await exists(join(on.podDir, "plugins/kubernetes.io~empty-dir", name, "ready"));
      await expect.poll(async () => await isReady("disk"), { timeout: 20_000 }).toBe(true);
      await expect.poll(async () => await isReady("memory"), { timeout: 20_000 }).toBe(true);
      stop.abort();
      await expect(setUp).rejects.toThrow("aborted");
    } finally {
      stop.abort();
      await release();
      await expect.poll(() => unmountAllUnder(silent).catch(messageOf), { timeout: 20_000 }).toBeUndefined();
    }
  });
  const exists = async (path: string) =>
    await stat(path).then(
      () => true,
      () => false,
    );

  test("holds up the pod with a hostPath on it, and no other", async () => {
    const silent = join(on.base, "silent");
    await mkdir(silent);
    const release = await mountSilent(silent);
    const stop = new AbortController();
    try {
      // More than the process has threads for files.
      const waiting = Array.from({ length: 20 }, async (_, i) => {
        const pod = podWith({ name: "v", hostPath: { path: join(silent, `${i}`), type: "Directory" } });
        pod.metadata = { ...pod.metadata, uid: `waiting-${i}` };
        await on.manager.setUp(pod, stop.signal);
      });
      const ends = Promise.allSettled(waiting);
      await on.manager.setUp(podWith({ name: "v", emptyDir: {} }), never);
      expect(await modeOf(on.volumeDir())).toBe("777");
      stop.abort();
      expect((await ends).map(({ status }) => status)).toEqual(waiting.map(() => "rejected"));
    } finally {
      stop.abort();
      await release();
      // Who looked at it is killed, and lets go of it a moment later.
      await expect.poll(() => unmountAllUnder(silent).catch(messageOf), { timeout: 20_000 }).toBeUndefined();
    }
  });

  test("holds up the containers with a subPath on it until they have to go, and no other", async () => {
    const silent = join(on.base, "silent");
    await mkdir(silent);
    const release = await mountSilent(silent);
    const stop = new AbortController();
    const context = { podIPs: [], recursiveReadOnlySupported: false, userns: undefined };
    const start = async (uid: string, volume: Volume, signal: AbortSignal) => {
      const pod = podWith(volume, { subPath: "a/b" });
      pod.metadata = { ...pod.metadata, uid };
      await on.manager.setUp(pod, signal);
      const [container = { name: "" }] = pod.spec.containers;
      return await on.manager.mounts(pod, container, new Map(), { ...context, signal });
    };
    try {
      const patient = start("patient", { name: "v", hostPath: { path: silent } }, never);
      patient.catch(() => {});
      // More than the process has threads for files; one comes upon it on its way.
      const waiting = Array.from({ length: 20 }, async (_, i) => {
        const path = i === 0 ? on.base : silent;
        if (i === 0) await symlink(silent, join(on.base, "a"));
        return await start(`waiting-${i}`, { name: "v", hostPath: { path } }, stop.signal);
      });
      const ends = Promise.allSettled(waiting);
      expect(await start("other", { name: "v", emptyDir: {} }, never)).toHaveLength(1);
      stop.abort();
      expect((await ends).map(({ status }) => status)).toEqual(waiting.map(() => "rejected"));
      await expect(patient).rejects.toMatchObject({
        code: "Unavailable",
        message:
          'failed to prepare subPath for volumeMount "v" of container "app": its file system has not answered for 10 s',
      });
      expect(await start("other", { name: "v", emptyDir: {} }, never)).toHaveLength(1);
    } finally {
      stop.abort();
      await release();
      await expect.poll(() => unmountAllUnder(silent).catch(messageOf), { timeout: 20_000 }).toBeUndefined();
    }
  });
});

// The container has `x`, at times its own and at times a link to the host's files.
const swapForEver = `
  const fs = require("node:fs");
  process.chdir(process.argv[1]);
  const quiet = (fn) => { try { fn(); } catch {} };
  process.stdout.write("ready");
  for (;;) {
    quiet(() => fs.renameSync("x", "dir"));
    quiet(() => fs.symlinkSync(process.argv[2], "x"));
    quiet(() => fs.unlinkSync("x"));
    quiet(() => fs.renameSync("dir", "x"));
  }`;

describe("subPath", () => {
  test("is made with the mode of the volume, setgid included, and its group", async () => {
    const pod = podWith({ name: "v", emptyDir: {} }, { subPath: "a/b" }, { securityContext: { fsGroup: 4321 } });
    await on.manager.setUp(pod, never);
    const [target = ""] = await on.mountsOf(pod);
    for (const path of [join(on.volumeDir(), "a"), join(on.volumeDir(), "a/b"), target]) {
      expect([await modeOf(path), (await stat(path)).gid]).toEqual(["2777", 4321]);
    }
  });

  test("below directories that nobody may enter is found all the same", async () => {
    const pod = podWith({ name: "v", emptyDir: {} }, { subPath: "closed/inner/file" });
    await on.manager.setUp(pod, never);
    await mkdir(join(on.volumeDir(), "closed/inner"), { recursive: true });
    await writeFile(join(on.volumeDir(), "closed/inner/file"), "text");
    for (const path of ["closed/inner/file", "closed/inner", "closed"]) await chmod(join(on.volumeDir(), path), 0);
    const [target = ""] = await on.mountsOf(pod);
    expect(await readFile(target, "utf8")).toBe("text");
    expect(await modeOf(join(on.volumeDir(), "closed"))).toBe("0");
  });

  test("stands on targets that only we can enter", async () => {
    const mounts = [
      { name: "v", mountPath: "/dir", subPath: "dir" },
      { name: "v", mountPath: "/file", subPath: "file" },
    ];
    const pod = podWith({ name: "v", emptyDir: {} }, {}, { containers: [{ name: "app", volumeMounts: mounts }] });
    await on.manager.setUp(pod, never);
    await writeFile(join(on.volumeDir(), "file"), "");
    await on.mountsOf(pod);
    await unmountAllUnder(on.root);
    const dir = join(on.podDir, "volume-subpaths/v/app");
    const modes = await Promise.all(["..", ".", "0", "1"].map((path) => modeOf(join(dir, path))));
    expect(modes).toEqual(["750", "750", "750", "640"]);
    expect((await stat(join(dir, "1"))).isFile()).toBe(true);
  });

  test.each(["a directory", "a file", "a socket"])("that is %s can be deleted by the container", async (what) => {
    const pod = podWith({ name: "v", emptyDir: {} }, { subPath: "x" });
    await on.manager.setUp(pod, never);
    const path = join(on.volumeDir(), "x");
    if (what === "a file") await writeFile(path, "");
    if (what === "a socket") await exec("mknod", [path, "p"], { timeoutMs: 10_000 });
    await on.mountsOf(pod);
    expect(await listMountsUnder(on.root)).toHaveLength(1);
    await rm(path, { recursive: true });
    await on.manager.tearDown(podUID);
    await on.manager.removePodDir(podUID);
    expect(await readdir(join(on.root, "pods"))).toEqual([]);
  });

  test("of a tmpfs goes before its volume, and keeps it while it is in use", async () => {
    const pod = podWith({ name: "v", emptyDir: { medium: "Memory" } }, { subPath: "x" });
    await on.manager.setUp(pod, never);
    const [target = ""] = await on.mountsOf(pod);
    await writeFile(join(target, "data"), "in use");
    const file = await open(join(target, "data"));
    try {
      await expect(on.manager.tearDown(podUID)).rejects.toThrow(
        new RegExp(`^cannot unmount ${target}: .* is busy.* \\(fuser -vm ${target} shows who uses it\\)$`),
      );
      expect(await isMountPoint(on.volumeDir())).toBe(true);
      expect(await readFile(join(on.volumeDir(), "x/data"), "utf8")).toBe("in use");
    } finally {
      await file.close();
    }
    await on.manager.tearDown(podUID);
    expect(await listMountsUnder(on.root)).toEqual([]);
  });

  test("is never made among the host's files, however its parents are swapped for links meanwhile", async () => {
    const host = join(on.base, "host");
    await mkdir(host);
    const pod = (i: number) => podWith({ name: "v", emptyDir: {} }, { subPath: `x/new-${i}/deep` });
    await on.manager.setUp(pod(0), never);
    await mkdir(join(on.volumeDir(), "x"));
    const container = spawn(process.execPath, ["-e", swapForEver, on.volumeDir(), host], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    try {
      await once(container.stdout, "data");
      for (let i = 0; i < 300; i += 1) await on.mountsOf(pod(i)).catch(() => {});
    } finally {
      await kill(container);
    }
    expect(await readdir(host)).toEqual([]);
    const x = (await lstat(join(on.volumeDir(), "x")).catch(() => undefined))?.isDirectory() === true ? "x" : "dir";
    expect((await readdir(join(on.volumeDir(), x))).length).toBeGreaterThan(0);
  });
});

// As above, but there always is an `x`; and it stays for a while, because nothing can be mounted that was replaced meanwhile.
const swapFileForEver = `
  const fs = require("node:fs");
  process.chdir(process.argv[1]);
  const rest = (ms) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, Math.random() * ms);
  process.stdout.write("ready");
  for (;;) {
    fs.symlinkSync(process.argv[2], "next");
    fs.renameSync("next", "x");
    rest(20);
    fs.linkSync("own", "next");
    fs.renameSync("next", "x");
    rest(100);
  }`;

test("a subPath never is a file of the host, however it is swapped for a link meanwhile", async () => {
  const secret = join(on.base, "secret");
  await writeFile(secret, "host");
  const pod = podWith({ name: "v", emptyDir: {} }, { subPath: "x" });
  await on.manager.setUp(pod, never);
  for (const name of ["x", "own"]) await writeFile(join(on.volumeDir(), name), "own");
  const container = spawn(process.execPath, ["-e", swapFileForEver, on.volumeDir(), secret], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ends = { mounted: 0, refused: 0 };
  try {
    await once(container.stdout, "data");
    for (let i = 0; i < 1_000 && (ends.mounted < 5 || ends.refused < 5); i += 1) {
      const [path] = await on.mountsOf(pod).catch(() => []);
      ends[path === undefined ? "refused" : "mounted"] += 1;
      if (path === undefined) continue;
      expect(await readFile(path, "utf8")).toBe("own");
      await unmountAllUnder(path);
    }
  } finally {
    await kill(container);
  }
  expect(ends.mounted).toBeGreaterThan(0);
  expect(ends.refused).toBeGreaterThan(0);
});

async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, "exit");
  child.kill("SIGKILL");
  await exited;
}

test("hostPath: a link is what it leads to, and is made where it leads", async () => {
  await symlink(join(on.base, "target"), join(on.base, "link"));
  const at = (type: string) => podWith({ name: "v", hostPath: { path: join(on.base, "link"), type } });
  await expect(on.manager.setUp(at("Directory"), never)).rejects.toThrow(
    `hostPath type check failed: ${join(on.base, "link")} is not a directory`,
  );
  await on.manager.setUp(at("FileOrCreate"), never);
  expect((await stat(join(on.base, "target"))).isFile()).toBe(true);
  await rename(join(on.base, "link"), join(on.base, "self"));
  onTestFinished(async () => await removeTree(join(on.base, "self")));
  await rm(join(on.base, "self"));
  await symlink("self", join(on.base, "self"));
  await expect(
    on.manager.setUp(podWith({ name: "w", hostPath: { path: join(on.base, "self"), type: "File" } }), never),
  ).rejects.toThrow("cannot be looked at: env exited with 1: stat: cannot stat");
});
