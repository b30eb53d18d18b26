import type { Exchange } from "./exchange.ts";
import { type JsonObject, numberAt, objectsAt, stringAt } from "./json.ts";
import type { NodeProxy } from "./proxy.ts";
import type { RequestInfo } from "./request-info.ts";
import { methodNotAllowed, notFound, unknownPath } from "./status.ts";
import type { Store } from "./store.ts";

/** The group that `kubectl top` reads. Answered from the kubelets' /stats/summary at the time of asking. */
export const metricsGroup = "metrics.k8s.io";
export const metricsVersion = "v1beta1";

export interface MetricsDeps {
  store: Store;
  proxy: NodeProxy;
  now(): string;
}

/** Answers GET of nodes and pods in metrics.k8s.io/v1beta1. Nodes that do not answer are left out. */
export async function serveMetrics(exchange: Exchange, info: RequestInfo, deps: MetricsDeps): Promise<void> {
  if (exchange.method !== "GET") throw methodNotAllowed();
  const names = [...deps.store.values("nodes")].map((node) => node.metadata.name);
  const answers = await Promise.allSettled(names.map((name) => deps.proxy.fetch(name, "/stats/summary")));
  const summaries = answers.flatMap((a) => (a.status === "fulfilled" ? [a.value] : []));
  const timestamp = deps.now();
  let items: JsonObject[];
  switch (info.plural) {
    case "nodes":
      items = summaries.map((summary) => nodeMetrics(summary, timestamp));
      break;
    case "pods":
      items = summaries.flatMap((summary) => objectsAt(summary, "pods").map((pod) => podMetrics(pod, timestamp)));
      items = items.filter(
        (item) => info.namespace === "" || stringAt(item, "metadata", "namespace") === info.namespace,
      );
      break;
    default:
      throw unknownPath();
  }
  const kind = info.plural === "nodes" ? "NodeMetrics" : "PodMetrics";
  const apiVersion = `${metricsGroup}/${metricsVersion}`;
  if (info.name === "") {
    const metadata = { resourceVersion: "" };
    return exchange.send(200, { kind: `${kind}List`, apiVersion, metadata, items });
  }
  const found = items.find((item) => stringAt(item, "metadata", "name") === info.name);
  if (found === undefined) throw notFound({ group: metricsGroup, plural: info.plural }, info.name);
  await exchange.send(200, { kind, apiVersion, ...found });
}

function nodeMetrics(summary: unknown, timestamp: string): JsonObject {
  const metadata = { name: stringAt(summary, "node", "nodeName") };
  return { metadata, timestamp, window: "10s", usage: usageOf(summary, "node") };
}

function podMetrics(pod: unknown, timestamp: string): JsonObject {
  const metadata = { name: stringAt(pod, "podRef", "name"), namespace: stringAt(pod, "podRef", "namespace") };
  const containers = objectsAt(pod, "containers").map((c) => ({ name: stringAt(c, "name"), usage: usageOf(c) }));
  return { metadata, timestamp, window: "10s", containers };
}

function usageOf(stats: unknown, ...path: string[]): JsonObject {
  const nanoCores = numberAt(stats, ...path, "cpu", "usageNanoCores") ?? 0;
  const bytes = numberAt(stats, ...path, "memory", "workingSetBytes") ?? 0;
  return { cpu: `${nanoCores}n`, memory: `${Math.floor(bytes / 1024)}Ki` };
}
