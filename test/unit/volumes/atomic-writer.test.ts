import { lstat, mkdir, readFile, readlink, rm, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { exec } from "../../../agent/lib/exec.ts";
import { makeTempDir, strangers } from "./support.ts";
import { hiddenNames, nowMs, payloadOf, visible, write } from "./writer-support.ts";

let dir: string;
let cleanUp: () => Promise<void>;

beforeEach(async () => {
  ({ dir, cleanUp } = await makeTempDir());
});
afterEach(() => cleanUp());

describe("writePayload", () => {
  test("lays files out behind ..data, as other readers of the layout expect", async () => {
    await write(dir, payloadOf({ key: "value", "conf.d/a": "1", "conf.d/b": "2" }));
    const version = await readlink(join(dir, "..data"));
    expect(version).toMatch(/^\.\.2026_01_31_23_59_59\.\d+$/);
    expect(await readlink(join(dir, "key"))).toBe("..data/key");
    expect(await readlink(join(dir, "conf.d"))).toBe("..data/conf.d");
    expect((await stat(join(dir, version))).mode & 0o7777).toBe(0o755);
    expect(await visible(dir)).toEqual({ key: "value", "conf.d/a": "1", "conf.d/b": "2" });
  });

  test("sets exactly the mode asked for, whatever the umask", async () => {
    await write(dir, payloadOf({ open: "x" }, 0o666));
    expect((await stat(join(dir, "open"))).mode & 0o7777).toBe(0o666);
  });

  test("writes nothing when nothing changed, not even for another mode", async () => {
    expect(await write(dir, payloadOf({ key: "value" }))).toBe(true);
    const before = await readlink(join(dir, "..data"));
    expect(await write(dir, payloadOf({ key: "value" }, 0o400), { nowMs: nowMs + 5000 })).toBe(false);
    expect(await readlink(join(dir, "..data"))).toBe(before);
    expect((await stat(join(dir, "key"))).mode & 0o777).toBe(0o644);
  });

  test.each([
    ["a changed value", { key: "new", other: "same" }],
    ["an added key", { key: "value", other: "same", more: "x" }],
    ["a removed key", { key: "value" }],
    ["a key that became a directory", { "key/a": "value", other: "same" }],
    ["no keys any more", {}],
  ])("follows %s and leaves one version", async (_name, files) => {
    await write(dir, payloadOf({ key: "value", other: "same" }));
    expect(await write(dir, payloadOf(files), { nowMs: nowMs + 1000 })).toBe(true);
    expect(await visible(dir)).toEqual(files);
    expect(await hiddenNames(dir)).toEqual(
      ["..2026_02_01_00_00_00.", "..data"].map((name) => expect.stringContaining(name) as string),
    );
  });

  test("keeps directories that other volumes are mounted at", async () => {
    await mkdir(join(dir, "nested/mount"), { recursive: true });
    await write(dir, payloadOf({ key: "1" }));
    await write(dir, payloadOf({ other: "1" }));
    expect((await stat(join(dir, "nested/mount"))).isDirectory()).toBe(true);
    await expect(write(dir, payloadOf({ nested: "1" }))).rejects.toThrow('path "nested" is taken');
  });

  test("does not follow a ..data that leads elsewhere", async () => {
    const outside = await makeTempDir();
    try {
      await writeFile(join(outside.dir, "key"), "precious");
      await symlink(outside.dir, join(dir, "..data"));
      await write(dir, payloadOf({ key: "value" }));
      expect(await visible(dir)).toEqual({ key: "value" });
      expect(await visible(outside.dir)).toEqual({ key: "precious" });
    } finally {
      await outside.cleanUp();
    }
  });

  test("applies ownership before the new content is visible", async () => {
    let seen: Record<string, string> | undefined;
    await write(dir, payloadOf({ key: "old" }));
    const applyOwnership = async () => {
      seen = await visible(dir);
    };
    await write(dir, payloadOf({ key: "new" }), { applyOwnership });
    expect(seen).toEqual({ key: "old" });
  });

  test("a failure leaves the old content and no rubbish", async () => {
    await write(dir, payloadOf({ key: "old" }));
    const applyOwnership = () => Promise.reject(new Error("no such group"));
    await expect(write(dir, payloadOf({ key: "new" }), { applyOwnership })).rejects.toThrow("no such group");
    expect(await visible(dir)).toEqual({ key: "old" });
    expect(await hiddenNames(dir)).toHaveLength(2);
  });

  test("replaces what somebody put in the place of our links, whatever it is", async () => {
    await write(dir, payloadOf({ key: "value", other: "same" }));
    for (const name of ["..data", "..data_tmp", "key"]) await rm(join(dir, name), { force: true });
    await mkdir(join(dir, "..data"));
    await writeFile(join(dir, "..data/key"), "foreign");
    await mkdir(join(dir, "..data_tmp/full"), { recursive: true });
    await writeFile(join(dir, "key"), "foreign");
    await write(dir, payloadOf({ key: "value", other: "same" }));
    expect(await visible(dir)).toEqual({ key: "value", other: "same" });
    expect(await hiddenNames(dir)).toHaveLength(2);
  });

  test("a foreign file in the current version is a reason to write anew, a pipe is not waited for", async () => {
    for (const spoil of [
      (at: string) => writeFile(join(at, "foreign"), ""),
      (at: string) => mkdir(join(at, "foreign")),
      async (at: string) => {
        await rm(join(at, "key"));
        await exec("mkfifo", [join(at, "key")], { timeoutMs: 10_000 });
      },
      async (at: string) => {
        await rm(join(at, "key"));
        await symlink("/etc/hostname", join(at, "key"));
      },
    ]) {
      await write(dir, payloadOf({ key: "value" }));
      await spoil(join(dir, await readlink(join(dir, "..data"))));
      expect(await write(dir, payloadOf({ key: "value" }))).toBe(true);
      expect(await visible(dir)).toEqual({ key: "value" });
      expect(await hiddenNames(dir)).toHaveLength(2);
    }
  });

  test("values of a MiB and of any bytes come back as they are", async () => {
    const data = Buffer.alloc(1 << 20, "x");
    const bytes = Buffer.from(Array.from({ length: 256 }, (_, at) => at));
    const payload = new Map([
      ["big", { data, mode: 0o644 }],
      ["bytes", { data: bytes, mode: 0o644 }],
      ["empty", { data: Buffer.alloc(0), mode: 0o644 }],
    ]);
    expect(await write(dir, payload)).toBe(true);
    expect(await write(dir, payload)).toBe(false);
    expect((await readFile(join(dir, "big"))).equals(data)).toBe(true);
    expect((await readFile(join(dir, "bytes"))).equals(bytes)).toBe(true);
    data[1 << 19] = 0;
    expect(await write(dir, payload)).toBe(true);
    expect((await readFile(join(dir, "big"))).equals(data)).toBe(true);
  });

  test("owners of files are those of their links", async () => {
    const data = Buffer.from("token");
    const { uid } = strangers;
    await write(dir, new Map([["token", { data, mode: 0o600, uid }]]));
    expect((await stat(join(dir, "token"))).uid).toBe(uid);
    expect((await lstat(join(dir, "token"))).uid).toBe(uid);
    expect((await stat(join(dir, "token"))).mode & 0o7777).toBe(0o600);
  });
});
