import { describe, expect, test } from "vitest";
import type { EndpointSlice, Service, ServiceSpec } from "../../../agent/kube/types.ts";
import { parseIP } from "../../../agent/proxy/ip.ts";
import { hairpinEndpoints } from "../../../agent/proxy/endpoints.ts";
import { ServiceModel } from "../../../agent/proxy/model.ts";
import { describeService } from "../../../agent/proxy/service.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";

const node = { name: "n1", zone: "z1", ips: [parseIP("192.0.2.1")!] };
const ready = { ready: true };
const terminating = { ready: false, serving: true, terminating: true };

function modelOf(service: Service, ...slices: EndpointSlice[]): ServiceModel {
  const model = new ServiceModel("IPv4", node);
  model.setService(`ns1/${service.metadata.name}`, service);
  for (const slice of slices) model.setSlice(`ns1/${slice.metadata.name}`, slice);
  return model;
}

/** The endpoints of the first port, as addresses without the usual port. */
function endpointsOf(spec: Partial<ServiceSpec>, ...slices: EndpointSlice[]) {
  const port = modelOf(makeService("web", spec), ...slices).describe("ns1/web").ports[0]!;
  const texts = (list: readonly { address: string }[]) => list.map(({ address }) => address.replace(":8080", ""));
  const { cluster, local, reachable, hasAny } = port.endpoints;
  return { cluster: texts(cluster), local: texts(local), reachable: texts(reachable), hasAny };
}

describe("describeService", () => {
  const cases: {
    name: string;
    spec: Partial<ServiceSpec>;
    extra?: Partial<Service>;
    want: object | undefined;
    warns?: RegExp;
  }[] = [
    {
      name: "plain",
      spec: {},
      want: { name: "ns1/web:p80", clusterIP: "10.96.0.10", port: 80, nodePort: 0, protocol: "tcp" },
    },
    { name: "unnamed port", spec: { ports: [{ port: 80 }] }, want: { name: "ns1/web", portName: "" } },
    { name: "headless", spec: { clusterIP: "None" }, want: undefined },
    { name: "without an address yet", spec: { clusterIP: "" }, want: undefined },
    { name: "ExternalName", spec: { type: "ExternalName" }, want: undefined },
    {
      name: "of another proxy",
      spec: {},
      extra: {
        metadata: { name: "web", namespace: "ns1", labels: { "service.kubernetes.io/service-proxy-name": "x" } },
      },
      want: undefined,
    },
    { name: "of the other family", spec: { clusterIP: "fd00::1" }, want: undefined },
    {
      name: "dual stack, second address",
      spec: { clusterIP: "fd00::1", clusterIPs: ["fd00::1", "10.96.0.7"], ipFamilies: ["IPv6", "IPv4"] },
      want: { clusterIP: "10.96.0.7" },
    },
    {
      name: "clusterIP malformed",
      spec: { clusterIP: "banana" },
      want: undefined,
      warns: /ns1\/web.*"banana" is no IP/,
    },
    { name: "padded octets", spec: { clusterIP: "010.096.0.010" }, want: { clusterIP: "10.96.0.10" } },
    { name: "port out of range", spec: { ports: [{ port: 70_000 }] }, want: undefined, warns: /port number 70000/ },
    {
      name: "nodePort out of range",
      spec: { ports: [{ port: 80, nodePort: -1 }] },
      want: undefined,
      warns: /node port -1/,
    },
    {
      name: "port name with a quote",
      spec: { ports: [{ name: 'a" -j DROP', port: 80 }] },
      want: undefined,
      warns: /no DNS label/,
    },
    {
      name: "unknown protocol",
      spec: { ports: [{ port: 80, protocol: "ICMP" as "TCP" }] },
      want: undefined,
      warns: /none of TCP/,
    },
    { name: "ports null", spec: { ports: null as unknown as [] }, want: undefined },
    {
      name: "one bad external IP among good ones",
      spec: { externalIPs: ["198.51.100.1", "x", " ", "fd00::9"] },
      want: { externalIPs: ["198.51.100.1"] },
      warns: /external IP "x"/,
    },
    {
      name: "source ranges, padded and foreign",
      spec: { type: "LoadBalancer", loadBalancerSourceRanges: [" 192.0.2.0/24 ", "fd00::/8", "y"] },
      want: { sourceRanges: ["192.0.2.0/24"], sourceRangesIncludeNode: true },
      warns: /source range "y"/,
    },
    {
      name: "a range for everybody is no gate",
      spec: { type: "LoadBalancer", loadBalancerSourceRanges: ["10.0.0.0/8", "0.0.0.0/0"] },
      want: { sourceRanges: [] },
    },
    { name: "affinity", spec: { sessionAffinity: "ClientIP" }, want: { affinitySeconds: 10_800 } },
    {
      name: "affinity with a timeout",
      spec: { sessionAffinity: "ClientIP", sessionAffinityConfig: { clientIP: { timeoutSeconds: 60 } } },
      want: { affinitySeconds: 60 },
    },
    {
      name: "external policy of a ClusterIP service",
      spec: { externalTrafficPolicy: "Local" },
      want: { isExternalPolicyLocal: false },
    },
    {
      name: "external policy with external IPs",
      spec: { externalTrafficPolicy: "Local", externalIPs: ["198.51.100.1"] },
      want: { isExternalPolicyLocal: true },
    },
    {
      name: "load balancer addresses: only those that arrive untranslated",
      spec: { type: "LoadBalancer" },
      extra: {
        status: {
          loadBalancer: {
            ingress: [
              { ip: "203.0.113.1" },
              { ip: "203.0.113.2", ipMode: "Proxy" },
              { hostname: "lb" },
              { ip: "203.0.113.3", ipMode: "VIP" },
            ],
          },
        },
      },
      want: { loadBalancerVIPs: ["203.0.113.1", "203.0.113.3"] },
    },
  ];
  for (const { name, spec, extra = {}, want, warns } of cases) {
    test(name, () => {
      const result = describeService(makeService("web", spec, extra), "IPv4", node.ips);
      if (want === undefined) expect(result.ports).toEqual([]);
      else expect(result.ports[0]).toMatchObject(want);
      if (warns === undefined) expect(result.warnings).toEqual([]);
      else expect(result.warnings.join("\n")).toMatch(warns);
    });
  }

  test("a bad port does not take the good ones with it", () => {
    const { ports } = describeService(
      makeService("web", { ports: [{ port: 0 }, { name: "b", port: 81 }] }),
      "IPv4",
      [],
    );
    expect(ports.map((port) => port.port)).toEqual([81]);
  });

  test("the health check node port counts only for load balancers with the Local policy", () => {
    const of = (spec: Partial<ServiceSpec>) =>
      describeService(makeService("web", { healthCheckNodePort: 31_000, ...spec }), "IPv4", []).healthCheckNodePort;
    expect(of({ type: "LoadBalancer", externalTrafficPolicy: "Local" })).toBe(31_000);
    expect(of({ type: "LoadBalancer", externalTrafficPolicy: "Cluster" })).toBe(0);
    expect(of({ type: "NodePort", externalTrafficPolicy: "Local" })).toBe(0);
  });
});

describe("endpoints", () => {
  const here = { nodeName: "n1" };
  const there = { nodeName: "n2" };
  const all = (list: string[]) => ({ cluster: list, local: [], reachable: list, hasAny: list.length > 0 });
  const cases: { name: string; spec?: Partial<ServiceSpec>; slices: EndpointSlice[]; want: object }[] = [
    { name: "none", slices: [], want: all([]) },
    {
      name: "sorted by text",
      slices: [makeSlice("web", ["10.0.0.9", "10.0.0.10"])],
      want: all(["10.0.0.10", "10.0.0.9"]),
    },
    {
      name: "several slices, one address twice",
      slices: [makeSlice("web", ["10.0.0.1"]), makeSlice("web", ["10.0.0.1", "10.0.0.2"], { suffix: "b" })],
      want: all(["10.0.0.1", "10.0.0.2"]),
    },
    {
      name: "a running pod wins over a terminating one of the same address",
      slices: [
        makeSlice("web", ["10.0.0.1"]),
        makeSlice("web", [{ address: "10.0.0.1", conditions: terminating }], { suffix: "b" }),
      ],
      want: all(["10.0.0.1"]),
    },
    {
      name: "conditions absent mean ready",
      slices: [makeSlice("web", [{ address: "10.0.0.1" }])],
      want: all(["10.0.0.1"]),
    },
    {
      name: "not ready",
      slices: [makeSlice("web", ["10.0.0.1", { address: "10.0.0.2", conditions: { ready: false, serving: false } }])],
      want: all(["10.0.0.1"]),
    },
    {
      name: "terminating but serving is better than nothing",
      slices: [makeSlice("web", [{ address: "10.0.0.2", conditions: terminating }])],
      want: all(["10.0.0.2"]),
    },
    {
      name: "terminating is left out while something is ready",
      slices: [makeSlice("web", ["10.0.0.1", { address: "10.0.0.2", conditions: terminating }])],
      want: all(["10.0.0.1"]),
    },
    {
      name: "slices of other families, services and kinds",
      slices: [
        makeSlice("web", ["fd00::1"], { addressType: "IPv6" }),
        makeSlice("other", ["10.0.0.1"], { suffix: "c" }),
        { ...makeSlice("web", ["10.0.0.3"], { suffix: "d" }), endpoints: null },
      ],
      want: all([]),
    },
    {
      name: "ports of another name",
      slices: [makeSlice("web", ["10.0.0.1"], { ports: [{ name: "x", port: 8080 }] })],
      want: all([]),
    },
    {
      name: "a port without a name is skipped; the empty name is one",
      spec: { ports: [{ port: 80 }] },
      slices: [
        makeSlice("web", ["10.0.0.1"], { ports: [{ port: 8080 }] }),
        makeSlice("web", ["10.0.0.2"], { ports: [{ name: "", port: 8080 }], suffix: "b" }),
      ],
      want: all(["10.0.0.2"]),
    },
    {
      name: "malformed endpoints are left out",
      slices: [makeSlice("web", ["nonsense", "10.0.0.1", { address: "10.0.0.2", addresses: [] }])],
      want: all(["10.0.0.1"]),
    },
    {
      name: "internal policy Local",
      spec: { internalTrafficPolicy: "Local" },
      slices: [
        makeSlice("web", [
          { address: "10.0.0.1", ...here },
          { address: "10.0.0.2", ...there },
        ]),
      ],
      want: { cluster: [], local: ["10.0.0.1"], reachable: ["10.0.0.1"], hasAny: true },
    },
    {
      name: "internal policy Local without local endpoints",
      spec: { internalTrafficPolicy: "Local" },
      slices: [makeSlice("web", [{ address: "10.0.0.2", ...there }])],
      want: { cluster: [], local: [], reachable: [], hasAny: true },
    },
    {
      name: "external policy Local",
      spec: { type: "NodePort", externalTrafficPolicy: "Local", ports: [{ name: "p80", port: 80, nodePort: 30_080 }] },
      slices: [
        makeSlice("web", [
          { address: "10.0.0.1", ...here, conditions: terminating },
          { address: "10.0.0.2", ...there },
        ]),
      ],
      want: { cluster: ["10.0.0.2"], local: ["10.0.0.1"], reachable: ["10.0.0.1", "10.0.0.2"], hasAny: true },
    },
    {
      name: "zone hints",
      slices: [
        makeSlice("web", [
          { address: "10.0.0.1", hints: { forZones: [{ name: "z1" }] }, conditions: ready },
          { address: "10.0.0.2", hints: { forZones: [{ name: "z2" }] }, conditions: ready },
        ]),
      ],
      want: all(["10.0.0.1"]),
    },
    {
      name: "one endpoint without a hint switches hints off",
      slices: [makeSlice("web", [{ address: "10.0.0.1", hints: { forZones: [{ name: "z1" }] } }, "10.0.0.2"])],
      want: all(["10.0.0.1", "10.0.0.2"]),
    },
    {
      name: "hints for other zones only",
      slices: [makeSlice("web", [{ address: "10.0.0.1", hints: { forZones: [{ name: "z2" }] } }])],
      want: all(["10.0.0.1"]),
    },
    {
      name: "node hints come before zone hints",
      slices: [
        makeSlice("web", [
          { address: "10.0.0.1", hints: { forNodes: [{ name: "n2" }], forZones: [{ name: "z1" }] } },
          { address: "10.0.0.2", hints: { forNodes: [{ name: "n1" }], forZones: [{ name: "z1" }] } },
        ]),
      ],
      want: all(["10.0.0.2"]),
    },
  ];
  for (const { name, spec = {}, slices, want } of cases) {
    test(name, () => expect(endpointsOf(spec, ...slices)).toEqual(want));
  }

  test("each slice brings its own number for a named port", () => {
    const port = modelOf(
      makeService("web"),
      makeSlice("web", ["10.0.0.1"]),
      makeSlice("web", ["10.0.0.2"], { suffix: "b", ports: [{ name: "p80", port: 9090 }] }),
    ).describe("ns1/web").ports[0];
    expect(port?.endpoints.cluster.map(({ address }) => address)).toEqual(["10.0.0.1:8080", "10.0.0.2:9090"]);
  });
});

test("a load balancer that asks nodes has to have a port to ask on", () => {
  const spec = { type: "LoadBalancer", externalTrafficPolicy: "Local" } as const;
  const warningsOf = (more: Partial<ServiceSpec>) =>
    describeService(makeService("web", { ...spec, ...more }), "IPv4", []).warnings;
  expect(warningsOf({})).toEqual([expect.stringContaining("ns1/web: has no healthCheckNodePort")]);
  expect(warningsOf({ healthCheckNodePort: 31_000 })).toEqual([]);
  expect(warningsOf({ externalTrafficPolicy: "Cluster" })).toEqual([]);
});

test("flows stay with what serves; SCTP's with all that is there", () => {
  const going = { address: "10.0.0.2", conditions: { ready: false, serving: false, terminating: true } };
  const serving = (protocol: "UDP" | "SCTP") => {
    const ports = [{ name: "p80", port: 8080, protocol }];
    const service = makeService("web", { ports: [{ name: "p80", port: 80, protocol }] });
    return modelOf(service, makeSlice("web", ["10.0.0.1", going], { ports })).describe("ns1/web").ports[0]?.serving;
  };
  expect(serving("UDP")).toEqual(["10.0.0.1:8080"]);
  expect(serving("SCTP")).toEqual(["10.0.0.1:8080", "10.0.0.2:8080"]);
});

describe("changes", () => {
  test("are pending until settled, and a later change stays pending", () => {
    const model = modelOf(makeService("web"), makeSlice("web", ["10.0.0.1"]));
    const pending = model.pending();
    expect([...pending.keys]).toEqual(["ns1/web"]);
    model.setSlice("ns1/web-a", makeSlice("web", ["10.0.0.2"]));
    model.settle(pending);
    expect(model.hasPending).toBe(true);
    model.settle(model.pending());
    expect(model.hasPending).toBe(false);
  });

  test("of a Service that no rule depends on are none", () => {
    const model = modelOf(makeService("web"));
    model.settle(model.pending());
    const meta = { namespace: "ns1", name: "web" };
    const same: Partial<Service>[] = [
      { metadata: { ...meta, resourceVersion: "2", annotations: { a: "b" }, labels: { app: "x" } } },
      { metadata: { ...meta, resourceVersion: "3" }, status: {} },
    ];
    for (const extra of same) {
      model.setService("ns1/web", makeService("web", {}, extra));
      expect(model.hasPending).toBe(false);
    }
    expect(model.changes().services).toBe(3); // metrics count all that came
    const other: Partial<Service>[] = [
      { metadata: { ...meta, labels: { "service.kubernetes.io/service-proxy-name": "x" } } },
      { status: { loadBalancer: { ingress: [{ ip: "203.0.113.9" }] } } },
    ];
    for (const extra of other) {
      model.setService("ns1/web", makeService("web", {}, extra));
      expect(model.hasPending).toBe(true);
      model.settle(model.pending());
    }
    model.setService("ns1/web", makeService("web", { externalIPs: ["198.51.100.1"] }));
    expect(model.hasPending).toBe(true);
  });

  test("a slice that moves to another service changes both", () => {
    const model = modelOf(makeService("web"), makeSlice("web", ["10.0.0.1"]));
    model.settle(model.pending());
    model.setSlice("ns1/web-a", {
      ...makeSlice("api", ["10.0.0.1"]),
      metadata: { ...makeSlice("api", []).metadata, name: "web-a" },
    });
    expect([...model.pending().keys].sort()).toEqual(["ns1/api", "ns1/web"]);
    expect(model.describe("ns1/web").ports[0]?.endpoints.hasAny).toBe(false);
  });

  test("trigger times come back once their change is settled", () => {
    const slice = makeSlice("web", ["10.0.0.1"]);
    slice.metadata.annotations = { "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z" };
    const model = modelOf(makeService("web"), slice);
    expect(model.settle(model.pending())).toEqual([Date.parse("2026-01-01T00:00:00Z")]);
    expect(model.settle(model.pending())).toEqual([]);
  });

  test("only a change of zone or addresses asks for everything anew", () => {
    const model = new ServiceModel("IPv4", node);
    expect(model.setNode({ ...node })).toBe(false);
    expect(model.setNode({ ...node, zone: "z2" })).toBe(true);
  });
});

describe("services of the other family only", () => {
  const other = { clusterIP: "fd00::1", clusterIPs: ["fd00::1"], ipFamilies: ["IPv6" as const] };

  test("are no work", () => {
    const model = modelOf(makeService("web", other));
    expect(model.hasPending).toBe(false);
    expect(model.keys()).toEqual([]);
    expect(model.changes().services).toBe(1);
    model.setService("ns1/web", undefined);
    expect(model.hasPending).toBe(false);
  });

  test("lose their rules if they had some, and get them back", () => {
    const model = modelOf(makeService("web"));
    model.settle(model.pending());
    model.setService("ns1/web", makeService("web", other));
    expect([...model.pending().keys]).toEqual(["ns1/web"]);
    expect(model.describe("ns1/web").ports).toEqual([]);
    model.settle(model.pending());
    model.setService("ns1/web", makeService("web"));
    expect(model.describe("ns1/web").ports).toHaveLength(1);
    expect(model.hasPending).toBe(true);
  });
});

describe("the number of endpoints behind ports", () => {
  test("follows slices as they come, change and go", () => {
    const model = modelOf(makeService("web"), makeSlice("web", ["10.244.1.5", "10.244.1.6"]));
    expect(model.endpointCount()).toBe(2);
    const ports = [
      { name: "a", port: 1, protocol: "TCP" as const },
      { name: "b", port: 2, protocol: "TCP" as const },
    ];
    model.setSlice("ns1/web-a", makeSlice("web", ["10.244.1.5", "10.244.1.6", "10.244.1.7"], { ports }));
    expect(model.endpointCount()).toBe(6);
    model.setSlice("ns1/web-a", makeSlice("other", ["10.244.1.5"]));
    expect(model.endpointCount()).toBe(1);
    model.setSlice("ns1/web-a", undefined);
    expect(model.endpointCount()).toBe(0);
  });

  test("takes a malformed slice for none", () => {
    const model = modelOf(makeService("web"), { ...makeSlice("web", []), endpoints: "all" } as never);
    expect(model.endpointCount()).toBe(0);
  });
});

describe("endpoints that may reach themselves by way of this node", () => {
  const nodePort = { type: "NodePort" as const, ports: [{ name: "p80", port: 80, nodePort: 30_080 }] };
  const everybody = ["10.244.1.5", "10.244.9.9", "198.51.100.3"];
  const ours = ["10.244.1.5", "198.51.100.3"];
  const cases: [what: string, spec: Partial<ServiceSpec>, tellsPods: boolean, want: string[]][] = [
    ["a cluster IP", {}, true, ours],
    ["a node port", nodePort, true, ours],
    ["a Local policy", { ...nodePort, externalTrafficPolicy: "Local" }, true, everybody],
    ["a Local policy, and pods cannot be told", { ...nodePort, externalTrafficPolicy: "Local" }, false, ours],
    ["a Local policy of a port that nobody outside reaches", { externalTrafficPolicy: "Local" }, true, ours],
  ];

  test.each(cases)("%s", (_, spec, tellsPods, want) => {
    const slice = makeSlice("web", [
      { address: "10.244.1.5", nodeName: "n1" },
      { address: "10.244.9.9", nodeName: "n2" },
      { address: "198.51.100.3" },
    ]);
    const port = modelOf(makeService("web", spec), slice).describe("ns1/web").ports[0]!;
    expect(hairpinEndpoints(port, tellsPods).map(({ ip }) => ip)).toEqual(want);
  });
});
