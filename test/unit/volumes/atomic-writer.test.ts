import * as nodeFS from "node:fs/promises";
import { chmod, lstat, mkdir, readdir, readFile, readlink, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import {
  hasPublishedContent,
  type Payload,
  payloadNameBytesMax,
  payloadPathBytesMax,
  validatePath,
  type WriterFS,
  writePayload,
} from "../../../agent/volumes/atomic-writer.ts";
import { applyFSGroup, fsGroupMode } from "../../../agent/volumes/ownership.ts";
import { makeTempDir } from "./support.ts";

const nowMs = Date.UTC(2026, 0, 31, 23, 59, 59);
let dir: string;
let cleanUp: () => Promise<void>;

beforeEach(async () => {
  ({ dir, cleanUp } = await makeTempDir());
});
afterEach(() => cleanUp());

function payload(files: Record<string, string>, mode = 0o644): Payload {
  return new Map(Object.entries(files).map(([path, text]) => [path, { data: Buffer.from(text), mode }]));
}

/** What a container sees: path → text, without the names that start with "..". */
async function visible(at = dir): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  const walk = async (path: string, prefix: string) => {
    for (const name of await readdir(path)) {
      if (prefix === "" && name.startsWith("..")) continue;
      const full = join(path, name);
      const key = prefix + name;
      const kind = await stat(full).catch(() => undefined);
      if (kind === undefined) found[key] = "(dangling)";
      else if (kind.isDirectory()) await walk(full, `${key}/`);
      else found[key] = await readFile(full, "utf8");
    }
  };
  await walk(at, "");
  return found;
}

async function hiddenNames(): Promise<string[]> {
  return (await readdir(dir)).filter((name) => name.startsWith("..")).sort();
}

describe("writePayload", () => {
  test("lays files out behind ..data, as other readers of the layout expect", async () => {
    await writePayload(dir, payload({ key: "value", "conf.d/a": "1", "conf.d/b": "2" }), { nowMs });
    const version = await readlink(join(dir, "..data"));
    expect(version).toMatch(/^\.\.2026_01_31_23_59_59\.\d+$/);
    expect(await readlink(join(dir, "key"))).toBe("..data/key");
    expect(await readlink(join(dir, "conf.d"))).toBe("..data/conf.d");
    expect((await stat(join(dir, version))).mode & 0o7777).toBe(0o755);
    expect(await visible()).toEqual({ key: "value", "conf.d/a": "1", "conf.d/b": "2" });
  });

  test("sets exactly the mode asked for, whatever the umask", async () => {
    await writePayload(dir, payload({ open: "x" }, 0o666), { nowMs });
    expect((await stat(join(dir, "open"))).mode & 0o7777).toBe(0o666);
  });

  test("writes nothing when nothing changed, not even for another mode", async () => {
    expect(await writePayload(dir, payload({ key: "value" }), { nowMs })).toBe(true);
    const before = await readlink(join(dir, "..data"));
    expect(await writePayload(dir, payload({ key: "value" }, 0o400), { nowMs: nowMs + 5000 })).toBe(false);
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
    await writePayload(dir, payload({ key: "value", other: "same" }), { nowMs });
    expect(await writePayload(dir, payload(files), { nowMs: nowMs + 1000 })).toBe(true);
    expect(await visible()).toEqual(files);
    expect(await hiddenNames()).toEqual(
      ["..2026_02_01_00_00_00.", "..data"].map((name) => expect.stringContaining(name) as string),
    );
  });

  test("keeps directories that other volumes are mounted at", async () => {
    await mkdir(join(dir, "nested/mount"), { recursive: true });
    await writePayload(dir, payload({ key: "1" }), { nowMs });
    await writePayload(dir, payload({ other: "1" }), { nowMs });
    expect((await stat(join(dir, "nested/mount"))).isDirectory()).toBe(true);
    await expect(writePayload(dir, payload({ nested: "1" }), { nowMs })).rejects.toThrow('path "nested" is taken');
  });

  test("does not follow a ..data that leads elsewhere", async () => {
    const outside = await makeTempDir();
    try {
      await writeFile(join(outside.dir, "key"), "precious");
      await symlink(outside.dir, join(dir, "..data"));
      await writePayload(dir, payload({ key: "value" }), { nowMs });
      expect(await visible()).toEqual({ key: "value" });
      expect(await visible(outside.dir)).toEqual({ key: "precious" });
    } finally {
      await outside.cleanUp();
    }
  });

  test("applies ownership before the new content is visible", async () => {
    let seen: Record<string, string> | undefined;
    await writePayload(dir, payload({ key: "old" }), { nowMs });
    const applyOwnership = async () => {
      seen = await visible();
    };
    await writePayload(dir, payload({ key: "new" }), { nowMs, applyOwnership });
    expect(seen).toEqual({ key: "old" });
  });

  test("a failure leaves the old content and no rubbish", async () => {
    await writePayload(dir, payload({ key: "old" }), { nowMs });
    const applyOwnership = () => Promise.reject(new Error("no such group"));
    await expect(writePayload(dir, payload({ key: "new" }), { nowMs, applyOwnership })).rejects.toThrow(
      "no such group",
    );
    expect(await visible()).toEqual({ key: "old" });
    expect(await hiddenNames()).toHaveLength(2);
  });
});

/** Does `steps` operations, then nothing ever again: as a process that was killed. */
function dyingFS(steps: number): { fs: WriterFS; died: Promise<false> } {
  let left = steps;
  const { promise: died, resolve } = Promise.withResolvers<false>();
  const fs = new Proxy(nodeFS, {
    get(target, property: keyof WriterFS) {
      const original = target[property] as (...args: unknown[]) => unknown;
      return (...args: unknown[]) => {
        if (left > 0) {
          left -= 1;
          return original(...args);
        }
        resolve(false);
        return new Promise(() => {});
      };
    },
  });
  return { fs, died };
}

describe("writePayload killed at any step", () => {
  const before = { key: "old", gone: "x", "dir/a": "old" };
  const after = { key: "new", added: "y", "dir/a": "new" };

  test("shows old or new content, never a mix, and the next run puts all right", async () => {
    let finished = false;
    let steps = 0;
    for (; !finished; steps += 1) {
      const at = join(dir, String(steps));
      await mkdir(at);
      await writePayload(at, payload(before), { nowMs });
      const { fs, died } = dyingFS(steps);
      const run = writePayload(at, payload(after), { nowMs, fs });
      finished = await Promise.race([run, died]);

      const seen = await visible(at);
      expect([before.key, after.key]).toContain(seen["key"]);
      expect(seen["dir/a"]).toBe(seen["key"]);
      expect(await hasPublishedContent(at)).toBe(true);

      await writePayload(at, payload(after), { nowMs: nowMs + 1000 });
      expect(await visible(at)).toEqual(after);
      const hidden = (await readdir(at)).filter((name) => name.startsWith(".."));
      expect({ steps, hidden: hidden.length }).toEqual({ steps, hidden: 2 });
    }
    expect(steps).toBeGreaterThan(20);
  });
});

describe("validatePath", () => {
  test.each([
    ["a", "a"],
    ["a/b", "a/b"],
    ["./a//b/", "a/b"],
    ["a..b", "a..b"],
    ["a/..b", "a/..b"],
    [".hidden", ".hidden"],
    ["x".repeat(payloadNameBytesMax), "x".repeat(payloadNameBytesMax)],
  ])("takes %s", (path, want) => expect(validatePath(path)).toBe(want));

  test.each([
    ["", "is empty"],
    ["/etc/passwd", "is absolute"],
    ["..", 'must not contain ".."'],
    ["a/../../b", 'must not contain ".."'],
    ["..data", 'must not start with ".."'],
    ["./..data", 'must not start with ".."'],
    [".", "names the volume itself"],
    ["a\0b", "NUL"],
    ["x".repeat(payloadNameBytesMax + 1), "part longer than 255 bytes"],
    ["ü".repeat(payloadNameBytesMax / 2 + 1), "part longer than 255 bytes"],
    ["x/".repeat(payloadPathBytesMax / 2 + 1), "longer than 4096 bytes"],
  ])("refuses %s", (path, why) => expect(() => validatePath(path)).toThrow(why));
});

describe("fsGroup", () => {
  test.each([
    { name: "file, writable", mode: 0o644, isDirectory: false, isReadOnly: false, want: 0o664 },
    { name: "file, read-only", mode: 0o400, isDirectory: false, isReadOnly: true, want: 0o440 },
    { name: "private token", mode: 0o600, isDirectory: false, isReadOnly: true, want: 0o640 },
    { name: "directory, writable", mode: 0o755, isDirectory: true, isReadOnly: false, want: 0o2775 },
    { name: "directory, read-only", mode: 0o700, isDirectory: true, isReadOnly: true, want: 0o2750 },
    { name: "emptyDir", mode: 0o777, isDirectory: true, isReadOnly: false, want: 0o2777 },
  ])("$name", ({ mode, isDirectory, isReadOnly, want }) => {
    expect(fsGroupMode(mode, isDirectory, isReadOnly).toString(8)).toBe(want.toString(8));
  });

  test("gives links away themselves, never what they lead to", async () => {
    const outside = await makeTempDir();
    try {
      const target = join(outside.dir, "host-file");
      await writeFile(target, "");
      await chmod(target, 0o600);
      await symlink(target, join(dir, "link"));
      const { gid } = await stat(dir);
      await applyFSGroup(dir, gid, { isReadOnly: false });
      expect((await lstat(target)).mode & 0o7777).toBe(0o600);
      expect((await lstat(dir)).mode & 0o7777).toBe(0o2770);
    } finally {
      await outside.cleanUp();
    }
  });
});
