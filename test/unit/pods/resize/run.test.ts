import { describe, expect, test } from "vitest";
import type { ResourceContext } from "../../../../agent/kube/pod-resources.ts";
import type { Pod } from "../../../../agent/kube/types.ts";
import { AgentError } from "../../../../agent/lib/errors.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { resourcesOf } from "../../../../agent/pods/resize/allocation.ts";
import { type ResizeRunDeps, runResize } from "../../../../agent/pods/resize/run.ts";
import type { ContainerStats } from "../../../../agent/runtime/port.ts";
import { containerOf, snapshot } from "../support.ts";
import { both, sizedPod } from "./support.ts";

const mib = 1 << 20;
const resources: ResourceContext = {
  cgroupVersion: 1,
  memoryCapacityBytes: 1 << 30,
  cpuCFSQuota: true,
  cpuPeriodUs: 100_000,
  hugePageSizes: [],
  singleProcessOOMKill: true,
  swapControllerAvailable: false,
  swapBehavior: "NoSwap",
  swapCapacityBytes: 0,
};
const from = sizedPod("u1", both("100m", "64Mi"));
const observed = snapshot({ containers: [containerOf()] });

/** What cgroups and runtime are told, in order. */
function setUp(changes: { usageBytes?: number; sandbox?: Error; update?: Error } = {}) {
  const told: string[] = [];
  const stats: ContainerStats[] = [
    { containerID: "somebody else's", memory: { timestampMs: 0, usageBytes: 1 << 30 } },
    { containerID: "app-0", memory: { timestampMs: 0, usageBytes: changes.usageBytes ?? mib } },
  ];
  const deps: ResizeRunDeps = {
    runtime: {
      updateContainerResources: async (id, { cpuQuota, cpuShares, memoryLimitBytes = 0 }) => {
        told.push(`${id} quota ${cpuQuota} shares ${cpuShares} memory ${memoryLimitBytes / mib}Mi`);
        if (changes.update !== undefined) throw changes.update;
      },
      updatePodSandboxResources: async (id, { resources: sizes }) => {
        told.push(`sandbox ${id} memory ${(sizes?.memoryLimitBytes ?? 0) / mib}Mi`);
        if (changes.sandbox !== undefined) throw changes.sandbox;
      },
      containerStats: async () => await Promise.resolve(stats),
    },
    cgroups: {
      limitsOf: ({ spec }: Pod) => {
        const memory = Number.parseInt(String(spec.containers[0]?.resources?.limits?.["memory"]), 10);
        return { cpuShares: 2, memoryBytes: memory * mib };
      },
      setLimits: async (_pod, { memoryBytes, cpuShares }) =>
        void told.push(memoryBytes === undefined ? `pod shares ${cpuShares}` : `pod memory ${memoryBytes / mib}Mi`),
    },
    settings: { resources },
    log: silentLogger,
  };
  return { told, run: async (to: Pod, of = from) => await runResize(to, resourcesOf(of), observed, deps), deps };
}

const bigger = sizedPod("u1", both("200m", "128Mi"));

describe("a resize", () => {
  test("tells the pod's cgroup, the containers, and at last the sandbox", async () => {
    const { told, run } = setUp();
    await run(bigger);
    expect(told).toEqual([
      "pod memory 128Mi",
      "app-0 quota 10000 shares 102 memory 128Mi",
      "app-0 quota 20000 shares 204 memory 128Mi",
      "sandbox s0 memory 128Mi",
    ]);
  });

  test("takes no memory that is in use, and changes nothing then", async () => {
    const { told, run } = setUp({ usageBytes: 70 * mib });
    await expect(run(from, bigger)).rejects.toThrow("below current usage (73400320)");
    expect(told).toEqual([]);
  });

  test("takes memory that is not in use", async () => {
    const { told, run } = setUp({ usageBytes: 60 * mib });
    await run(from, bigger);
    expect(told).toContain("pod memory 64Mi");
  });

  test("stops at the first step that fails", async () => {
    const { told, run } = setUp({ update: new AgentError("Internal", "no") });
    await expect(run(bigger)).rejects.toThrow("no");
    expect(told).toHaveLength(2);
  });

  test.each([new AgentError("Unimplemented", "never heard of"), new AgentError("Internal", "no")])(
    "does not need the sandbox to hear of it: %s",
    async (sandbox) => {
      const { run } = setUp({ sandbox });
      await expect(run(bigger)).resolves.toBeUndefined();
    },
  );

  test("that is taken back after a failure undoes what may have been done", async () => {
    const { told, deps } = setUp();
    const progress = () => ({ actual: undefined, from: resourcesOf(from), attempted: [resourcesOf(bigger)] });
    await runResize(from, resourcesOf(from), observed, { ...deps, resizes: { progress } });
    expect(told).toEqual([
      "pod memory 128Mi",
      "app-0 quota 10000 shares 102 memory 64Mi",
      "pod memory 64Mi",
      "app-0 quota 10000 shares 102 memory 64Mi",
      "pod shares 2",
      "sandbox s0 memory 64Mi",
    ]);
  });

  test("of a pod of which nothing is known writes everything", async () => {
    const { told, deps } = setUp();
    await runResize(bigger, undefined, observed, deps);
    expect(told).toEqual(["app-0 quota 20000 shares 204 memory 128Mi", "pod memory 128Mi", "sandbox s0 memory 128Mi"]);
  });
});
