import { afterEach, beforeEach, expect, test } from "vitest";
import type { EventRecorder } from "../../../agent/kube/port.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { untilAborted } from "../../../agent/lib/loop.ts";
import type { FamilyStats } from "../../../agent/proxy/family.ts";
import { ProxyAttempts } from "../../../agent/roles/proxy-attempts.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";

let clock: FakeClock;
let events: Parameters<EventRecorder["event"]>[];
let startedAtMs: number[];
/** Why the next attempts fail. */
let problem: string | undefined;
let stats: FamilyStats[];
let stop: AbortController;
let attempts: ProxyAttempts;
let done: Promise<void>;

beforeEach(() => {
  clock = new FakeClock();
  [events, startedAtMs, stats, problem] = [[], [], [], "somebody holds the lock"];
  stop = new AbortController();
  const proxy = {
    stats: () => stats,
    run: async (signal: AbortSignal) => {
      startedAtMs.push(clock.now());
      if (problem !== undefined) throw new Error(problem);
      stats = [{} as FamilyStats];
      await untilAborted(signal);
    },
  };
  const recorder = { event: (...event: (typeof events)[number]) => void events.push(event) };
  attempts = new ProxyAttempts(proxy, { nodeName: "n1", recorder, clock, log: silentLogger });
  done = attempts.run(stop.signal);
});

afterEach(async () => {
  stop.abort();
  await settle();
  await done;
  if (clock.waiting > 0) throw new Error(`${clock.waiting} timers are left`);
});

test("a proxy that cannot begin is told and tried again, until it works", async () => {
  await settle();
  expect(attempts.hasFailed()).toBe(true);
  expect(events).toEqual([
    [
      { kind: "Node", name: "n1", uid: "n1" },
      "Warning",
      "FailedToStartProxy",
      "the service proxy cannot run on this node: somebody holds the lock",
      "StartKubeProxy",
    ],
  ]);
  problem = undefined;
  await clock.advance(5_000);
  expect(startedAtMs).toHaveLength(2);
  expect(attempts.hasFailed()).toBe(false);
  await clock.advance(3_600_000);
  expect(startedAtMs).toHaveLength(2);
});

test("what never works is tried at longer and longer intervals, five minutes at most", async () => {
  await clock.advance(3_600_000);
  const rests = startedAtMs.slice(1).map((at, i) => (at - (startedAtMs[i] ?? 0)) / 1_000);
  expect(rests.slice(0, 8)).toEqual([5, 10, 20, 40, 80, 160, 300, 300]);
});
