/**
 * `npm run quickstart`: a one-node cluster on this machine, a small application in it, and the proof that it works, with `kubectl logs` and `exec`.
 * `--check` does it unattended and ends; otherwise it stays until Ctrl-C. `--runtime docker` runs the pods with Docker. Nothing
 * is left behind either way.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { messageOf } from "../../../agent/lib/errors.ts";
import { exec } from "../../../agent/lib/exec.ts";
import { askFromNode } from "../cluster/ask.ts";
import { type LocalCluster, startLocalCluster } from "../cluster/local-cluster.ts";
import { runtimeNamed } from "../cluster/runtime.ts";
import { logTail } from "../node/containerd.ts";

const appPath = new URL("app.yaml", import.meta.url).pathname;
const replicas = ["web-1", "web-2"];
const readyTimeoutMs = 60_000;
// Long enough for chance to choose each of two endpoints: 2^-40 to miss one.
const requestsMax = 40;
const requestTimeoutMs = 5_000;

const { values } = parseArgs({
  options: { check: { type: "boolean", default: false }, runtime: { type: "string", default: "containerd" } },
});
const startedAt = performance.now();
const stop = new AbortController();
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => stop.abort());

process.exitCode = await main();

async function main(): Promise<number> {
  if (process.getuid?.() !== 0) {
    console.error("The quickstart makes network namespaces, mounts and containers: run it as root.");
    return 1;
  }
  console.log("A cluster of one node, on this machine but in a network namespace of its own:\n");
  let cluster: LocalCluster | undefined;
  let isGood = false;
  try {
    cluster = await startLocalCluster({ runtime: runtimeNamed(values.runtime), onStep: step });
    await tour(cluster);
    isGood = true;
    if (!values.check) await stay(cluster);
  } catch (err) {
    if (!stop.signal.aborted) await explain(err, cluster);
  } finally {
    step("removing all of it");
    await cluster?.destroy();
  }
  if (isGood && values.check) console.log("\nThe quickstart works.");
  return isGood || (stop.signal.aborted && !values.check) ? 0 : 1;
}

/** Brings the application up and asks it from the node, from outside, and from a pod. */
async function tour(cluster: LocalCluster): Promise<void> {
  const { node } = cluster;
  await until("Node object", async () => {
    if (!cluster.agent.isRunning) throw new Error("nodelet ended");
    return (await kubectl(cluster, "get", "node", node.name)) !== undefined;
  });
  await demand(cluster, "wait", "--for=condition=Ready", `node/${node.name}`, "--timeout=30s");
  done(`node ${node.name} is Ready`);

  step("applying two web pods, a client pod, a ClusterIP and a NodePort Service");
  await until(
    "the default service account",
    async () => (await kubectl(cluster, "get", "sa", "default")) !== undefined,
  );
  await demand(cluster, "apply", "-f", appPath);
  await demand(cluster, "wait", "--for=condition=Ready", "pod", ...replicas, "client", `--timeout=${readyTimeoutMs}ms`);
  done("all pods are Ready");

  const clusterIP = await demand(cluster, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}");
  const nodePort = await demand(cluster, "get", "service", "web-outside", "-o", "jsonpath={.spec.ports[0].nodePort}");
  await ask("ClusterIP, from the node", `http://${clusterIP}/`, (url) => askFromNode(node, url));
  await ask("NodePort, from outside the node", `http://${node.nodeIP}:${nodePort}/`, async (url) => {
    const signal = AbortSignal.timeout(requestTimeoutMs);
    return await (await fetch(url, { signal, headers: { connection: "close" } })).text();
  });
  await until("answers in the client pod's log", async () => {
    const answers = new Set((await demand(cluster, "logs", "client")).split("\n"));
    return replicas.every((name) => answers.has(name));
  });
  done("ClusterIP, from the client pod, as kubectl logs client shows: both replicas answered");

  const [first = ""] = replicas;
  const said = (await demand(cluster, "exec", first, "--", "hostname")).trim();
  if (said !== first) throw new Error(`kubectl exec ${first} -- hostname said ${said}`);
  done(`kubectl exec ${first} -- hostname: ${said}`);
}

/** Asks until each replica has answered, and says who did how often. */
async function ask(what: string, url: string, request: (url: string) => Promise<string>): Promise<void> {
  const counts = new Map(replicas.map((name) => [name, 0]));
  let failure = "";
  for (let i = 0; i < requestsMax && [...counts.values()].includes(0); i++) {
    stop.signal.throwIfAborted();
    try {
      const name = (await request(url)).trim();
      counts.set(name, (counts.get(name) ?? 0) + 1);
    } catch (err) {
      failure = `; last error: ${messageOf(err)}`; // the rules follow a moment after readiness
      await sleep(250);
    }
  }
  const answers = [...counts].map(([name, count]) => `${name} ${count}×`).join(", ");
  if ([...counts.values()].includes(0)) {
    throw new Error(`${what} ${url}: not all replicas answered (${answers})${failure}`);
  }
  done(`${what}: ${url} answered by ${answers}`);
}

async function stay({ kubeconfig }: LocalCluster): Promise<void> {
  console.log(`
Its kubeconfig is ${kubeconfig}. In another terminal, try:

  export KUBECONFIG=${kubeconfig}
  kubectl get pods -o wide
  kubectl describe pod web-1
  kubectl logs -f client
  kubectl exec -it web-1 -- sh
  kubectl top pod
  kubectl delete pod web-2

Ctrl-C here ends the cluster and removes everything.`);
  while (!stop.signal.aborted) await sleep(2 ** 30, undefined, { signal: stop.signal }).catch(() => {});
  console.log("");
}

async function explain(err: unknown, cluster: LocalCluster | undefined): Promise<void> {
  console.error(`\nThis did not work: ${messageOf(err)}`);
  if (cluster === undefined) return;
  console.error((await kubectl(cluster, "get", "pods,services,events", "-o", "wide")) ?? "");
  console.error(`The end of nodelet's log:\n${await logTail(cluster.agent.logPath)}`);
}

/** kubectl's output, or undefined if it failed. */
async function kubectl(cluster: LocalCluster, ...args: string[]): Promise<string | undefined> {
  return await demand(cluster, ...args).catch(() => undefined);
}

async function demand({ kubeconfig }: LocalCluster, ...args: string[]): Promise<string> {
  stop.signal.throwIfAborted();
  const full = ["--kubeconfig", kubeconfig, ...args];
  const result = await exec("kubectl", full, { timeoutMs: readyTimeoutMs + requestTimeoutMs, signal: stop.signal });
  if (result.failure !== undefined) {
    throw new Error(`kubectl ${args.join(" ")}: ${result.stderr.trim() || result.message}`);
  }
  return result.stdout;
}

async function until(what: string, check: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + readyTimeoutMs;
  while (!(await check())) {
    if (performance.now() > deadline) throw new Error(`no ${what} within ${readyTimeoutMs / 1000} s`);
    await sleep(100, undefined, { signal: stop.signal });
  }
}

function step(what: string): void {
  console.log(`      … ${what}`);
}

function done(what: string): void {
  console.log(`${((performance.now() - startedAt) / 1000).toFixed(1).padStart(5)} s ${what}`);
}
