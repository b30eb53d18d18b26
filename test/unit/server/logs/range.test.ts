import { expect, test } from "vitest";
import { checkConditions, isRangeCurrent, parseRange } from "../../../../agent/server/logs/range.ts";

const ranges: { header: string | undefined; want: ReturnType<typeof parseRange> }[] = [
  { header: undefined, want: undefined },
  { header: "", want: undefined },
  { header: "bytes=0-9", want: { start: 0, length: 10 } },
  { header: "bytes=5-", want: { start: 5, length: 95 } },
  { header: "bytes=-10", want: { start: 90, length: 10 } },
  { header: "bytes=-1000", want: { start: 0, length: 100 } },
  { header: "bytes=90-1000", want: { start: 90, length: 10 } },
  { header: "bytes= 3-3 ", want: { start: 3, length: 1 } },
  { header: "bytes=0-1,5-6", want: undefined },
  { header: "bytes=", want: undefined },
  { header: "bytes=100-", want: "unsatisfiable" },
  { header: "bytes=5-4", want: "unsatisfiable" },
  { header: "bytes=-0", want: "unsatisfiable" },
  { header: "bytes=-", want: "unsatisfiable" },
  { header: "bytes=a-b", want: "unsatisfiable" },
  { header: "bytes=0x1-2", want: "unsatisfiable" },
  { header: `bytes=${"9".repeat(1000)}-`, want: "unsatisfiable" },
  { header: "lines=1-2", want: "unsatisfiable" },
];
for (const { header, want } of ranges) {
  test(`range ${header?.slice(0, 30)}`, () => expect(parseRange(header, 100)).toEqual(want));
}

const modifiedAtMs = Date.UTC(2026, 0, 2, 3, 4, 5, 678);
const same = "Fri, 02 Jan 2026 03:04:05 GMT";
const before = "Fri, 02 Jan 2026 03:04:04 GMT";
const none = { ifMatch: undefined, ifUnmodifiedSince: undefined, ifNoneMatch: undefined, ifModifiedSince: undefined };

const conditions: {
  name: string;
  given: Partial<typeof none> | Record<string, string>;
  want: 304 | 412 | undefined;
}[] = [
  { name: "none", given: {}, want: undefined },
  { name: "not modified", given: { ifModifiedSince: same }, want: 304 },
  { name: "modified", given: { ifModifiedSince: before }, want: undefined },
  { name: "no date", given: { ifModifiedSince: "x" }, want: undefined },
  { name: "unmodified", given: { ifUnmodifiedSince: same }, want: undefined },
  { name: "modified since", given: { ifUnmodifiedSince: before }, want: 412 },
  { name: "any match", given: { ifMatch: "*", ifUnmodifiedSince: before }, want: undefined },
  { name: "some match", given: { ifMatch: '"x"' }, want: 412 },
  { name: "any but none match", given: { ifNoneMatch: "*" }, want: 304 },
  { name: "an entity tag hides the date", given: { ifNoneMatch: '"x"', ifModifiedSince: same }, want: undefined },
];
for (const { name, given, want } of conditions) {
  test(`condition: ${name}`, () => expect(checkConditions({ ...none, ...given }, modifiedAtMs)).toBe(want));
}

test("a range counts while the file is the one that the client knows", () => {
  expect(isRangeCurrent(undefined, modifiedAtMs)).toBe(true);
  expect(isRangeCurrent(same, modifiedAtMs)).toBe(true);
  expect(isRangeCurrent(before, modifiedAtMs)).toBe(false);
  expect(isRangeCurrent('"x"', modifiedAtMs)).toBe(false);
});
