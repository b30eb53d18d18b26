import { execFile } from "node:child_process";
import { copyFile, mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { kubeletVersion } from "../../agent/version.ts";

const run = promisify(execFile);
const root = new URL("../..", import.meta.url).pathname;
const built = join(root, "dist/nodelet");
let dir: string;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-executable-"));
  if (!(await exists(built))) await run(process.execPath, [join(root, ".ci/build.ts")]);
});

afterAll(() => rm(dir, { recursive: true, force: true }));

test("one file runs anywhere, under any name, with no Node.js and no environment", async () => {
  const elsewhere = join(dir, "kubelet");
  await copyFile(built, elsewhere);
  const { stdout } = await run(elsewhere, ["--version"], { env: {}, cwd: "/" });
  expect(stdout).toBe(`Kubernetes ${kubeletVersion}\n`);
});

test("an option of Node.js is an option of ours, or an error", async () => {
  await expect(run(built, ["--max-old-space-size=64", "--version"])).rejects.toMatchObject({ code: 1 });
});

test("the licenses of what it carries lie beside it", async () => {
  expect(await exists(`${built}.LICENSES.txt`)).toBe(true);
});

function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
