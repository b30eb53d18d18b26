import { expect, test } from "vitest";
import { findTail, type ReadableAt } from "../../../../agent/server/logs/tail.ts";

const never = new AbortController().signal;

function fileOf(bytes: Buffer): ReadableAt & { bytesRead: number } {
  return {
    bytesRead: 0,
    read(buffer, offset, length, position) {
      const bytesRead = bytes.subarray(position, position + length).copy(buffer, offset);
      this.bytesRead += bytesRead;
      return Promise.resolve({ bytesRead });
    },
  };
}

const cases: { text: string; lines: number; want: string }[] = [
  { text: "", lines: 5, want: "" },
  { text: "a\nb\nc\n", lines: 0, want: "" },
  { text: "a\nb\nc\n", lines: 1, want: "c\n" },
  { text: "a\nb\nc\n", lines: 2, want: "b\nc\n" },
  { text: "a\nb\nc\n", lines: 3, want: "a\nb\nc\n" },
  { text: "a\nb\nc\n", lines: 4, want: "a\nb\nc\n" },
  { text: "a\nb\nc", lines: 1, want: "b\nc" },
  { text: "\n\n\n", lines: 1, want: "\n" },
  { text: "abc", lines: 1, want: "abc" },
  { text: "a\n", lines: 2 ** 53, want: "a\n" },
];
for (const { text, lines, want } of cases) {
  test(`the last ${lines} lines of ${JSON.stringify(text)}`, async () => {
    const bytes = Buffer.from(text);
    expect(text.slice(await findTail(fileOf(bytes), bytes.length, lines, never))).toBe(want);
  });
}

test("tails of every length over many blocks", async () => {
  const lines = Array.from({ length: 3000 }, (_, i) => `${i} ${"x".repeat((i * 37) % 500)}\n`);
  const bytes = Buffer.from(lines.join(""));
  for (const n of [1, 2, 50, 64, 65, 66, 500, 2998, 2999, 3000]) {
    const at = await findTail(fileOf(bytes), bytes.length, n, never);
    expect(bytes.toString("utf8", at)).toBe(lines.slice(-n).join(""));
  }
});

test("a short tail of a long file costs one short read", async () => {
  const bytes = Buffer.alloc(60_000_000, `${"x".repeat(99)}\n`);
  const file = fileOf(bytes);
  expect(await findTail(file, bytes.length, 10, never)).toBe(bytes.length - 1000);
  expect(file.bytesRead).toBeLessThanOrEqual(16 * 1024);
});

test("a file that shrinks meanwhile ends the search", async () => {
  expect(await findTail(fileOf(Buffer.from("a\nb\n")), 1_000_000, 10, never)).toBe(0);
});

test("whoever goes meanwhile ends the search", async () => {
  const stop = new AbortController();
  const file = fileOf(Buffer.alloc(1_000_000, "x"));
  const read: ReadableAt["read"] = (...args) => {
    stop.abort();
    return file.read(...args);
  };
  await expect(findTail({ read }, 1_000_000, 10, stop.signal)).rejects.toThrow("aborted");
  expect(file.bytesRead).toBeLessThan(100_000);
});
