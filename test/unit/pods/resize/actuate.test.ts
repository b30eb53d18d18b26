import assert from "node:assert/strict";
import { describe, expect, test } from "vitest";
import type { Container, Pod, ResourceRequirements } from "../../../../agent/kube/types.ts";
import { podCgroupValues } from "../../../../agent/node/cgroup-values.ts";
import {
  type ActuationInputs,
  isResizeDue,
  needsRestart,
  planActuation,
  type PodLimits,
  refusedShrink,
  shrinkingMemory,
} from "../../../../agent/pods/resize/actuate.ts";
import { type PodResources, resourcesOf } from "../../../../agent/pods/resize/allocation.ts";
import type { ContainerStatus } from "../../../../agent/runtime/port.ts";
import { containerOf, exited, podOf } from "../support.ts";
import { both, requests, sized, sizedPod } from "./support.ts";

const mib = 1 << 20;

function limitsOf(pod: Pod): PodLimits {
  const options = { cpuCFSQuota: true, cpuPeriodUs: 100_000, podPidsLimit: -1, hugePageSizes: [] };
  const { cpuShares = 2, cpuQuotaUs, cpuPeriodUs, memoryBytes } = podCgroupValues(pod, options);
  return {
    cpuShares,
    ...(cpuQuotaUs === undefined ? {} : { cpuQuotaUs }),
    ...(cpuPeriodUs === undefined ? {} : { cpuPeriodUs }),
    ...(memoryBytes === undefined ? {} : { memoryBytes }),
  };
}

// "cgroup memory 64", "app cpu 100m/200m memory 64Mi/64Mi" …
function told(inputs: ActuationInputs): string[] {
  return planActuation(inputs).map((step) => {
    if (step.kind === "container") {
      const { requests: asked = {}, limits = {} } = step.resources;
      const whole = step.podLevel?.limits;
      if (Object.keys(limits).length === 0 && whole !== undefined) {
        return `${step.container}: pod's cpu ${whole["cpu"]} memory ${whole["memory"]}`;
      }
      return `${step.container}: cpu ${asked["cpu"]}/${limits["cpu"]} memory ${asked["memory"]}/${limits["memory"]}`;
    }
    const { cpuShares, cpuQuotaUs, memoryBytes } = step.values;
    if (memoryBytes !== undefined) return `pod: memory ${memoryBytes / mib}Mi`;
    return cpuShares === undefined ? `pod: quota ${cpuQuotaUs}` : `pod: shares ${cpuShares}`;
  });
}

const running = (...names: string[]): ContainerStatus[] => names.map((name) => containerOf({ name }));
const inputs = (pod: Pod, from: PodResources, containers = running("app", "b")): ActuationInputs => ({
  pod,
  actual: from,
  containers,
  limitsOf,
});
const pair = (a: ResourceRequirements, b: ResourceRequirements) =>
  podOf({ containers: [sized("app", a), sized("b", b)] });
const single = (a: ResourceRequirements) => podOf({ containers: [sized("app", a)] });

const orders: { name: string; from: Pod; to: Pod; containers?: ContainerStatus[]; want: string[] }[] = [
  { name: "nothing to do", from: single(both("1", "1Gi")), to: single(both("1000m", "1024Mi")), want: [] },
  {
    name: "growing: the pod first, its limit before its request",
    from: single(both("100m", "64Mi")),
    to: single(both("200m", "128Mi")),
    want: [
      "pod: memory 128Mi",
      "app: cpu 100m/100m memory 128Mi/128Mi",
      "pod: quota 20000",
      "pod: shares 204",
      "app: cpu 200m/200m memory 128Mi/128Mi",
    ],
  },
  {
    name: "shrinking: the pod last, its request before its limit",
    from: single(both("200m", "128Mi")),
    to: single(both("100m", "64Mi")),
    want: [
      "app: cpu 200m/200m memory 64Mi/64Mi",
      "pod: memory 64Mi",
      "app: cpu 100m/100m memory 64Mi/64Mi",
      "pod: shares 102",
      "pod: quota 10000",
    ],
  },
  {
    name: "memory up, cpu down",
    from: single(both("200m", "64Mi")),
    to: single(both("100m", "128Mi")),
    want: [
      "pod: memory 128Mi",
      "app: cpu 200m/200m memory 128Mi/128Mi",
      "app: cpu 100m/100m memory 128Mi/128Mi",
      "pod: shares 102",
      "pod: quota 10000",
    ],
  },
  {
    name: "from one container to the other: who shrinks goes first",
    from: pair(both("100m", "64Mi"), both("300m", "192Mi")),
    to: pair(both("300m", "192Mi"), both("100m", "64Mi")),
    want: [
      "b: cpu 300m/300m memory 64Mi/64Mi",
      "app: cpu 100m/100m memory 192Mi/192Mi",
      "b: cpu 100m/100m memory 64Mi/64Mi",
      "app: cpu 300m/300m memory 192Mi/192Mi",
    ],
  },
  {
    name: "a memory request alone: the container is told, its limit is as before",
    from: single(requests("100m", "64Mi")),
    to: single(requests("100m", "128Mi")),
    want: ["app: cpu 100m/undefined memory 128Mi/undefined"],
  },
  {
    name: "a limit is added: the pod is limited after its container",
    from: single(requests("100m", "64Mi")),
    to: single({ ...requests("100m", "64Mi"), limits: { memory: "128Mi" } }),
    want: ["app: cpu 100m/undefined memory 64Mi/128Mi", "pod: memory 128Mi"],
  },
  {
    name: "a limit is taken away: the pod's stays",
    from: single({ ...requests("100m", "64Mi"), limits: { memory: "128Mi" } }),
    to: single(requests("100m", "64Mi")),
    want: ["app: cpu 100m/undefined memory 64Mi/undefined"],
  },
  {
    name: "a container that does not run gets it with its next start; the pod's cgroup is made ready",
    from: single(both("100m", "64Mi")),
    to: single(both("200m", "64Mi")),
    containers: [exited()],
    want: ["pod: quota 20000", "pod: shares 204"],
  },
  {
    name: "the pod's own resources: who has no limits has the pod's",
    from: sizedPod("web", {}, { resources: both("100m", "64Mi") }),
    to: sizedPod("web", {}, { resources: both("200m", "32Mi") }),
    want: [
      "app: pod's cpu 100m memory 32Mi",
      "pod: memory 32Mi",
      "pod: quota 20000",
      "pod: shares 204",
      "app: pod's cpu 200m memory 32Mi",
    ],
  },
  {
    name: "the pod's own resources, and a container with limits: it stays as it is",
    from: sizedPod("web", both("50m", "32Mi"), { resources: both("100m", "64Mi") }),
    to: sizedPod("web", both("50m", "32Mi"), { resources: both("200m", "128Mi") }),
    want: ["pod: memory 128Mi", "pod: quota 20000", "pod: shares 204"],
  },
];
describe("the order of steps", () => {
  test.each(orders)("$name", ({ from, to, containers, want }) => {
    expect(told(inputs(to, resourcesOf(from), containers))).toEqual(want);
  });

  test("init containers and sidecars are resized, too", () => {
    const initContainers = [sized("side", both("200m", "64Mi"), { restartPolicy: "Always" })];
    const pod = podOf({ containers: [sized("app", both("1", "1Gi"))], initContainers });
    const from = { containers: { app: both("1", "1Gi"), side: both("100m", "64Mi") } };
    expect(told(inputs(pod, from, running("app", "side")))).toContain("side: cpu 200m/200m memory 64Mi/64Mi");
  });

  test("a container of which nothing is known is told all at once", () => {
    const pod = pair(both("100m", "64Mi"), {});
    expect(told(inputs(pod, { containers: {} }))).toEqual(["app: cpu 100m/100m memory 64Mi/64Mi"]);
  });

  // Whatever is done of it, and begun anew: no child ever has more than its parent, and the end is the same.
  test.each(orders)("killed after any step and repeated: $name", ({ from, to, containers = running("app", "b") }) => {
    const steps = planActuation(inputs(to, resourcesOf(from), containers));
    for (let killedAfter = 0; killedAfter <= steps.length; killedAfter += 1) {
      const state = new Kernel(from);
      for (const step of steps.slice(0, killedAfter)) state.take(step);
      for (const step of planActuation(inputs(to, resourcesOf(from), containers))) state.take(step);
      expect(state.pod).toMatchObject(limitsOf(to));
    }
  });
});

class Kernel {
  pod: PodLimits;
  readonly #memory = new Map<string, number>();

  constructor(from: Pod) {
    this.pod = limitsOf(from);
  }

  take(step: ReturnType<typeof planActuation>[number]): void {
    if (step.kind === "podCgroup") this.pod = { ...this.pod, ...step.values };
    else {
      const memory = step.resources.limits?.["memory"];
      if (memory !== undefined) this.#memory.set(step.container, Number.parseInt(String(memory), 10) * mib);
    }
    const { memoryBytes = Number.POSITIVE_INFINITY } = this.pod;
    const largest = Math.max(0, ...this.#memory.values());
    assert(largest <= memoryBytes, `a container of ${largest} in a pod of ${memoryBytes}`);
  }
}

describe("what needs a restart", () => {
  const policy = (cpu: "NotRequired" | "RestartContainer", memory: typeof cpu): Partial<Container> => ({
    resizePolicy: [
      { resourceName: "cpu", restartPolicy: cpu },
      { resourceName: "memory", restartPolicy: memory },
    ],
  });
  const from = both("100m", "64Mi");
  test.each([
    { name: "no policy", more: {}, to: both("200m", "128Mi"), want: false },
    { name: "neither", more: policy("NotRequired", "NotRequired"), to: both("200m", "128Mi"), want: false },
    {
      name: "cpu, and it changes",
      more: policy("RestartContainer", "NotRequired"),
      to: both("200m", "64Mi"),
      want: true,
    },
    {
      name: "cpu, and memory changes",
      more: policy("RestartContainer", "NotRequired"),
      to: both("100m", "1Gi"),
      want: false,
    },
    {
      name: "memory, and it changes",
      more: policy("NotRequired", "RestartContainer"),
      to: both("100m", "1Gi"),
      want: true,
    },
    {
      name: "memory, and cpu changes",
      more: policy("NotRequired", "RestartContainer"),
      to: both("1", "64Mi"),
      want: false,
    },
    { name: "both, and nothing changes", more: policy("RestartContainer", "RestartContainer"), to: from, want: false },
  ])("$name", ({ more, to, want }) => {
    expect(needsRestart(sized("app", to, more), to, from)).toBe(want);
  });
});

describe("a resize is due", () => {
  const pod = single(both("200m", "64Mi"));
  test.each([
    { name: "when a container has something else", actual: resourcesOf(single(both("100m", "64Mi"))), want: true },
    {
      name: "also one that does not run",
      actual: resourcesOf(single(both("100m", "64Mi"))),
      containers: [],
      want: true,
    },
    { name: "not when all have it", actual: resourcesOf(pod), want: false },
    { name: "when nobody knows what a running container has", actual: undefined, want: true },
    { name: "not when it is only about to start", actual: undefined, containers: [], want: false },
    {
      name: "when the pod as a whole has something else",
      actual: { ...resourcesOf(pod), pod: both("1", "1Gi") },
      want: true,
    },
  ])("$name", ({ actual, containers = running("app"), want }) => {
    expect(isResizeDue(pod, { from: actual }, containers)).toBe(want);
  });

  test("after an attempt that did not come to its end, although all was to be as it is again", () => {
    const attempted = [resourcesOf(single(both("1", "64Mi")))];
    expect(isResizeDue(pod, { from: resourcesOf(pod), attempted }, running("app"))).toBe(true);
  });

  test("never for containers without resources", () => {
    expect(isResizeDue(podOf(), { from: undefined }, running("app"))).toBe(false);
  });
});

describe("after attempts that did not come to their end", () => {
  const small = single(both("100m", "64Mi"));
  const big = single(both("300m", "192Mi"));
  const unsure = (to: Pod, from: Pod, ...attempted: Pod[]): ActuationInputs => ({
    ...inputs(to, resourcesOf(from), running("app")),
    attempted: attempted.map(resourcesOf),
  });

  test("everything goes back, whatever has arrived of it", () => {
    expect(told(unsure(small, small, big))).toEqual([
      "pod: memory 192Mi",
      "app: cpu 100m/100m memory 64Mi/64Mi",
      "pod: memory 64Mi",
      "pod: quota 30000",
      "app: cpu 100m/100m memory 64Mi/64Mi",
      "pod: shares 102",
      "pod: quota 10000",
    ]);
  });

  test("the pod has room for all that a container may have, until it has what it is to have", () => {
    const steps = told(unsure(single(both("200m", "128Mi")), small, big));
    expect(steps).toEqual([
      "pod: memory 192Mi",
      "app: cpu 100m/100m memory 128Mi/128Mi",
      "pod: memory 128Mi",
      "pod: quota 30000",
      "app: cpu 200m/200m memory 128Mi/128Mi",
      "pod: shares 204",
      "pod: quota 20000",
    ]);
  });

  test("what an attempt did not touch stays untouched", () => {
    const other = podOf({ containers: [sized("app", both("100m", "64Mi")), sized("b", both("1", "1Gi"))] });
    const tried = podOf({ containers: [sized("app", both("300m", "64Mi")), sized("b", both("1", "1Gi"))] });
    const steps = told({ ...inputs(other, resourcesOf(other)), attempted: [resourcesOf(tried)] });
    expect(steps.filter((step) => step.startsWith("b:"))).toEqual([]);
  });

  test("memory that may have arrived counts as memory that shrinks", () => {
    expect(shrinkingMemory(unsure(small, small, big))).toEqual([
      { container: undefined, bytes: 64 * mib },
      { container: { name: "app", id: "app-0" }, bytes: 64 * mib },
    ]);
  });
});

describe("memory that shrinks", () => {
  const from = resourcesOf(pair(both("1", "128Mi"), both("1", "64Mi")));
  const to = pair(both("1", "32Mi"), both("1", "64Mi"));
  const used = (app: number, b: number) => {
    const usage = new Map([
      ["app-0", app * mib],
      ["b-0", b * mib],
    ]);
    return refusedShrink(shrinkingMemory(inputs(to, from)), usage, (app + b) * mib);
  };

  test("does so when what is used fits", () => {
    expect(shrinkingMemory(inputs(to, from))).toEqual([
      { container: undefined, bytes: 96 * mib },
      { container: { name: "app", id: "app-0" }, bytes: 32 * mib },
    ]);
    expect(used(31, 60)).toBeUndefined();
  });

  test("does not below what is used, by the container or by the pod", () => {
    expect(used(32, 1)).toBe(
      'attempting to set container "app" memory limit (33554432) below current usage (33554432)',
    );
    expect(used(31, 65)).toBe("attempting to set pod memory limit (100663296) below current usage (100663296)");
  });

  test("is not looked at for what grows, does not run, or is not known", () => {
    expect(shrinkingMemory(inputs(to, { containers: {} }))).toEqual([]);
    expect(shrinkingMemory(inputs(pair(both("1", "256Mi"), both("1", "64Mi")), from))).toEqual([]);
    expect(shrinkingMemory(inputs(to, from, [])).map(({ container }) => container)).toEqual([undefined]);
  });
});
