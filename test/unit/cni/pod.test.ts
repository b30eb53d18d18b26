import { describe, expect, test } from "vitest";
import { type PodNetworkRequest, podArgs, podCapabilities } from "../../../cni/pod.ts";
import { checkTarget, type CNITarget, pluginEnv, pluginInput } from "../../../cni/request.ts";

const pod: PodNetworkRequest = {
  podName: "web",
  podNamespace: "shop",
  podUID: "u1",
  containerID: "abc",
  portMappings: [],
  annotations: {},
};

test("podArgs: what plugins find the pod by", () => {
  const env = pluginEnv("ADD", ["/opt/cni/bin", "/usr/lib/cni"], {
    containerID: "abc",
    netnsPath: "/proc/7/ns/net",
    args: podArgs(pod),
  });
  expect(env).toEqual({
    CNI_COMMAND: "ADD",
    CNI_CONTAINERID: "abc",
    CNI_NETNS: "/proc/7/ns/net",
    CNI_IFNAME: "eth0",
    CNI_ARGS: "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u1",
    CNI_PATH: "/opt/cni/bin:/usr/lib/cni",
  });
});

describe("podCapabilities", () => {
  test("a pod that asks for nothing gives nothing", () => expect(podCapabilities(pod)).toEqual({}));

  test("ports, as the plugin spells them; those without a host port are none", () => {
    const portMappings: PodNetworkRequest["portMappings"] = [
      { protocol: "TCP", containerPort: 80, hostPort: 8080, hostIP: "" },
      { protocol: "UDP", containerPort: 53, hostPort: 53, hostIP: "192.0.2.1" },
      { protocol: "SCTP", containerPort: 9, hostPort: 0, hostIP: "" },
    ];
    expect(podCapabilities({ ...pod, portMappings })).toEqual({
      portMappings: [
        { hostPort: 8080, containerPort: 80, protocol: "tcp" },
        { hostPort: 53, containerPort: 53, protocol: "udp", hostIP: "192.0.2.1" },
      ],
    });
  });

  test("DNS settings and the cgroup", () => {
    const dns = { servers: ["10.0.0.10"], searches: ["a"], options: [] };
    expect(podCapabilities({ ...pod, dns, cgroupPath: "/kubepods/podx" })).toEqual({
      dns,
      cgroupPath: "/kubepods/podx",
    });
  });

  const rates: [text: string, bits: number][] = [
    ["10M", 10e6],
    ["1Mi", 2 ** 20],
    ["2500k", 2.5e6],
    ["1e6", 1e6],
    ["1.5G", 1.5e9],
    ["4096", 4096],
    ["1500000m", 1500],
    ["1P", 1e15],
  ];
  for (const [text, bits] of rates) {
    test(`bandwidth ${text}`, () => {
      const annotations = { "kubernetes.io/egress-bandwidth": text };
      expect(podCapabilities({ ...pod, annotations })).toEqual({
        bandwidth: { egressRate: bits, egressBurst: 2 ** 31 - 1 },
      });
    });
  }

  test("both directions", () => {
    const annotations = { "kubernetes.io/ingress-bandwidth": "1M", "kubernetes.io/egress-bandwidth": "2M" };
    expect(podCapabilities({ ...pod, annotations })["bandwidth"]).toMatchObject({ ingressRate: 1e6, egressRate: 2e6 });
  });

  for (const text of ["", "fast", "-1M", "10MB", "1 M", "999", "2P"]) {
    test(`refuses a bandwidth of "${text}", naming the annotation`, () => {
      const annotations = { "kubernetes.io/ingress-bandwidth": text };
      expect(() => podCapabilities({ ...pod, annotations })).toThrow("annotation kubernetes.io/ingress-bandwidth");
    });
  }
});

describe("pluginInput", () => {
  const network = { name: "n", version: "1.0.0" } as const;
  const plugin = {
    type: "portmap",
    capabilities: new Set(["portMappings"]),
    body: { type: "portmap", name: "other", cniVersion: "0.1.0", capabilities: { portMappings: true }, snat: true },
  };
  test("the network's name and version, the result so far, and only the capabilities it declares", () => {
    const capabilities = { portMappings: [1], dns: {} };
    expect(pluginInput(plugin, network, { prevResult: { ips: [] }, capabilities })).toEqual({
      type: "portmap",
      name: "n",
      cniVersion: "1.0.0",
      capabilities: { portMappings: true },
      snat: true,
      prevResult: { ips: [] },
      runtimeConfig: { portMappings: [1] },
    });
  });
  test("nothing to say, no runtimeConfig", () => {
    expect(pluginInput(plugin, network, { capabilities: { dns: {} } })).not.toHaveProperty("runtimeConfig");
  });
});

describe("checkTarget", () => {
  const good: CNITarget = { containerID: "abc", netnsPath: "/proc/1/ns/net" };
  test("takes what plugins take", () => expect(() => checkTarget({ ...good, ifName: "net1.5" })).not.toThrow());
  const bad: Partial<CNITarget>[] = [
    { containerID: "" },
    { containerID: "../x" },
    { containerID: "a/b" },
    ...["", ".", "..", "a/b", "a:b", "a b", "sixteen-letters1"].map((ifName) => ({ ifName })),
    { args: [["A", "b;C=d"]] },
    { args: [["A;B", "c"]] },
  ];
  for (const part of bad) {
    test(`refuses ${JSON.stringify(part)}`, () =>
      expect(() => checkTarget({ ...good, ...part })).toThrow(/valid|hold/));
  }
});
