import { expect, test } from "vitest";
import { formatDuration, parseDuration } from "../../../agent/config/duration.ts";

const cases: [text: string, ms: number, written?: string][] = [
  ["0", 0, "0s"],
  ["0s", 0],
  ["1h2m3s", 3_723_000],
  ["1m0s", 60_000],
  ["90s", 90_000, "1m30s"],
  ["24h", 86_400_000, "24h0m0s"],
  ["1.5s", 1500],
  [".5s", 500, "500ms"],
  ["100ms", 100],
  ["1500us", 1.5, "1.5ms"],
  ["2µs", 0.002],
  ["7ns", 0.000007],
  ["-30s", -30_000],
  ["+1m", 60_000, "1m0s"],
  ["1h30m", 5_400_000, "1h30m0s"],
];
for (const [text, ms, written = text] of cases) {
  test(`${text} is ${ms} ms and is written ${written}`, () => {
    expect(parseDuration(text)).toBe(ms);
    expect(formatDuration(ms)).toBe(written);
  });
}

test.each(["", "s", "1", "1d", "1 s", "1m 30s", "--1s", "1,5s", "9999999999h", "1s2"])("%j is no duration", (text) => {
  expect(parseDuration(text)).toBeUndefined();
});
