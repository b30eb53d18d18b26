import { expect, test } from "vitest";
import { journalArguments, parseNodeLogQuery, patternLengthMax } from "../../../../agent/server/logs/node-log-query.ts";
import { HttpError } from "../../../../agent/server/port.ts";

const accepted: { query: string; want: unknown }[] = [
  { query: "", want: undefined },
  { query: "unknown=1", want: undefined },
  { query: "tailLines=&sinceTime=&pattern=", want: undefined },
  { query: "query=kubelet", want: { kind: "services", services: ["kubelet"], options: {} } },
  {
    query: "query=a&query=%20&query=b@1.service",
    want: { kind: "services", services: ["a", "b@1.service"], options: {} },
  },
  { query: "query=/syslog", want: { kind: "file", path: "/syslog" } },
  { query: "query=%5Cpods%5Cx.log", want: { kind: "file", path: "\\pods\\x.log" } },
  {
    query:
      "query=a&sinceTime=2026-01-02T03:04:05Z&untilTime=2026-01-02T04:04:05%2B01:00&tailLines=0&boot=-1&pattern=x.*",
    want: {
      kind: "services",
      services: ["a"],
      options: {
        sinceTime: { seconds: 1767323045, nanos: 0 },
        untilTime: { seconds: 1767323045, nanos: 0 },
        tailLines: 0,
        boot: -1,
        pattern: "x.*",
      },
    },
  },
  { query: "query=a&tailLines=100000", want: { kind: "services", services: ["a"], options: { tailLines: 100_000 } } },
  { query: "query=a&boot=0", want: { kind: "services", services: ["a"], options: { boot: 0 } } },
  {
    query: "query=a&pattern=(?i)x(?P<n>y)",
    want: { kind: "services", services: ["a"], options: { pattern: "(?i)x(?P<n>y)" } },
  },
];
for (const { query, want } of accepted) {
  test(`node log query ${query === "" ? "of nothing" : query}`, () => {
    expect(parseNodeLogQuery(new URLSearchParams(query))).toEqual(want);
  });
}

const refused: { query: string; status: number; message: RegExp }[] = [
  { query: "query=", status: 400, message: /query cannot be empty/ },
  { query: "query=%20%20", status: 400, message: /query cannot be empty/ },
  { query: "query=a&sinceTime=today", status: 400, message: /^sinceTime: .*RFC 3339/ },
  { query: "query=a&untilTime=1", status: 400, message: /^untilTime: .*RFC 3339/ },
  { query: "query=a&tailLines=x", status: 400, message: /^tailLines: .*integer/ },
  { query: "query=a&boot=1.5", status: 400, message: /^boot: .*integer/ },
  { query: "tailLines=x&boot=x", status: 400, message: /^\[tailLines: .*, boot: .*\]\n$/ },
  { query: "tailLines=5", status: 406, message: /cannot be empty with options/ },
  { query: "query=a&tailLines=-1", status: 406, message: /between 0 and 100000/ },
  { query: "query=a&tailLines=100001", status: 406, message: /between 0 and 100000/ },
  { query: "query=a&boot=1", status: 406, message: /less than 1/ },
  { query: "query=a&pattern=(", status: 406, message: /regular expression/ },
  { query: `query=a&pattern=${"x".repeat(patternLengthMax + 1)}`, status: 406, message: /pattern: Too long.* 1024 / },
  { query: "query=a&pattern=a%00", status: 406, message: /regular expression/ },
  {
    query: "query=a&sinceTime=2026-01-02T03:04:05Z&untilTime=2026-01-02T03:04:04.9Z",
    status: 406,
    message: /untilTime: .*after/,
  },
  { query: "query=a&query=b&query=c&query=d&query=e", status: 406, message: /more than 4 services/ },
  { query: `query=${"a".repeat(257)}`, status: 406, message: /at most 256/ },
  { query: "query=a;b", status: 406, message: /may hold/ },
  { query: "query=a%0A--root%3D", status: 406, message: /may hold/ },
  { query: "query=ä", status: 406, message: /may hold/ },
  { query: "query=/a&query=/b", status: 406, message: /more than one file/ },
  { query: "query=/a&query=b", status: 406, message: /a file and service/ },
  { query: "query=/a&tailLines=1", status: 406, message: /file with options/ },
];
for (const { query, status, message } of refused) {
  test(`node log query ${query.slice(0, 60)} is refused with ${status}`, () => {
    const parse = () => parseNodeLogQuery(new URLSearchParams(query));
    expect(parse).toThrow(HttpError);
    expect(parse).toThrow(expect.objectContaining({ status }));
    expect(parse).toThrow(message);
  });
}

test("a pattern that would take for ever to run is not run here", () => {
  const pattern = `${"(?:|)".repeat(100)}x`; // two ways through each group, none of them ends in an x
  const begunAtMs = performance.now();
  const parsed = parseNodeLogQuery(new URLSearchParams({ query: "a", pattern }));
  expect(parsed).toMatchObject({ options: { pattern } });
  expect(performance.now() - begunAtMs).toBeLessThan(500);
});

test("the journal is asked for exactly that", () => {
  expect(journalArguments(["a"], {})).toEqual(["--utc", "--no-pager", "--output=short-precise", "--unit=a"]);
  const sinceTime = { seconds: 1767323045, nanos: 5 };
  const untilTime = { seconds: 1767323046, nanos: 0 };
  expect(journalArguments(["a", "-b"], { sinceTime, untilTime, tailLines: 5, pattern: "--x", boot: -1 })).toEqual([
    "--utc",
    "--no-pager",
    "--output=short-precise",
    "--since=2026-01-02 03:04:05 UTC",
    "--until=2026-01-02 03:04:06 UTC",
    "--pager-end",
    "--lines=5",
    "--unit=a",
    "--unit=-b",
    "--grep=--x",
    "--boot=-1",
  ]);
});
