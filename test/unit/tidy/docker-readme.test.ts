import { readFile, writeFile } from "node:fs/promises";
import { expect, test } from "vitest";
import { differences } from "../../../agent/runtime/docker/refusals.ts";

const path = new URL("../../../README.md", import.meta.url).pathname;

test("the README tells what differs with Docker (UPDATE_README=1 writes the table)", async () => {
  const text = await readFile(path, "utf8");
  const block = /(<!-- docker: differences -->\n).*?(<!-- end -->)/s;
  expect(text).toMatch(block);
  const rows = differences.map(({ subject, outcome }) => `| ${subject} | ${outcome} |`);
  const table = ["| What a pod asks for, or its owner sees | With Docker |", "|---|---|", ...rows].join("\n");
  const wanted = text.replace(block, (_, start: string, end: string) => `${start}\n${table}\n\n${end}`);
  if (process.env["UPDATE_README"] !== undefined) await writeFile(path, wanted);
  expect(await readFile(path, "utf8")).toBe(wanted);
});

test("each row of that table is one line of Markdown", () => {
  for (const { subject, outcome } of differences) {
    for (const text of [subject, outcome]) expect(text).not.toMatch(/\||\n/);
  }
});
