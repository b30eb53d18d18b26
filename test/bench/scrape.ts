/**
 * What statistics cost with 100 pods: a fake cgroup v2 tree in memory (as many files as a real one has), a runtime that
 * answers from a table, and each endpoint rendered as the server does. No root needed. Run it with the flags of the
 * executable (see .ci/build.ts) for its memory and pauses.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { setImmediate } from "node:timers/promises";
import { systemClock } from "../../agent/lib/clock.ts";
import type { MetricFamily } from "../../agent/lib/metrics.ts";
import { renderMetrics } from "../../agent/lib/metrics-text.ts";
import { createFakeNode } from "../support/stats/fake-node.ts";

const pods = 100;
const rounds = 30;
// Scrapers come each 15 s; here they do not wait for it.
const intervalMs = 15_000;

const dir = await mkdtemp("/dev/shm/nodelet-bench-");
const stop = new AbortController();
try {
  let passedMs = 0;
  const clock = { ...systemClock, now: () => Date.now() + passedMs };
  const node = await createFakeNode({ dir, clock });
  for (let i = 0; i < pods; i++) await node.addPod(`pod-with-a-usual-name-${i}`, ["app", "sidecar"]);
  const stats = await node.start();
  const render = async (families: Iterable<MetricFamily>) => {
    let bytes = 0;
    for (const piece of renderMetrics(families)) {
      bytes += Buffer.byteLength(piece);
      await setImmediate();
    }
    return bytes;
  };
  const endpoints: Record<string, () => Promise<number>> = {
    "/metrics/resource": async () => await render(await stats.resourceMetrics()),
    "/stats/summary?only_cpu_and_memory": async () =>
      JSON.stringify(await stats.summary({ onlyCPUAndMemory: true }), undefined, 1).length,
    "/stats/summary": async () => JSON.stringify(await stats.summary({ onlyCPUAndMemory: false }), undefined, 1).length,
    "/metrics/cadvisor": async () => await render(await stats.cadvisorMetrics()),
  };
  const running = stats.run(stop.signal);
  const table = [];
  for (const [what, scrape] of Object.entries(endpoints)) {
    for (let i = 0; i < 5; i++) await next(scrape); // compile, and sandboxes' processes
    globalThis.gc?.();
    const residentBefore = process.memoryUsage().rss;
    const delay = monitorEventLoopDelay({ resolution: 1 });
    const cpu = process.cpuUsage();
    const walls: number[] = [];
    let bytes = 0;
    delay.enable();
    for (let i = 0; i < rounds; i++) {
      const begin = performance.now();
      bytes = await next(scrape);
      walls.push(performance.now() - begin);
    }
    delay.disable();
    const used = process.cpuUsage(cpu);
    const cpuMs = (used.user + used.system) / 1_000 / rounds;
    walls.sort((a, b) => a - b);
    table.push({
      what,
      "wall p50, ms": round(walls[Math.floor(rounds / 2)] ?? 0),
      "CPU, ms": round(cpuMs),
      "% of a core each 15 s": round((cpuMs / intervalMs) * 100),
      "stall p99, ms": round(delay.percentile(99) / 1e6),
      "stall max, ms": round(delay.max / 1e6),
      KB: round(bytes / 1_000),
      "RSS growth, MB": round((process.memoryUsage().rss - residentBefore) / 2 ** 20),
    });
  }
  console.table(table);
  stop.abort();
  await running;

  async function next(scrape: () => Promise<number>): Promise<number> {
    passedMs += intervalMs;
    return await scrape();
  }
} finally {
  stop.abort();
  await rm(dir, { recursive: true, force: true });
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}
