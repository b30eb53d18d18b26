import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { createRuntimeHealth, type RuntimeHealth, runtimeProblems } from "../../../agent/node/runtime-health.ts";
import type { RuntimeStatus } from "../../../agent/runtime/port.ts";
import { FakeClock, settle, stopped } from "../kube/fake-clock.ts";

const ok = { status: true, reason: "", message: "" };
const down = { status: false, reason: "NetworkPluginNotReady", message: "cni plugin not initialized" };

describe("runtime health", () => {
  let clock: FakeClock;
  let status: RuntimeStatus;
  let answer: () => Promise<RuntimeStatus>;
  let polls: number;
  let changes: number;
  let health: RuntimeHealth;
  let stop: AbortController;
  let running: Promise<void>;

  const start = (cniConfDirs: string[] = []) => {
    const runtime = {
      status: () => {
        polls += 1;
        return answer();
      },
      version: async () => ({ runtimeName: "containerd", runtimeVersion: "1.6", runtimeApiVersion: "v1" }),
    };
    health = createRuntimeHealth({ runtime, clock, log: silentLogger, cniConfDirs });
    health.subscribe(() => {
      changes += 1;
    });
    running = health.run(stop.signal);
  };

  beforeEach(() => {
    clock = new FakeClock();
    status = { runtimeReady: ok, networkReady: ok, handlers: [], supplementalGroupsPolicy: false };
    answer = async () => status;
    polls = 0;
    changes = 0;
    stop = new AbortController();
  });

  afterEach(async () => {
    await stopped(running, stop, clock);
  });

  test("is known with the first answer, and tells once", async () => {
    start();
    await settle();
    expect(health.isRuntimeReady()).toBe(true);
    expect(health.isNetworkReady()).toBe(true);
    expect(health.state.version?.runtimeName).toBe("containerd");
    await clock.advance(20_000);
    expect(polls).toBe(5);
    expect(changes).toBe(1);
  });

  test("a network that goes is noticed at the next poll, and at once on wake", async () => {
    start();
    await settle();
    status = { ...status, networkReady: down };
    health.wake();
    await settle();
    expect(health.isNetworkReady()).toBe(false);
    expect(health.isRuntimeReady()).toBe(true);
    expect(changes).toBe(2);
    status = { ...status, networkReady: ok };
    await clock.advance(5_000);
    expect(health.isNetworkReady()).toBe(true);
  });

  test("a runtime that does not answer is down after 30 s, not before", async () => {
    start();
    await settle();
    answer = () => Promise.reject(new AgentError("Unavailable", "no socket"));
    await clock.advance(29_000);
    expect(health.isRuntimeReady()).toBe(true);
    await clock.advance(6_000);
    expect(runtimeProblems(health.state, clock.now()).runtime).toEqual(["container runtime is down"]);
    expect(changes).toBe(2);
    answer = async () => status;
    await clock.advance(5_000);
    expect(health.isRuntimeReady()).toBe(true);
  });

  test("a call that hangs is no answer", async () => {
    start();
    await settle();
    answer = () => new Promise(() => {});
    await clock.advance(60_000);
    expect(health.isRuntimeReady()).toBe(false);
  });

  test("RuntimeReady false counts as no good answer", async () => {
    status = { ...status, runtimeReady: { status: false, reason: "R", message: "m" } };
    start();
    await settle();
    expect(runtimeProblems(health.state, clock.now()).runtime).toEqual([
      "container runtime status check may not have completed yet",
      "container runtime not ready: RuntimeReady=false reason:R message:m",
    ]);
  });

  describe("with a CNI directory", () => {
    let directory: string;
    beforeEach(async () => {
      directory = join(await mkdtemp(join(tmpdir(), "nodelet-cni-")), "net.d");
    });
    afterEach(() => rm(join(directory, ".."), { recursive: true }));

    test("a new file makes us ask soon, also if the directory itself came later", async () => {
      status = { ...status, networkReady: down };
      start([directory]);
      await settle();
      await mkdir(directory);
      await clock.advance(5_000); // the poll finds the directory
      await clock.advance(2_000); // and what may have been in it has been looked at
      const before = polls;
      await writeFile(join(directory, "10-net.conflist"), "{}");
      status = { ...status, networkReady: ok };
      // The kernel's word of the change takes real time.
      for (let i = 0; i < 100 && !health.isNetworkReady(); i += 1) {
        await clock.advance(20);
        await settle();
      }
      expect(health.isNetworkReady()).toBe(true);
      expect(polls).toBeGreaterThan(before);
    });
  });
});
