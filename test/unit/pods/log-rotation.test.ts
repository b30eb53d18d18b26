import { appendFile, mkdir, mkdtemp, readdir, readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { createLogRotation, type LogRotationDeps } from "../../../agent/pods/log-rotation.ts";
import { planRotation, type RotationPlan } from "../../../agent/pods/log-rotation-plan.ts";
import type { ContainerStatus, ContainerSummary } from "../../../agent/runtime/port.ts";
import { FakeClock } from "../kube/fake-clock.ts";

const nowMs = new Date(2026, 0, 2, 3, 4, 5).getTime();
const now = "0.log.20260102-030405";
const old = (n: number) => `0.log.2025010${n}-000000`;

const plans: { name: string; files: string[]; max?: number; want: RotationPlan }[] = [
  { name: "the first", files: ["0.log"], want: { remove: [], compress: [], rotateTo: now } },
  {
    name: "the second compresses the first",
    files: ["0.log", old(1)],
    want: { remove: [], compress: [old(1)], rotateTo: now },
  },
  {
    name: "older ones are compressed already",
    files: ["0.log", `${old(1)}.gz`, old(2)],
    want: { remove: [], compress: [old(2)], rotateTo: now },
  },
  {
    name: "the oldest go",
    files: ["0.log", old(4), `${old(2)}.gz`, `${old(3)}.gz`, `${old(1)}.gz`, old(5)],
    want: { remove: [`${old(1)}.gz`, `${old(2)}.gz`], compress: [old(4), old(5)], rotateTo: now },
  },
  {
    name: "two files at most",
    files: ["0.log", old(1)],
    max: 2,
    want: { remove: [old(1)], compress: [], rotateTo: now },
  },
  {
    name: "leftovers of a killed compression",
    files: ["0.log", `${old(1)}.gz.tmp`, `${old(1)}.tmp`, old(1), old(2), `${old(2)}.gz`],
    want: { remove: [`${old(1)}.gz.tmp`, `${old(1)}.tmp`, old(2)], compress: [old(1)], rotateTo: now },
  },
  {
    name: "other instances and other people's files",
    files: ["0.log", "1.log", "10.log.20250101-000000", "0.log.1", "0.log.bak", "0xlog.20250101-000000", "x"],
    want: { remove: [], compress: [], rotateTo: now },
  },
  { name: "twice in a second", files: ["0.log", now], want: { remove: [], compress: [now], rotateTo: undefined } },
  {
    name: "twice in a second, and compressed",
    files: ["0.log", `${now}.gz`],
    want: { remove: [], compress: [], rotateTo: undefined },
  },
];
for (const { name, files, max = 5, want } of plans) {
  test(`rotation plan: ${name}`, () => expect(planRotation(files, "0.log", max, nowMs)).toEqual(want));
}

/** A runtime whose containers are files: each container appends to what it opened last. */
async function setup(change: Partial<LogRotationDeps> = {}) {
  const podLogsDir = await mkdtemp(join(tmpdir(), "nodelet-rotation-"));
  const clock = new FakeClock();
  const failures = { reopen: undefined as Error | undefined, status: 0 };
  const containers: ContainerSummary[] = [];
  const reopened: string[] = [];
  const dirOf = ({ podNamespace, podName, podUID, name }: ContainerSummary) =>
    join(podLogsDir, `${podNamespace}_${podName}_${podUID}`, name);
  const pathOf = (one: ContainerSummary) => join(dirOf(one), `${one.attempt}.log`);
  const find = (id: string) => containers.find((one) => one.id === id) as ContainerSummary;
  const rotation = createLogRotation({
    runtime: {
      list: () => Promise.resolve({ sandboxes: [], containers }),
      containerStatus: (id) => {
        failures.status += 1;
        return Promise.resolve({ logPath: pathOf(find(id)) } as ContainerStatus);
      },
      reopenContainerLog: async (id) => {
        reopened.push(id);
        if (failures.reopen !== undefined) throw failures.reopen;
        await appendFile(pathOf(find(id)), "");
      },
    },
    isKnown: (uid) => uid !== "unknown",
    podLogsDir,
    maxSizeBytes: 100,
    maxFiles: 3,
    maxWorkers: 2,
    intervalMs: 10_000,
    clock,
    log: silentLogger,
    ...change,
  });
  const add = async (name: string, text: string, more: Partial<ContainerSummary> = {}) => {
    const summary = {
      id: name,
      name,
      podUID: "u",
      podName: "p",
      podNamespace: "ns",
      attempt: 0,
      state: "running",
      ...more,
    };
    const one = summary as ContainerSummary;
    containers.push(one);
    await mkdir(dirOf(one), { recursive: true });
    await writeFile(pathOf(one), text, { mode: 0o640 });
    return { dir: dirOf(one), path: pathOf(one), files: async () => (await readdir(dirOf(one))).sort() };
  };
  return {
    add,
    clock,
    failures,
    podLogsDir,
    reopened,
    rotation,
    [Symbol.asyncDispose]: async () => await rm(podLogsDir, { recursive: true, force: true }),
  };
}

const full = "x".repeat(100);

test("a log that has its size is rotated, older ones are compressed, the oldest deleted", async () => {
  await using t = await setup();
  const c = await t.add("c", "");
  for (let i = 1; i <= 4; i += 1) {
    await t.clock.advance(10_000);
    await appendFile(c.path, `${i}${full}`);
    await t.rotation.pass();
  }
  const files = await c.files();
  expect(files).toEqual([
    "0.log",
    expect.stringMatching(/^0\.log\.\d{8}-\d{6}\.gz$/),
    expect.stringMatching(/^0\.log\.\d{8}-\d{6}$/),
  ]);
  const [active = "", compressed = "", rotated = ""] = files.map((name) => join(c.dir, name));
  expect(await readFile(active, "utf8")).toBe("");
  expect(gunzipSync(await readFile(compressed)).toString()).toBe(`3${full}`);
  expect(await readFile(rotated, "utf8")).toBe(`4${full}`);
});

test("small logs, ended containers and pods of others stay as they are", async () => {
  await using t = await setup();
  const small = await t.add("small", full.slice(1));
  const ended = await t.add("ended", full, { state: "exited" });
  const foreign = await t.add("foreign", full, { podUID: "unknown" });
  await t.rotation.pass();
  for (const one of [small, ended, foreign]) expect(await one.files()).toEqual(["0.log"]);
  expect(t.reopened).toEqual([]);
  expect(t.failures.status).toBe(0); // places of logs are known without asking
});

test("a log that cannot be reopened is put back, and rotated later", async () => {
  await using t = await setup();
  const c = await t.add("c", full);
  t.failures.reopen = new AgentError("Unavailable", "restarting");
  await t.rotation.pass();
  expect(await c.files()).toEqual(["0.log"]);
  expect(await readFile(c.path, "utf8")).toBe(full);
  t.failures.reopen = undefined;
  await t.rotation.pass();
  expect(await c.files()).toHaveLength(2);
});

test("a log that is lost is opened anew", async () => {
  await using t = await setup();
  const c = await t.add("c", full);
  await rename(c.path, join(c.dir, "0.log.20250101-000000")); // killed before the runtime was told
  await t.rotation.pass();
  expect(await c.files()).toEqual(["0.log", "0.log.20250101-000000"]);
});

test("one that fails holds up no other", async () => {
  await using t = await setup({ maxWorkers: 1 });
  const before = await t.add("before", full);
  const broken = await t.add("broken", full);
  const after = await t.add("after", full);
  await rm(broken.dir, { recursive: true });
  await t.rotation.pass();
  expect(await before.files()).toHaveLength(2);
  expect(await after.files()).toHaveLength(2);
});

test("a file that cannot be compressed does not keep the log from being rotated", async () => {
  await using t = await setup();
  const c = await t.add("c", full);
  await mkdir(join(c.dir, "0.log.20250101-000000"));
  await t.rotation.pass();
  expect(await readFile(c.path, "utf8")).toBe("");
});

test("links lead nowhere: not the log, not its directory, not a rotated file", async () => {
  await using t = await setup();
  const outside = await mkdtemp(join(tmpdir(), "nodelet-rotation-outside-"));
  try {
    await writeFile(join(outside, "0.log"), full);
    await writeFile(join(outside, "target"), full);
    const file = await t.add("file", "");
    await rm(file.path);
    await symlink(join(outside, "target"), file.path);
    const dir = await t.add("dir", "");
    await rm(dir.dir, { recursive: true });
    await symlink(outside, dir.dir);
    const rotated = await t.add("rotated", full);
    await symlink(join(outside, "target"), join(rotated.dir, "0.log.20250101-000000"));
    const temporary = await t.add("temporary", full);
    await writeFile(join(temporary.dir, "0.log.20250101-000000"), full);
    await symlink(join(outside, "made"), join(temporary.dir, "0.log.20250101-000000.tmp"));
    await t.rotation.pass();
    expect((await readdir(outside)).sort()).toEqual(["0.log", "target"]);
    expect(await readFile(join(outside, "target"), "utf8")).toBe(full);
    expect(await rotated.files()).toContain("0.log.20250101-000000");
    expect(t.reopened.sort()).toEqual(["rotated", "temporary"]);
  } finally {
    await rm(outside, { recursive: true });
  }
});

test("logs are looked at every interval until told to stop", async () => {
  await using t = await setup();
  const c = await t.add("c", full);
  const stop = new AbortController();
  const done = t.rotation.run(stop.signal);
  await t.clock.advance(9_999);
  expect(await c.files()).toEqual(["0.log"]);
  await t.clock.advance(1);
  await expect.poll(async () => (await c.files()).length).toBe(2);
  stop.abort();
  await done;
  expect(t.clock.waiting).toBe(0);
});

test("a negative size turns it off", async () => {
  await using t = await setup({ maxSizeBytes: -1 });
  await t.rotation.run(new AbortController().signal);
  expect(t.clock.waiting).toBe(0);
});

test("a runtime that is away is tried again", async () => {
  let lists = 0;
  const list = () => {
    lists += 1;
    return Promise.reject(new AgentError("Unavailable", "away"));
  };
  await using t = await setup({ runtime: { list } as unknown as LogRotationDeps["runtime"] });
  const stop = new AbortController();
  const done = t.rotation.run(stop.signal);
  await t.clock.advance(10_000);
  await t.clock.advance(10_000);
  expect(lists).toBe(2);
  stop.abort();
  await done;
});
