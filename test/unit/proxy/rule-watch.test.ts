import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { silentLogger } from "../../../agent/lib/log.ts";
import { findRivals, RivalWatch } from "../../../agent/proxy/rivals.ts";
import { restAfterLook, RuleWatch } from "../../../agent/proxy/rule-watch.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";

describe("how often rules are looked at", () => {
  const cases: { name: string; durationMs: number; restMsMax: number; wantMs: number }[] = [
    { name: "a quick look: every few seconds", durationMs: 1, restMsMax: 30_000, wantMs: 3_000 },
    { name: "a thousand times as long as a look takes", durationMs: 8, restMsMax: 30_000, wantMs: 8_000 },
    { name: "a slow look: every sync period", durationMs: 500, restMsMax: 30_000, wantMs: 30_000 },
    { name: "a short sync period counts more", durationMs: 1, restMsMax: 500, wantMs: 500 },
  ];
  for (const { name, durationMs, restMsMax, wantMs } of cases) {
    test(name, () => expect(restAfterLook(durationMs, restMsMax)).toBe(wantMs));
  }
});

describe("a watch over rules", () => {
  let clock: FakeClock;
  let stop: AbortController;
  let done: Promise<void>;
  let looks: number;
  let answer: () => Promise<string | undefined>;
  let isBusy: boolean;
  let damages: string[];
  let watch: RuleWatch;

  beforeEach(async () => {
    clock = new FakeClock();
    stop = new AbortController();
    looks = 0;
    answer = async () => undefined;
    isBusy = false;
    damages = [];
    const look = () => {
      looks += 1;
      return answer();
    };
    watch = new RuleWatch({
      clock,
      log: silentLogger,
      look,
      isBusy: () => isBusy,
      onDamage: (damage) => damages.push(damage),
      restMsMax: 30_000,
    });
    done = watch.run(stop.signal);
    await settle();
  });

  afterEach(async () => {
    stop.abort();
    await done;
    if (clock.waiting > 0) throw new Error(`${clock.waiting} timers are left`);
  });

  test("tells of damage within seconds", async () => {
    await clock.advance(3_000);
    expect({ looks, damages }).toEqual({ looks: 1, damages: [] });
    answer = async () => "chain X is gone";
    await clock.advance(3_000);
    expect(damages).toEqual(["chain X is gone"]);
  });

  test("does not look while rules are written, and who writes waits for a look", async () => {
    isBusy = true;
    await clock.advance(10_000);
    expect(looks).toBe(0);
    isBusy = false;
    const slow = Promise.withResolvers<string | undefined>();
    answer = () => slow.promise;
    await clock.advance(3_000);
    let isIdle = false;
    const idle = watch.idle().then(() => (isIdle = true));
    await settle();
    expect(isIdle).toBe(false);
    slow.resolve(undefined);
    await idle;
    expect(damages).toEqual([]);
  });

  test("goes on after a look that failed", async () => {
    answer = () => Promise.reject(new Error("locked"));
    await clock.advance(3_000);
    answer = async () => "gone";
    await clock.advance(3_000);
    expect(damages).toEqual(["gone"]);
  });
});

describe("another proxy on the machine", () => {
  const watchOf = (processes: { pid: number; name: string }[], clock = new FakeClock()) => {
    const told: string[] = [];
    const find = async () => processes;
    const rivals = new RivalWatch({ clock, log: silentLogger, find, onRival: (message) => told.push(message) });
    return { rivals, told };
  };

  test("is named once", async () => {
    const { rivals, told } = watchOf([{ pid: 7, name: "kube-proxy" }]);
    await Promise.all([rivals.check(), rivals.check("chain X was flushed")]);
    expect(told).toEqual([expect.stringMatching(/kube-proxy \(process 7\)/)]);
  });

  test("is suspected when rules are changed again and again, not when it was once", async () => {
    const clock = new FakeClock();
    const { rivals, told } = watchOf([], clock);
    for (let n = 0; n < 4; n++) await rivals.check("chain X was flushed");
    await clock.advance(600_000);
    await rivals.check("chain X was flushed");
    expect(told).toEqual([]);
    for (let n = 0; n < 4; n++) await rivals.check("chain X was flushed");
    expect(told).toEqual([expect.stringMatching(/5 times within ten minutes \(chain X was flushed\)/)]);
  });

  test("is found among the processes of this network namespace", async () => {
    const dir = await mkdtemp(join(tmpdir(), "rivals-"));
    try {
      const add = async (pid: string, comm: string, net: string) => {
        await mkdir(join(dir, pid, "ns"), { recursive: true });
        await writeFile(join(dir, pid, "comm"), `${comm}\n`);
        await symlink(net, join(dir, pid, "ns", "net"));
      };
      await add("self", "node", "net:[1]");
      await add("11", "kube-proxy", "net:[1]");
      await add("12", "kube-proxy", "net:[2]");
      await add("13", "kube-proxy-x", "net:[1]");
      await mkdir(join(dir, "14")); // it ended just now
      expect(await findRivals(dir)).toEqual([{ pid: 11, name: "kube-proxy" }]);
    } finally {
      await rm(dir, { recursive: true });
    }
  });
});
