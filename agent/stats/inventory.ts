import type { ContainerSummary, RuntimeList, SandboxSummary } from "../runtime/port.ts";

/** A pod that has figures: its sandbox, and its running containers in the order of their making. */
export interface RunningPod {
  sandbox: SandboxSummary;
  containers: ContainerSummary[];
}

/**
 * The pods that statistics show: sandboxes with a running container. Of several sandboxes of one pod name those that are
 * ready count, else the newest one; of several running containers of one name the newest.
 */
export function runningPods({ sandboxes, containers }: RuntimeList): RunningPod[] {
  const containersOf = new Map<string, ContainerSummary[]>();
  for (const container of containers) {
    if (container.state !== "running") continue;
    const group = containersOf.get(container.sandboxID) ?? [];
    containersOf.set(container.sandboxID, [...group, container]);
  }
  const podsOf = new Map<string, RunningPod[]>();
  for (const sandbox of sandboxes) {
    const running = containersOf.get(sandbox.id);
    if (running === undefined) continue;
    const key = `${sandbox.podNamespace}/${sandbox.podName}`;
    podsOf.set(key, [...(podsOf.get(key) ?? []), { sandbox, containers: newestOfEachName(running) }]);
  }
  return [...podsOf.values()].flatMap((pods) => {
    const ready = pods.filter(({ sandbox }) => sandbox.ready);
    return ready.length > 0 ? ready : pods.toSorted(newestSandboxFirst).slice(0, 1);
  });
}

/** The pods whose sandbox is ready while no container runs: images are pulled, or a container waits to be started again. */
export function idlePods({ sandboxes, containers }: RuntimeList): RunningPod[] {
  const busy = new Set(containers.flatMap(({ state, sandboxID }) => (state === "running" ? [sandboxID] : [])));
  return sandboxes.flatMap((sandbox) => (sandbox.ready && !busy.has(sandbox.id) ? [{ sandbox, containers: [] }] : []));
}

function newestSandboxFirst(a: RunningPod, b: RunningPod): number {
  return b.sandbox.createdAtMs - a.sandbox.createdAtMs;
}

function newestOfEachName(containers: readonly ContainerSummary[]): ContainerSummary[] {
  const byName = new Map<string, ContainerSummary>();
  for (const container of containers.toSorted((a, b) => a.createdAtMs - b.createdAtMs)) {
    byName.set(container.name, container);
  }
  return [...byName.values()];
}

/**
 * Which of the cgroups in a pod's cgroup is that of a container or sandbox. Runtimes and drivers name them differently:
 * `<id>`, `cri-containerd-<id>.scope`, `crio-<id>.scope`, `docker-<id>.scope`, `libpod-<id>`.
 */
export function cgroupNameOf(id: string, names: readonly string[]): string | undefined {
  return names.find((name) => {
    const bare = name.endsWith(".scope") ? name.slice(0, -".scope".length) : name;
    // "crio-conmon-<id>.scope" holds the container's monitor, not the container.
    return bare === id || (bare.endsWith(`-${id}`) && !bare.includes("conmon"));
  });
}
