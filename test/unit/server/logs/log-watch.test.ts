import { appendFile, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { LogWatch } from "../../../../agent/server/logs/log-watch.ts";
import { FakeClock } from "../../kube/fake-clock.ts";
import { logDir } from "./support.ts";

const never = new AbortController().signal;

test("events of the log wake, those of its neighbours do not", async () => {
  await using t = await logDir();
  await t.append("a");
  const clock = new FakeClock();
  const watch = new LogWatch(t.path, clock, silentLogger);
  try {
    watch.arm();
    let woken = false;
    const waiting = watch.wait(1_000, never).then((why) => {
      woken = true;
      return why;
    });
    await writeFile(join(t.dir, "1.log"), "");
    await writeFile(join(t.dir, "0.log.20260102-030405.gz.tmp"), "");
    await new Promise((resolve) => void setTimeout(resolve, 30));
    expect(woken).toBe(false);
    await appendFile(t.path, "b");
    expect(await waiting).toBe("event");
    expect(watch.takeReplaced()).toBe(false);
    await rename(t.path, `${t.path}.20260102-030405`);
    expect(await watch.wait(1_000, never)).toBe("event");
    expect([watch.takeReplaced(), watch.takeReplaced()]).toEqual([true, false]);
  } finally {
    watch.close();
  }
  expect(clock.waiting).toBe(0);
});

test("without a watch the clock wakes, and it is not tried without an end", async () => {
  const clock = new FakeClock();
  let failures = 0;
  const log = silentLogger.child({});
  log.debug = () => void (failures += 1);
  const watch = new LogWatch("/no/such/directory/0.log", clock, log);
  for (let i = 0; i < 8; i += 1) {
    watch.arm();
    const waiting = watch.wait(1_000, never);
    await clock.advance(1_000);
    expect(await waiting).toBe("time");
  }
  expect(failures).toBe(5);
});

test("an abort ends the wait", async () => {
  const clock = new FakeClock();
  const stop = new AbortController();
  const watch = new LogWatch("/no/such/directory/0.log", clock, silentLogger);
  const waiting = watch.wait(1_000, stop.signal);
  stop.abort(new Error("client gone"));
  await expect(waiting).rejects.toThrow("client gone");
  expect(clock.waiting).toBe(0);
});
