import { once } from "node:events";
import { expect, test } from "vitest";
import { silentLogger } from "../../../agent/lib/log.ts";
import { RunningParts } from "../../../agent/roles/parts.ts";
import { FakeClock } from "../kube/fake-clock.ts";

/** A loop that notes when it was told to stop, and ends `when` says. */
function loop(name: string, seen: string[], ending: Promise<void> = Promise.resolve()) {
  return async (signal: AbortSignal) => {
    if (!signal.aborted) await once(signal, "abort");
    seen.push(name);
    await ending;
  };
}

test("parts stop one after the other, the last started first", async () => {
  const parts = new RunningParts(silentLogger);
  const seen: string[] = [];
  parts.defer("connection", () => void seen.push("connection"));
  parts.start("events", loop("events", seen));
  parts.start("pods", loop("pods", seen));
  expect(await parts.stop(1_000, new FakeClock())).toEqual([]);
  expect(seen).toEqual(["pods", "events", "connection"]);
});

test("what does not stop in time is named, and so is what waits for it", async () => {
  const parts = new RunningParts(silentLogger);
  const clock = new FakeClock();
  const seen: string[] = [];
  parts.start("events", loop("events", seen));
  parts.start("pods", loop("pods", seen, new Promise(() => {})));
  const stuck = parts.stop(1_000, clock);
  await clock.advance(1_000);
  expect(await stuck).toEqual(["events", "pods"]);
  expect(seen).toEqual(["pods"]);
});

test("a part that ends by itself, or fails, is a failure of the agent", async () => {
  for (const [run, message] of [
    [async () => {}, "pods ended although nobody stopped it"],
    [() => Promise.reject(new Error("no iptables")), "pods: no iptables"],
  ] as const) {
    const parts = new RunningParts(silentLogger);
    parts.start("pods", run);
    await expect(parts.failed).rejects.toThrow(message);
    await parts.stop(1_000, new FakeClock());
  }
});

test("a part that fails or does not close while stopping holds up no other", async () => {
  const parts = new RunningParts(silentLogger);
  const seen: string[] = [];
  parts.start("events", loop("events", seen));
  parts.start("pods", loop("pods", seen, Promise.reject(new Error("late"))));
  parts.defer("connection", () => Promise.reject(new Error("broken")));
  expect(await parts.stop(1_000, new FakeClock())).toEqual([]);
  expect(seen).toEqual(["pods", "events"]);
});

test("nothing starts any more once the agent stops", async () => {
  const parts = new RunningParts(silentLogger);
  await parts.stop(1_000, new FakeClock());
  let hasRun = false;
  const run = async () => {
    hasRun = true;
  };
  expect(() => parts.start("pods", run)).toThrow("pods is not started: the agent stops");
  expect(hasRun).toBe(false);
});
