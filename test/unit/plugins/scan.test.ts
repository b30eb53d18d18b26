import { mkdir, mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import type * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { Logger } from "../../../agent/lib/log.ts";
import { openSocketTree, type SocketTree } from "../../../agent/plugins/scan.ts";

/** Is the kernel out of watches? */
const inotify = vi.hoisted(() => ({ isExhausted: false }));
vi.mock("node:fs", async (importOriginal) => {
  const original = await importOriginal<typeof fs>();
  return {
    ...original,
    watch: (...args: Parameters<typeof original.watch>) => {
      if (inotify.isExhausted) throw Object.assign(new Error("no space left on device"), { code: "ENOSPC" });
      return original.watch(...args);
    },
  };
});

let base: string;
let root: string;
let changes: number;
let warnings: unknown[];
let tree: SocketTree;

beforeEach(async () => {
  base = await mkdtemp(join(tmpdir(), "nodelet-scan-"));
  root = join(base, "plugins_registry");
  await mkdir(join(root, "sub"), { recursive: true });
  changes = 0;
  warnings = [];
  inotify.isExhausted = false;
  const log = { warn: (fields: unknown) => void warnings.push(fields) } as unknown as Logger;
  tree = openSocketTree(root, () => (changes += 1), log);
  await tree.scan();
});
afterEach(async () => {
  tree.close();
  await rm(base, { recursive: true });
});

/** True if what happens in a directory is heard of. */
async function isHeard(dir: string): Promise<boolean> {
  await sleep(20); // what was done before has been told
  const before = changes;
  await writeFile(join(dir, "file"), "");
  for (const deadline = performance.now() + 2_000; performance.now() < deadline; await sleep(5)) {
    if (changes > before) return true;
  }
  return false;
}

test.each(["sub", ""])("a directory %j that was made anew between two looks is watched again", async (name) => {
  await rename(join(root, name), join(base, "old"));
  await mkdir(join(root, name), { recursive: true });
  await tree.scan();
  expect(await isHeard(join(root, name))).toBe(true);
});

test("the registry is made again when somebody removes it", async () => {
  await rm(root, { recursive: true });
  await tree.scan();
  expect(await isHeard(root)).toBe(true);
});

test("that directories cannot be watched is told once, and again after they could be", async () => {
  tree.close();
  inotify.isExhausted = true;
  for (let i = 0; i < 3; i += 1) await tree.scan();
  expect(tree.isWatched).toBe(false);
  expect(warnings).toMatchObject([{ dir: root }, { dir: join(root, "sub") }]);
  inotify.isExhausted = false;
  await tree.scan();
  expect(tree.isWatched).toBe(true);
  tree.close();
  inotify.isExhausted = true;
  await tree.scan();
  expect(warnings).toHaveLength(4);
});
