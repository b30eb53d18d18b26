/**
 * Pod start and end on a local cluster, beside the same work done by raw calls to the same runtime; a burst of pods; and what
 * the agent costs while they idle. `--runtime docker` does it with Docker. Needs root and dist/nodelet (`npm run build`).
 */
import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { pods } from "../../agent/kube/resources.ts";
import type { Pod } from "../../agent/kube/types.ts";
import { startLocalCluster } from "../support/cluster/local-cluster.ts";
import { busyboxImageName } from "../support/images/images.ts";
import { runtimeNamed } from "../support/cluster/runtime.ts";
import { clientOf, readyPods } from "./cluster.ts";
import { openRawPods, timed } from "./raw-pod.ts";
import { isReady, until } from "./until.ts";

const rounds = 20;
const burst = 60;
const idleMs = 20_000;
const namespace = "default";
// Ends on SIGTERM at once: the time it takes to stop is then the machinery's.
const command = ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 1000 & wait $!; done"];

const { values: flags } = parseArgs({ options: { runtime: { type: "string", default: "containerd" } } });
const cluster = await startLocalCluster({ runtime: runtimeNamed(flags.runtime) });
const stop = new AbortController();
try {
  await using client = await clientOf(cluster);
  const store = await readyPods(cluster, client, namespace, stop.signal);
  await using raw = await openRawPods(cluster, command);
  const run = async (name: string) => await startAndEnd(name);

  await run("warm-up");
  const starts: number[] = [];
  const ends: number[] = [];
  const rawStarts: number[] = [];
  const rawEnds: number[] = [];
  for (let i = 0; i < rounds; i++) {
    const [startMs, endMs] = await run(`pod-${i}`);
    starts.push(startMs);
    ends.push(endMs);
    const [rawStartMs, rawEndMs] = await raw.run();
    rawStarts.push(rawStartMs);
    rawEnds.push(rawEndMs);
  }
  console.table([
    { what: "create → Ready, ms", ...quantiles(starts) },
    { what: `${raw.what.start}, ms`, ...quantiles(rawStarts) },
    { what: "agent's own share of start, ms", p50: round(median(differences(starts, rawStarts))) },
    { what: "delete → gone, ms", ...quantiles(ends) },
    { what: `${raw.what.end}, ms`, ...quantiles(rawEnds) },
    { what: "agent's own share of end, ms", p50: round(median(differences(ends, rawEnds))) },
  ]);

  const names = Array.from({ length: burst }, (_, i) => `burst-${i}`);
  const begin = performance.now();
  await Promise.all(names.map(async (name) => await createReady(name)));
  const burstMs = performance.now() - begin;
  await sleep(3_000);
  const before = await usage(cluster.agent.pid);
  await sleep(idleMs);
  const after = await usage(cluster.agent.pid);
  console.table([
    { what: `burst of ${burst} pods, pods/s`, value: round((burst / burstMs) * 1000) },
    { what: `resident with ${burst} pods, MB`, value: after.residentMB },
    { what: "anonymous part, MB", value: after.anonymousMB },
    { what: "idle CPU, % of a core", value: round(((after.cpuMs - before.cpuMs) / idleMs) * 100) },
  ]);

  async function startAndEnd(name: string): Promise<[number, number]> {
    const startMs = await timed(async () => await createReady(name));
    const endMs = await timed(async () => {
      await client.delete(pods, { namespace, name });
      await until(store, (pod) => pod === undefined, `${namespace}/${name}`);
    });
    return [startMs, endMs];
  }

  async function createReady(name: string): Promise<void> {
    const pod: Pod = {
      apiVersion: "v1",
      kind: "Pod",
      metadata: { name, namespace },
      spec: { nodeName: cluster.node.name, containers: [{ name: "main", image: busyboxImageName, command }] },
    };
    await client.create(pods, pod);
    await until(store, (seen) => seen?.status?.conditions?.some(isReady) === true, `${namespace}/${name}`);
  }
} finally {
  stop.abort();
  await cluster.destroy();
}

async function usage(pid: number): Promise<{ cpuMs: number; residentMB: number; anonymousMB: number }> {
  const [stat, status] = await Promise.all([
    readFile(`/proc/${pid}/stat`, "utf8"),
    readFile(`/proc/${pid}/status`, "utf8"),
  ]);
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const megabytes = (name: string) => round(Number(new RegExp(`${name}:\\s+(\\d+)`).exec(status)?.[1] ?? 0) / 1024);
  // utime and stime, in ticks of 10 ms (proc(5); USER_HZ is 100 on Linux).
  return {
    cpuMs: (Number(fields[11]) + Number(fields[12])) * 10,
    residentMB: megabytes("VmRSS"),
    anonymousMB: megabytes("RssAnon"),
  };
}

function quantiles(values: readonly number[]): { p50: number; p90: number } {
  const sorted = values.toSorted((a, b) => a - b);
  return { p50: round(median(values)), p90: round(sorted[Math.floor(sorted.length * 0.9)] ?? Number.NaN) };
}

/** Pair by pair: what disturbs the machine for a while disturbs both of a pair. */
function differences(values: readonly number[], others: readonly number[]): number[] {
  return values.map((value, i) => value - (others[i] ?? Number.NaN));
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
