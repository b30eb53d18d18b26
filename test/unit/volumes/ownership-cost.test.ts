import type * as fsPromises from "node:fs/promises";
import { mkdir, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { applyFSGroup, entriesAtOnceMax } from "../../../agent/volumes/ownership.ts";
import { makeTempDir, strangers } from "./support.ts";

// What a walk asks the system for, which on a volume of a hundred thousand files decides between seconds and minutes.

const counts = vi.hoisted(() => ({ opens: 0, changes: 0, running: 0, peak: 0, tellsTypes: true }));
vi.mock("node:fs/promises", async (importOriginal) => {
  const fs = await importOriginal<typeof fsPromises>();
  const running = async <T>(work: Promise<T>): Promise<T> => {
    counts.running += 1;
    counts.peak = Math.max(counts.peak, counts.running);
    return await work.finally(() => (counts.running -= 1));
  };
  return {
    ...fs,
    open: async (...args: Parameters<typeof fs.open>) => {
      counts.opens += 1;
      return await fs.open(...args);
    },
    chown: async (...args: Parameters<typeof fs.chown>) => {
      counts.changes += 1;
      await fs.chown(...args);
    },
    opendir: async (...args: Parameters<typeof fs.opendir>) => {
      const entries = await fs.opendir(...args);
      return counts.tellsTypes ? entries : untyped(entries);
    },
    lstat: async (...args: Parameters<typeof fs.lstat>) => await running(fs.lstat(...args)),
  };
});

/** As file systems have them that do not say what their entries are. */
async function* untyped(entries: AsyncIterable<{ name: string }>) {
  for await (const { name } of entries) yield { name, isDirectory: () => false };
}

const files = 200;
let dir: string;
let cleanUp: () => Promise<void>;
beforeEach(async () => {
  ({ dir, cleanUp } = await makeTempDir());
  for (const name of ["a", "b"]) {
    await mkdir(join(dir, name));
    for (let i = 0; i < files / 2; i += 1) await writeFile(join(dir, name, String(i)), "");
  }
});
afterEach(() => cleanUp());

test("files are looked at several at a time, and those that are right already are not opened", async () => {
  await applyFSGroup(dir, strangers.gid, { isReadOnly: false });
  expect(counts.opens).toBeGreaterThan(files);
  expect(counts.peak).toBeGreaterThan(1);
  expect(counts.peak).toBeLessThanOrEqual(entriesAtOnceMax);

  Object.assign(counts, { opens: 0, changes: 0 });
  await applyFSGroup(dir, strangers.gid, { isReadOnly: false });
  expect(counts.opens).toBeLessThan(10); // of directories
  expect(counts.changes).toBe(0);
});

test("directories of file systems that do not say so are found all the same", async () => {
  counts.tellsTypes = false;
  await applyFSGroup(dir, strangers.gid, { isReadOnly: false });
  counts.tellsTypes = true;
  for (const path of ["a", "a/7", "b/42"]) expect((await stat(join(dir, path))).gid).toBe(strangers.gid);
  expect((await stat(join(dir, "b"))).mode & 0o2770).toBe(0o2770);
});
