import { uptime } from "node:os";
import type { Clock } from "../lib/clock.ts";
import { defaultBuckets, type MetricsRegistry } from "../lib/metrics.ts";
import type { PodCgroups } from "./cgroups.ts";

/** The cgroups, with what is done to them timed under the reference's names of operations. */
export function instrumentCgroups(cgroups: PodCgroups, registry: MetricsRegistry, clock: Clock): PodCgroups {
  const seconds = registry.histogram(
    "kubelet_cgroup_manager_duration_seconds",
    "Time to make, change or remove a cgroup.",
    defaultBuckets,
    ["operation_type"],
  );
  const timed = async (type: string, work: () => Promise<void>) => {
    const startedAtMs = clock.monotonic();
    try {
      await work();
    } finally {
      seconds.observe({ operation_type: type }, (clock.monotonic() - startedAtMs) / 1_000);
    }
  };
  return {
    setUp: async () => await timed("create", async () => await cgroups.setUp()),
    parentFor: (pod) => cgroups.parentFor(pod),
    ensure: async (pod) => await timed("create", async () => await cgroups.ensure(pod)),
    limitsOf: (pod) => cgroups.limitsOf(pod),
    setLimits: async (pod, limits) => await timed("update", async () => await cgroups.setLimits(pod, limits)),
    exists: async (pod) => await cgroups.exists(pod),
    destroy: async (podUID) => await timed("destroy", async () => await cgroups.destroy(podUID)),
    podUIDsOnDisk: async () => await cgroups.podUIDsOnDisk(),
    refreshQOS: async (pods) => await timed("update", async () => await cgroups.refreshQOS(pods)),
  };
}

/** The steps of a new node's first start; each counts when it is told for the first time. */
export interface NodeStartup {
  /** The Node is about to be created. */
  attempted(): void;
  /** The API server has taken a Node that was not there before. */
  registered(): void;
  /** The API server has been told that the node is Ready. */
  ready(): void;
}

/** @param times Unix ms: start of the machine and of this process */
export function createNodeStartup(
  registry: MetricsRegistry,
  clock: Clock,
  times: { bootMs?: number; processStartMs: number },
): NodeStartup {
  const { processStartMs, bootMs = clock.now() - uptime() * 1_000 } = times;
  const gauge = (name: string, help: string) => registry.gauge(`kubelet_node_startup_${name}duration_seconds`, help);
  const preKubelet = gauge("pre_kubelet_", "From the machine's start to the agent's.");
  const preRegistration = gauge("pre_registration_", "From the agent's start to its first attempt to create the Node.");
  const registration = gauge("registration_", "From the first attempt to create the Node to its success.");
  const postRegistration = gauge("post_registration_", "From the Node's creation to its being Ready.");
  const total = gauge("", "From the machine's start to the Node being Ready.");
  let attemptedAtMs: number | undefined;
  let registeredAtMs: number | undefined;
  let isReady = false;
  return {
    attempted: () => {
      attemptedAtMs ??= clock.now();
    },
    registered: () => {
      registeredAtMs ??= clock.now();
    },
    // A Node that was there already says nothing about how long a new one takes: all stay 0 then.
    ready: () => {
      if (isReady || attemptedAtMs === undefined || registeredAtMs === undefined) return;
      isReady = true;
      const now = clock.now();
      preKubelet.set({}, (processStartMs - bootMs) / 1_000);
      preRegistration.set({}, (attemptedAtMs - processStartMs) / 1_000);
      registration.set({}, (registeredAtMs - attemptedAtMs) / 1_000);
      postRegistration.set({}, (now - registeredAtMs) / 1_000);
      total.set({}, (now - bootMs) / 1_000);
    },
  };
}
