import { mkdir, mkdtemp, readFile, rm, stat, statfs, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { ApiClient } from "../../agent/kube/port.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { exec } from "../../agent/lib/exec.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { listMountsUnder, unmountAllUnder } from "../../agent/lib/mount.ts";
import { formatAndMount } from "../../agent/volumes/format-and-mount.ts";
import type { BoundClaim } from "../../agent/volumes/kind.ts";
import { createPodVolumes, type VolumeManager } from "../../agent/volumes/manager.ts";
import { mountSilent } from "../support/silent-mount.ts";
import { FakeClock, FakeObjects, makePod } from "../unit/volumes/support.ts";

// Disks that are not as disks should be: loop devices whose file has lost its end answer with the errors of a broken disk.

const never = new AbortController().signal;
const timeoutMs = 30_000;
const diskBytes = 16 << 20;

let base: string;
let device: string | undefined;

beforeEach(async () => {
  base = await mkdtemp(join(tmpdir(), "nodelet-disks-"));
  device = undefined;
});
afterEach(async () => {
  await unmountAllUnder(base);
  if (device !== undefined) await exec("losetup", ["--detach", device], { timeoutMs });
  await rm(base, { recursive: true, force: true });
});

/** A disk with a file system on it of which only the first bytes can be read; undefined where there are no loop devices. */
async function makeBrokenDisk(readableBytes: number, fsType?: string): Promise<string | undefined> {
  const file = join(base, "disk");
  await writeFile(file, "");
  await truncate(file, diskBytes);
  if (fsType !== undefined) await exec(`mkfs.${fsType}`, ["-q", "-F", file], { timeoutMs });
  const { stdout, failure } = await exec("losetup", ["--find", "--show", file], { timeoutMs });
  if (failure !== undefined) return undefined;
  device = stdout.trim();
  await truncate(file, readableBytes);
  await exec("blockdev", ["--flushbufs", device], { timeoutMs });
  return device;
}

describe("a disk that does not answer", () => {
  let silent: string;
  let release: () => Promise<void>;
  let volumes: VolumeManager;
  let local: { path: string };
  beforeEach(async () => {
    silent = join(base, "silent");
    await mkdir(silent);
    await mkdir(join(base, "kubelet"));
    const claim = { metadata: { name: "disk" } };
    volumes = createPodVolumes({
      rootDir: join(base, "kubelet"),
      client: undefined,
      objects: new FakeObjects(),
      clock: systemClock,
      log: silentLogger,
      nodeAllocatable: () => ({}),
      selinuxEnabled: false,
      claims: {
        resolve: async () =>
          await Promise.resolve({ claim, volume: { metadata: { name: "pv" }, spec: { local } }, isReadOnly: false }),
        isReachable: () => true,
      },
    });
    release = async () => {};
  });
  afterEach(async () => {
    await release();
    await unmountAllUnder(base);
  });
  const podOf = (uid: string) =>
    makePod(
      {
        containers: [{ name: "app", volumeMounts: [{ name: "disk", mountPath: "/disk" }] }],
        volumes: [{ name: "disk", persistentVolumeClaim: { claimName: "disk" } }],
      },
      { uid, name: uid },
    );

  test("is told of, and its volume is tried again", async () => {
    release = await mountSilent(silent);
    local = { path: silent };
    await expect(volumes.setUp(podOf("a"), never)).rejects.toMatchObject({
      code: "Unavailable",
      message: expect.stringContaining(`path "${silent}" does not answer`),
    });
    await volumes.tearDown("a");
  });

  test("is not looked at where it is mounted, so that an agent that comes back adopts its pods", async () => {
    local = { path: base };
    const dir = join(base, "kubelet/pods/a/volumes/kubernetes.io~local-volume/pv");
    await mkdir(dir, { recursive: true });
    release = await mountSilent(dir);
    await volumes.setUp(podOf("a"), never);
    await volumes.setUp(podOf("b"), never);
    await release();
    release = async () => {};
    await volumes.tearDown("a");
    await volumes.tearDown("b");
    expect((await listMountsUnder(base)).length).toBe(0);
  });
});

/** Has the machine given us CAP_SYS_RESOURCE, which growing a mounted file system takes? */
async function mayResize(): Promise<boolean> {
  const status = await readFile("/proc/self/status", "utf8");
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0";
  return ((BigInt(`0x${effective}`) >> 24n) & 1n) === 1n;
}

test("a disk that has grown is filled by its file system, also under a running pod, and the claim is told", async () => {
  const file = join(base, "disk");
  await writeFile(file, "");
  await truncate(file, diskBytes);
  const { stdout, failure } = await exec("losetup", ["--find", "--show", file], { timeoutMs });
  if (failure !== undefined) return;
  device = stdout.trim();
  await mkdir(join(base, "kubelet"));
  let size = "16Mi";
  const clock = new FakeClock();
  const patches: unknown[] = [];
  const events: string[] = [];
  const volumes = createPodVolumes({
    rootDir: join(base, "kubelet"),
    client: undefined,
    objects: new FakeObjects(),
    clock,
    log: silentLogger,
    nodeAllocatable: () => ({}),
    selinuxEnabled: false,
    claims: {
      resolve: async () =>
        await Promise.resolve({
          claim: { metadata: { name: "disk" }, status: { capacity: { storage: "16Mi" } } },
          volume: { metadata: { name: "pv" }, spec: { capacity: { storage: size }, local: { path: device } } },
          isReadOnly: false,
        } as BoundClaim),
      isReachable: () => true,
    },
    expansion: {
      client: {
        patch: async (_: unknown, _key: unknown, patch: unknown) => await Promise.resolve(patches.push(patch)),
      } as unknown as ApiClient,
      nodeName: "n1",
      clock,
      log: silentLogger,
      event: () => {},
    },
    onEvent: (_pod, _type, reason, message) => events.push(`${reason} ${message}`),
    random: () => 0,
  });
  const containers = [{ name: "app", volumeMounts: [{ name: "disk", mountPath: "/disk" }] }];
  const pod = makePod({ containers, volumes: [{ name: "disk", persistentVolumeClaim: { claimName: "disk" } }] });
  const uid = pod.metadata.uid ?? "";
  await volumes.setUp(pod, never);
  const dir = volumes.mounted(uid, "disk")?.hostPath ?? "";
  const before = (await statfs(dir)).blocks;
  expect(volumes.refreshInMs(uid)).toBeGreaterThan(0);

  size = "32Mi";
  await truncate(file, 2 * diskBytes);
  await exec("losetup", ["--set-capacity", device], { timeoutMs });
  await volumes.setUp(pod, never);
  if (await mayResize()) {
    expect((await statfs(dir)).blocks).toBeGreaterThan(1.5 * before);
    expect(patches).toMatchObject([{ status: { capacity: { storage: "32Mi" } } }]);
    expect(events).toEqual([expect.stringMatching(/^FileSystemResizeSuccessful /)]);
  } else {
    expect(events).toEqual([expect.stringMatching(/^VolumeResizeFailed .*cannot expand the ext4 .*Permission denied/)]);
    expect(volumes.refreshInMs(uid)).toBeLessThan(10_000);
  }
  await volumes.tearDown(uid);
});

test.each([
  { name: "at its beginning", readableBytes: 0, fsType: "ext4" },
  { name: "at its end, where some keep what they are", readableBytes: diskBytes - (128 << 10) },
])("a disk that cannot be read $name is not empty, and never formatted", async ({ readableBytes, fsType }) => {
  const disk = await makeBrokenDisk(readableBytes, fsType);
  const target = join(base, "target");
  await mkdir(target);
  const mount = { device: disk ?? "/proc/self/mem", target, fsType: "ext4", options: [], isReadOnly: false };
  await expect(formatAndMount(mount, never)).rejects.toMatchObject({
    code: "Unavailable",
    message: expect.stringContaining(`device ${mount.device} cannot be read`),
  });
  if (disk !== undefined) expect((await stat(join(base, "disk"))).size).toBe(readableBytes);
});

test("a disk that is empty is formatted", async () => {
  if ((await makeBrokenDisk(diskBytes)) === undefined) return;
  const target = join(base, "target");
  await mkdir(target);
  const mount = { device: device ?? "", target, fsType: "ext4", options: [], isReadOnly: false };
  await formatAndMount(mount, never);
  expect((await stat(join(target, "lost+found"))).isDirectory()).toBe(true);
});
