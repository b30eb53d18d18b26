import { readFile, writeFile } from "node:fs/promises";
import { expect, test } from "vitest";
import { differences } from "../../../agent/runtime/docker/refusals.ts";

const rows = differences.map(({ subject, outcome }): [string, string] => [subject, outcome]);
const path = new URL("../../../README.md", import.meta.url).pathname;

test("the README tells what differs with Docker (UPDATE_README=1 writes the table)", async () => {
  const text = await readFile(path, "utf8");
  const block = /(<!-- docker: differences -->\n).*?(<!-- end -->)/s;
  expect(text).toMatch(block);
  const table = renderTable(["What a pod asks for, or its owner sees", "With Docker"], rows);
  const wanted = text.replace(block, (_, start: string, end: string) => `${start}\n${table}\n\n${end}`);
  if (process.env["UPDATE_README"] !== undefined) await writeFile(path, wanted);
  expect(await readFile(path, "utf8")).toBe(wanted);
});

test("each row of that table is one line of Markdown", () => {
  for (const text of rows.flat()) expect(text).not.toMatch(/\||\n/);
});

/** As the formatter wants it. */
function renderTable(head: [string, string], body: [string, string][]): string {
  const lines = [head, ...body];
  const widths = head.map((_, column) => Math.max(...lines.map((cells) => cells[column]?.length ?? 0)));
  const line = (cells: string[]) => `| ${cells.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(" | ")} |`;
  return [line(head), line(widths.map((width) => "-".repeat(width))), ...body.map(line)].join("\n");
}
