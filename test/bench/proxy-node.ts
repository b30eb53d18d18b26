/**
 * The proxy as people run it: dist/nodelet in a network namespace of its own, a test API server that already has 1 000 and
 * 10 000 services of 5 endpoints, and connections through a ClusterIP. Run as root after `npm run build`:
 * `.ci/node test/bench/proxy-node.ts [mode:services…]`, such as `nftables:10000`; with `:0` only connections are measured, through
 * the one service that there is. One table, beside the budgets and what kube-proxy 1.36 takes on this kind of machine.
 *
 * A change is measured end to end: from the API server's store, by way of the watch, to a connection that reaches the new
 * endpoint. CPU counts the agent and the commands that it runs.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { connect, createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { endpointSlices, nodes, services } from "../../agent/kube/resources.ts";
import type { EndpointSlice, Service } from "../../agent/kube/types.ts";
import { exec } from "../../agent/lib/exec.ts";
import { startTestApiServer, type TestApiServer } from "../support/apiserver/server.ts";
import { makeService, makeSlice } from "../support/service-objects.ts";
import { countReference, countVisited } from "./rules-visited.ts";

const project = new URL("../..", import.meta.url).pathname;
const executable = join(project, "dist/nodelet");
// What is in the executable, which takes no preloads, for what needs one.
const bundle = join(project, "dist/nodelet.cjs");
// As the executable has them; see .ci/build.ts.
const nodeFlags = ["--max-semi-space-size=2", "--v8-pool-size=1", "--heap-growing-percent=25"];
const endpointsPerService = 5;
const nodeCount = 100;
const conditions = { ready: true };
const changes = 15;
// Longer than minSyncPeriod, so that each change is the first one after quiet.
const betweenChangesMs = 1_200;
const connects = 1_500;
const idleMs = 10_000;
const filled = 1_000;
const storms = 3;
const stormUpdates = 5_000;
const waitMs = Number(process.env["BENCH_WAIT_MS"] ?? 120_000);
const ticksPerSecond = 100;
const runsDefault = [0, 1_000, 10_000].flatMap((count) => [`nftables:${count}`, `nft:${count}`]);

/** What is measured, with its budget and kube-proxy's figures at 10 000 services: nftables mode, then iptables mode with iptables-nft. */
const figures = {
  coldMs: ["cold start, ms (of it the sync)", "≤ 800 / 4 000", "12 700 / 273 000"],
  coldCpuMs: ["cold start, CPU ms (of it commands)", "", ""],
  coldStalls: ["cold start, event loop stalls p99/max ms", "p99 ≤ 25", ""],
  rss: ["resident MB after cold start / calm / peak", "≤ 100 idle", "312 / 265"],
  anon: ["anonymous part of it, calm", "", ""],
  rssAfterStorms: [`resident MB after storms of ${stormUpdates}`, "flat", ""],
  changeMs: ["one change, p50/p99 ms", "≤ 50", "5 900 / 1 100"],
  changeCpuMs: ["one change, CPU ms", "≤ 30", "3 800 / 1 240"],
  fillMs: [`${filled} more services, ms (CPU ms)`, "", ""],
  stormStalls: ["storms, event loop stalls p99/max ms", "p99 ≤ 25", ""],
  idlePercent: ["idle, % of a core", "", ""],
  connect: ["TCP connect, direct/through a ClusterIP µs", "", "123 / 138 at 1 000"],
  connectRatio: ["ratio of the two", "as at 0", "1.12 at 1 000"],
  visited: ["rules visited, to a service/to none", "≤ 40 / 6", ""],
  visitedReference: ["the same in kube-proxy's layout", "", "6 / 6, 10 009 / 10 002"],
} as const satisfies Record<string, readonly [what: string, budget: string, reference: string]>;

// Everything happens in one namespace, which ends with the last process in it.
if (process.env["BENCH_NAMESPACE"] === undefined) {
  const args = ["--net", process.execPath, ...process.execArgv, ...process.argv.slice(1)];
  const child = spawn("unshare", args, { stdio: "inherit", env: { ...process.env, BENCH_NAMESPACE: "1" } });
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => child.kill(signal));
  const [code] = (await once(child, "exit")) as [number | null];
  process.exit(code ?? 1);
}

// The agent of this run ends with it, however it ends.
let running: ChildProcess | undefined;
const die = () => {
  running?.kill("SIGKILL");
  process.exit(1);
};
process.on("SIGINT", die).on("SIGTERM", die);

type Column = Partial<Record<keyof typeof figures, string>>;

async function command(file: string, ...args: string[]): Promise<void> {
  const result = await exec(file, args, { timeoutMs: 60_000 });
  if (result.failure !== undefined) throw new Error(result.message);
}

/** Spread over a /16 as the API server's allocator does, but the same in every run. */
function clusterIP(i: number): string {
  const at = ((i + 7) * 40_503) % 65_536;
  return `10.96.${at >> 8}.${at & 255}`;
}

/** Service 0 has one endpoint, which answers; the others' lead nowhere. Pods of a hundred nodes, of which we are one. */
function sliceOf(i: number, turn = 0): EndpointSlice {
  if (i === 0) return makeSlice("svc0", [{ address: `10.200.0.${1 + (turn % 2)}`, nodeName: "bench", conditions }]);
  const endpoints = Array.from({ length: endpointsPerService }, (_, n) => {
    const at = i * endpointsPerService + n + turn;
    const node = at % nodeCount;
    const address = `10.${128 + (at >> 16)}.${(at >> 8) & 255}.${at & 255}`;
    return { address, nodeName: node === 0 ? "bench" : `other-${node}`, conditions };
  });
  return makeSlice(`svc${i}`, endpoints);
}

function serviceOf(i: number): Service {
  return makeService(`svc${i}`, { clusterIP: clusterIP(i), clusterIPs: [clusterIP(i)] });
}

function fill(api: TestApiServer, count: number): void {
  for (let i = count - 1; i >= 0; i -= 1) {
    api.objects.create(services, serviceOf(i));
    api.objects.create(endpointSlices, sliceOf(i));
  }
}

class Agent {
  readonly #child: ChildProcess;
  readonly #delayFile: string;

  constructor(dir: string, mode: string, { tellsStalls }: { tellsStalls: boolean }) {
    this.#delayFile = join(dir, `delay-${mode}`);
    const preload = `--import=${new URL("loop-delay.ts", import.meta.url).href}`;
    const command = ["proxy", "--config", join(dir, `${mode}.yaml`)];
    const [file, args] = tellsStalls
      ? [process.execPath, [...nodeFlags, preload, bundle, ...command]]
      : [executable, command];
    this.#child = spawn(file, args, {
      stdio: ["ignore", "ignore", process.env["BENCH_LOG"] === undefined ? "ignore" : "inherit"],
      env: { ...process.env, LOOP_DELAY_FILE: this.#delayFile },
    });
    running = this.#child;
  }

  async stop(): Promise<void> {
    running = undefined;
    const { exitCode, signalCode } = this.#child;
    if (exitCode !== null || signalCode !== null) throw new Error("nodelet ended by itself; see BENCH_LOG=1");
    const ended = once(this.#child, "exit");
    this.#child.kill("SIGTERM");
    await ended;
  }

  /** What the first sync of all services took, of the family that has some. */
  async firstSyncMs(): Promise<number> {
    const text = await (await fetch("http://127.0.0.1:10249/metrics")).text();
    const sums = text.matchAll(/^kubeproxy_sync_full_proxy_rules_duration_seconds_sum\{ip_family="IPv4"\} (\S+)/gm);
    return [...sums].reduce((sum, [, seconds]) => sum + Number(seconds) * 1_000, 0);
  }

  /** Of the agent and of the commands that have ended. */
  async cpuMs(): Promise<number> {
    const stat = await readFile(`/proc/${this.#child.pid}/stat`, "utf8");
    const fields = (stat.split(") ")[1] ?? "").split(" ").slice(11, 15).map(Number);
    return (fields.reduce((sum, ticks) => sum + ticks, 0) * 1_000) / ticksPerSecond;
  }

  /** Of the commands alone. */
  async toolsCpuMs(): Promise<number> {
    const stat = await readFile(`/proc/${this.#child.pid}/stat`, "utf8");
    const fields = (stat.split(") ")[1] ?? "").split(" ").slice(13, 15).map(Number);
    return (fields.reduce((sum, ticks) => sum + ticks, 0) * 1_000) / ticksPerSecond;
  }

  /** Resident memory and the part of it that no file stands behind, in MB. */
  async memoryMB(): Promise<{ rss: number; anon: number; peak: number }> {
    const status = await readFile(`/proc/${this.#child.pid}/status`, "utf8");
    const of = (name: string) => Math.round(Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(status)?.[1]) / 1_024);
    return { rss: of("VmRSS"), anon: of("RssAnon"), peak: of("VmHWM") };
  }

  /** Stalls since it was asked last, in ms. */
  async stalls(): Promise<{ p99: number; max: number }> {
    await rm(this.#delayFile, { force: true });
    this.#child.kill("SIGUSR2");
    const text = await until("the agent tells its stalls", () => readFile(this.#delayFile, "utf8").catch(() => ""));
    return JSON.parse(text) as { p99: number; max: number };
  }
}

async function until(what: string, look: () => Promise<string>): Promise<string> {
  const endAt = performance.now() + waitMs;
  while (performance.now() < endAt) {
    const found = await look();
    if (found !== "") return found;
    await sleep(1);
  }
  throw new Error(`not within ${waitMs} ms: ${what}`);
}

/** The name of the server that answers; "" if none does. */
async function ask(host: string, port: number): Promise<string> {
  return await new Promise((resolve) => {
    const socket = connect({ host, port, timeout: 50 });
    let text = "";
    const end = (answer: string) => {
      socket.destroy();
      resolve(answer);
    };
    socket.on("data", (chunk: Buffer) => (text += chunk.toString()));
    socket.on("end", () => end(text));
    socket.on("timeout", () => end(""));
    socket.on("error", () => end(""));
  });
}

/** Median µs of a connect; the two kinds take turns, so that the machine's moods hit both. */
async function connectRatio(direct: string, through: string): Promise<{ directUs: number; throughUs: number }> {
  const times: Record<string, number[]> = { [direct]: [], [through]: [] };
  for (let n = 0; n < connects; n += 1) {
    for (const [host, port] of [
      [direct, 8080],
      [through, through === direct ? 8080 : 80],
    ] as const) {
      const startedAt = performance.now();
      const socket = connect({ host, port });
      await once(socket, "connect");
      times[host]?.push((performance.now() - startedAt) * 1_000);
      socket.destroy();
    }
  }
  return { directUs: quantile(times[direct] ?? [], 0.5), throughUs: quantile(times[through] ?? [], 0.5) };
}

function quantile(values: readonly number[], q: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? Number.NaN;
}

const round = (value: number) => `${Math.round(value * 10) / 10}`;

async function measure(dir: string, run: string): Promise<Column> {
  const [mode = "", number = "0"] = run.split(":");
  const isAlone = Number(number) === 0;
  const count = Math.max(1, Number(number));
  await using api = await startTestApiServer({ controllers: { endpointSlices: false }, historyMax: 20_000 });
  const cfg = {
    apiVersion: "kubeproxy.config.k8s.io/v1alpha1",
    kind: "KubeProxyConfiguration",
    mode: mode === "nftables" ? "nftables" : "iptables",
    clusterCIDR: "10.128.0.0/9",
    hostnameOverride: "bench",
    clientConnection: { kubeconfig: join(dir, "kubeconfig") },
    conntrack: { maxPerCore: 0, tcpEstablishedTimeout: "0s", tcpCloseWaitTimeout: "0s" },
    oomScoreAdj: 0,
  };
  await writeFile(join(dir, "kubeconfig"), api.kubeconfig("admin"), { mode: 0o600 });
  await writeFile(join(dir, `${mode}.yaml`), JSON.stringify(cfg)); // JSON is YAML
  if (mode !== "nftables") await command(`iptables-${mode}`, "-t", "mangle", "-N", "KUBE-IPTABLES-HINT");
  const addresses = [{ type: "InternalIP" as const, address: "10.200.0.9" }];
  api.objects.create(nodes, { metadata: { name: "bench" }, status: { addresses } });
  api.objects.create({ ...nodes, plural: "namespaces", kind: "Namespace" }, { metadata: { name: "ns1" } });
  fill(api, count);

  const cleanUp = async () => await command(executable, "proxy", "--cleanup");
  // The tree and the maps are written last: when one service answers, all do.
  const programmed = async () => await until("a service answers", () => ask(clusterIP(0), 80));
  const first = new Agent(dir, mode, { tellsStalls: false });
  const startedAt = performance.now();
  let cold: Column;
  try {
    await programmed();
    const coldMs = performance.now() - startedAt;
    const coldCpuMs = await first.cpuMs();
    const coldToolsMs = await first.toolsCpuMs();
    await sleep(500);
    cold = {
      coldMs: `${Math.round(coldMs)} (${Math.round(await first.firstSyncMs())})`,
      coldCpuMs: `${coldCpuMs} (${coldToolsMs})`,
    };
  } finally {
    await first.stop();
    await cleanUp();
  }

  const agent = new Agent(dir, mode, { tellsStalls: true });
  try {
    await programmed();
    // Tries from before there were rules: their flows would be met again by a port that is used again.
    await command("conntrack", "-F");
    const stalls = await agent.stalls();
    const coldMemory = await agent.memoryMB();
    await sleep(3_000);

    const idleFrom = await agent.cpuMs();
    await sleep(idleMs);
    const idlePercent = (((await agent.cpuMs()) - idleFrom) / idleMs) * 100;
    const { directUs, throughUs } = await connectRatio("10.200.0.1", clusterIP(0));
    const connecting = {
      connect: `${Math.round(directUs)} / ${Math.round(throughUs)}`,
      connectRatio: (throughUs / directUs).toFixed(2),
    };
    if (isAlone) return connecting;

    const walls: number[] = [];
    const changesFrom = await agent.cpuMs();
    for (let turn = 1; turn <= changes; turn += 1) {
      await sleep(betweenChangesMs);
      const wanted = `10.200.0.${1 + (turn % 2)}`;
      const changedAt = performance.now();
      api.objects.update(endpointSlices, sliceOf(0, turn));
      await until("the new endpoint answers", async () => ((await ask(clusterIP(0), 80)) === wanted ? wanted : ""));
      walls.push(performance.now() - changedAt);
    }
    await sleep(500);
    const changeCpuMs = ((await agent.cpuMs()) - changesFrom) / changes;

    const calm = await agent.memoryMB();
    await agent.stalls();
    const afterStorms: number[] = [];
    let turn = changes;
    for (let storm = 0; storm < storms; storm += 1) {
      for (let n = 0; n < stormUpdates; n += 1) {
        api.objects.update(endpointSlices, sliceOf(1 + ((n * 7_919) % (count - 1)), 1 + storm));
        if (n % 50 === 0) await sleep(10); // five thousand in a second
      }
      turn += 1;
      const wanted = `10.200.0.${1 + (turn % 2)}`;
      api.objects.update(endpointSlices, sliceOf(0, turn));
      await until("the storm is over", async () => ((await ask(clusterIP(0), 80)) === wanted ? wanted : ""));
      await sleep(2_000);
      afterStorms.push((await agent.memoryMB()).rss);
    }
    const stormStalls = await agent.stalls();

    const filledAt = performance.now();
    const fillFrom = await agent.cpuMs();
    for (let i = count; i < count + filled; i += 1) {
      api.objects.create(services, serviceOf(i));
      const isLast = i === count + filled - 1;
      api.objects.create(endpointSlices, isLast ? makeSlice(`svc${i}`, ["10.200.0.1"]) : sliceOf(i));
    }
    await until("the last of the new services answers", () => ask(clusterIP(count + filled - 1), 80));
    const fillMs = performance.now() - filledAt;
    const fillCpuMs = (await agent.cpuMs()) - fillFrom;
    const ofMode = mode === "nftables" ? "nftables" : "iptables";
    const all = Array.from({ length: count }, (_, i) => i);
    const visited = await countVisited(
      ofMode,
      all.map(serviceOf),
      all.map((i) => sliceOf(i)),
    );
    const reference = countReference(ofMode, count, endpointsPerService);
    return {
      ...connecting,
      ...cold,
      coldStalls: `${round(stalls.p99)} / ${Math.round(stalls.max)}`,
      rss: `${coldMemory.rss} / ${calm.rss} / ${(await agent.memoryMB()).peak}`,
      anon: `${calm.anon}`,
      rssAfterStorms: afterStorms.join(" "),
      changeMs: `${round(quantile(walls, 0.5))} / ${round(quantile(walls, 0.99))}`,
      changeCpuMs: round(changeCpuMs),
      fillMs: `${Math.round(fillMs)} (${fillCpuMs})`,
      stormStalls: `${round(stormStalls.p99)} / ${Math.round(stormStalls.max)}`,
      idlePercent: round(idlePercent),
      visited: `${visited.toService} / ${visited.toNone}`,
      visitedReference: `${reference.toService} / ${reference.toNone}`,
    };
  } finally {
    await agent.stop();
    await cleanUp();
    if (mode !== "nftables") await command(`iptables-${mode}`, "-t", "mangle", "-X", "KUBE-IPTABLES-HINT");
  }
}

/** A line a figure, a column a run. */
function tableOf(columns: ReadonlyMap<string, Column>): string {
  const lines = [["", ...columns.keys(), "budget at 10 000", "kube-proxy 1.36 at 10 000"]];
  for (const [key, [what, budget, reference]] of Object.entries(figures)) {
    const cells = [...columns.values()].map((column) => column[key as keyof typeof figures] ?? "");
    if (cells.some((cell) => cell !== "")) lines.push([what, ...cells, budget, reference]);
  }
  const widths = (lines[0] ?? []).map((_, at) => Math.max(...lines.map((cells) => cells[at]?.length ?? 0)));
  const text = lines.map((cells) =>
    cells
      .map((cell, at) => cell.padEnd(widths[at] ?? 0))
      .join("  ")
      .trimEnd(),
  );
  return `\n${text.join("\n")}\n\nBudgets and kube-proxy's figures: nftables mode / iptables mode with iptables-nft.`;
}

const dir = await mkdtemp(join(tmpdir(), "bench-proxy-"));
const servers: Server[] = [];
try {
  await command("ip", "link", "set", "lo", "up");
  for (const address of ["10.200.0.1", "10.200.0.2", "10.200.0.9"]) {
    await command("ip", "addr", "add", `${address}/32`, "dev", "lo");
  }
  // Service addresses need a way before they get a translation.
  await command("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1");
  await command("ip", "addr", "add", "10.201.0.1/24", "dev", "veth0");
  for (const device of ["veth0", "veth1"]) await command("ip", "link", "set", device, "up");
  await command("ip", "route", "add", "default", "via", "10.201.0.2");
  for (const address of ["10.200.0.1", "10.200.0.2"]) {
    const server = createServer((socket) => {
      socket.on("error", () => {});
      socket.end(address);
    });
    server.listen(8080, address, 4_096);
    await once(server, "listening");
    servers.push(server);
  }
  const columns = new Map<string, Column>();
  const runs = process.argv.slice(2);
  for (const run of runs.length > 0 ? runs : runsDefault) {
    columns.set(run, await measure(dir, run));
    console.log(run, JSON.stringify(columns.get(run)));
  }
  console.log(tableOf(columns));
} finally {
  for (const server of servers) server.close();
  await rm(dir, { recursive: true, force: true });
}
process.exit(0); // connections that nobody waits for
