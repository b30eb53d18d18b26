import { describe, expect, test } from "vitest";
import type { ContainerPort, Node, Pod, PodSpec } from "../../../agent/kube/types.ts";
import { missingForUpdate } from "../../../agent/pods/admission/features.ts";
import type { AdmissionContext } from "../../../agent/pods/admission/port.ts";
import {
  admitted,
  asking,
  asks,
  check,
  critical,
  named,
  node,
  rejection,
  staticPod,
  welcome,
} from "./admission-support.ts";
import { podOf } from "./support.ts";

describe("a node under pressure", () => {
  const bestEffort = podOf();
  const burstable = asking({ cpu: "100m" });
  const tolerant = podOf({
    tolerations: [{ key: "node.kubernetes.io/memory-pressure", operator: "Exists", effect: "NoSchedule" }],
  });
  check([
    {
      name: "of memory takes nobody that states no needs",
      pod: bestEffort,
      context: { pressures: ["MemoryPressure"] },
      want: rejection("Evicted", "The node had condition: [MemoryPressure]. "),
    },
    {
      name: "of memory takes who states needs",
      pod: burstable,
      context: { pressures: ["MemoryPressure"] },
      want: welcome,
    },
    {
      name: "of memory takes who tolerates that",
      pod: tolerant,
      context: { pressures: ["MemoryPressure"] },
      want: welcome,
    },
    {
      name: "of disk takes nobody",
      pod: burstable,
      context: { pressures: ["DiskPressure"] },
      want: rejection("Evicted", "The node had condition: [DiskPressure]. "),
    },
    {
      name: "of PIDs takes nobody",
      pod: tolerant,
      context: { pressures: ["PIDPressure"] },
      want: rejection("Evicted"),
    },
    {
      name: "of two kinds names both",
      pod: tolerant,
      context: { pressures: ["MemoryPressure", "DiskPressure"] },
      want: rejection("Evicted", "The node had condition: [MemoryPressure DiskPressure]. "),
    },
    {
      name: "takes critical pods",
      pod: podOf({ priority: critical }),
      context: { pressures: ["DiskPressure"] },
      want: welcome,
    },
    { name: "takes static pods", pod: staticPod(), context: { pressures: ["DiskPressure"] }, want: welcome },
  ]);
});

describe("what the pod is made for", () => {
  const strict = podOf({ securityContext: { supplementalGroupsPolicy: "Strict" } });
  const able: Node = { ...node, status: { ...node.status, features: { supplementalGroupsPolicy: true } } };
  check([
    {
      name: "an unknown node takes nobody",
      context: { node: undefined },
      want: rejection("InvalidNodeInfo", "Kubelet cannot get node info."),
    },
    {
      name: "another OS by label",
      pod: podOf({}, { labels: { "kubernetes.io/os": "windows" } }),
      want: rejection(
        "PodOSSelectorNodeLabelDoesNotMatch",
        "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
      ),
    },
    { name: "this OS by label", pod: podOf({}, { labels: { "kubernetes.io/os": "linux" } }), want: welcome },
    {
      name: "another OS by field",
      pod: podOf({ os: { name: "windows" } }),
      want: rejection("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"),
    },
    {
      name: "strict groups on a node that cannot",
      pod: strict,
      want: rejection(
        "SupplementalGroupsPolicyNotSupported",
        "SupplementalGroupsPolicy=Strict is not supported in this node",
      ),
    },
    { name: "strict groups on a node that can", pod: strict, context: { node: able }, want: welcome },
  ]);
});

describe("resources", () => {
  const full = [named("a", {}), named("b", {}), named("c", {})];
  const short = (resource: string, requested: number, used: number, capacity: number) =>
    rejection(
      `OutOf${resource}`,
      `Node didn't have enough resource: ${resource}, requested: ${requested}, used: ${used}, capacity: ${capacity}`,
    );
  check([
    { name: "too many pods", context: { others: full }, want: short("pods", 1, 3, 3) },
    {
      name: "CPU counts in thousandths",
      pod: asking({ cpu: "1" }),
      context: { others: [named("a", { containers: asks({ cpu: "1500m" }) })] },
      want: short("cpu", 1000, 1500, 2000),
    },
    { name: "memory counts in bytes", pod: asking({ memory: "2Gi" }), want: short("memory", 2 ** 31, 0, 2 ** 30) },
    { name: "what is left is enough to the last bit", pod: asking({ cpu: "2", memory: "1Gi" }), want: welcome },
    {
      name: "local storage",
      pod: asking({ "ephemeral-storage": "2Gi" }),
      want: short("ephemeral-storage", 2 ** 31, 0, 2 ** 30),
    },
    {
      name: "huge pages",
      pod: asking({ "hugepages-2Mi": "6Mi" }),
      want: short("hugepages-2Mi", 6 * 2 ** 20, 0, 4 * 2 ** 20),
    },
    {
      name: "huge pages of a size the node lacks",
      pod: asking({ "hugepages-1Gi": "1Gi" }),
      want: short("hugepages-1Gi", 2 ** 30, 0, 0),
    },
    {
      name: "an extended resource of the node",
      pod: asking({ "example.com/gpu": "2" }),
      want: short("example.com/gpu", 2, 0, 1),
    },
    {
      name: "an extended resource that the node does not know",
      pod: asking({ "example.com/fpga": "7" }),
      want: welcome,
    },
    {
      name: "the first that is short says why",
      pod: asking({ memory: "2Gi", cpu: "3" }),
      want: short("cpu", 3000, 0, 2000),
    },
    {
      name: "the largest init container counts, not their sum",
      pod: asking(
        { cpu: "100m" },
        {
          initContainers: [
            { name: "i", resources: { requests: { cpu: "1500m" } } },
            { name: "j", resources: { requests: { cpu: "2" } } },
          ],
        },
      ),
      want: welcome,
    },
    {
      name: "sidecars count beside the regular containers",
      pod: asking(
        { cpu: "1500m" },
        { initContainers: [{ name: "s", restartPolicy: "Always", resources: { requests: { cpu: "1" } } }] },
      ),
      want: short("cpu", 2500, 0, 2000),
    },
    {
      name: "sidecars count beside later init containers",
      pod: podOf({
        initContainers: [
          { name: "s", restartPolicy: "Always", resources: { requests: { cpu: "1" } } },
          { name: "i", resources: { requests: { cpu: "1500m" } } },
        ],
      }),
      want: short("cpu", 2500, 0, 2000),
    },
    {
      name: "overhead comes on top",
      pod: asking({ cpu: "1900m" }, { overhead: { cpu: "200m" } }),
      want: short("cpu", 2100, 0, 2000),
    },
    {
      name: "what the pod states as a whole replaces the sum",
      pod: asking({ cpu: "1" }, { resources: { requests: { cpu: "3" } } }),
      want: short("cpu", 3000, 0, 2000),
    },
  ]);
});

describe("the node and its place", () => {
  const misfit = (reason: string, why: string) => rejection(reason, `Predicate ${reason} failed: ${why}`);
  const affinity = misfit("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
  const taintedBy = (effect: "NoExecute" | "NoSchedule"): Partial<AdmissionContext> => ({
    node: { ...node, spec: { taints: [{ key: "down", value: "yes", effect }] } },
  });
  const untolerated = misfit("TaintToleration", "node(s) had taints that the pod didn't tolerate");
  const required = (terms: object[]): Partial<PodSpec> => ({
    affinity: { nodeAffinity: { requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: terms } } },
  });
  const expressions = (key: string, operator: string, ...values: string[]) => [
    { matchExpressions: [{ key, operator, values }] },
  ];
  check([
    { name: "a selector that matches", pod: podOf({ nodeSelector: { disk: "ssd" } }), want: welcome },
    { name: "a selector that does not", pod: podOf({ nodeSelector: { disk: "tape" } }), want: affinity },
    { name: "affinity In", pod: podOf(required(expressions("disk", "In", "hdd", "ssd"))), want: welcome },
    { name: "affinity NotIn", pod: podOf(required(expressions("disk", "NotIn", "ssd"))), want: affinity },
    {
      name: "affinity NotIn of a label that is not there",
      pod: podOf(required(expressions("rack", "NotIn", "1"))),
      want: welcome,
    },
    { name: "affinity Exists", pod: podOf(required(expressions("rack", "Exists"))), want: affinity },
    { name: "affinity DoesNotExist", pod: podOf(required(expressions("rack", "DoesNotExist"))), want: welcome },
    { name: "affinity Gt", pod: podOf(required(expressions("cores", "Gt", "7"))), want: welcome },
    { name: "affinity Lt", pod: podOf(required(expressions("cores", "Lt", "8"))), want: affinity },
    {
      name: "affinity Gt of something that is no number",
      pod: podOf(required(expressions("disk", "Gt", "7"))),
      want: affinity,
    },
    {
      name: "one term of several is enough",
      pod: podOf(required([...expressions("rack", "Exists"), ...expressions("disk", "Exists")])),
      want: welcome,
    },
    { name: "a term without requirements matches nothing", pod: podOf(required([{}])), want: affinity },
    { name: "no term matches nothing", pod: podOf(required([])), want: affinity },
    {
      name: "a field: the node's name",
      pod: podOf(required([{ matchFields: [{ key: "metadata.name", operator: "In", values: ["node1"] }] }])),
      want: welcome,
    },
    {
      name: "another node's name",
      pod: podOf({ nodeName: "node2" }),
      want: misfit("NodeName", "node(s) didn't match the requested node name"),
    },
    { name: "a taint that throws pods out", context: taintedBy("NoExecute"), want: untolerated },
    { name: "a taint for the scheduler only", context: taintedBy("NoSchedule"), want: welcome },
    { name: "a taint is nothing to a static pod", pod: staticPod(), context: taintedBy("NoExecute"), want: welcome },
    {
      name: "tolerated by value",
      pod: podOf({ tolerations: [{ key: "down", value: "yes", effect: "NoExecute" }] }),
      context: taintedBy("NoExecute"),
      want: welcome,
    },
    {
      name: "not tolerated by another value",
      pod: podOf({ tolerations: [{ key: "down", value: "no" }] }),
      context: taintedBy("NoExecute"),
      want: untolerated,
    },
    {
      name: "whoever tolerates all",
      pod: podOf({ tolerations: [{ operator: "Exists" }] }),
      context: taintedBy("NoExecute"),
      want: welcome,
    },
    {
      name: "resources come before affinity, affinity before taints",
      pod: asking({ cpu: "3" }, { nodeSelector: { disk: "tape" } }),
      context: taintedBy("NoExecute"),
      want: rejection("OutOfcpu"),
    },
  ]);
});

describe("host ports", () => {
  const listening = (port: Partial<ContainerPort>, more: Partial<PodSpec> = {}) =>
    podOf({ containers: [{ name: "app", ports: [{ containerPort: 80, hostPort: 80, ...port }] }], ...more });
  const taken = rejection(
    "NodePorts",
    "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
  );
  const rows: [name: string, a: Partial<ContainerPort>, b: Partial<ContainerPort>, want: unknown][] = [
    ["the same port", {}, {}, taken],
    ["another port", {}, { hostPort: 81 }, welcome],
    ["another protocol", { protocol: "TCP" }, { protocol: "UDP" }, welcome],
    ["no protocol is TCP", {}, { protocol: "TCP" }, taken],
    ["different addresses", { hostIP: "10.0.0.1" }, { hostIP: "10.0.0.2" }, welcome],
    ["the same address", { hostIP: "10.0.0.1" }, { hostIP: "10.0.0.1" }, taken],
    ["all addresses against one", { hostIP: "0.0.0.0" }, { hostIP: "10.0.0.2" }, taken],
    ["one address against all", { hostIP: "10.0.0.2" }, {}, taken],
    ["no host port", { hostPort: 0 }, { hostPort: 0 }, welcome],
  ];
  test.each(rows)("%s", (_name, a, b, want) => {
    expect(admitted(listening(a), { others: [listening(b)] })).toEqual(want);
  });
  test("of sidecars count, of other init containers not", () => {
    const initOf = (restartPolicy?: "Always") =>
      podOf({
        initContainers: [
          {
            name: "i",
            ports: [{ containerPort: 80, hostPort: 80 }],
            ...(restartPolicy === undefined ? {} : { restartPolicy }),
          },
        ],
      });
    expect(admitted(listening({}), { others: [initOf("Always")] })).toEqual(taken);
    expect(admitted(listening({}), { others: [initOf()] })).toEqual(welcome);
  });
});

describe("AppArmor", () => {
  const confined = (type: "RuntimeDefault" | "Localhost" | "Unconfined", localhostProfile?: string) =>
    podOf({
      containers: [
        {
          name: "app",
          securityContext: {
            appArmorProfile: { type, ...(localhostProfile === undefined ? {} : { localhostProfile }) },
          },
        },
      ],
    });
  const missing = rejection("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host");
  const on = { isAppArmorEnabled: true };
  const annotation = (profile: string) =>
    podOf({}, { annotations: { "container.apparmor.security.beta.kubernetes.io/app": profile } });
  check([
    { name: "wanted where there is none", pod: confined("RuntimeDefault"), want: missing },
    {
      name: "wanted for the whole pod",
      pod: podOf({ securityContext: { appArmorProfile: { type: "RuntimeDefault" } } }),
      want: missing,
    },
    { name: "wanted by annotation", pod: annotation("runtime/default"), want: missing },
    { name: "declined", pod: confined("Unconfined"), want: welcome },
    { name: "declined by annotation", pod: annotation("unconfined"), want: welcome },
    { name: "wanted where it is", pod: confined("RuntimeDefault"), context: on, want: welcome },
    {
      name: "a profile of the host without a name",
      pod: confined("Localhost", ""),
      context: on,
      want: rejection("AppArmor"),
    },
    { name: "a profile of the host", pod: confined("Localhost", "mine"), context: on, want: welcome },
    {
      name: "is not asked for again once the pod has run",
      pod: { ...confined("RuntimeDefault"), status: { phase: "Running" } },
      want: welcome,
    },
  ]);
});

test("a machine that shuts down takes nobody", () => {
  expect(admitted(podOf({ priority: critical }), { isShuttingDown: true })).toEqual(
    rejection("NodeShutdown", "Pod was rejected as the node is shutting down."),
  );
});

describe("resources of the pod itself", () => {
  const own = podOf({ resources: { requests: { cpu: "1m" } } });
  const why = "Pod has resources of its own, and feature gate PodLevelResources is off on this node";
  const context = { knowsPodLevelResources: false };
  check([
    { name: "are known by default", pod: own, want: welcome },
    {
      name: "turn a pod away where they are not",
      pod: own,
      context,
      want: rejection("PodLevelResourcesNotSupported", why),
    },
    { name: "that say nothing do not", pod: podOf({ resources: { limits: {} } }), context, want: welcome },
  ]);
});

describe("what the container runtime cannot run", () => {
  const unsupportedByRuntime = ({ spec }: Pod) =>
    spec.hostUsers === false ? "hostUsers: false needs another" : undefined;
  const why = "This node's container runtime cannot run the pod: hostUsers: false needs another";
  check([
    {
      name: "turns a pod away, in the runtime's words",
      pod: podOf({ hostUsers: false }),
      context: { unsupportedByRuntime },
      want: rejection("PodFeatureUnsupported", why),
    },
    { name: "leaves other pods alone", context: { unsupportedByRuntime }, want: welcome },
    {
      name: "is looked at before anybody is ended for the pod",
      pod: asking({ cpu: "2" }, { hostUsers: false, priority: critical }),
      context: { unsupportedByRuntime, others: [named("other", asking({ cpu: "2" }).spec)] },
      want: rejection("PodFeatureUnsupported", why),
    },
  ]);
});

describe("features that the node declares", () => {
  const rules = [{ action: "RestartAllContainers" as const, exitCodes: { operator: "In" as const, values: [42] } }];
  const restartsAll = podOf({ containers: [{ name: "app", restartPolicy: "Never", restartPolicyRules: rules }] });
  const initRestartsAll = podOf({
    initContainers: [{ name: "init", restartPolicy: "Never", restartPolicyRules: rules }],
    containers: [{ name: "app" }],
  });
  const onHostNetwork = podOf({ hostNetwork: true, hostUsers: false });
  const refused = (...features: string[]) =>
    rejection("PodFeatureUnsupported", `Pod requires node features that are not available: ${features.join(", ")}`);
  check([
    { name: "are not asked for by most pods", context: { declaredFeatures: [] }, want: welcome },
    {
      name: "are missed by a pod whose rules restart all containers",
      pod: restartsAll,
      context: { declaredFeatures: ["ExtendWebSocketsToKubelet"] },
      want: refused("RestartAllContainersOnContainerExits"),
    },
    {
      name: "are missed by a rule of an init container",
      pod: initRestartsAll,
      context: { declaredFeatures: [] },
      want: refused("RestartAllContainersOnContainerExits"),
    },
    {
      name: "are there",
      pod: restartsAll,
      context: { declaredFeatures: ["RestartAllContainersOnContainerExits"] },
      want: welcome,
    },
    {
      name: "are missed by a user namespace on the host's network",
      pod: onHostNetwork,
      context: { declaredFeatures: ["RestartAllContainersOnContainerExits"] },
      want: refused("UserNamespacesHostNetworkSupport"),
    },
    { name: "do not matter if the node declares none by its configuration", pod: restartsAll, want: welcome },
  ]);

  const resized = (spec: Partial<PodSpec>) =>
    missingForUpdate(podOf(sized("1")), podOf({ ...sized("1"), ...spec }), []);
  const sized = (cpu: string): Partial<PodSpec> => ({
    resources: { requests: { cpu } },
    initContainers: [
      { name: "init", resources: { requests: { cpu } } },
      { name: "side", restartPolicy: "Always", resources: { requests: { cpu } } },
    ],
  });
  test.each([
    ["nothing", {}, []],
    ["the pod's own resources", { resources: { requests: { cpu: "2" } } }, ["InPlacePodLevelResourcesVerticalScaling"]],
    ["how its resources are written", { resources: { requests: { cpu: "1000m" } } }, []],
    [
      "an init container's resources",
      { initContainers: [{ name: "init", resources: { requests: { cpu: "2" } } }] },
      ["InPlacePodVerticalScalingInitContainers"],
    ],
    [
      "a sidecar's resources",
      { initContainers: [{ name: "side", restartPolicy: "Always" as const, resources: { requests: { cpu: "2" } } }] },
      [],
    ],
  ])("are asked for by a change of %s", (_what, spec, want) => expect(resized(spec)).toEqual(want));
});
