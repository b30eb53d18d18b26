import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeEach, expect, onTestFinished, test } from "vitest";
import type { Pod, Volume } from "../../../agent/kube/types.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { createVolumeMeter, idleAfterMs, type VolumeMeterDeps } from "../../../agent/stats/volumes.ts";
import { FakeClock } from "../kube/fake-clock.ts";

const periodMs = 60_000;
let rootDir: string;
let clock: FakeClock;
let pods: Pod[];

beforeEach(async () => {
  rootDir = await mkdtemp(join(tmpdir(), "nodelet-volumes-"));
  const made = rootDir;
  onTestFinished(async () => await rm(made, { recursive: true, force: true }));
  clock = new FakeClock();
  pods = [];
});

const addPod = async (uid: string, volumes: Volume[]) => {
  pods.push({ metadata: { name: uid, namespace: "ns", uid }, spec: { containers: [], volumes } });
};
const fill = async (uid: string, plugin: string, name: string, bytes: number) => {
  const directory = join(rootDir, "pods", uid, "volumes", plugin, name);
  await mkdir(directory, { recursive: true });
  await writeFile(join(directory, "file"), Buffer.alloc(bytes, 1));
};

function start(change: Partial<VolumeMeterDeps> = {}) {
  const stop = new AbortController();
  const deps = {
    pods: { list: () => pods },
    rootDir,
    periodMs,
    clock,
    log: silentLogger,
    random: () => 0.5,
    ...change,
  };
  const meter = createVolumeMeter(deps);
  const running = meter.run(stop.signal);
  onTestFinished(async () => {
    stop.abort();
    await running;
  });
  return { meter, settle: async () => await meter.settle(2_000, stop.signal) };
}

test("the first to ask waits for figures; later ones have them at once", async () => {
  await addPod("u1", [{ name: "scratch", emptyDir: {} }]);
  await fill("u1", "kubernetes.io~empty-dir", "scratch", 100_000);
  const { meter, settle } = start();
  expect(meter.of("u1")).toEqual([]);
  await settle();
  const [volume] = meter.of("u1");
  expect(volume).toMatchObject({ isLocalEphemeral: true, stats: { name: "scratch", inodesUsed: 2 } });
  expect(volume?.stats.usedBytes).toBeGreaterThanOrEqual(100_000);
  expect(volume?.stats.capacityBytes).toBeGreaterThan(volume?.stats.usedBytes ?? 0);
});

test("each period, lengthened by up to itself, the figures are renewed", async () => {
  await addPod("u1", [{ name: "scratch", emptyDir: {} }]);
  await fill("u1", "kubernetes.io~empty-dir", "scratch", 1_000);
  const { meter, settle } = start();
  await settle();
  await fill("u1", "kubernetes.io~empty-dir", "scratch", 200_000);
  const used = () => meter.of("u1")[0]?.stats.usedBytes ?? 0;
  await clock.advance(periodMs * 1.5 - 1);
  expect(used()).toBeLessThan(200_000);
  await clock.advance(1);
  await expect.poll(used, { interval: 1 }).toBeGreaterThanOrEqual(200_000);
});

test("what only the agent writes is measured once", async () => {
  await addPod("u1", [{ name: "conf", configMap: { name: "c" } }]);
  await fill("u1", "kubernetes.io~configmap", "conf", 1_000);
  const { meter, settle } = start();
  await settle();
  const before = meter.of("u1");
  expect(before[0]?.isLocalEphemeral).toBe(true);
  await fill("u1", "kubernetes.io~configmap", "conf", 500_000);
  await clock.advance(periodMs * 2);
  await expect.poll(() => meter.of("u1") !== before, { interval: 1 }).toBe(true);
  expect(meter.of("u1")[0]?.stats.usedBytes).toBe(before[0]?.stats.usedBytes);
});

test("nobody asks for a while: measuring stops, and the next one waits for fresh figures", async () => {
  await addPod("u1", [{ name: "scratch", emptyDir: {} }]);
  await fill("u1", "kubernetes.io~empty-dir", "scratch", 1_000);
  const { meter, settle } = start();
  await settle();
  expect(meter.of("u1")).toHaveLength(1);
  const rest = async () => await expect.poll(() => clock.waiting, { interval: 1 }).toBe(1);
  for (let passedMs = 0; passedMs <= idleAfterMs + 2 * periodMs; passedMs += periodMs) {
    await rest();
    await clock.advance(periodMs);
  }
  expect(meter.of("u1")).toEqual([]);
  await settle();
  expect(meter.of("u1")).toHaveLength(1);
});

test("a volume that cannot be measured leaves the others alone", async () => {
  await addPod("u1", [
    { name: "not-mounted-yet", emptyDir: {} },
    { name: "host", hostPath: { path: "/" } },
    { name: "scratch", emptyDir: { medium: "Memory" } },
    { name: "claim", persistentVolumeClaim: { claimName: "c" } },
  ]);
  await addPod("../../..", [{ name: "scratch", emptyDir: {} }]);
  await fill("u1", "kubernetes.io~empty-dir", "scratch", 1_000);
  const { meter, settle } = start();
  await settle();
  expect(meter.of("u1").map(({ stats, isLocalEphemeral }) => [stats.name, isLocalEphemeral])).toEqual([
    ["scratch", false],
  ]);
  expect(meter.of("../../..")).toEqual([]);
});

test("volumes of claims are asked as filesystems, and name their claim", async () => {
  await addPod("u1", [
    { name: "data", persistentVolumeClaim: { claimName: "big" } },
    { name: "tmp", ephemeral: {} },
  ]);
  const { meter, settle } = start({ mountedAt: () => rootDir });
  await settle();
  expect(meter.of("u1").map(({ stats }) => [stats.name, stats.pvcRef])).toEqual([
    ["data", { name: "big", namespace: "ns" }],
    ["tmp", { name: "u1-tmp", namespace: "ns" }],
  ]);
  const [data] = meter.of("u1");
  expect(data?.stats.usedBytes).toBeGreaterThan(0);
  expect(data?.isLocalEphemeral).toBe(false);
});

test("a period of 0 switches it off, and nobody waits", async () => {
  await addPod("u1", [{ name: "scratch", emptyDir: {} }]);
  await fill("u1", "kubernetes.io~empty-dir", "scratch", 1_000);
  const { meter, settle } = start({ periodMs: 0 });
  await settle();
  expect(meter.of("u1")).toEqual([]);
});

test("the wait for figures has an end, and so has the measuring", async () => {
  await addPod("u1", [{ name: "scratch", emptyDir: {} }]);
  const meter = createVolumeMeter({ pods: { list: () => pods }, rootDir, periodMs, clock, log: silentLogger });
  const waited = meter.settle(2_000, new AbortController().signal); // nobody runs it
  await expect.poll(() => clock.waiting, { interval: 1 }).toBe(1);
  await clock.advance(2_000);
  await waited;
  expect(clock.waiting).toBe(0);
});
