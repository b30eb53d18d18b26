import { mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { replacementsIn } from "../../../agent/pods/replacements.ts";

let rootDir: string;
beforeEach(async () => {
  rootDir = await mkdtemp(join(tmpdir(), "nodelet-replacements-"));
});
afterEach(async () => await rm(rootDir, { recursive: true, force: true }));

test("the instance that was noted last is the one that is read", async () => {
  const notes = replacementsIn(rootDir);
  expect(await notes.read("u1", "app")).toBeUndefined();
  await notes.note("u1", "app", "c0");
  await notes.note("u1", "app", "c1");
  await notes.note("u1", "log", "c2");
  expect(await replacementsIn(rootDir).read("u1", "app")).toBe("c1");
  expect(await notes.read("u2", "app")).toBeUndefined();
  expect((await stat(join(rootDir, "pods/u1/containers/app/replaced"))).mode & 0o777).toBe(0o600);
});

test.each(["", "x".repeat(1_000)])("a note that makes no sense is none", async (text) => {
  const notes = replacementsIn(rootDir);
  await notes.note("u1", "app", "c0");
  await writeFile(join(rootDir, "pods/u1/containers/app/replaced"), text);
  expect(await notes.read("u1", "app")).toBeUndefined();
});
