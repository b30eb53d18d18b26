/**
 * Start of a pod with 20 mixed volumes beside the same pod with none, in turns on the same node; and where the time goes, by
 * the node's own timeline of the pods. Needs root and dist/nodelet (`npm run build`).
 */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { configMaps, pods, secrets } from "../../agent/kube/resources.ts";
import type { Pod, Volume, VolumeMount } from "../../agent/kube/types.ts";
import type { ExplainedEntry, Explanation } from "../../agent/pods/explain.ts";
import { projectRoot, startLocalCluster } from "../support/cluster/local-cluster.ts";
import { busyboxImageName } from "../support/images/images.ts";
import { clientOf, readyPods } from "./cluster.ts";
import { isReady, until } from "./until.ts";

const rounds = 20;
const namespace = "default";
const command = ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 1000 & wait $!; done"];

const volumes: Volume[] = [
  ...named("disk", 5, () => ({ emptyDir: {} })),
  ...named("memory", 2, () => ({ emptyDir: { medium: "Memory", sizeLimit: "1Mi" } })),
  ...named("config", 4, (i) => ({ configMap: { name: `config-${i}` } })),
  ...named("secret", 3, (i) => ({ secret: { secretName: `secret-${i}` } })),
  ...named("mixed", 2, (i) => ({
    projected: {
      sources: [
        { serviceAccountToken: { path: "token", audience: `audience-${i}` } },
        { configMap: { name: "config-0" } },
        { downwardAPI: { items: [{ path: "name", fieldRef: { fieldPath: "metadata.name" } }] } },
      ],
    },
  })),
  ...named("labels", 2, () => ({
    downwardAPI: { items: [{ path: "labels", fieldRef: { fieldPath: "metadata.labels" } }] },
  })),
  ...named("host", 2, () => ({ hostPath: { path: "/tmp", type: "Directory" } })),
];
const volumeMounts: VolumeMount[] = [
  ...volumes.map(({ name }) => ({ name, mountPath: `/volumes/${name}` })),
  { name: "config-0", mountPath: "/sub/key", subPath: "key" },
  { name: "disk-0", mountPath: "/sub/a", subPath: "a/b" },
  { name: "disk-0", mountPath: "/sub/c", subPath: "c" },
];

const cluster = await startLocalCluster();
const stop = new AbortController();
try {
  await using client = await clientOf(cluster);
  const store = await readyPods(cluster, client, namespace, stop.signal);
  const metadata = (name: string) => ({ name, namespace });
  for (let i = 0; i < 4; i += 1) {
    await client.create(configMaps, {
      metadata: metadata(`config-${i}`),
      data: { key: "value", other: "x".repeat(1000) },
    });
    await client.create(secrets, { metadata: metadata(`secret-${i}`), data: { key: btoa("value") } });
  }

  const begun = { plain: [] as number[], volumes: [] as number[] };
  const spans: Record<keyof typeof begun, Map<string, number[]>> = { plain: new Map(), volumes: new Map() };
  await startAndEnd("warm-up-plain", false);
  await startAndEnd("warm-up-volumes", true);
  for (let i = 0; i < rounds; i += 1) {
    for (const kind of i % 2 === 0 ? (["plain", "volumes"] as const) : (["volumes", "plain"] as const)) {
      const { tookMs, timeline } = await startAndEnd(`${kind}-${i}`, kind === "volumes");
      begun[kind].push(tookMs);
      for (const [step, ms] of stepsOf(timeline)) spans[kind].set(step, [...(spans[kind].get(step) ?? []), ms]);
    }
  }
  const ratio = (q: number) => round(quantile(begun.volumes, q) / quantile(begun.plain, q));
  console.table([
    { what: "create → Ready without volumes, ms", p50: quantile(begun.plain, 0.5), p95: quantile(begun.plain, 0.95) },
    {
      what: `the same with ${volumes.length} volumes, ${volumeMounts.length} mounts`,
      p50: quantile(begun.volumes, 0.5),
      p95: quantile(begun.volumes, 0.95),
    },
    { what: "ratio", p50: ratio(0.5), p95: ratio(0.95) },
  ]);
  const steps = new Set([...spans.plain.keys(), ...spans.volumes.keys()]);
  console.table(
    [...steps].toSorted().map((step) => {
      const [without, with20] = [spans.plain.get(step), spans.volumes.get(step)];
      return {
        "step, ms at the median": step,
        without: without === undefined ? "" : quantile(without, 0.5),
        [`with ${volumes.length}`]: with20 === undefined ? "" : quantile(with20, 0.5),
      };
    }),
  );

  async function startAndEnd(
    name: string,
    hasVolumes: boolean,
  ): Promise<{ tookMs: number; timeline: ExplainedEntry[] }> {
    const pod: Pod = {
      apiVersion: "v1",
      kind: "Pod",
      metadata: { ...metadata(name), labels: { app: "bench" } },
      spec: {
        nodeName: cluster.node.name,
        automountServiceAccountToken: false,
        ...(hasVolumes ? { volumes } : {}),
        containers: [{ name: "main", image: busyboxImageName, command, ...(hasVolumes ? { volumeMounts } : {}) }],
      },
    };
    const begin = performance.now();
    await client.create(pods, pod);
    await until(store, (seen) => seen?.status?.conditions?.some(isReady) === true, `${namespace}/${name}`);
    const tookMs = performance.now() - begin;
    const { timeline } = await explain(name);
    await client.delete(pods, metadata(name));
    await until(store, (seen) => seen === undefined, `${namespace}/${name}`);
    return { tookMs, timeline };
  }

  async function explain(name: string): Promise<Explanation> {
    const nodelet = process.env["NODELET"] ?? join(projectRoot, "dist/nodelet");
    const args = ["explain", "pod", name, "-n", namespace, "-o", "json", "--root-dir", cluster.rootDir];
    const { stdout } = await promisify(execFile)(nodelet, args, { maxBuffer: 1 << 24 });
    return JSON.parse(stdout) as Explanation;
  }
} finally {
  stop.abort();
  await cluster.destroy();
}

function named(kind: string, count: number, source: (i: number) => Omit<Volume, "name">): Volume[] {
  return Array.from({ length: count }, (_, i) => ({ name: `${kind}-${i}`, ...source(i) }));
}

/** What each step took; of volumes, each kind (the slowest of it) and all of them together, from first begin to last end. */
function stepsOf(timeline: readonly ExplainedEntry[]): Map<string, number> {
  const steps = new Map<string, number>();
  const times: number[] = [];
  for (const { at, what, subject, tookMs } of timeline) {
    if (tookMs === undefined) continue;
    const step = what === "volume" ? `volume: ${subject.replace(/-\d+$/, "")}` : what;
    steps.set(step, Math.max(steps.get(step) ?? 0, tookMs));
    if (what === "volume") times.push(Date.parse(at), Date.parse(at) + tookMs);
  }
  if (times.length > 0) steps.set("volumes, all", Math.max(...times) - Math.min(...times));
  return steps;
}

function quantile(values: readonly number[], q: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return round(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? Number.NaN);
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
