/**
 * Probes: whether 500 of them with a period of a second keep their schedule, and what they cost; then, on a local cluster,
 * how soon a passed readiness probe is seen by others, and how soon a container that ended is started anew. The second part
 * needs root and dist/nodelet (`npm run build`); `--schedule` runs the first alone. On a machine that has other work, run that
 * as `chrt -f 5 .ci/node test/bench/probes.ts --schedule`.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import type { KubeClient } from "../../agent/kube/client.ts";
import type { Store } from "../../agent/kube/port.ts";
import { pods } from "../../agent/kube/resources.ts";
import type { Container, Pod, Probe } from "../../agent/kube/types.ts";
import { type Clock, systemClock } from "../../agent/lib/clock.ts";
import { MetricsRegistry } from "../../agent/lib/metrics.ts";
import { createProbeManager } from "../../agent/probes/manager.ts";
import { createProber } from "../../agent/probes/run.ts";
import { type LocalCluster, startLocalCluster } from "../support/cluster/local-cluster.ts";
import { busyboxImageName } from "../support/images/images.ts";
import { connectRuntime } from "../support/runtime/connect.ts";
import { clientOf, readyPods } from "./cluster.ts";
import { isReady, until } from "./until.ts";

const probesMax = 500;
const warmUpMs = 10_000;
// The memory of the first kind is watched for long; the others only show what they cost.
const runs = [
  { kind: "http", forMs: 120_000 },
  { kind: "tcp", forMs: 15_000 },
  { kind: "grpc", forMs: 15_000 },
] as const;
const rounds = 30;
const namespace = "default";

setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc") as () => void;

await benchSchedule();
if (!process.argv.includes("--schedule")) await benchPods();

async function benchSchedule(): Promise<void> {
  const target = spawn(process.execPath, [new URL("../support/probe-target/main.ts", import.meta.url).pathname], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  try {
    const [line] = (await once(target.stdout, "data")) as [Buffer];
    const ports = JSON.parse(line.toString("utf8")) as { http: number; tcp: number; grpc: number };
    const handlers: Record<(typeof runs)[number]["kind"], Probe> = {
      http: { httpGet: { port: ports.http } },
      tcp: { tcpSocket: { port: ports.tcp } },
      grpc: { grpc: { port: ports.grpc } },
    };
    const rows = [];
    for (const { kind, forMs } of runs) rows.push(await measure(kind, handlers[kind], forMs));
    console.log(`${probesMax} probes with a period of 1 s (budget: lateness p99 ≤ 50 ms)`);
    console.table(rows);
  } finally {
    target.kill();
    await once(target, "exit");
  }
}

async function measure(kind: string, handler: Probe, forMs: number): Promise<object> {
  const lateMs: number[] = [];
  let failures = 0;
  const clock = watched(systemClock, (ms) => lateMs.push(ms));
  const manager = createProbeManager({
    clock,
    prober: createProber({ execSync: async () => await Promise.reject(new Error("nothing to run")) }),
    metrics: new MetricsRegistry(),
    onEvent: () => {
      failures += 1;
    },
    onChange: () => {},
  });
  for (let i = 0; i < probesMax; i++) {
    const readinessProbe = { ...handler, periodSeconds: 1 };
    const pod = podOf(`pod-${i}`, { readinessProbe });
    const app = { name: "main", containerID: `id-${i}`, wasStarted: true, wasReady: true };
    // As after a restart of the agent: containers that ran before, which the manager spreads over a period.
    const containers = [{ ...app, isRunning: true, startedAtMs: clock.now() - 60_000 }];
    manager.observe(`uid-${i}`, { pod, podIP: "127.0.0.1", containers });
  }
  await sleep(warmUpMs);
  lateMs.length = 0;
  collectGarbage();
  const memoryBefore = process.memoryUsage();
  const cpuBefore = process.cpuUsage();
  const machine = timersOfMachine();
  await sleep(forMs);
  const { user, system } = process.cpuUsage(cpuBefore);
  const count = lateMs.length;
  const late = quantiles(lateMs.splice(0));
  const floor = await machine();
  collectGarbage();
  const memoryAfter = process.memoryUsage();
  await manager.close();
  return {
    kind,
    "probes/s": round(count / (forMs / 1_000)),
    failures,
    "late p50, ms": late.p50,
    "late p99, ms": late.p99,
    "late max, ms": late.max,
    "machine p99, ms": floor.p99,
    "CPU, % of a core": round((user + system) / 10 / forMs),
    "CPU each, µs": round((user + system) / count),
    "heap growth, MB": megabytes(memoryAfter.heapUsed - memoryBefore.heapUsed),
    "RSS growth, MB": megabytes(memoryAfter.rss - memoryBefore.rss),
  };
}

/** How late timers are in a process that has nothing else to do: what other programs on the machine make of it. */
function timersOfMachine(): () => Promise<{ p99: number }> {
  const code = `
    const late = [];
    const wait = () => {
      const due = performance.now() + 20;
      setTimeout(() => { late.push(performance.now() - due); wait(); }, 20);
    };
    wait();
    process.stdin.on("end", () => { console.log(JSON.stringify(late)); process.exit(); }).resume();`;
  const idle = spawn(process.execPath, ["-e", code], { stdio: ["pipe", "pipe", "inherit"] });
  return async () => {
    idle.stdin.end();
    return quantiles(JSON.parse(await text(idle.stdout)) as number[]);
  };
}

/** The clock, telling how late each of its timers fires; those of timeouts never do. */
function watched(clock: Clock, onFired: (lateMs: number) => void): Clock {
  return {
    ...clock,
    after: (ms, fn) => {
      const dueMs = clock.monotonic() + ms;
      return clock.after(ms, () => {
        onFired(clock.monotonic() - dueMs);
        fn();
      });
    },
  };
}

async function benchPods(): Promise<void> {
  // Steps are logged when they begin.
  const cluster = await startLocalCluster({ kubelet: { logging: { verbosity: 4 } } });
  const stop = new AbortController();
  try {
    await using client = await clientOf(cluster);
    const store = await readyPods(cluster, client, namespace, stop.signal);
    await benchReadiness(cluster, client, store);
    await benchRestart(cluster, client, store);
  } finally {
    stop.abort();
    await cluster.destroy();
  }
}

/** From the answer that makes the probe pass until a watch shows Ready, beside a patch of our own until it is shown. */
async function benchReadiness(cluster: LocalCluster, client: KubeClient, store: Store<Pod>): Promise<void> {
  let isWell = false;
  let answeredMs = Number.NaN;
  const server = createServer((_request, response) => {
    if (isWell && Number.isNaN(answeredMs)) answeredMs = performance.now();
    response.writeHead(isWell ? 200 : 503).end();
  });
  await new Promise<void>((resolve) => void server.listen(0, cluster.node.network.hostIP, resolve));
  const { port } = server.address() as AddressInfo;
  const shown: number[] = [];
  const floor: number[] = [];
  try {
    const host = cluster.node.network.hostIP;
    for (let i = 0; i < rounds; i++) {
      const name = `ready-${i}`;
      isWell = false;
      answeredMs = Number.NaN;
      const readinessProbe = { periodSeconds: 1, httpGet: { host, port } };
      const pod = podOf(name, { readinessProbe }, cluster.node.name);
      await client.create(pods, pod);
      await until(store, (seen) => seen?.status?.phase === "Running", `${namespace}/${name}`);
      await sleep(Math.random() * 500);
      isWell = true;
      await until(store, (seen) => seen?.status?.conditions?.some(isReady) === true, `${namespace}/${name}`);
      shown.push(performance.now() - answeredMs);
      const beganMs = performance.now();
      const patch = { metadata: { annotations: { bench: "1" } } };
      const patched = client.patch(pods, { namespace, name }, patch, { type: "merge" });
      await until(store, (seen) => seen?.metadata.annotations?.["bench"] === "1", `${namespace}/${name}`);
      floor.push(performance.now() - beganMs);
      await patched;
      await client.delete(pods, { namespace, name }, { gracePeriodSeconds: 0 });
    }
  } finally {
    server.closeAllConnections();
    await new Promise((resolve) => void server.close(resolve));
  }
  const [p50, p99] = [median(shown) - median(floor), quantiles(shown).p99 - median(floor)];
  console.table([
    { what: "readiness passes → Ready in a watch, ms", ...quantiles(shown) },
    { what: "a patch of our own → in a watch, ms", ...quantiles(floor) },
    { what: "agent's own share, ms (budget: 20)", p50: round(p50), p99: round(p99) },
  ]);
}

/**
 * From the end of a container, as the runtime noted it, until the agent begins to start the next one; beside how soon the
 * runtime shows the end to anybody who asks at each of its events.
 */
async function benchRestart(cluster: LocalCluster, client: KubeClient, store: Store<Pod>): Promise<void> {
  const runtime = await connectRuntime(cluster.node);
  const ended = new Map<string, number>();
  const seen = new Map<string, number>();
  const stop = new AbortController();
  const watching = runtime.events(({ podUID }) => {
    if (podUID === undefined || seen.has(podUID)) return;
    runtime.podSnapshot(podUID).then(
      ({ containers }) => {
        if (containers.some(({ state }) => state === "exited") && !seen.has(podUID)) seen.set(podUID, Date.now());
      },
      () => {}, // gone by then
    );
  }, stop.signal);
  try {
    for (let i = 0; i < rounds; i++) {
      const name = `ends-${i}`;
      const script =
        "test -e /tmp/once || { touch /tmp/once; sleep 0.5; exit 1; }; trap 'exit 0' TERM; sleep 1000 & wait";
      const volumeMounts = [{ name: "tmp", mountPath: "/tmp" }];
      const pod = podOf(name, { command: ["sh", "-c", script], volumeMounts }, cluster.node.name);
      await client.create(pods, { ...pod, spec: { ...pod.spec, volumes: [{ name: "tmp", emptyDir: {} }] } });
      const isAgain = (seen?: Pod) => seen?.status?.containerStatuses?.[0]?.restartCount === 1;
      await until(store, isAgain, `${namespace}/${name}`);
      const uid = store.get(`${namespace}/${name}`)?.metadata.uid ?? "";
      const { containers } = await runtime.podSnapshot(uid);
      const first = containers.find(({ state }) => state === "exited");
      if (first !== undefined) ended.set(uid, first.finishedAtMs);
      await client.delete(pods, { namespace, name }, { gracePeriodSeconds: 0 });
    }
  } finally {
    stop.abort();
    await watching;
    await runtime.close();
  }
  const begun: Record<"EnsureImage" | "StartContainer", number[]> = { EnsureImage: [], StartContainer: [] };
  const open = new Map([...ended].map(([uid, endMs]) => [uid, { endMs, kinds: new Set<string>() }]));
  for (const line of (await readFile(cluster.agent.logPath, "utf8")).split("\n")) {
    if (!line.includes("step begins")) continue;
    const step = JSON.parse(line) as { time: string; podUID: string; action: { kind: keyof typeof begun } };
    const found = open.get(step.podUID);
    const atMs = Date.parse(step.time);
    const { kind } = step.action;
    if (found === undefined || atMs < found.endMs || begun[kind] === undefined || found.kinds.has(kind)) continue;
    found.kinds.add(kind);
    begun[kind].push(atMs - found.endMs);
  }
  const shown = [...ended].flatMap(([uid, endMs]) => (seen.get(uid) ?? Number.NaN) - endMs);
  console.table([
    { what: "container ended → shown by the runtime, ms", count: shown.length, ...quantiles(shown) },
    { what: "container ended → image asked for, ms", count: begun.EnsureImage.length, ...quantiles(begun.EnsureImage) },
    {
      what: "container ended → next one begun, ms",
      count: begun.StartContainer.length,
      ...quantiles(begun.StartContainer),
    },
    { what: "agent's own share, ms (budget: 50)", p50: round(median(begun.StartContainer) - median(shown)) },
  ]);
}

function podOf(name: string, main: Partial<Container>, nodeName = ""): Pod {
  const command = ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 1000 & wait $!; done"];
  const container = { name: "main", image: busyboxImageName, command, ...main };
  return { apiVersion: "v1", kind: "Pod", metadata: { name, namespace }, spec: { nodeName, containers: [container] } };
}

function quantiles(values: readonly number[]): { p50: number; p99: number; max: number } {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (q: number) => round(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? Number.NaN);
  return { p50: at(0.5), p99: at(0.99), max: at(1) };
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

function megabytes(bytes: number): number {
  return round(bytes / 2 ** 20);
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
