import { mkdir, mkdtemp, readdir, realpath, rm, statfs } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { listMountsUnder, unmountAllUnder } from "../../agent/lib/mount.ts";
import { createTmpfsMounter, renderTable } from "../../agent/lib/tmpfs-mounts.ts";
import { exec } from "../../agent/lib/exec.ts";

const never = new AbortController().signal;
let dir: string;

beforeEach(async () => {
  dir = await realpath(await mkdtemp(join(tmpdir(), "nodelet tmpfs\\ #-")));
});
afterEach(async () => {
  await unmountAllUnder(dir);
  await rm(dir, { recursive: true, force: true });
});

const makeDirs = async (count: number) => {
  const dirs = Array.from({ length: count }, (_, i) => join(dir, `at ${i}`));
  for (const one of dirs) await mkdir(one);
  return dirs;
};
const mountedIn = async () => (await listMountsUnder(dir)).map(({ mountPoint, fsType }) => `${mountPoint} ${fsType}`);

test("what is asked for at once is mounted by two processes, each with its own size", async () => {
  const dirs = await makeDirs(7);
  let tables = 0;
  const mounter = createTmpfsMounter(join(dir, "table"), async (path) => {
    tables += 1;
    const { failure } = await exec("mount", ["--no-canonicalize", "--all", "--fstab", path], { timeoutMs: 30_000 });
    return failure === undefined;
  });
  await Promise.all(dirs.map(async (at, i) => await mounter.mount(at, [`size=${(i + 1) * 65_536}`], never)));
  expect((await mountedIn()).toSorted()).toEqual(dirs.map((at) => `${at} tmpfs`));
  for (const [i, at] of dirs.entries()) {
    const { blocks, bsize } = await statfs(at);
    expect(blocks * bsize).toBe((i + 1) * 65_536);
  }
  expect(tables).toBe(1);
  expect(await readdir(dir)).not.toContain("table");
});

test("one that cannot be mounted says why, and the others are there", async () => {
  const [first = "", second = "", third = ""] = await makeDirs(3);
  const mounter = createTmpfsMounter(join(dir, "table"));
  const outcomes = await Promise.allSettled([
    mounter.mount(first, [], never),
    mounter.mount(second, ["size=64k"], never),
    mounter.mount(join(dir, "nowhere"), ["size=64k"], never),
    mounter.mount(third, ["size=64k"], never),
  ]);
  expect(outcomes.map(({ status }) => status)).toEqual(["fulfilled", "fulfilled", "rejected", "fulfilled"]);
  expect(outcomes[2]).toMatchObject({ reason: { message: expect.stringContaining("nowhere") } });
  expect(await mountedIn()).toHaveLength(3);
});

test("without a table, as where nobody can write it, all are mounted one by one", async () => {
  const dirs = await makeDirs(3);
  const mounter = createTmpfsMounter(join(dir, "no such directory", "table"));
  await Promise.all(dirs.map(async (at) => await mounter.mount(at, ["size=64k"], never)));
  expect(await mountedIn()).toHaveLength(3);
});

test("who gives up before its turn gets nothing mounted, also not later", async () => {
  const [first = "", second = "", third = ""] = await makeDirs(3);
  const mounter = createTmpfsMounter(join(dir, "table"));
  const giveUp = new AbortController();
  const begun = mounter.mount(first, [], never);
  const abandoned = mounter.mount(second, [], giveUp.signal);
  giveUp.abort();
  await expect(abandoned).rejects.toMatchObject({ code: "Canceled" });
  await expect(mounter.mount(second, [], giveUp.signal)).rejects.toMatchObject({ code: "Canceled" });
  await begun;
  await mounter.mount(third, [], never);
  expect(await mountedIn()).toEqual([`${first} tmpfs`, `${third} tmpfs`]);
});

test("a mount that hangs up half-way is finished by hand", async () => {
  const dirs = await makeDirs(3);
  const mounter = createTmpfsMounter(join(dir, "table"), async () => {
    const [, second = ""] = dirs;
    await exec("mount", ["-t", "tmpfs", "tmpfs", second], { timeoutMs: 30_000 });
    return false;
  });
  await Promise.all(dirs.map(async (at) => await mounter.mount(at, ["size=64k"], never)));
  expect((await mountedIn()).toSorted()).toEqual(dirs.map((at) => `${at} tmpfs`));
});

test("names with spaces and backslashes are written as fstab has them", () => {
  expect(renderTable([{ target: "/a b\\c#d\te", options: ["size=1", "noswap"] }])).toBe(
    "tmpfs /a\\040b\\134c\\043d\\011e tmpfs size=1,noswap 0 0\n",
  );
  expect(renderTable([{ target: "/a", options: [] }])).toBe("tmpfs /a tmpfs defaults 0 0\n");
});
