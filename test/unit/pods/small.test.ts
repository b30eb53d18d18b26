import { expect, test } from "vitest";
import { containerHash } from "../../../agent/pods/container-hash.ts";
import { crashBackoffDefaults, formatDelay, noteRestart, restartAtMs } from "../../../agent/pods/crash-backoff.ts";

test("container hash equals the reference's", () => {
  expect(containerHash({ name: "test_container", image: "foo/image:v1" })).toBe("8e45cbd0");
});

test("crash backoff: at once, then 10 s doubling to 300 s, measured from the exit", () => {
  let state = undefined as ReturnType<typeof noteRestart> | undefined;
  let now = 1_000_000;
  const waits: number[] = [];
  for (let i = 0; i < 8; i++) {
    const exit = now;
    const at = restartAtMs(state, exit);
    waits.push((at - exit) / 1000);
    now = at;
    state = noteRestart(state, exit, now, crashBackoffDefaults);
  }
  expect(waits).toEqual([0, 10, 20, 40, 80, 160, 300, 300]);
});

test("crash backoff is forgotten when the container ran for more than ten minutes", () => {
  const state = { delayMs: 300_000, startedAtMs: 0 };
  expect(restartAtMs(state, 600_000)).toBe(900_000);
  expect(restartAtMs(state, 600_001)).toBe(600_001);
  expect(noteRestart(state, 600_001, 600_001, crashBackoffDefaults).delayMs).toBe(10_000);
});

test("a configured maximum caps the first delay too", () => {
  expect(noteRestart(undefined, 0, 0, { initialMs: 10_000, maxMs: 2_000 }).delayMs).toBe(2_000);
});

test.each([
  [10_000, "10s"],
  [160_000, "2m40s"],
  [300_000, "5m0s"],
])("%d ms prints as %s", (ms, text) => {
  expect(formatDelay(ms)).toBe(text);
});
