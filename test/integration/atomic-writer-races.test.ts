import { chmod, lstat, mkdir, readdir, readFile, readlink, rename, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { openDir } from "../../agent/volumes/safe-path.ts";
import { writePayload } from "../../agent/volumes/atomic-writer.ts";
import { applyFSGroup } from "../../agent/volumes/ownership.ts";
import { makeTempDir, strangers } from "../unit/volumes/support.ts";
import { nowMs, payloadOf, steppedFS, write } from "../unit/volumes/writer-support.ts";

let dir: string;
let cleanUp: () => Promise<void>;

beforeEach(async () => {
  ({ dir, cleanUp } = await makeTempDir());
});
afterEach(() => cleanUp());

describe("somebody swaps parts of the volume for links to the host's files before any step", () => {
  const { gid: group } = strangers;
  // Few files: each step more is a run more.
  const small = (value: string) => payloadOf({ key: value, "dir/a": value });
  let host: string;
  let untouched: unknown;

  const freshVolume = async (name: string) => {
    const at = join(dir, name);
    await mkdir(at);
    await write(at, small("old"));
    return at;
  };
  const picture = async () => {
    const names = (await readdir(host, { recursive: true })).sort();
    return await Promise.all(
      ["", ...names].map(async (name) => {
        const { mode, uid, gid, size, mtimeMs } = await lstat(join(host, name));
        return { name, mode, uid, gid, size, mtimeMs };
      }),
    );
  };

  beforeEach(async () => {
    host = join(dir, "host");
    await mkdir(join(host, "dir"), { recursive: true });
    for (const name of ["key", "added", "dir/a"]) await writeFile(join(host, name), "precious", { mode: 0o600 });
    await chmod(host, 0o700);
    untouched = await picture();
  });

  const newest = async (at: string) =>
    (await readdir(at))
      .filter((name) => /^\.\.\d/.test(name))
      .sort()
      .at(-1) ?? "";
  const swap = async (path: string, target: string) => {
    await rename(path, `${path}-aside-${Math.random()}`).catch(() => {});
    await symlink(target, path).catch(() => {});
  };
  const attacks: Record<string, (at: string) => Promise<void>> = {
    "..data": (at) => swap(join(at, "..data"), host),
    "..data_tmp": (at) => swap(join(at, "..data_tmp"), host),
    "the version being written": async (at) => {
      const version = await newest(at);
      if (version !== "") await swap(join(at, version), host);
    },
    "a directory in that version": async (at) => {
      const version = await newest(at);
      if (version !== "") await swap(join(at, version, "dir"), join(host, "dir"));
    },
    "a file in that version": async (at) => {
      const version = await newest(at);
      if (version !== "") await swap(join(at, version, "key"), join(host, "key"));
    },
    "the link to a file": (at) => swap(join(at, "key"), join(host, "key")),
    "the volume itself": (at) => swap(at, host),
  };

  test.each(Object.keys(attacks))("%s", async (name) => {
    for (let steps = 0, isOver = false; !isOver; steps += 1) {
      const at = await freshVolume(String(steps));
      let left = steps;
      const fs = steppedFS(async () => {
        left -= 1;
        if (left === -1) await attacks[name]?.(at);
      });
      const handle = await openDir(at);
      const applyOwnership = () => applyFSGroup(handle, group, { isReadOnly: true });
      await writePayload(handle, small("new"), { fs, applyOwnership, nowMs: nowMs + 1000 }).catch(() => {});
      await handle.close();
      isOver = left >= 0;
      expect({ steps, host: await picture() }).toEqual({ steps, host: untouched });
    }
  });

  test("and the next run puts the volume right", async () => {
    for (const [name, attack] of Object.entries(attacks)) {
      if (name === "the volume itself") continue;
      const at = await freshVolume(name);
      await attack(at);
      await write(at, small("new"), { nowMs: nowMs + 1000 });
      expect({ name, seen: await readFile(join(at, "key"), "utf8") }).toEqual({ name, seen: "new" });
      expect(await readlink(join(at, "..data"))).toMatch(/^\.\.2026/);
      expect((await stat(join(at, "dir/a"))).size).toBe(3);
    }
    expect(await picture()).toEqual(untouched);
  });
});
