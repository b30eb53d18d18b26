import { expect, test } from "vitest";
import { type LogOptions, parseLogOptions } from "../../../../agent/server/logs/options.ts";
import { HttpError } from "../../../../agent/server/port.ts";

const nowMs = Date.UTC(2026, 0, 2, 3, 4, 5, 678);
const nowSeconds = Date.UTC(2026, 0, 2, 3, 4, 5) / 1000;
const defaults: LogOptions = { follow: false, previous: false, timestamps: false, stream: "All" };
const undecodable = [400, `{"message": "Unable to decode query."}`];
const invalid = [422, `{"message": "Invalid request."}`];

const cases: { query: string; splitStreams?: boolean; want: Partial<LogOptions> | (string | number | RegExp)[] }[] = [
  { query: "", want: {} },
  { query: "container=x&insecureSkipTLSVerifyBackend=true&unknown=1", want: {} },
  { query: "follow=true&previous=1&timestamps=TRUE", want: { follow: true, previous: true, timestamps: true } },
  { query: "follow=false&previous=0&timestamps=FALSE", want: {} },
  { query: "follow=&previous=no", want: { follow: true, previous: true } },
  { query: "follow=false&follow=true", want: {} },
  { query: "tailLines=10", want: { tailLines: 10 } },
  { query: "tailLines=0", want: { tailLines: 0 } },
  { query: "tailLines=%2B7", want: { tailLines: 7 } },
  { query: "tailLines=-1", want: invalid },
  { query: "tailLines=", want: undecodable },
  { query: "tailLines=1e3", want: undecodable },
  { query: "tailLines=9223372036854775808", want: undecodable },
  { query: `tailLines=${"9".repeat(100_000)}`, want: undecodable },
  { query: "tail=5&tailLines=10", want: { tailLines: 5 } },
  { query: "tail=all&tailLines=10", want: {} },
  { query: "tail=&tailLines=10", want: { tailLines: 10 } },
  { query: "tail=ALL", want: undecodable },
  { query: "tail=-2", want: invalid },
  { query: "limitBytes=1", want: { limitBytes: 1 } },
  { query: "limitBytes=9223372036854775807", want: { limitBytes: 2 ** 63 } },
  { query: "limitBytes=0", want: invalid },
  { query: "limitBytes=x", want: undecodable },
  { query: "sinceSeconds=5", want: { since: { seconds: nowSeconds - 5, nanos: 678_000_000 } } },
  { query: "sinceSeconds=0", want: invalid },
  { query: "sinceSeconds=1.5", want: undecodable },
  { query: "sinceTime=2026-01-02T03:04:05Z", want: { since: { seconds: nowSeconds, nanos: 0 } } },
  { query: "sinceTime=2026-01-02T04:04:05.5%2B01:00", want: { since: { seconds: nowSeconds, nanos: 500_000_000 } } },
  { query: "sinceTime=", want: { since: { seconds: Number.NEGATIVE_INFINITY, nanos: 0 } } },
  { query: "sinceTime=yesterday", want: undecodable },
  { query: "sinceTime=2026-02-30T00:00:00Z", want: undecodable },
  { query: "sinceSeconds=5&sinceTime=2026-01-02T03:04:05Z", want: invalid },
  { query: "sinceSeconds=5&sinceTime=", want: invalid },
  { query: "stream=All", want: {} },
  { query: "stream=Stdout", splitStreams: true, want: { stream: "Stdout" } },
  { query: "stream=Stderr", splitStreams: true, want: { stream: "Stderr" } },
  { query: "stream=stdout", splitStreams: true, want: invalid },
  { query: "stream=", want: invalid },
  { query: "stream=Stdout", want: [400, /PodLogsQuerySplitStreams/] },
  { query: "stream=All&tailLines=1", want: { tailLines: 1 } },
  { query: "stream=Stdout&tailLines=1", splitStreams: true, want: invalid },
  { query: "stream=Stdout&tailLines=1", want: invalid },
];

for (const { query, splitStreams = false, want } of cases) {
  const name = `${query.slice(0, 60)}${splitStreams ? " with split streams" : ""}`;
  test(`log options: ${name === "" ? "none" : name}`, () => {
    const parse = () => parseLogOptions(new URLSearchParams(query), splitStreams, nowMs);
    if (!Array.isArray(want)) {
      expect(parse()).toEqual({ ...defaults, ...want });
      return;
    }
    const [status, message] = want;
    expect(parse).toThrow(HttpError);
    expect(parse).toThrow(expect.objectContaining({ status }));
    expect(parse).toThrow(message instanceof RegExp ? message : String(message));
  });
}
