import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type Logger, silentLogger } from "../../../agent/lib/log.ts";
import { createTmpfsProbe, isRefusal, releaseHasNoswap } from "../../../agent/volumes/tmpfs-probe.ts";
import { makeTempDir } from "./support.ts";

let dir: string;
let cleanUp: () => Promise<void>;

beforeEach(async () => {
  ({ dir, cleanUp } = await makeTempDir());
});
afterEach(() => cleanUp());

test.each([
  ["6.4.0", true],
  ["6.18.44-fc", true],
  ["7.0", true],
  ["6.3.9", false],
  ["5.14.0-427.el9", false],
])("noswap in %s: %s", (kernel, want) => expect(releaseHasNoswap(kernel)).toBe(want));

test.each([
  // util-linux 2.38, 2.39 and later with the new mount calls, and busybox
  ["mount: /d: wrong fs type, bad option, bad superblock on tmpfs, missing codepage or helper program.", true],
  ["mount: /d: fsconfig() failed: tmpfs: Unknown parameter 'noswap'.", true],
  ["mount: mounting tmpfs on /d failed: Invalid argument", true],
  ["mount: /d: cannot allocate memory.", false],
  ["mount: /d: permission denied.", false],
  ["", false],
])("what mount says is a refusal: %s %s", (words, want) => expect(isRefusal(words)).toBe(want));

test("a trial that fails for a moment is made again, and logged", async () => {
  const warnings: string[] = [];
  const log = {
    ...silentLogger,
    warn: (_fields: object, message: string) => warnings.push(message),
  } as unknown as Logger;
  const scratch = join(dir, "scratch");
  await writeFile(scratch, ""); // a file: nothing can be made in it
  const takesNoswap = createTmpfsProbe(scratch, log, "5.10.0");
  const kernels = createTmpfsProbe(join(dir, "right"), silentLogger, "5.10.0");
  expect(await takesNoswap()).toBe(false);
  const isDecidedWithoutTrial = warnings.length === 0; // in a user namespace
  await rm(scratch);
  await mkdir(scratch);
  expect(await takesNoswap()).toBe(await kernels());
  if (!isDecidedWithoutTrial) expect(warnings[0]).toContain("the next one asks again");
});
