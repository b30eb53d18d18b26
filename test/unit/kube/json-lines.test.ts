import { expect, test } from "vitest";
import { JsonLines, lineBytesMax } from "../../../agent/kube/json-lines.ts";
import { parseWatchEvent } from "../../../agent/kube/watch-events.ts";

function feed(chunks: (string | Buffer)[]): unknown[] {
  const lines = new JsonLines();
  return chunks.flatMap((chunk) => [...lines.push(Buffer.from(chunk))]).filter((value) => value !== undefined);
}

test.each([
  { name: "one line", chunks: ['{"a":1}\n'], want: [{ a: 1 }] },
  { name: "two lines in a chunk", chunks: ['{"a":1}\n{"a":2}\n'], want: [{ a: 1 }, { a: 2 }] },
  { name: "a line in three chunks", chunks: ['{"a"', ":", "1}\n"], want: [{ a: 1 }] },
  { name: "newline alone in its chunk", chunks: ['{"a":1}', "\n"], want: [{ a: 1 }] },
  { name: "empty lines and CRLF", chunks: ['\n\r\n{"a":1}\r\n\n'], want: [{ a: 1 }] },
  { name: "an unfinished line yields nothing", chunks: ['{"a":1}\n{"a"'], want: [{ a: 1 }] },
])("parses $name", ({ chunks, want }) => expect(feed(chunks)).toEqual(want));

test("keeps a character that is split between chunks whole", () => {
  const bytes = Buffer.from('{"a":"żółć"}\n');
  expect(feed([...bytes].map((byte) => Buffer.from([byte])))).toEqual([{ a: "żółć" }]);
});

test("knows whether the stream ended inside a line", () => {
  const lines = new JsonLines();
  expect([...lines.push(Buffer.from('{"a":1}\n'))]).toHaveLength(1);
  expect(lines.hasRest).toBe(false);
  expect([...lines.push(Buffer.from('{"a'))]).toHaveLength(0);
  expect(lines.hasRest).toBe(true);
});

test("garbage is an error that does not quote the line, after the good lines before it", () => {
  const lines = new JsonLines().push(Buffer.from('{"a":1}\n{"token":"s3cret}\n'));
  expect(lines.next().value).toEqual({ a: 1 });
  expect(() => lines.next()).toThrow(
    expect.objectContaining({ code: "Invalid", message: expect.not.stringContaining("s3cret") }),
  );
});

test("a line without end is refused before it fills the memory", () => {
  const lines = new JsonLines();
  const chunk = Buffer.alloc(1 << 20, "x");
  const push = () => {
    for (let bytes = 0; bytes <= lineBytesMax; bytes += chunk.length) for (const _ of lines.push(chunk)) continue;
  };
  expect(push).toThrow(/larger than/);
});

test("work is linear in the size of an event, however small its pieces are", () => {
  const lines = new JsonLines();
  const event = Buffer.from(`${JSON.stringify({ data: "x".repeat(8 << 20) })}\n`);
  const startMs = performance.now();
  let values = 0;
  for (let i = 0; i < event.length; i += 1024) for (const _ of lines.push(event.subarray(i, i + 1024))) values += 1;
  expect(values).toBe(1);
  expect(performance.now() - startMs).toBeLessThan(1_000); // joining at each piece would copy 32 GiB
});

test.each([
  [
    { type: "ADDED", object: { metadata: { name: "a" } } },
    { type: "ADDED", object: { metadata: { name: "a" } } },
  ],
  [
    { type: "BOOKMARK", object: { metadata: { resourceVersion: "7" } } },
    { type: "BOOKMARK", resourceVersion: "7", isInitialEnd: false },
  ],
  [
    {
      type: "BOOKMARK",
      object: { metadata: { resourceVersion: "7", annotations: { "k8s.io/initial-events-end": "true" } } },
    },
    { type: "BOOKMARK", resourceVersion: "7", isInitialEnd: true },
  ],
  [
    { type: "ERROR", object: { code: 410 } },
    { type: "ERROR", status: { code: 410 } },
  ],
])("reads the watch event %j", (value, want) => expect(parseWatchEvent(value)).toEqual(want));

test.each([
  null,
  [],
  "ADDED",
  { type: "ADDED" },
  { type: "ADDED", object: {} },
  { type: "ADDED", object: { metadata: {} } },
  { type: "MOVED", object: { metadata: { name: "a" } } },
  { type: "BOOKMARK", object: { metadata: {} } },
])("%j is no watch event", (value) => expect(() => parseWatchEvent(value)).toThrow(/watch event|bookmark/));
