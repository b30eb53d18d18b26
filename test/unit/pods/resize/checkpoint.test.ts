import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { silentLogger } from "../../../../agent/lib/log.ts";
import {
  lazySaveMs,
  parseCheckpoint,
  renderCheckpoint,
  ResourceCheckpoint,
  saveRetry,
} from "../../../../agent/pods/resize/checkpoint.ts";
import { FakeClock } from "../../kube/fake-clock.ts";
import { both, requests } from "./support.ts";

// As the reference writes it, checksum included.
const ofReference =
  '{"data":"{\\"entries\\":{\\"pod1\\":{\\"ContainerResources\\":{\\"container1\\":{\\"requests\\":{\\"cpu\\":\\"1Ki\\",\\"memory\\":\\"1Ki\\"}}}}}}","checksum":1178570812}';

describe("the file's text", () => {
  test("is the reference's, byte for byte", () => {
    const entries = { pod1: { containers: { container1: requests("1Ki", "1Ki") } } };
    expect(parseCheckpoint(ofReference)).toEqual(entries);
    expect(renderCheckpoint(entries)).toBe(ofReference);
  });

  test("holds what it is given, pods' own resources included, in an order of its own", () => {
    const entries = { b: { containers: { app: both("1", "1Gi") }, pod: requests("2", "2Gi") }, a: { containers: {} } };
    expect(parseCheckpoint(renderCheckpoint(entries))).toEqual(entries);
    expect(renderCheckpoint({ a: entries.a, b: entries.b })).toBe(renderCheckpoint(entries));
    expect(parseCheckpoint(renderCheckpoint({}))).toEqual({});
  });

  test.each([
    ["nothing", "", /JSON/],
    ["half of it", ofReference.slice(0, 80), /JSON/],
    ["a wrong checksum", ofReference.replace("1178570812", "1"), /its checksum does not fit/],
    ["changed data", ofReference.replaceAll("1Ki", "2Ki"), /its checksum does not fit/],
    ["something else", "[]", /malformed/],
    ["no data", '{"checksum":1}', /has no data/],
  ])("with %s is refused", (_name, text, why) => {
    expect(() => parseCheckpoint(text)).toThrow(why);
  });
});

describe("a checkpoint", () => {
  let dir: string;
  let path: string;
  let clock: FakeClock;
  const open = () => new ResourceCheckpoint(path, { clock, log: silentLogger });
  const onDisk = async () => parseCheckpoint(await readFile(path, "utf8"));

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), "resize-"));
    path = join(dir, "allocated_pods_state");
    clock = new FakeClock();
  });
  afterEach(() => rm(dir, { recursive: true }));

  test("has after a restart what was saved", async () => {
    const before = open();
    before.set("a", { containers: { app: requests("1", "1Gi") } });
    await before.save();
    before.set("b", { containers: {} }); // too late
    const after = open();
    await after.load();
    expect(after.get("a")).toEqual({ containers: { app: requests("1", "1Gi") } });
    expect(after.get("b")).toBeUndefined();
    expect(await readdir(dir)).toEqual(["allocated_pods_state"]);
  });

  test.each(["", "{", ofReference.replace("1178570812", "7")])("that is damaged (%j) begins empty", async (text) => {
    await writeFile(path, text);
    const checkpoint = open();
    await checkpoint.load();
    expect(checkpoint.get("pod1")).toBeUndefined();
    checkpoint.set("a", { containers: {} });
    await checkpoint.save();
    expect(Object.keys(await onDisk())).toEqual(["a"]);
  });

  test("saves what was there at the call, even while it saves already", async () => {
    const checkpoint = open();
    const saves = ["a", "b", "c"].map(async (uid) => {
      checkpoint.set(uid, { containers: {} });
      await checkpoint.save();
      expect(Object.keys(await onDisk())).toContain(uid);
    });
    await Promise.all(saves);
    expect(Object.keys(await onDisk())).toEqual(["a", "b", "c"]);
  });

  test("saves at once what nobody waits for, what comes soon after a little later, and at the end at once", async () => {
    const checkpoint = open();
    const add = (uid: string) => {
      checkpoint.set(uid, { containers: {} });
      checkpoint.saveSoon();
    };
    const saved = async () => {
      await checkpoint.save(); // whatever is under way is over then
      return Object.keys(await onDisk());
    };
    add("a");
    await clock.advance(0);
    await vi.waitFor(async () => expect(Object.keys(await onDisk())).toEqual(["a"]), { interval: 2 });
    add("b");
    await clock.advance(lazySaveMs - 1);
    expect(Object.keys(await onDisk())).toEqual(["a"]);
    await clock.advance(1);
    expect(await saved()).toEqual(["a", "b"]);
    add("c");
    await checkpoint.flush();
    expect(Object.keys(await onDisk())).toEqual(["a", "b", "c"]);
  });

  test("tries again by itself what could not be written", async () => {
    path = join(dir, "missing", "state");
    const checkpoint = open();
    checkpoint.set("a", { containers: {} });
    checkpoint.saveSoon();
    await clock.advance(0);
    await vi.waitFor(() => expect(clock.waiting).toBe(1), { interval: 2 });
    await mkdir(join(dir, "missing"));
    await clock.advance(saveRetry.baseMs);
    await vi.waitFor(async () => expect(Object.keys(await onDisk())).toEqual(["a"]), { interval: 2 });
    expect(clock.waiting).toBe(0);
  });

  test("says when it cannot be written, and is when it can", async () => {
    path = join(dir, "missing", "state");
    const checkpoint = open();
    await checkpoint.load();
    checkpoint.set("a", { containers: {} });
    await expect(checkpoint.save()).rejects.toThrow("ENOENT");
    checkpoint.saveSoon();
    await checkpoint.flush(); // logged
  });

  test("forgets pods that are not there any more", async () => {
    const checkpoint = open();
    for (const uid of ["a", "b"]) checkpoint.set(uid, { containers: {} });
    checkpoint.keepOnly((uid) => uid === "b");
    await checkpoint.save();
    expect(Object.keys(await onDisk())).toEqual(["b"]);
  });
});
