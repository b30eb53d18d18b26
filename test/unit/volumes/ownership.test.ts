import { chmod, lstat, mkdir, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { exec } from "../../../agent/lib/exec.ts";
import {
  applyFSGroup,
  fsGroupMode,
  isRootOwned,
  legDepthMax,
  legsMax,
  slowWalkAgainMs,
  slowWalkMs,
} from "../../../agent/volumes/ownership.ts";
import { removeTree } from "../../../agent/volumes/remove-tree.ts";
import { openDir, withDirs } from "../../../agent/volumes/safe-path.ts";
import { makeTempDir, strangers } from "./support.ts";

const modulePath = new URL("../../../agent/volumes/ownership.ts", import.meta.url).pathname;
const { gid: group } = strangers;
let dir: string;
let cleanUp: () => Promise<void>;

beforeEach(async () => {
  ({ dir, cleanUp } = await makeTempDir());
});
afterEach(() => cleanUp());

const look = async (path: string) => {
  const { gid, mode } = await lstat(path);
  return `${gid} ${(mode & 0o7777).toString(8)}`;
};

describe("fsGroupMode", () => {
  test.each([
    { name: "file, writable", mode: 0o644, isDirectory: false, isReadOnly: false, want: 0o664 },
    { name: "file, read-only", mode: 0o400, isDirectory: false, isReadOnly: true, want: 0o440 },
    { name: "program with setuid", mode: 0o4755, isDirectory: false, isReadOnly: false, want: 0o4775 },
    { name: "private token", mode: 0o600, isDirectory: false, isReadOnly: true, want: 0o640 },
    { name: "directory, writable", mode: 0o755, isDirectory: true, isReadOnly: false, want: 0o2775 },
    { name: "directory, read-only", mode: 0o700, isDirectory: true, isReadOnly: true, want: 0o2750 },
    { name: "emptyDir", mode: 0o777, isDirectory: true, isReadOnly: false, want: 0o2777 },
  ])("$name", ({ mode, isDirectory, isReadOnly, want }) => {
    expect(fsGroupMode(mode, isDirectory, isReadOnly).toString(8)).toBe(want.toString(8));
  });
});

describe("isRootOwned", () => {
  test.each([
    { name: "as it should be", gid: group, mode: 0o42770, isReadOnly: false, want: true },
    { name: "more than it should be", gid: group, mode: 0o42777, isReadOnly: false, want: true },
    { name: "another group", gid: group + 1, mode: 0o42770, isReadOnly: false, want: false },
    { name: "no setgid", gid: group, mode: 0o40770, isReadOnly: false, want: false },
    { name: "group may not write", gid: group, mode: 0o42750, isReadOnly: false, want: false },
    { name: "group need not write", gid: group, mode: 0o42750, isReadOnly: true, want: true },
    { name: "group may not enter", gid: group, mode: 0o42760, isReadOnly: false, want: false },
  ])("$name", ({ gid, mode, isReadOnly, want }) => expect(isRootOwned({ gid, mode }, group, isReadOnly)).toBe(want));
});

describe("applyFSGroup", () => {
  beforeEach(async () => {
    await chmod(dir, 0o755);
    await mkdir(join(dir, "sub/deep"), { recursive: true, mode: 0o700 });
    await writeFile(join(dir, "sub/deep/file"), "", { mode: 0o400 });
  });

  test("gives all of a tree to the group, whatever is in it", async () => {
    await writeFile(join(dir, "suid"), "");
    await chmod(join(dir, "suid"), 0o4755);
    await exec("mkfifo", [join(dir, "pipe")], { timeoutMs: 10_000 });
    const latin1 = Buffer.concat([Buffer.from(`${dir}/latin1-`), Buffer.from([0xe9])]);
    await writeFile(latin1, "", { mode: 0o600 });
    await applyFSGroup(dir, group, { isReadOnly: false });
    expect(await look(dir)).toBe(`${group} 2775`);
    expect(await look(join(dir, "sub"))).toBe(`${group} 2770`);
    expect(await look(join(dir, "sub/deep/file"))).toBe(`${group} 660`);
    expect(await look(join(dir, "suid"))).toBe(`${group} 4775`);
    expect(await look(join(dir, "pipe"))).toBe(`${group} 664`);
    const { gid, mode } = await stat(latin1);
    expect([gid, mode & 0o7777]).toEqual([group, 0o660]);
  });

  test("gives links away themselves, never what they lead to", async () => {
    const outside = await makeTempDir();
    try {
      const target = join(outside.dir, "host-file");
      await writeFile(target, "");
      await chmod(target, 0o600);
      await symlink(target, join(dir, "link"));
      await symlink(outside.dir, join(dir, "sub/link"));
      const before = [await look(outside.dir), await look(target)];
      await applyFSGroup(dir, group, { isReadOnly: false });
      expect([await look(outside.dir), await look(target)]).toEqual(before);
      expect((await lstat(join(dir, "link"))).gid).toBe(group);
      expect((await lstat(join(dir, "sub/link"))).gid).toBe(group);
    } finally {
      await outside.cleanUp();
    }
  });

  test("a link in the place of the volume is refused", async () => {
    await symlink(dir, join(dir, "link"));
    await expect(applyFSGroup(join(dir, "link"), group, { isReadOnly: false })).rejects.toThrow();
    expect((await lstat(dir)).mode & 0o7777).toBe(0o755);
  });

  test("OnRootMismatch spares the walk if the top is right, and only then", async () => {
    await applyFSGroup(dir, group, { isReadOnly: false, policy: "OnRootMismatch" });
    expect(await look(join(dir, "sub"))).toBe(`${group} 2770`);
    await chmod(join(dir, "sub"), 0o700);
    await applyFSGroup(dir, group, { isReadOnly: false, policy: "OnRootMismatch" });
    expect(await look(join(dir, "sub"))).toBe(`${group} 700`);
    await applyFSGroup(dir, group, { isReadOnly: false });
    expect(await look(join(dir, "sub"))).toBe(`${group} 2770`);
  });

  test("reaches what is nested deeper than files may be open, all before the top", async () => {
    const depth = 4 * legDepthMax;
    const deep = join(dir, "d/".repeat(depth));
    await mkdir(deep, { recursive: true, mode: 0o700 });
    await writeFile(join(deep, "file"), "", { mode: 0o600 });
    await writeFile(join(deep, "../../file"), "", { mode: 0o600 });
    const script = `
      const { applyFSGroup } = await import(process.argv[1]);
      await applyFSGroup(process.argv[2], ${group}, { isReadOnly: false });`;
    const args = ["--input-type=module", "-e", script, modulePath, dir];
    // Two descriptors a level would be three times as many.
    const limited = ["-c", 'ulimit -n 180; exec "$@"', "sh", process.execPath, ...args];
    expect(await exec("sh", limited, { timeoutMs: 60_000 })).toMatchObject({ code: 0, stderr: "" });
    for (let level = 1; level <= depth; level += 1) {
      expect(await look(join(dir, "d/".repeat(level)))).toBe(`${group} 2770`);
    }
    expect(await look(join(deep, "file"))).toBe(`${group} 660`);
    expect(await look(join(deep, "../../file"))).toBe(`${group} 660`);
    expect(await look(dir)).toBe(`${group} 2775`);
  }, 30_000);

  test("refuses what is nested deeper than any path can say, and leaves the top for the next try", async () => {
    const handle = await openDir(dir);
    try {
      const parts = Array.from({ length: legsMax * legDepthMax + 1 }, () => "d");
      await withDirs(handle, parts, { mode: 0o700 }, () => Promise.resolve());
      const walk = applyFSGroup(handle, group, { isReadOnly: false });
      await expect(walk).rejects.toMatchObject({
        code: "Invalid",
        message: expect.stringContaining("2048 levels deep"),
      });
      expect(isRootOwned(await lstat(dir), group, false)).toBe(false);
    } finally {
      await handle.close();
      await removeTree(join(dir, "d"));
    }
  }, 30_000);

  test("says so while it takes long, and how far it is", async () => {
    let now = 0;
    const said: [number, number][] = [];
    const monotonic = () => (now += slowWalkMs / 2);
    const onSlow = (entries: number) => said.push([entries, now]);
    for (let at = 0; at < 8; at += 1) await writeFile(join(dir, String(at)), "");
    await applyFSGroup(dir, group, { isReadOnly: false, onSlow, monotonic });
    expect(said.length).toBeGreaterThan(1);
    const [first = [0, 0], second = [0, 0]] = said;
    expect(first[0]).toBeGreaterThan(0);
    expect(first[1]).toBeGreaterThanOrEqual(slowWalkMs);
    expect(second[1] - first[1]).toBeGreaterThanOrEqual(slowWalkAgainMs);
  });
});
