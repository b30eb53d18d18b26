import { describe, expect, test } from "vitest";
import {
  detailCharsMax,
  endedPodsMax,
  firstEntriesMax,
  lastEntriesMax,
  shortened,
  Timeline,
  Timelines,
} from "../../../agent/pods/timeline.ts";
import { FakeClock } from "../kube/fake-clock.ts";
import { JumpyClock } from "./scripted-node.ts";
import { podOf } from "./support.ts";

const beginMs = Date.UTC(2026, 0, 1);

function timelineOf(): { clock: FakeClock; timeline: Timeline } {
  const clock = new FakeClock();
  return { clock, timeline: new Timeline(podOf(), clock) };
}

describe("a timeline", () => {
  test.each([-3_600_000, 3_600_000])("is as long as it took when the clock jumps by %d ms", async (jumpMs) => {
    const clock = new JumpyClock();
    const timeline = new Timeline(podOf(), clock);
    timeline.note("seen");
    await clock.advance(1_000);
    clock.skewMs += jumpMs;
    timeline.begin("image", "app").failed("no", { retryAtMs: clock.now() + 10_000 });
    const [seen, image] = timeline.entries;
    expect(clock.now() - (seen?.atMs ?? 0)).toBe(1_000);
    expect(image).toMatchObject({ atMs: clock.now(), retryAtMs: clock.now() + 10_000 });
    clock.skewMs -= jumpMs;
    expect(timeline.entries[1]).toMatchObject({ atMs: clock.now(), retryAtMs: clock.now() + 10_000 });
  });

  test("tells when a step began, what it does meanwhile, and how long it took", async () => {
    const { clock, timeline } = timelineOf();
    await clock.advance(1_000);
    const open = timeline.begin("image", "app");
    open.note('Pulling image "x"');
    expect(timeline.entries).toMatchObject([{ atMs: beginMs + 1_000, state: "running", detail: 'Pulling image "x"' }]);
    await clock.advance(250);
    open.done("pulled x");
    expect(timeline.entries).toEqual([
      {
        atMs: beginMs + 1_000,
        lastAtMs: beginMs + 1_000,
        what: "image",
        subject: "app",
        state: "done",
        tookMs: 250,
        detail: "pulled x",
        times: 1,
      },
    ]);
  });

  test("takes the first end of a step for its end", () => {
    const { timeline } = timelineOf();
    const open = timeline.begin("sandbox");
    open.failed("no network", { retryAtMs: 5 });
    open.done();
    open.note("late");
    expect(timeline.entries).toMatchObject([{ state: "failed", detail: "no network", retryAtMs: 5 }]);
  });

  test("shows nothing of a step that was called off", () => {
    const { timeline } = timelineOf();
    timeline.begin("image", "app").forget();
    expect(timeline.entries).toEqual([]);
  });

  test("counts what happens again with the same outcome", async () => {
    const { clock, timeline } = timelineOf();
    for (let i = 0; i < 3; i++) {
      timeline.begin("volume", "config").failed('configmap "app" not found', { retryAtMs: i });
      await clock.advance(1_000);
    }
    timeline.begin("volume", "config").done();
    timeline.note("seen");
    expect(timeline.entries.map(({ what, state, times }) => [what, state, times])).toEqual([
      ["volume", "failed", 3],
      ["volume", "done", 1],
      ["seen", "done", 1],
    ]);
    expect(timeline.entries[0]).toMatchObject({ atMs: beginMs, lastAtMs: beginMs + 2_000, retryAtMs: 2 });
  });

  test("keeps the newest words of what differs each time, such as a probe's output", () => {
    const { timeline } = timelineOf();
    const outcome = { isFailure: true, isAnyDetail: true };
    for (const at of ["10:00", "10:01"]) timeline.note("readiness probe", "app", at, outcome);
    expect(timeline.entries).toMatchObject([{ detail: "10:01", times: 2 }]);
  });

  test("takes messages that differ in the runtime's IDs alone for the same", () => {
    const { timeline } = timelineOf();
    for (const digit of ["a", "b"]) timeline.begin("start", "app").failed(`start ${digit.repeat(64)}: no`);
    expect(timeline.entries).toMatchObject([{ detail: "start <id>: no", times: 2 }]);
  });

  test("keeps how the pod began and what happened last, and says how much is missing", () => {
    const { timeline } = timelineOf();
    const count = firstEntriesMax + lastEntriesMax + 10;
    for (let i = 0; i < count; i++) timeline.note("event", "", `${i}`);
    const details = timeline.entries.map(({ detail }) => Number(detail));
    expect(details.slice(0, 2)).toEqual([0, 1]);
    expect(details[firstEntriesMax]).toBe(firstEntriesMax + 10);
    expect(details.at(-1)).toBe(count - 1);
    expect(timeline.omitted).toBe(10);
    expect(details).toEqual(details.toSorted((a, b) => a - b));
  });

  test("costs a full node less than a few megabytes, however long the messages are", () => {
    const { timeline } = timelineOf();
    for (let i = 0; i < 1_000; i++) timeline.note("event", "app", `${i} ${"long ".repeat(10_000)}`);
    const podsMax = 110;
    expect(JSON.stringify(timeline.entries).length * podsMax).toBeLessThan(3 << 20);
    expect(timeline.entries.every(({ detail }) => detail.length <= detailCharsMax)).toBe(true);
  });
});

test("a long message keeps its begin and its end, where the cause is", () => {
  const text = `start container: ${"failed to: ".repeat(100)}no such file`;
  const short = shortened(text, 60);
  expect(short).toHaveLength(60);
  expect(short).toMatch(/^start container: .* \.\.\. .*no such file$/);
  expect(shortened("short", 60)).toBe("short");
});

describe("timelines", () => {
  test("are found by UID while the pod is there, by name when it is gone", () => {
    const timelines = new Timelines(new FakeClock());
    const old = timelines.open(podOf({}, { uid: "old" }));
    const pod = timelines.open(podOf({}, { uid: "new" }));
    expect(timelines.open(podOf({}, { uid: "new" }))).toBe(pod);
    expect(timelines.get("old")).toBe(old);
    expect(timelines.find("ns", "web")).toBe(pod);
    expect(timelines.findEnded("ns", "web")).toBeUndefined();
    timelines.end("old");
    timelines.end("old");
    expect(timelines.get("old")).toBeUndefined();
    expect(timelines.findEnded("ns", "web")).toBe(old);
    timelines.end("new");
    expect(timelines.findEnded("ns", "web")).toBe(pod);
    expect(timelines.findEnded("other", "web")).toBeUndefined();
  });

  test("of pods that are gone are few", () => {
    const timelines = new Timelines(new FakeClock());
    for (let i = 0; i <= endedPodsMax; i++) {
      timelines.open(podOf({}, { uid: `u${i}`, name: `web-${i}` }));
      timelines.end(`u${i}`);
    }
    expect(timelines.findEnded("ns", "web-0")).toBeUndefined();
    expect(timelines.findEnded("ns", "web-1")).toBeDefined();
    expect(timelines.findEnded("ns", `web-${endedPodsMax}`)).toBeDefined();
  });
});
