import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { messageOf } from "../../../agent/lib/errors.ts";
import { hasPublishedContent, writePayload } from "../../../agent/volumes/atomic-writer.ts";
import { openDir } from "../../../agent/volumes/safe-path.ts";
import { makeTempDir } from "./support.ts";
import { Estate, hiddenNames, nowMs, payloadOf, steppedFS, visible, write } from "./writer-support.ts";

const before = { key: "old", gone: "x", "dir/a": "old" };
const after = { key: "new", added: "y", "dir/a": "new" };
let dir: string;
let cleanUp: () => Promise<void>;

beforeEach(async () => {
  ({ dir, cleanUp } = await makeTempDir());
});
afterEach(() => cleanUp());

async function freshVolume(name: string, files: Record<string, string> | undefined): Promise<string> {
  const at = join(dir, name);
  await mkdir(at);
  if (files !== undefined) await write(at, payloadOf(files));
  return at;
}

/** Whole content of one version or the other; keys that come or go may lag behind. */
async function expectWhole(at: string): Promise<void> {
  const seen = await visible(at);
  expect([before.key, after.key]).toContain(seen["key"]);
  expect(seen["dir/a"]).toBe(seen["key"]);
}

describe("the writer is killed before any of its steps", () => {
  test.each([
    { name: "an update", from: before },
    { name: "the first content", from: undefined },
  ])("$name: a reader sees old or new content, never a mix, and the next run puts all right", async ({ from }) => {
    let isFinished = false;
    let steps = 0;
    for (; !isFinished; steps += 1) {
      const at = await freshVolume(String(steps), from);
      let left = steps;
      const { promise: died, resolve } = Promise.withResolvers<false>();
      const estate = new Estate();
      const handle = estate.opened(await openDir(at));
      const beforeStep = () => {
        left -= 1;
        if (left >= 0) return Promise.resolve();
        resolve(false);
        return new Promise<void>(() => {}); // nothing ever again
      };
      const fs = steppedFS(beforeStep, estate);
      isFinished = await Promise.race([writePayload(handle, payloadOf(after), { fs, nowMs }), died]);
      await estate.settle();
      if (from !== undefined) {
        await expectWhole(at);
        expect(await hasPublishedContent(at)).toBe(true);
      }
      await write(at, payloadOf(after), { nowMs: nowMs + 1000 });
      expect(await visible(at)).toEqual(after);
      expect({ steps, hidden: (await hiddenNames(at)).length }).toEqual({ steps, hidden: 2 });
    }
    expect(steps).toBeGreaterThan(20);
  });
});

describe("a step fails", () => {
  test("the old content stays whole, the error says why without our paths, and the next run puts all right", async () => {
    const failed = new Set<string>();
    for (let steps = 0; ; steps += 1) {
      const at = await freshVolume(String(steps), before);
      let left = steps;
      const fs = steppedFS((step) => {
        left -= 1;
        if (left !== -1) return Promise.resolve();
        failed.add(step);
        const text = `ENOSPC: no space left on device, ${step} '/proc/self/fd/9/..secret'`;
        return Promise.reject(Object.assign(new Error(text), { code: "ENOSPC" }));
      });
      const failure = await write(at, payloadOf(after), { fs }).then(
        () => undefined,
        (err: unknown) => messageOf(err),
      );
      if (left >= 0) break; // there is no such step any more
      // What is only tidied up may fail without a word.
      const told = failure ?? "cannot write the volume's files: ENOSPC: no space left on device";
      expect(told).toBe("cannot write the volume's files: ENOSPC: no space left on device");
      await expectWhole(at);
      await write(at, payloadOf(after), { nowMs: nowMs + 1000 });
      expect(await visible(at)).toEqual(after);
      expect(await hiddenNames(at)).toHaveLength(2);
    }
    expect([...failed].sort()).toEqual([
      "chmod",
      "lstat",
      "mkdir",
      "open",
      "readdir",
      "readlink",
      "removeTree",
      "rename",
      "symlink",
      "unlink",
      "writeFile",
    ]);
  });
});
