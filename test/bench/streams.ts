/**
 * What it costs that streams go through the agent: exec both ways and logs, beside the same transfer straight from the
 * runtime's streaming server and from the file; many sessions at once; and 1 GiB through `kubectl cp` with an eye on
 * the agent's memory. Needs root and dist/nodelet (`npm run build`).
 */
import { createReadStream } from "node:fs";
import { mkdtemp, open, readdir, readFile, rm } from "node:fs/promises";
import { request } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { exec } from "../../agent/lib/exec.ts";
import type { StreamingRequest } from "../../agent/runtime/port.ts";
import { CertificateAuthority, type KeyPair } from "../support/apiserver/pki.ts";
import { startLocalCluster } from "../support/cluster/local-cluster.ts";
import { busyboxImageName } from "../support/images/images.ts";
import { logTail } from "../support/node/containerd.ts";
import { connectRuntime } from "../support/runtime/connect.ts";
import { runStreamLoad, type StreamLoad } from "../support/stream-load/load.ts";

const MiB = 1 << 20;
const rounds = 3;
const transferBytes = 128 * MiB;
// Debian's containerd 1.6 takes a minute for a hundred at once, whoever asks: that would measure it and not us.
const sessions = 20;
const sessionBytes = 2 * MiB;
const logLines = 200_000;
const copyBytes = 1024 * MiB;
const sampleMs = 100;
const kubectlTimeoutMs = 600_000;

// No rotation while it is read.
const cluster = await startLocalCluster({ kubelet: { containerLogMaxSize: "10Gi" } });
const { node } = cluster;
const dir = await mkdtemp(join(tmpdir(), "nodelet-bench-"));
try {
  const admin = await adminCertificate();
  const runtime = await connectRuntime(node);
  await startPod();
  const containerID = await kubectl("get", "pod", "bench", "-o", "jsonpath={.status.containerStatuses[0].containerID}");
  // What reads must keep its standard output open: without that, containerd takes the session to be over.
  const session = (direction: "out" | "in", bytes: number): StreamingRequest & { kind: "exec" } => ({
    kind: "exec",
    containerID: containerID.replace(/^.*:\/\//, ""),
    command: direction === "out" ? ["head", "-c", String(bytes), "/dev/zero"] : ["wc", "-c"],
    tty: false,
    stdin: direction === "in",
    stdout: true,
    stderr: false,
  });
  const through = (direction: "out" | "in", bytes: number) => {
    const query = new URLSearchParams();
    for (const word of session(direction, bytes).command) query.append("command", word);
    if (direction === "in") query.set("input", "1");
    query.set("output", "1");
    return `https://${node.nodeIP}:10250/exec/default/bench/main?${query.toString()}`;
  };
  const byRuntime = async (direction: "out" | "in", bytes: number, count: number) => {
    const urls: string[] = [];
    for (let i = 0; i < count; i++) urls.push(await runtime.streamingURL(session(direction, bytes)));
    return await rate({ urls, direction, bytes });
  };
  const byAgent = async (direction: "out" | "in", bytes: number, count: number) => {
    const urls = Array.from({ length: count }, () => through(direction, bytes));
    return await rate({ urls, direction, bytes, ...admin });
  };

  await byAgent("out", MiB, 1);
  const rows: object[] = [];
  for (const direction of ["out", "in"] as const) {
    for (const [count, bytes] of [
      [1, transferBytes],
      [sessions, sessionBytes],
    ] as const) {
      const floor: number[] = [];
      const ours: number[] = [];
      const stop = new AbortController();
      const watch = watchAgent(stop.signal);
      for (let i = 0; i < rounds; i++) {
        floor.push(await byRuntime(direction, bytes, count));
        ours.push(await byAgent(direction, bytes, count));
      }
      stop.abort();
      rows.push({ what: `exec ${direction}, ${count} at once`, ...compare(ours, floor), ...(await watch) });
    }
  }
  await runtime.close();

  const ours: number[] = [];
  const floor: number[] = [];
  const logFile = await fileOfLog();
  for (let i = 0; i < rounds; i++) {
    floor.push(await rateOf(() => sizeOf(createReadStream(logFile))));
    ours.push(await rateOf(readLog));
  }
  rows.push({ what: "logs (floor: the file)", ...compare(ours, floor) });
  console.table(rows);

  const local = join(dir, "local");
  const file = await open(local, "w");
  await file.truncate(copyBytes);
  await file.close();
  const copies: object[] = [];
  for (const [what, from, to] of [
    ["cp into the pod", local, "bench:/tmp/copy"],
    ["cp out of the pod", "bench:/tmp/copy", join(dir, "back")],
  ] as const) {
    const stop = new AbortController();
    const watch = watchAgent(stop.signal);
    const begin = performance.now();
    await kubectl("cp", from, to);
    const seconds = (performance.now() - begin) / 1_000;
    stop.abort();
    copies.push({
      what: `${copyBytes / MiB} MiB: ${what}`,
      "MiB/s": round(copyBytes / MiB / seconds),
      ...(await watch),
    });
  }
  console.table(copies);

  async function rate(load: StreamLoad): Promise<number> {
    const { bytes, ms } = await runStreamLoad(node, load);
    return bytes / MiB / (ms / 1_000);
  }

  async function readLog(): Promise<number> {
    const { certificate: cert, key } = admin;
    const target = { host: node.nodeIP, port: 10_250, path: "/containerLogs/default/bench/main", cert, key };
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    request({ ...target, rejectUnauthorized: false, agent: false }, (response) => {
      sizeOf(response).then(resolve, reject);
    })
      .on("error", reject)
      .end();
    return await promise;
  }
} catch (err) {
  console.error(`The end of nodelet's log:\n${await logTail(cluster.agent.logPath)}`);
  throw err;
} finally {
  await cluster.destroy();
  await rm(dir, { recursive: true, force: true });
}

async function startPod(): Promise<void> {
  const line = `$(head -c 200 /dev/zero | tr '\\0' x)`;
  const script = `trap 'exit 0' TERM; yes "${line}" | head -n ${logLines}; touch /tmp/written; while true; do sleep 1 & wait $!; done`;
  const readinessFile = join(dir, "pod.json");
  const pod = {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: "bench" },
    spec: { containers: [{ name: "main", image: busyboxImageName, command: ["sh", "-c", script] }] },
  };
  const manifest = await open(readinessFile, "w");
  await manifest.writeFile(JSON.stringify(pod));
  await manifest.close();
  await repeated(() => kubectl("get", "serviceaccount", "default"));
  await kubectl("apply", "-f", readinessFile);
  await kubectl("wait", "--for=condition=Ready", "pod/bench", "--timeout=60s");
  await repeated(() => kubectl("exec", "bench", "--", "test", "-e", "/tmp/written"));
}

/** The agent's memory and its answers to /healthz until `signal` aborts. */
async function watchAgent(signal: AbortSignal): Promise<object> {
  const { pid } = cluster.agent;
  const residentMB = async () => {
    const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => ""); // it ended: the transfers tell
    return Number(/VmRSS:\s+(\d+)/.exec(status)?.[1] ?? 0) / 1024;
  };
  const atFirst = await residentMB();
  let most = atFirst;
  while (!signal.aborted) {
    most = Math.max(most, await residentMB());
    await sleep(sampleMs, undefined, { signal }).catch(() => {});
  }
  return { "resident, MB": round(atFirst), "at most, MB": round(most) };
}

async function adminCertificate(): Promise<KeyPair> {
  const kept = JSON.parse(await readFile(cluster.serverKeysFile, "utf8")) as { keys: { authority: KeyPair } };
  const authority = new CertificateAuthority(kept.keys.authority);
  return authority.issue({ commonName: "bench", organizations: ["system:masters"], usage: "client" });
}

async function fileOfLog(): Promise<string> {
  const [pod = ""] = (await readdir(cluster.podLogsDir)).filter((name) => name.startsWith("default_bench_"));
  return join(cluster.podLogsDir, pod, "main", "0.log");
}

async function sizeOf(stream: AsyncIterable<Buffer>): Promise<number> {
  let bytes = 0;
  for await (const chunk of stream) bytes += chunk.length;
  return bytes;
}

/** @returns MiB a second */
async function rateOf(move: () => Promise<number>): Promise<number> {
  const begin = performance.now();
  const bytes = await move();
  return bytes / MiB / ((performance.now() - begin) / 1_000);
}

function compare(ours: readonly number[], floor: readonly number[]): object {
  return {
    "agent, MiB/s": round(median(ours)),
    "floor, MiB/s": round(median(floor)),
    ratio: Math.round((median(ours) / median(floor)) * 100) / 100,
  };
}

async function kubectl(...args: string[]): Promise<string> {
  const all = ["--kubeconfig", cluster.kubeconfig, ...args];
  const { failure, stdout, stderr, message } = await exec("kubectl", all, { timeoutMs: kubectlTimeoutMs });
  if (failure !== undefined) throw new Error(`${message}\n${stderr}`);
  return stdout;
}

async function repeated(attempt: () => Promise<unknown>): Promise<void> {
  for (let tries = 100; ; tries--) {
    try {
      await attempt();
      return;
    } catch (err) {
      if (tries === 0) throw err;
      await sleep(200);
    }
  }
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
