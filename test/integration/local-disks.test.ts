import { mkdir, mkdtemp, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { exec } from "../../agent/lib/exec.ts";
import { unmountAllUnder } from "../../agent/lib/mount.ts";
import { formatAndMount } from "../../agent/volumes/format-and-mount.ts";

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
