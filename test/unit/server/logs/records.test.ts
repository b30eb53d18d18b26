import { describe, expect, test } from "vitest";
import { LogTime, logTimeLengthMax, parseTime } from "../../../../agent/server/logs/log-time.ts";
import { type RecordFilter, RecordReader } from "../../../../agent/server/logs/records.ts";

const t = "2026-01-02T03:04:05.678901234Z";
const later = "2026-01-02T03:04:06Z";

function read(text: string, filter: Partial<RecordFilter> = {}): { text: string; malformed: number } {
  const reader = new RecordReader({ timestamps: false, stream: "All", ...filter });
  const bytes = Buffer.from(text);
  const end = reader.read(bytes, 0, bytes.length);
  if (!reader.isDone) reader.readLast(bytes.subarray(end));
  return { text: reader.take().toString(), malformed: reader.malformed };
}

const json = (log: string, stream = "stdout", time = t) => `${JSON.stringify({ log, stream, time })}\n`;

const cases: { name: string; log: string; filter?: Partial<RecordFilter>; want: string; malformed?: number }[] = [
  { name: "nothing", log: "", want: "" },
  { name: "lines of both streams", log: `${t} stdout F a b\n${t} stderr F c\n`, want: "a b\nc\n" },
  { name: "an empty line", log: `${t} stdout F \n`, want: "\n" },
  { name: "pieces are joined", log: `${t} stdout P a\n${t} stdout P b\n${t} stdout F c\n`, want: "abc\n" },
  { name: "only the first tag counts", log: `${t} stdout P:x:y a\n${t} stdout F:P b\n`, want: "ab\n" },
  { name: "an unknown tag is a whole line", log: `${t} stdout PX a\n${t} stdout  b\n`, want: "a\nb\n" },
  { name: "the last line has no end", log: `${t} stdout F a\n${t} stdout F b`, want: "a\nb" },
  { name: "the last piece has no end", log: `${t} stdout P a`, want: "a" },
  { name: "a last line cut in its header", log: `${t} stdout F a\n${t} std`, want: "a\n", malformed: 1 },
  { name: "text that looks like a header", log: `${t} stdout F ${t} stderr P x\n`, want: `${t} stderr P x\n` },
  { name: "long text", log: `${t} stdout F ${"x".repeat(5000)}\n`, want: `${"x".repeat(5000)}\n` },
  { name: "bytes that are no text", log: `${t} stdout F \0\x01\x7f\n`, want: "\0\x01\x7f\n" },
  {
    name: "malformed lines are skipped",
    log: [
      `${t} stdout F a`,
      "",
      "garbage",
      `${t} stdin F x`,
      `${t} stdout`,
      `${t} stdout F`,
      `${t}  stdout F x`,
      `2026-13-02T03:04:05Z stdout F x`,
      `2026-01-02 03:04:05Z stdout F x`,
      `2026-01-02T03:04:05 stdout F x`,
      `2026-01-02T03:04:05.1234567890Z stdout F x`,
      `${t} stdout F b`,
      "",
    ].join("\n"),
    want: "a\nb\n",
    malformed: 10,
  },
  { name: "one stream", log: `${t} stdout F a\n${t} stderr F b\n`, filter: { stream: "Stderr" }, want: "b\n" },
  {
    name: "times in nine digits",
    log: `2026-01-02T03:04:05Z stdout F a\n2026-01-02T03:04:05.5+01:30 stdout F b\n2026-01-02T03:04:05.25-00:00 stdout F c\n`,
    filter: { timestamps: true },
    want: "2026-01-02T03:04:05.000000000Z a\n2026-01-02T03:04:05.500000000+01:30 b\n2026-01-02T03:04:05.250000000Z c\n",
  },
  {
    name: "a time only where a line begins",
    log: `${t} stdout P a\n${t} stdout F b\n${t} stderr F c\n`,
    filter: { timestamps: true },
    want: `${t} ab\n${t} c\n`,
  },
  {
    name: "since is inclusive",
    log: `${t} stdout F a\n${later} stdout F b\n2026-01-02T04:04:06+01:00 stdout F c\n`,
    filter: { since: { seconds: Date.UTC(2026, 0, 2, 3, 4, 6) / 1000, nanos: 0 } },
    want: "b\nc\n",
  },
  {
    name: "since counts nanoseconds",
    log: `${t} stdout F a\n2026-01-02T03:04:05.678901235Z stdout F b\n`,
    filter: { since: { seconds: Date.UTC(2026, 0, 2, 3, 4, 5) / 1000, nanos: 678_901_235 } },
    want: "b\n",
  },
  {
    name: "what since drops counts as a line",
    log: `${t} stdout F a\n${later} stdout F b\n${later} stdout F c\n`,
    filter: { since: { seconds: Date.UTC(2026, 0, 2, 3, 4, 6) / 1000, nanos: 0 }, linesMax: 2 },
    want: "b\n",
  },
  { name: "a piece counts as a line", log: `${t} stdout P a\n${t} stdout F b\n`, filter: { linesMax: 1 }, want: "a" },
  {
    name: "a malformed line does not",
    log: `${t} stdout F a\nx\n${t} stdout F b\n${t} stdout F c\n`,
    filter: { linesMax: 2 },
    want: "a\nb\n",
    malformed: 1,
  },
  { name: "no lines", log: `${t} stdout F a\n`, filter: { linesMax: 0 }, want: "" },
  { name: "Docker's", log: json("a\n") + json("ü\u2028\n", "stderr"), want: "a\nü\u2028\n" },
  {
    name: "Docker's pieces",
    log: json("a") + json("b\n") + json("c"),
    filter: { timestamps: true },
    want: `${t} ab\n${t} c`,
  },
  {
    name: "Docker's other fields",
    log: `{"log":"a\\n","stream":"stdout","attrs":{"x":"y"},"time":"${t}"}\n`,
    want: "a\n",
  },
  {
    name: "Docker's malformed lines",
    log: `${json("a\n")}{}\nnull\n[1]\n{"log":1,"stream":"stdout","time":"${t}"}\n${json("b\n", "x")}${json("c\n", "stdout", "now")}${t} stdout F d\n${json("e\n")}`,
    want: "a\ne\n",
    malformed: 7,
  },
];

describe("records", () => {
  for (const { name, log, filter = {}, want, malformed = 0 } of cases) {
    test(name, () => expect(read(log, filter)).toEqual({ text: want, malformed }));
  }

  test("an unknown format is an error that does not show the line", () => {
    expect(() => read("root:x:0:0:secret\n")).toThrow(/neither in CRI's log format nor in Docker's/);
    expect(() => read("root:x:0:0:secret\n")).not.toThrow(/secret/);
  });

  test("wherever reads end, the same comes out", () => {
    const log = Buffer.from(
      `${t} stdout P aé\n${t} stderr F b\n\nx\n${later} stdout F ${"long ".repeat(20)}\n${later} stdout F \n${later} stderr P e`,
    );
    const want = read(log.toString(), { timestamps: true });
    for (let cut = 0; cut <= log.length; cut += 1) {
      const reader = new RecordReader({ timestamps: true, stream: "All" });
      const used = reader.read(log, 0, cut);
      let text = reader.take().toString();
      reader.readLast(log.subarray(reader.read(log, used, log.length)));
      text += reader.take().toString();
      expect({ text, malformed: reader.malformed }).toEqual(want);
    }
  });
});

describe("times", () => {
  for (const text of [
    "1970-01-01T00:00:00Z",
    "1969-12-31T23:59:59.999Z",
    "2000-02-29T12:00:00Z",
    "2024-02-29T23:59:59.000000001Z",
    "2100-03-01T00:00:00+14:00",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59-11:30",
  ]) {
    test(`${text} is what Date says`, () => {
      const time = parseTime(text);
      const whole = text.replace(/\.\d+/, "");
      expect(time?.seconds).toBe(Date.parse(whole) / 1000);
      const fraction = /\.(\d+)/.exec(text)?.[1] ?? "";
      expect(time?.nanos).toBe(Number(fraction.padEnd(9, "0")));
    });
  }

  for (const text of [
    "",
    "2026",
    "2026-02-29T00:00:00Z",
    "2026-00-10T00:00:00Z",
    "2026-01-32T00:00:00Z",
    "2026-01-02T24:00:00Z",
    "2026-01-02T00:60:00Z",
    "2026-01-02T00:00:60Z",
    "2026-01-02t00:00:00z",
    "2026-01-02T00:00:00",
    "2026-01-02T00:00:00.Z",
    "2026-01-02T00:00:00+1:00",
    "2026-01-02T00:00:00+0100",
    "2026-01-02T00:00:00+25:00",
    "2026-01-02T00:00:00Zx",
    "20x6-01-02T00:00:00Z",
    "x026-01-02T00:00:00Z",
    "2026-01-02T00:00:0:Z",
    "２026-01-02T00:00:00Z",
  ]) {
    test(`"${text}" is no time`, () => expect(parseTime(text)).toBeUndefined());
  }

  test("the longest time fits", () => {
    const bytes = Buffer.from("2026-01-02T03:04:05.678901234-11:30");
    const time = new LogTime();
    expect(time.parse(bytes, 0, bytes.length)).toBe(bytes.length);
    const target = Buffer.alloc(logTimeLengthMax);
    expect(time.write(target, 0)).toBe(logTimeLengthMax);
    expect(target.toString()).toBe(bytes.toString());
  });
});
