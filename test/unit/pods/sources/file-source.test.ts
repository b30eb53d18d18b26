import { chmod, mkdir, mkdtemp, open, rename, rm, symlink, unlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { Pod } from "../../../../agent/kube/types.ts";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { manifestBytesMax, quietMs, runFileSource } from "../../../../agent/pods/sources/file-source.ts";
import { manifestOf, options } from "./support.ts";

let dir: string;
let path: string;
let stop: AbortController;
let ended: Promise<void> | undefined;
let delivered: Pod[][];
let problems: string[];

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "file-source-"));
  path = join(dir, "manifests");
  stop = new AbortController();
  [delivered, problems, ended] = [[], [], undefined];
});
afterEach(async () => {
  stop.abort();
  await ended;
  await rm(dir, { recursive: true, force: true });
});

// Long against what these tests wait for: what they see is not seen by the periodic look.
const checkMsDefault = 60_000;

function run({ checkMs = checkMsDefault, clock = systemClock, at = path } = {}): void {
  ended = runFileSource(
    {
      ...options,
      path: at,
      checkMs,
      deliver: (pods) => delivered.push([...pods]),
      onProblem: (message) => problems.push(message.replaceAll(`${dir}/`, "")),
      clock,
      log: silentLogger,
    },
    stop.signal,
  );
}

const text = (name: string, spec: object = {}) => JSON.stringify(manifestOf(spec, { name }));
const put = async (file: string, content: string) => {
  await mkdir(path, { recursive: true });
  await writeFile(join(path, file), content);
};
const present = () => (delivered.at(-1) ?? []).map(({ metadata }) => metadata.name.replace("-node-1", ""));

async function until(what: string, check: () => boolean): Promise<void> {
  const deadline = performance.now() + 4_000;
  while (!check()) {
    if (performance.now() > deadline) throw new Error(`${what}: has ${present().join(", ")}; ${problems.join("; ")}`);
    await systemClock.sleep(5);
  }
}
const has = (...names: string[]) =>
  until(`wants ${names.join(", ")}`, () => present().join() === names.join() && delivered.length > 0);

test("what is not there has no pods, and is found when it comes", async () => {
  run();
  await has();
  await put("a.json", text("a"));
  await has("a");
  await rm(path, { recursive: true });
  await has();
  await put("b.json", text("b"));
  await has("b");
  expect(problems).toEqual([]);
});

test("all but dot files, directories and pipes counts, in lexical order, whatever it is called", async () => {
  await put("b.yaml", text("b"));
  await put("a", text("a"));
  await put(".hidden.yaml", text("hidden"));
  await mkdir(join(path, "c.yaml"));
  await writeFile(join(path, "c.yaml", "d.yaml"), text("d"));
  run();
  await has("a", "b");
  expect(problems).toEqual([]);
});

test("a single file is a source, too", async () => {
  await put("only.yaml", text("only"));
  await put("other.yaml", text("other"));
  run({ at: join(path, "only.yaml") });
  await has("only");
  await put("only.yaml", text("changed"));
  await has("changed");
  await unlink(join(path, "only.yaml"));
  await has();
  expect(problems).toEqual([]);
});

test("files come, change and go", async () => {
  await put("a.json", text("a"));
  run();
  await has("a");
  const before = delivered.at(-1)?.[0]?.metadata.uid;
  await put("b.json", text("b"));
  await has("a", "b");
  await put("a.json", text("a", { hostNetwork: true }));
  await until("a new UID", () => delivered.at(-1)?.[0]?.metadata.uid !== before);
  await rename(join(path, "a.json"), join(path, "c.json"));
  await has("b", "a");
  await unlink(join(path, "b.json"));
  await has("a");
});

test("one bad file holds up no other, and is told about once", async () => {
  await put("a.json", text("a"));
  await put("b.json", "{");
  await put("c.json", text("c", { serviceAccountName: "x" }));
  await put("d.json", text("d"));
  run();
  await has("a", "d");
  await until("both problems", () => problems.length === 2);
  expect(problems.sort()).toEqual([
    expect.stringMatching(/^static pod manifest manifests\/b\.json is not used: is not valid YAML: /),
    expect.stringMatching(
      /^static pod manifest manifests\/c\.json is not used: spec\.serviceAccountName: must not be set/,
    ),
  ]);
  await put("e.json", text("e"));
  await has("a", "d", "e");
  expect(problems).toHaveLength(2);
  await put("b.json", text("b"));
  await has("a", "b", "d", "e");
});

test("a file that is being written is not complained about, and what it said before stays", async () => {
  await put("a.json", text("a"));
  run();
  await has("a");
  const file = await open(join(path, "a.json"), "w");
  const whole = text("b");
  try {
    for (let at = 0; at < whole.length; at += 40) {
      await file.write(whole.slice(at, at + 40));
      await systemClock.sleep(quietMs / 4);
      expect([["a"], ["b"]]).toContainEqual(present());
    }
  } finally {
    await file.close();
  }
  await has("b");
  expect(problems).toEqual([]);
});

test("the pod of a file that went bad is kept until the next full look", async () => {
  const checkMs = 900;
  await put("a.json", text("a"));
  run({ checkMs });
  await has("a");
  const spoiltAt = performance.now();
  await put("a.json", "kind: Nonsense");
  await until("a problem", () => problems.length === 1);
  expect(present()).toEqual(["a"]);
  await has();
  expect(performance.now() - spoiltAt).toBeGreaterThan(checkMs - 50);
});

test("links are followed, and a swap of what they lead to is seen", async () => {
  for (const version of ["one", "two"]) {
    await mkdir(join(path, `..${version}`), { recursive: true });
    await writeFile(join(path, `..${version}`, "pod.yaml"), text(version));
  }
  await symlink("..one", join(path, "..data"));
  await symlink("..data/pod.yaml", join(path, "pod.yaml"));
  run();
  await has("one");
  await symlink("..two", join(path, "..data_tmp"));
  await rename(join(path, "..data_tmp"), join(path, "..data"));
  await has("two");
  expect(problems).toEqual([]);
});

test("what nobody tells about is found by looking", async () => {
  const outside = join(dir, "outside.yaml");
  await writeFile(outside, text("a"));
  await mkdir(path);
  await symlink(outside, join(path, "a.yaml"));
  await symlink("nowhere", join(path, "b.yaml"));
  run({ checkMs: 200 });
  await has("a");
  await writeFile(outside, text("b"));
  await has("b");
  expect(problems).toEqual([]);
});

test("a file that is too big, or may not be read, is told about", async () => {
  await put("big.json", text("big").padEnd(manifestBytesMax + 1));
  await put("a.json", text("a"));
  run();
  await until("a problem", () => problems.length === 1);
  expect(problems).toEqual(["static pod manifest manifests/big.json is not used: is larger than 10 MiB"]);
  expect(present()).toEqual(["a"]);
});

test("a directory that cannot be read changes nothing", async () => {
  await put("a.json", text("a"));
  run({ checkMs: 100 });
  await has("a");
  const count = delivered.length;
  await rename(path, `${path}.old`);
  await symlink(path, path); // a loop: ELOOP, also for root, who may read everything
  await systemClock.sleep(300);
  expect(delivered.length - count).toBeLessThanOrEqual(1);
  expect(present()).toEqual(["a"]);
  await unlink(path);
  await rename(`${path}.old`, path);
  await chmod(path, 0o755);
});

test("a thousand manifests are read soon, and a change of one costs little", async () => {
  await mkdir(path);
  const names = Array.from({ length: 1_000 }, (_, i) => `p${String(i).padStart(4, "0")}`);
  await Promise.all(names.map((name) => writeFile(join(path, `${name}.json`), text(name))));
  run();
  await until("all of them", () => delivered.at(-1)?.length === 1_000);
  const before = delivered.at(-1) ?? [];
  await put("p0500.json", text("changed"));
  await until("the change", () => present()[500] === "changed");
  const after = delivered.at(-1) ?? [];
  expect(after.filter((pod, i) => pod !== before[i])).toHaveLength(1); // the others were not even read
});
