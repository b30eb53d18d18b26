import { link, mkdir, mkdtemp, rename, rm, symlink, truncate, unlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeEach, expect, onTestFinished, test } from "vitest";
import { exec } from "../../../agent/lib/exec.ts";
import { depthMax, directoryUsage, restEntries } from "../../../agent/stats/directory-usage.ts";
import { filesDirectlyIn, fileUsage, logsIn } from "../../../agent/stats/filesystem.ts";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-du-"));
  const made = dir;
  onTestFinished(async () => await rm(made, { recursive: true, force: true }));
});

const never = new AbortController().signal;

/** What du says, in its own words: the truth to compare with. */
async function du(path: string): Promise<{ bytes: number; inodes: number }> {
  const run = async (...args: string[]) =>
    Number((await exec("du", ["-xs", ...args, path], { timeoutMs: 10_000 })).stdout.split("\t")[0]);
  return { bytes: await run("-B1"), inodes: await run("--inodes") };
}

test("counts as du does: blocks, directories, links as themselves, hard links once", async () => {
  await mkdir(join(dir, "a/b/c"), { recursive: true });
  await writeFile(join(dir, "a/file"), "x".repeat(100_000));
  await writeFile(join(dir, "a/b/empty"), "");
  await link(join(dir, "a/file"), join(dir, "a/b/again"));
  await symlink("/", join(dir, "a/b/c/root"));
  await truncate(join(dir, "a/b/empty"), 1 << 30); // a hole takes no space
  for (let i = 0; i < 600; i++) await writeFile(join(dir, "a/b/c", `${i}`), "y");
  expect(await directoryUsage(dir, never)).toEqual(await du(dir));
});

test("no other filesystem is entered, not even a link to one is followed", async () => {
  await symlink("/proc", join(dir, "proc"));
  await symlink("/sys", join(dir, "sys"));
  expect(await directoryUsage(dir, never)).toEqual(await du(dir));
});

test("a link in the directory's own place is refused", async () => {
  await mkdir(join(dir, "real"));
  await symlink(join(dir, "real"), join(dir, "link"));
  await expect(directoryUsage(join(dir, "link"), never)).rejects.toThrow();
  await expect(directoryUsage(join(dir, "gone"), never)).rejects.toThrow("ENOENT");
});

test("a directory that turns into a link to the host's files, again and again, never leads there", async () => {
  const host = await mkdtemp(join(tmpdir(), "nodelet-host-"));
  onTestFinished(async () => await rm(host, { recursive: true, force: true }));
  const hostBytes = 4 << 20;
  await writeFile(join(host, "secret"), Buffer.alloc(hostBytes, 1));
  const place = join(dir, "place");
  const aside = join(dir, "aside");
  await mkdir(place);
  const over = new AbortController();
  const swap = async () => {
    while (!over.signal.aborted) {
      await rename(place, aside);
      await symlink(host, place);
      await unlink(place);
      await rename(aside, place);
    }
  };
  const swapping = swap();
  try {
    for (let i = 0; i < 100; i++) {
      const { bytes } = await directoryUsage(dir, never);
      expect(bytes).toBeLessThan(hostBytes);
    }
  } finally {
    over.abort();
    await swapping;
  }
});

test("a tree deeper than descriptors go round is counted down to a depth", async () => {
  // In steps, since a path may not be longer than 4 096 bytes.
  const script = 'i=0; while [ $i -lt "$1" ]; do mkdir d && cd d || exit 1; i=$((i+1)); done';
  const made = await exec("sh", ["-c", script, "sh", String(depthMax + 50)], { cwd: dir, timeoutMs: 10_000 });
  expect(made.failure).toBeUndefined();
  const { inodes } = await directoryUsage(dir, never);
  expect(inodes).toBe(depthMax + 1);
});

test("rests now and then, over all directories together", async () => {
  const fill = async (name: string) => {
    await mkdir(join(dir, name));
    await Promise.all(Array.from({ length: 700 }, async (_, k) => await writeFile(join(dir, name, `${k}`), "")));
  };
  for (const name of ["a", "b", "c"]) await fill(name);
  let rests = 0;
  const { inodes } = await directoryUsage(dir, never, async () => void (rests += 1));
  expect(inodes).toBe(2_104);
  expect(rests).toBeGreaterThanOrEqual(1);
  expect(rests).toBeLessThanOrEqual(2_104 / restEntries);
});

test("ends when it is told to", async () => {
  for (let i = 0; i < 300; i++) await writeFile(join(dir, `${i}`), "");
  const stop = new AbortController();
  const measured = directoryUsage(dir, stop.signal);
  stop.abort(new Error("the agent stops"));
  await expect(measured).rejects.toThrow("the agent stops");
});

test("logs: files directly in the directory, hard links once; what is not there takes nothing", async () => {
  await writeFile(join(dir, "0.log"), "x".repeat(10_000));
  await link(join(dir, "0.log"), join(dir, "0.log.1"));
  await symlink("/etc/passwd", join(dir, "link.log"));
  await mkdir(join(dir, "sub"));
  await writeFile(join(dir, "sub/file"), "y");
  const one = await fileUsage(join(dir, "0.log"));
  expect(one.inodes).toBe(1);
  expect(one.bytes).toBeGreaterThanOrEqual(10_000);
  expect(await filesDirectlyIn(dir)).toEqual(one);
  expect(await filesDirectlyIn(join(dir, "gone"))).toEqual({ bytes: 0, inodes: 0 });
  expect(await fileUsage(join(dir, "link.log"))).toEqual({ bytes: 0, inodes: 0 });
});

test("logs that Docker keeps elsewhere count as the container's, other links do not", async () => {
  const [logs, docker] = [join(dir, "app"), join(dir, "docker")];
  for (const each of [logs, docker]) await mkdir(each);
  const names = ["c1-json.log", "c1-json.log.1", "c1-json.log.2.gz", "c10-json.log", "config.v2.json"];
  for (const name of names) await writeFile(join(docker, name), "x".repeat(100_000));
  await symlink(join(docker, "c1-json.log"), join(logs, "1.log"));
  await symlink(join(docker, "config.v2.json"), join(logs, "2.log"));
  await symlink(join(docker, "gone-json.log"), join(logs, "3.log"));
  await writeFile(join(logs, "0.log"), "y".repeat(100_000));
  const one = await fileUsage(join(logs, "0.log"));
  expect(await logsIn(logs)).toEqual({ bytes: 4 * one.bytes, inodes: 4 });
  expect(await logsIn(join(logs, "gone"))).toEqual({ bytes: 0, inodes: 0 });
});
