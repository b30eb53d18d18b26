import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { exec } from "../../../agent/lib/exec.ts";
import { buildImage, renderArchive } from "../../support/images/oci.ts";
import { pauseProgram } from "../../support/images/pause-elf.ts";
import { renderTar } from "../../support/images/tar.ts";

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-images-"));
});
afterAll(async () => {
  await rm(dir, { recursive: true, force: true });
});

test.for(["SIGTERM", "SIGINT"] as const)("the pause program waits, and exits with 0 on %s", async (signal) => {
  const program = join(dir, `pause-${signal}`);
  await writeFile(program, pauseProgram());
  await chmod(program, 0o755);
  const child = spawn(program, { stdio: "ignore" });
  await once(child, "spawn");
  // It reaps what it inherits and ignores SIGCHLD; only the two signals end it.
  child.kill("SIGCHLD");
  await sleep(50);
  expect(child.exitCode).toBeNull();
  const exited = once(child, "exit");
  child.kill(signal);
  expect(await exited).toEqual([0, null]);
});

test("the pause program for the other machine is well-formed", async () => {
  for (const arch of ["x64", "arm64"] as const) {
    const program = pauseProgram(arch);
    expect(program.length).toBeLessThan(512);
    expect(program.readUInt16LE(18)).toBe(arch === "x64" ? 62 : 183);
    expect(program.readBigUInt64LE(96)).toBe(BigInt(program.length));
  }
});

test("archives are what tar reads, with modes and links", async () => {
  const archive = join(dir, "a.tar");
  await writeFile(
    archive,
    renderTar([
      { kind: "dir", path: "bin" },
      { kind: "file", path: "bin/tool", content: "x".repeat(700), mode: 0o755 },
      { kind: "symlink", path: "bin/link", target: "tool" },
      { kind: "file", path: "empty", content: "" },
    ]),
  );
  const { stdout, failure } = await exec("tar", ["-tvf", archive], { timeoutMs: 5_000 });
  expect(failure).toBeUndefined();
  const lines = stdout.trim().split("\n");
  expect(lines[0]).toMatch(/^drwxr-xr-x .* bin\/$/);
  expect(lines[1]).toMatch(/^-rwxr-xr-x .* 700 .* bin\/tool$/);
  expect(lines[2]).toMatch(/^lrwxrwxrwx .* bin\/link -> tool$/);
  expect(lines).toHaveLength(4);
});

test("equal content gives equal digests, and shared layers are stored once", () => {
  const layer = [{ kind: "file", path: "a", content: "a" } as const];
  const [one, again] = [1, 2].map(() => buildImage({ name: "r.local/a:1", layers: [layer], cmd: ["/a"] }));
  expect(one).toEqual(again);
  const other = buildImage({ name: "r.local/b:1", layers: [layer], cmd: ["/b"] });
  expect(other.layers[0]?.digest).toBe(one?.layers[0]?.digest);
  expect(other.manifest.digest).not.toBe(one?.manifest.digest);
  if (one === undefined) throw new Error("no image");
  const text = renderArchive([one, other]).toString("latin1");
  expect(text.split(`blobs/${one.layers[0]?.digest.replace(":", "/")}`)).toHaveLength(2);
});
