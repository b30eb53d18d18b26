import { readdir, readFile } from "node:fs/promises";
import { join, relative } from "node:path";
import { expect, test } from "vitest";
import { nodeletVersion } from "../../../agent/version.ts";
import { lineCount, linesReported, rules, type SourceFile } from "./rules.ts";

const root = new URL("../../..", import.meta.url).pathname;
const built = ["node_modules", "dist", ".git"];
const topLevel = [
  ".ci",
  ".gitignore",
  "ARCHITECTURE.md",
  "CHANGELOG.md",
  "Dockerfile",
  "LICENSE",
  "README.md",
  "agent",
  "cni",
  "package-lock.json",
  "package.json",
  "proto",
  "systemd",
  "test",
  "tsconfig.json",
];

const files = await readFiles();

test("every file keeps the house rules", () => {
  const problems = files.flatMap((file) => rules.flatMap((rule) => rule(file)).map((what) => `${file.path} ${what}`));
  expect(problems).toEqual([]);
});

test("the top level stays short", async () => {
  const extra = (await readdir(root)).filter((name) => !built.includes(name) && !name.endsWith(".log"));
  expect(extra.filter((name) => !topLevel.includes(name))).toEqual([]);
});

test("one version everywhere", () => {
  const { version } = JSON.parse(textOf("package.json")) as { version: string };
  expect(nodeletVersion).toBe(version);
});

test("long files are known", () => {
  const long = files.filter(({ path, text }) => path.endsWith(".ts") && lineCount(text) > linesReported);
  const report = long.map(({ path, text }) => `  ${lineCount(text)} ${path}`).join("\n");
  if (long.length > 0) console.warn(`more than ${linesReported} lines, look for a seam:\n${report}`);
  expect(long.length).toBeLessThan(files.length / 10);
});

function textOf(path: string): string {
  const found = files.find((file) => file.path === path);
  if (found === undefined) throw new Error(`${path} is missing`);
  return found.text;
}

async function readFiles(): Promise<SourceFile[]> {
  const entries = await Promise.all(
    (await readdir(root, { withFileTypes: true }))
      .filter(({ name }) => !built.includes(name) && !name.endsWith(".log"))
      .map(async (entry) => {
        if (entry.isFile()) return [join(root, entry.name)];
        const inside = await readdir(join(root, entry.name), { recursive: true, withFileTypes: true });
        return inside.filter((e) => e.isFile()).map((e) => join(e.parentPath, e.name));
      }),
  );
  return Promise.all(
    entries
      .flat()
      .filter((path) => !path.endsWith("package-lock.json"))
      .map(async (path) => ({ path: relative(root, path), text: await readFile(path, "utf8") })),
  );
}
