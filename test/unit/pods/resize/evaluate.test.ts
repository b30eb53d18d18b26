import { describe, expect, test } from "vitest";
import type { Pod } from "../../../../agent/kube/types.ts";
import type { AdmissionContext } from "../../../../agent/pods/admission/port.ts";
import {
  evaluateResize,
  type InfeasibleDetail,
  inTurn,
  type PendingResize,
  type ResizePolicy,
} from "../../../../agent/pods/resize/evaluate.ts";
import { admission, asking, both, policy, requests, sized, sizedPod } from "./support.ts";

const swaps: ResizePolicy = { ...policy, resources: { ...policy.resources, swapBehavior: "LimitedSwap" } };
const small = sizedPod("web", requests("500m", "256Mi"));
const guaranteed = sizedPod("web", both("500m", "256Mi"));
const fromFile: Pod["metadata"]["annotations"] = { "kubernetes.io/config.source": "file" };
const staticPod: Pod = { ...small, metadata: { ...small.metadata, annotations: fromFile } };
const restarting = sizedPod("web", requests("500m", "256Mi"), {
  containers: [
    sized("app", requests("500m", "256Mi"), {
      resizePolicy: [{ resourceName: "memory", restartPolicy: "RestartContainer" }],
    }),
  ],
});
const critical = { priority: 2_000_000_000 };

const cases: {
  name: string;
  given?: Pod;
  wants: Pod;
  policy?: Partial<ResizePolicy>;
  context?: Partial<AdmissionContext>;
  others?: Pod[];
  want: "accepted" | { deferred: string } | { infeasible: string; detail: InfeasibleDetail };
}[] = [
  { name: "room for more", wants: asking(small, requests("2", "1Gi")), want: "accepted" },
  { name: "less", wants: asking(small, requests("1m", "1Mi")), want: "accepted" },
  {
    name: "only a limit",
    wants: asking(small, { ...requests("500m", "256Mi"), limits: { cpu: "64" } }),
    want: "accepted",
  },
  {
    name: "more cpu than the node has",
    wants: asking(small, requests("2001m", "256Mi")),
    want: {
      infeasible: "Node didn't have enough capacity: cpu, requested: 2001, capacity: 2000",
      detail: "insufficient_node_allocatable",
    },
  },
  {
    name: "more of both than the node has: memory is named",
    wants: asking(small, requests("3", "2Gi")),
    want: {
      infeasible: "Node didn't have enough capacity: memory, requested: 2147483648, capacity: 1073741824",
      detail: "insufficient_node_allocatable",
    },
  },
  {
    name: "what others have",
    wants: asking(small, requests("1500m", "256Mi")),
    others: [sizedPod("other", requests("1", "1Mi"))],
    want: { deferred: "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000" },
  },
  {
    name: "what others have, by a critical pod: nobody has to go for it",
    given: sizedPod("web", requests("500m", "256Mi"), critical),
    wants: asking(sizedPod("web", requests("500m", "256Mi"), critical), requests("1500m", "256Mi")),
    others: [sizedPod("other", requests("1", "1Mi"))],
    want: { deferred: "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000" },
  },
  {
    name: "a node that is about to stop",
    wants: asking(small, requests("600m", "256Mi")),
    context: { isShuttingDown: true },
    want: { deferred: "Pod was rejected as the node is shutting down." },
  },
  {
    name: "a node that is not known",
    wants: asking(small, requests("600m", "256Mi")),
    context: { node: undefined },
    want: { deferred: "Kubelet cannot get node info." },
  },
  {
    name: "a static pod",
    given: staticPod,
    wants: asking(staticPod, requests("1", "256Mi")),
    want: { infeasible: "In-place resize of static-pods is not supported", detail: "static_pod" },
  },
  {
    name: "another memory request where pods swap",
    wants: asking(small, requests("500m", "300Mi")),
    policy: swaps,
    want: { infeasible: "In-place resize of containers with swap is not supported.", detail: "swap_limitation" },
  },
  { name: "cpu where pods swap", wants: asking(small, requests("1", "256Mi")), policy: swaps, want: "accepted" },
  {
    name: "memory where pods swap, with a restart",
    given: restarting,
    wants: asking(restarting, requests("500m", "300Mi")),
    policy: swaps,
    want: "accepted",
  },
  {
    name: "memory of a Guaranteed pod where pods swap: it does not",
    given: guaranteed,
    wants: asking(guaranteed, both("500m", "300Mi")),
    policy: swaps,
    want: "accepted",
  },
  {
    name: "memory where pods would swap but for the kernel",
    wants: asking(small, requests("500m", "300Mi")),
    policy: { resources: { ...swaps.resources, swapControllerAvailable: false } },
    want: "accepted",
  },
  {
    name: "cpu of a Guaranteed pod, with CPUs of its own",
    given: guaranteed,
    wants: asking(guaranteed, both("1", "256Mi")),
    policy: { hasStaticCPUs: true },
    want: {
      infeasible: 'Resize is infeasible for Guaranteed Pods alongside CPU Manager policy "static"',
      detail: "guaranteed_pod_cpu_manager_static_policy",
    },
  },
  {
    name: "memory of a Guaranteed pod, with CPUs of its own",
    given: guaranteed,
    wants: asking(guaranteed, both("500m", "300Mi")),
    policy: { hasStaticCPUs: true },
    want: "accepted",
  },
  {
    name: "memory of a Guaranteed pod, with memory of its own",
    given: guaranteed,
    wants: asking(guaranteed, both("500m", "300Mi")),
    policy: { hasStaticMemory: true },
    want: {
      infeasible: 'Resize is infeasible for Guaranteed Pods alongside Memory Manager policy "Static"',
      detail: "guaranteed_pod_memory_manager_static_policy",
    },
  },
  {
    name: "a Burstable pod beside such managers",
    wants: asking(small, requests("1", "300Mi")),
    policy: { hasStaticCPUs: true, hasStaticMemory: true },
    want: "accepted",
  },
];

describe("a resize to", () => {
  test.each(cases)("$name", ({ given = small, wants, policy: over, context, others = [], want }) => {
    const verdict = evaluateResize(wants, given, { ...admission, others, ...context }, { ...policy, ...over });
    if (want === "accepted") expect(verdict).toEqual({ kind: "accepted" });
    else if ("deferred" in want) expect(verdict).toEqual({ kind: "deferred", message: want.deferred });
    else expect(verdict).toEqual({ kind: "infeasible", message: want.infeasible, detail: want.detail });
  });
});

test("those that take nothing come first, then by priority, class, and time of waiting", () => {
  const pending = (name: string, to: string, more: Partial<PendingResize> = {}, spec: Partial<Pod["spec"]> = {}) => {
    const given = sizedPod(name, requests("500m", "256Mi"), spec);
    return { given, pod: asking(given, requests(to, "256Mi")), sinceMs: undefined, ...more };
  };
  const own = sizedPod("guaranteed", both("500m", "256Mi"));
  const order = inTurn([
    pending("new", "1"),
    pending("long", "1", { sinceMs: 1 }),
    pending("longer", "1", { sinceMs: 0 }),
    { given: own, pod: asking(own, both("1", "256Mi")), sinceMs: undefined },
    pending("important", "1", {}, { priority: 1_000 }),
    pending("shrinks", "100m"),
    pending("less important", "1", { sinceMs: 0 }, { priority: -1 }),
  ]);
  expect(order.map(({ pod }) => pod.metadata.name)).toEqual([
    "shrinks",
    "important",
    "guaranteed",
    "longer",
    "long",
    "new",
    "less important",
  ]);
});
