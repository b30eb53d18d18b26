import type { MetricFamily, Sample } from "../lib/metrics.ts";
import type { CgroupReading, Observation, ObservedContainer, ObservedPod } from "./observe.ts";

/** What `/metrics/resource` shows of one cgroup or container. Timestamps tell consumers what a rate is to be taken over. */
interface Figures {
  labels: Readonly<Record<string, string>>;
  cpu?: { atMs: number; seconds: number };
  memory?: { atMs: number; bytes: number };
  swap?: { atMs: number; bytes: number; limitBytes?: number };
  startedAtMs?: number;
}

/** The families of `/metrics/resource`, from an observation; undefined if there is none: then only the error shows. */
export function resourceFamilies(observation: Observation | undefined): MetricFamily[] {
  const node: Figures[] = observation === undefined ? [] : [ofCgroup(observation.root, {})];
  const pods: Figures[] = [];
  const containers: Figures[] = [];
  for (const pod of newestOfEachName(observation?.pods ?? [])) {
    const labels = { namespace: pod.sandbox.podNamespace, pod: pod.sandbox.podName };
    const own = pod.containers.map((each) => ofContainer(each, labels));
    containers.push(...own);
    pods.push(pod.cgroup === undefined ? sumOf(own, labels) : ofCgroup(pod.cgroup, labels));
  }
  const scopes: [string, string, Figures[]][] = [
    ["node", "the node", node],
    ["pod", "the pod", pods],
    ["container", "the container", containers],
  ];
  const families: MetricFamily[] = scopes.flatMap(([prefix, what, figures]) => [
    {
      name: `${prefix}_cpu_usage_seconds_total`,
      help: `Core-seconds that ${what} has used`,
      type: "counter",
      samples: samplesOf(figures, ({ cpu }) => cpu && { value: cpu.seconds, timestampMs: cpu.atMs }),
    },
    {
      name: `${prefix}_memory_working_set_bytes`,
      help: `Memory of ${what} that cannot be reclaimed at once, in bytes`,
      type: "gauge",
      samples: samplesOf(figures, ({ memory }) => memory && { value: memory.bytes, timestampMs: memory.atMs }),
    },
    {
      name: `${prefix}_swap_usage_bytes`,
      help: `Swap that ${what} uses, in bytes`,
      type: "gauge",
      samples: samplesOf(figures, ({ swap }) => swap && { value: swap.bytes, timestampMs: swap.atMs }),
    },
  ]);
  families.push(
    {
      name: "container_swap_limit_bytes",
      help: "Swap that the container may use, in bytes",
      type: "gauge",
      samples: samplesOf(containers, ({ swap }) =>
        swap?.limitBytes === undefined ? undefined : { value: swap.limitBytes, timestampMs: swap.atMs },
      ),
    },
    {
      name: "container_start_time_seconds",
      help: "Start of the container in seconds since 1970",
      type: "gauge",
      samples: samplesOf(containers, ({ startedAtMs }) =>
        startedAtMs === undefined ? undefined : { value: startedAtMs / 1_000 },
      ),
    },
    {
      name: "resource_scrape_error",
      help: "1 if the figures could not be measured, else 0",
      type: "gauge",
      samples: [{ labels: {}, value: observation === undefined ? 1 : 0 }],
    },
  );
  return families;
}

/** A pod that replaces one of its name may run while that one still ends; no series may appear twice. */
function newestOfEachName(pods: readonly ObservedPod[]): ObservedPod[] {
  const byName = new Map<string, ObservedPod>();
  for (const pod of pods.toSorted((a, b) => a.sandbox.createdAtMs - b.sandbox.createdAtMs)) {
    byName.set(`${pod.sandbox.podNamespace}/${pod.sandbox.podName}`, pod);
  }
  return [...byName.values()];
}

function ofCgroup({ atMs, cpu, memory, swap }: CgroupReading, labels: Figures["labels"]): Figures {
  return {
    labels,
    ...(cpu === undefined ? {} : { cpu: { atMs, seconds: cpu.usageNs / 1e9 } }),
    memory: { atMs, bytes: memory?.workingSetBytes ?? 0 },
    ...(swap === undefined
      ? {}
      : {
          swap: {
            atMs,
            bytes: swap.usageBytes,
            ...(swap.limitBytes === undefined ? {} : { limitBytes: swap.limitBytes }),
          },
        }),
  };
}

function ofContainer({ container, cgroup, runtime }: ObservedContainer, pod: Figures["labels"]): Figures {
  const labels = { container: container.name, ...pod };
  const startedAtMs = container.createdAtMs;
  if (cgroup !== undefined) return { ...ofCgroup(cgroup, labels), startedAtMs };
  const figures: Figures = { labels, startedAtMs };
  const { cpu, memory, swap } = runtime ?? {};
  if (cpu?.usageCoreNanoSeconds !== undefined) {
    figures.cpu = { atMs: cpu.timestampMs, seconds: cpu.usageCoreNanoSeconds / 1e9 };
  }
  if (memory?.workingSetBytes !== undefined) {
    figures.memory = { atMs: memory.timestampMs, bytes: memory.workingSetBytes };
  }
  if (swap?.usageBytes !== undefined) {
    const { usageBytes, availableBytes } = swap;
    figures.swap = { atMs: swap.timestampMs, bytes: usageBytes };
    if (availableBytes !== undefined) figures.swap.limitBytes = usageBytes + availableBytes;
  }
  return figures;
}

function sumOf(containers: readonly Figures[], labels: Figures["labels"]): Figures {
  const sum: Figures = { labels };
  for (const { cpu, memory, swap } of containers) {
    if (cpu !== undefined) {
      sum.cpu = { atMs: Math.max(cpu.atMs, sum.cpu?.atMs ?? 0), seconds: cpu.seconds + (sum.cpu?.seconds ?? 0) };
    }
    if (memory !== undefined) {
      sum.memory = {
        atMs: Math.max(memory.atMs, sum.memory?.atMs ?? 0),
        bytes: memory.bytes + (sum.memory?.bytes ?? 0),
      };
    }
    if (swap !== undefined) {
      sum.swap = { atMs: Math.max(swap.atMs, sum.swap?.atMs ?? 0), bytes: swap.bytes + (sum.swap?.bytes ?? 0) };
    }
  }
  return sum;
}

function samplesOf(
  figures: readonly Figures[],
  pick: (figures: Figures) => { value: number; timestampMs?: number } | undefined,
): Sample[] {
  return figures.flatMap((each) => {
    const picked = pick(each);
    return picked === undefined ? [] : [{ labels: each.labels, ...picked }];
  });
}
