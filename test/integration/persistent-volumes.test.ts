import {
  chmod,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  readlink,
  rm,
  stat,
  symlink,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { PersistentVolume, Pod, PodSpec, Volume } from "../../agent/kube/types.ts";
import { type Clock, systemClock } from "../../agent/lib/clock.ts";
import { AgentError, messageOf } from "../../agent/lib/errors.ts";
import { exec } from "../../agent/lib/exec.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { bindMount, isMountPoint, listMountsUnder, unmountAllUnder, unmountOrForce } from "../../agent/lib/mount.ts";
import { createPodVolumes, type VolumeManager } from "../../agent/volumes/manager.ts";
import { slowWalkMs } from "../../agent/volumes/ownership.ts";
import { FakeObjects, makePod } from "../unit/volumes/support.ts";

// PersistentVolumes with the real kernel: directories, disks (loop devices), and an NFS server that need not answer.

const never = new AbortController().signal;
const context = { podIPs: [], recursiveReadOnlySupported: false, userns: undefined };
const timeoutMs = 30_000;
// Room for an ext4 with a journal.
const diskBytes = 16 << 20;

let base: string;
let root: string;
let loops: string[];
let volumes: Map<string, PersistentVolume>;
let events: string[];
let manager: VolumeManager;
let pathBefore: string | undefined;

function start(clock: Clock = systemClock): VolumeManager {
  return createPodVolumes({
    rootDir: root,
    client: undefined,
    objects: new FakeObjects(),
    clock,
    log: silentLogger,
    nodeAllocatable: () => ({}),
    selinuxEnabled: false,
    claims: {
      resolve: async (_pod, { persistentVolumeClaim: { claimName = "", readOnly = false } = {} }) => {
        const volume = volumes.get(claimName);
        if (volume === undefined) throw new AgentError("NotFound", `no claim ${claimName}`);
        return { claim: { metadata: { name: claimName } }, volume, isReadOnly: readOnly };
      },
      isReachable: () => true,
    },
    onEvent: (_pod, type, reason, message) => events.push(`${type} ${reason} ${message}`),
    onVolumeEvent: ({ metadata }, type, reason, message) =>
      events.push(`${metadata.name}: ${type} ${reason} ${message}`),
  });
}

beforeEach(async () => {
  base = await mkdtemp(join(tmpdir(), "nodelet-pv-"));
  root = join(base, "kubelet");
  await mkdir(join(root, "pods"), { recursive: true });
  loops = [];
  volumes = new Map();
  events = [];
  pathBefore = process.env["PATH"];
  manager = start();
});
afterEach(async () => {
  process.env["PATH"] = pathBefore;
  for (const [device, backing] of await loopDevices()) {
    if (backing.startsWith(base)) loops.unshift(device); // those on top of ours first
  }
  // A loop device that is mounted, or below another, goes when those are gone.
  await exec("losetup", ["--detach", ...loops], { timeoutMs }).then(() => unmountAllUnder(base));
  if (loops.length > 0) await exec("losetup", ["--detach", ...loops], { timeoutMs });
  await rm(base, { recursive: true, force: true });
});

/** What is attached, and to which file. */
async function loopDevices(): Promise<[device: string, backing: string][]> {
  const { stdout } = await exec("losetup", ["--list", "--noheadings", "--output", "NAME,BACK-FILE"], { timeoutMs });
  return stdout.split("\n").flatMap((line): [string, string][] => {
    const [device = "", backing = ""] = line.trim().split(/\s+/, 2);
    return device === "" ? [] : [[device, backing]];
  });
}

/** An empty disk; undefined on machines that have no loop devices. */
async function makeDisk(): Promise<string | undefined> {
  const file = join(base, `disk-${loops.length}`);
  await exec("truncate", ["--size", String(diskBytes), file], { timeoutMs });
  const { stdout, failure } = await exec("losetup", ["--find", "--show", file], { timeoutMs });
  if (failure !== undefined) return undefined;
  loops.push(stdout.trim());
  return stdout.trim();
}

function offer(name: string, spec: PersistentVolume["spec"]): void {
  volumes.set(name, { metadata: { name: `pv-${name}` }, spec: { volumeMode: "Filesystem", ...spec } });
}

const claimVolume = (claimName: string, readOnly = false): Volume => ({
  name: claimName,
  persistentVolumeClaim: { claimName, readOnly },
});
function podOf(uid: string, volume: Volume | Volume[], spec: Partial<PodSpec> = {}): Pod {
  const all = [volume].flat();
  const volumeMounts = all.map(({ name }) => ({ name, mountPath: `/${name}` }));
  return makePod({ containers: [{ name: "app", volumeMounts }], volumes: all, ...spec }, { uid, name: uid });
}
async function setUp(pod: Pod): Promise<string> {
  await manager.setUp(pod, never);
  const [container = { name: "" }] = pod.spec.containers;
  return (await manager.mounts(pod, container, new Map(), context))[0]?.hostPath ?? "";
}
async function end(uid: string): Promise<void> {
  await manager.tearDown(uid);
  await manager.removePodDir(uid);
}
const refusal = async (pod: Pod) =>
  await manager.setUp(pod, never).then(
    () => "",
    (err: unknown) => messageOf(err),
  );

describe("a directory of the node", () => {
  let disk: string;
  beforeEach(async () => {
    disk = join(base, "disks/one");
    await mkdir(disk, { recursive: true });
    await writeFile(join(disk, "data"), "precious");
    offer("disk", { local: { path: disk } });
  });

  test("is shared by its pods, outlives them, and can be read-only for one of them", async () => {
    const writable = await setUp(podOf("a", claimVolume("disk")));
    const readOnly = await setUp(podOf("b", claimVolume("disk", true)));
    expect(writable).toBe(join(root, "pods/a/volumes/kubernetes.io~local-volume/pv-disk"));
    expect((await stat(join(root, "pods/a/volumes/kubernetes.io~local-volume"))).mode & 0o777).toBe(0o750);
    await writeFile(join(writable, "more"), "x");
    expect(await readFile(join(readOnly, "more"), "utf8")).toBe("x");
    await expect(writeFile(join(readOnly, "no"), "")).rejects.toThrow("EROFS");
    expect(manager.mounted("b", "disk")).toMatchObject({ isReadOnly: true, isRelabelled: false });

    manager = start(); // as after a restart
    expect(await setUp(podOf("b", claimVolume("disk", true)))).toBe(readOnly);
    await end("b");
    await end("a");
    expect(await listMountsUnder(root)).toEqual([]);
    expect(await readdir(disk)).toEqual(["data", "more"]);
  });

  test("may be reached by a link, and takes mount options", async () => {
    await symlink(disk, join(base, "link"));
    offer("disk", { local: { path: join(base, "link") }, mountOptions: ["noexec", "nodev"] });
    const dir = await setUp(podOf("a", claimVolume("disk")));
    expect(await readdir(dir)).toEqual(["data"]);
    const line = (await readFile("/proc/self/mountinfo", "utf8")).split("\n").find((one) => one.includes(` ${dir} `));
    expect(line).toMatch(/ rw,nodev,noexec/);
    await end("a");
  });

  test.each([
    ["nothing", "NewMounter initialization", "does not exist"],
    ["data", "NewMounter initialization", "is neither a directory nor a block device"],
    ["x/../data", "NewMounter initialization", 'must not contain ".."'],
  ])("%s is refused", async (path, step, why) => {
    offer("disk", { local: { path: `${disk}/${path}` } });
    const told = await refusal(podOf("a", claimVolume("disk")));
    expect(told).toContain(`MountVolume.${step} failed for volume "pv-disk" : path "${disk}/${path}" ${why}`);
    await end("a");
  });

  test("belongs to its first pod's fsGroup for as long as it has it", async () => {
    const grouped = (fsGroup: number) => ({ securityContext: { fsGroup } });
    const dir = await setUp(podOf("a", claimVolume("disk"), grouped(1234)));
    expect((await stat(join(dir, "data"))).gid).toBe(1234);
    await setUp(podOf("b", claimVolume("disk"), grouped(1234)));
    expect(events).toEqual([]);
    await setUp(podOf("c", claimVolume("disk"), grouped(5678)));
    expect(events).toEqual([
      "Warning AlreadyMountedVolume The requested fsGroup is 5678, but the volume pv-disk has GID 1234. " +
        "The volume may not be shareable.",
    ]);
    expect((await stat(disk)).gid).toBe(1234);
    for (const uid of ["a", "b", "c"]) await end(uid);
    await setUp(podOf("d", claimVolume("disk", true), grouped(5678)));
    expect((await stat(disk)).gid).toBe(1234);
    await end("d");
    await setUp(podOf("c", claimVolume("disk"), grouped(5678)));
    expect((await stat(disk)).gid).toBe(5678);
    await end("c");
  });

  test("that takes long to be given to a group is told of", async () => {
    let nowMs = 0;
    manager = start({ ...systemClock, monotonic: () => (nowMs += slowWalkMs) });
    await writeFile(join(disk, "more"), "");
    await setUp(podOf("a", claimVolume("disk"), { securityContext: { fsGroup: 1234 } }));
    expect(events[0]).toMatch(
      /^Warning VolumePermissionChangeInProgress .* volume pv-disk is taking longer than expected, processed \d+ files/,
    );
    await end("a");
  });

  test("is taken away also if we were killed before it was noted", async () => {
    await setUp(podOf("a", claimVolume("disk")));
    manager = start();
    await end("a");
    expect(await readdir(disk)).toEqual(["data"]);
    expect(await readdir(join(root, "pods"))).toEqual([]);
  });

  test("gives its subPaths a place under the PersistentVolume's name", async () => {
    await mkdir(join(disk, "sub"));
    const pod = podOf("a", claimVolume("disk"));
    pod.spec.containers = [{ name: "app", volumeMounts: [{ name: "disk", mountPath: "/d", subPath: "sub" }] }];
    expect(await setUp(pod)).toBe(join(root, "pods/a/volume-subpaths/pv-disk/app/0"));
    await end("a");
    expect(await readdir(disk)).toEqual(["data", "sub"]);
  });
});

describe("a disk of the node", () => {
  const shared = () => join(root, "plugins/kubernetes.io/local-volume/mounts/pv-disk");

  test("is formatted once, mounted once for all its pods, and keeps what they wrote", async () => {
    const device = await makeDisk();
    if (device === undefined) return await expectNoLoopDevices();
    offer("disk", { local: { path: device }, mountOptions: ["noatime"] });
    const [a] = await Promise.all(["a", "d"].map((uid) => setUp(podOf(uid, claimVolume("disk")))));
    const b = await setUp(podOf("b", claimVolume("disk", true)));
    if (a === undefined) return;
    await writeFile(join(a, "data"), "kept");
    expect(await readFile(join(b, "data"), "utf8")).toBe("kept");
    await expect(writeFile(join(b, "no"), "")).rejects.toThrow("EROFS");
    const mounts = await listMountsUnder(root);
    expect(mounts.filter(({ mountPoint }) => mountPoint === shared())).toMatchObject([
      { fsType: "ext4", source: device },
    ]);
    await Promise.all([end("a"), end("d")]);
    expect(await isMountPoint(shared())).toBe(true);
    await end("b");
    expect(await listMountsUnder(root)).toEqual([]);
    manager = start();
    expect(await readFile(join(await setUp(podOf("c", claimVolume("disk"))), "data"), "utf8")).toBe("kept");
    await end("c");
  });

  test("that is empty is not formatted for who may only read", async () => {
    const device = await makeDisk();
    if (device === undefined) return await expectNoLoopDevices();
    offer("disk", { local: { path: device } });
    expect(await refusal(podOf("a", claimVolume("disk", true)))).toBe(
      `MountVolume.MountDevice failed for volume "pv-disk" : device ${device} has no file system, and is to be read only`,
    );
    await end("a");
    expect((await exec("blkid", ["-p", device], { timeoutMs })).code).toBe(2);
  });

  test("with another file system than asked for is left as it is", async () => {
    const device = await makeDisk();
    if (device === undefined) return await expectNoLoopDevices();
    await exec("mkfs.ext4", ["-q", "-F", device], { timeoutMs });
    offer("disk", { local: { path: device, fsType: "xfs" } });
    expect(await refusal(podOf("a", claimVolume("disk")))).toContain(
      `failed to mount device ${device} as xfs, it has ext4: `,
    );
    expect(events).toEqual([
      expect.stringContaining(
        `pv-disk: Warning FailedMountOnFilesystemMismatch failed to mount device ${device} as xfs`,
      ),
    ]);
    offer("disk", { local: { path: device, fsType: "../../evil" } });
    expect(await refusal(podOf("a", claimVolume("disk")))).toContain('"../../evil" is not a file system type');
    await end("a");
  });

  test("that cannot be made a file system of is told of", async () => {
    const device = await makeDisk();
    if (device === undefined) return await expectNoLoopDevices();
    offer("disk", { local: { path: device, fsType: "nonesuch" } });
    expect(await refusal(podOf("a", claimVolume("disk")))).toContain(
      `cannot make an nonesuch file system on ${device}: `,
    );
    await end("a");
  });
});

describe("a block device", () => {
  function devicePod(uid: string): Pod {
    const pod = podOf(uid, claimVolume("disk"));
    return {
      ...pod,
      spec: { ...pod.spec, containers: [{ name: "app", volumeDevices: [{ name: "disk", devicePath: "/dev/x" }] }] },
    };
  }

  test("is linked into the pod, held open, and let go, also after a restart", async () => {
    const device = await makeDisk();
    if (device === undefined) return await expectNoLoopDevices();
    offer("disk", { local: { path: device }, volumeMode: "Block" });
    await Promise.all(["a", "b"].map((uid) => manager.setUp(devicePod(uid), never)));
    const link = join(root, "pods/a/volumeDevices/kubernetes.io~local-volume/pv-disk");
    expect(await readlink(link)).toBe(device);
    expect(manager.devices("a", devicePod("a").spec.containers[0] ?? { name: "" })).toEqual([
      { hostPath: link, containerPath: "/dev/x", permissions: "mrw" },
    ]);
    const mapDir = join(root, "plugins/kubernetes.io~local-volume/volumeDevices/pv-disk");
    expect((await readdir(mapDir)).toSorted()).toEqual(["a", "b"]);
    expect((await lstat(join(mapDir, "a"))).isBlockDevice()).toBe(true);
    const holders = async () => (await loopDevices()).flatMap(([, file]) => (file.startsWith(mapDir) ? [file] : []));
    expect((await holders()).toSorted()).toEqual([join(mapDir, "a"), join(mapDir, "b")]);
    expect(events.toSorted().slice(0, 2)).toEqual([
      `Normal SuccessfulMountVolume MapVolume.MapPodDevice succeeded for volume "pv-disk" globalMapPath "${mapDir}"`,
      `Normal SuccessfulMountVolume MapVolume.MapPodDevice succeeded for volume "pv-disk" globalMapPath "${mapDir}"`,
    ]);
    expect(events).toContain(
      'Normal SuccessfulMountVolume MapVolume.MapPodDevice succeeded for volume "pv-disk" ' +
        `volumeMapPath "${join(root, "pods/a/volumeDevices/kubernetes.io~local-volume")}"`,
    );

    manager = start();
    events = [];
    await manager.setUp(devicePod("a"), never);
    expect(events).toEqual([]);
    expect(await holders()).toHaveLength(2);
    await end("a");
    expect(await holders()).toEqual([join(mapDir, "b")]);
    manager = start();
    await end("b");
    expect(await holders()).toEqual([]);
    expect(await listMountsUnder(root)).toEqual([]);
    expect(await readdir(join(root, "plugins/kubernetes.io~local-volume/volumeDevices"))).toEqual([]);
  });

  test("of another name than before is linked in its place, and nothing is left beside the link", async () => {
    const device = await makeDisk();
    if (device === undefined) return await expectNoLoopDevices();
    offer("disk", { local: { path: device }, volumeMode: "Block" });
    const dir = join(root, "pods/a/volumeDevices/kubernetes.io~local-volume");
    await mkdir(dir, { recursive: true });
    await symlink("/dev/of-another-time", join(dir, "pv-disk"));
    await manager.setUp(devicePod("a"), never);
    expect(await readlink(join(dir, "pv-disk"))).toBe(device);
    expect(await readdir(dir)).toEqual(["pv-disk"]);
    expect((await readdir(join(root, "pods/a"))).toSorted()).toEqual(["plugins", "volumeDevices", "volumes"]);
    await end("a");
  });

  test.each(["link", "file", "bind", "loop"])(
    "is let go, and mapped again, after a SIGKILL behind the %s",
    async (step) => {
      const device = await makeDisk();
      if (device === undefined) return await expectNoLoopDevices();
      offer("disk", { local: { path: device }, volumeMode: "Block" });
      const link = join(root, "pods/a/volumeDevices/kubernetes.io~local-volume/pv-disk");
      const mapDir = join(root, "plugins/kubernetes.io~local-volume/volumeDevices/pv-disk");
      const begin = async () => {
        await mkdir(join(link, ".."), { recursive: true });
        await symlink(device, link);
        if (step === "link") return;
        await mkdir(mapDir, { recursive: true });
        await writeFile(join(mapDir, "a"), "");
        if (step === "file") return;
        await bindMount(device, join(mapDir, "a"));
        if (step === "bind") return;
        await exec("losetup", ["--find", join(mapDir, "a")], { timeoutMs });
      };
      await begin();
      await end("a");
      expect(await listMountsUnder(root)).toEqual([]);
      await begin();
      await manager.setUp(devicePod("a"), never);
      expect((await listMountsUnder(root)).map(({ mountPoint }) => mountPoint)).toEqual([join(mapDir, "a")]);
      await end("a");
      expect(await listMountsUnder(root)).toEqual([]);
      expect((await loopDevices()).filter(([, file]) => file.startsWith(root))).toEqual([]);
    },
  );

  test("that cannot be held open is told of, and cleaned up", async () => {
    const device = await makeDisk();
    if (device === undefined) return await expectNoLoopDevices();
    await fakeCommand("losetup", 'echo "losetup: cannot find an unused loop device" >&2; exit 1');
    offer("disk", { local: { path: device }, volumeMode: "Block" });
    expect(await refusal(devicePod("a"))).toBe(
      'MapVolume.MapBlockVolume failed for volume "pv-disk" : cannot hold the device open with a loop device: ' +
        "losetup exited with 1: losetup: cannot find an unused loop device",
    );
    await end("a");
    expect(await listMountsUnder(root)).toEqual([]);
    process.env["PATH"] = pathBefore;
  });

  test("is not a directory", async () => {
    offer("disk", { local: { path: base }, volumeMode: "Block" });
    expect(await refusal(devicePod("a"))).toBe(
      `MapVolume.MapBlockVolume failed for volume "pv-disk" : ${base} is not a block device`,
    );
    await end("a");
  });
});

/** Puts a command in front of the machine's own. */
async function fakeCommand(name: string, script: string): Promise<void> {
  const bin = join(base, "bin");
  await mkdir(bin, { recursive: true });
  await writeFile(join(bin, name), `#!/bin/sh\n${script}\n`);
  await chmod(join(bin, name), 0o755);
  process.env["PATH"] = `${bin}:${pathBefore}`;
}

describe("nfs", () => {
  // mount(8) looks for mount.nfs in fixed places only: stood in for is what calls it.
  beforeEach(async () => {
    const last = "for last; do :; done";
    await fakeCommand(
      "mount",
      `${last}
case "$*" in
*hanging:*) echo "$$" >> ${base}/hanging; exec sleep 600;;
*"-t nfs"*) echo "$*" >> ${base}/calls; exec /usr/bin/mount -t tmpfs none "$last";;
esac
exec /usr/bin/mount "$@"`,
    );
  });
  const calls = async () => (await readFile(join(base, "calls"), "utf8")).trim().split("\n");
  const inline = (server: string, readOnly = false): Volume => ({
    name: "share",
    nfs: { server, path: "/x", readOnly },
  });

  test("is mounted with the options of its PersistentVolume, once, and taken away", async () => {
    offer("share", { nfs: { server: "fd00::1", path: "/x" }, mountOptions: ["vers=4.1", "hard"] });
    const dir = await setUp(podOf("a", claimVolume("share", true)));
    expect(dir).toBe(join(root, "pods/a/volumes/kubernetes.io~nfs/pv-share"));
    manager = start();
    await setUp(podOf("a", claimVolume("share", true)));
    expect(await calls()).toEqual([`--no-canonicalize -t nfs -o hard,ro,vers=4.1 -- [fd00::1]:/x ${dir}`]);
    expect(manager.mounted("a", "share")).toMatchObject({ isReadOnly: true, isRelabelled: false });
    await end("a");
    expect(await listMountsUnder(root)).toEqual([]);
  });

  test("that a pod names twice is mounted once", async () => {
    offer("share", { nfs: { server: "server", path: "/x" } });
    await setUp(podOf("a", [claimVolume("share"), { ...claimVolume("share"), name: "again" }]));
    expect(await calls()).toHaveLength(1);
    expect(await listMountsUnder(root)).toHaveLength(1);
    await end("a");
    expect(await listMountsUnder(root)).toEqual([]);
  });

  test("can be written in the pod itself", async () => {
    await setUp(podOf("a", inline("server", true)));
    expect((await calls())[0]).toMatch(/-t nfs -o ro -- server:\/x .*~nfs\/share$/);
    await end("a");
  });

  test("whose server hangs holds up nobody else, and ends with its pod", async () => {
    const stop = new AbortController();
    const hanging = manager.setUp(podOf("stuck", [inline("hanging"), { name: "own", emptyDir: {} }]), stop.signal);
    const outcome = hanging.catch((err: unknown) => messageOf(err));
    await expect.poll(() => readFile(join(base, "hanging"), "utf8").catch(() => "")).not.toBe("");
    await setUp(podOf("fine", [inline("server"), { name: "own", emptyDir: {} }]));
    await end("fine");
    stop.abort();
    expect(await outcome).toContain("aborted");
    const pid = Number((await readFile(join(base, "hanging"), "utf8")).trim());
    await expect.poll(() => isAlive(pid)).toBe(false);
    await end("stuck");
    expect(await readdir(join(root, "pods"))).toEqual([]);
  });

  test("whose server is gone is unmounted by force, never lazily", async () => {
    await fakeCommand(
      "umount",
      `echo "$*" >> ${base}/umounts
case "$*" in --force*) exec /usr/bin/umount "$@";; esac
exec sleep 600`,
    );
    const dir = await setUp(podOf("a", inline("server")));
    await unmountOrForce(dir, 200);
    expect((await readFile(join(base, "umounts"), "utf8")).trim().split("\n")).toEqual([
      `--no-canonicalize -- ${dir}`,
      `--force --no-canonicalize -- ${dir}`,
    ]);
    expect(await listMountsUnder(root)).toEqual([]);
  });

  test("that does not let go keeps none of the pod's other volumes", async () => {
    await fakeCommand(
      "umount",
      `case "$*" in *~nfs*) echo "target is busy" >&2; exit 32;; esac; exec /usr/bin/umount "$@"`,
    );
    const pod = podOf("a", [inline("server"), { name: "memory", emptyDir: { medium: "Memory" } }]);
    pod.spec.containers[0]?.volumeMounts?.push({ name: "memory", mountPath: "/sub", subPath: "sub" });
    const dir = await setUp(pod);
    await expect(manager.tearDown("a")).rejects.toThrow(`volume "share": cannot unmount ${dir}: `);
    expect((await listMountsUnder(root)).map(({ mountPoint }) => mountPoint)).toEqual([dir]);
    process.env["PATH"] = pathBefore;
    await end("a");
  });
});

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

// The kernel of this machine has none: then the error says so.
async function expectNoLoopDevices(): Promise<void> {
  const { failure, message } = await exec("losetup", ["--find"], { timeoutMs });
  expect(failure).toBeDefined();
  expect(message).toContain("losetup");
}
