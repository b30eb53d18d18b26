import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { runRulesInspection, traceFromKernel } from "../../agent/proxy/inspect/command.ts";
import type { Kernel } from "../../agent/proxy/inspect/read.ts";
import { pod1, pod2, ports, slicePorts, vip } from "../support/proxy-scenarios.ts";
import { RunningProxy } from "../support/running-proxy.ts";
import { makeService, makeSlice } from "../support/service-objects.ts";
import { TestNet } from "../support/test-net.ts";

const modes = [
  { name: "iptables-nft", options: { iptablesFlavour: "nft" } },
  { name: "iptables-legacy", options: { iptablesFlavour: "legacy" } },
  { name: "nftables", options: { mode: "nftables", nodePortAddresses: ["0.0.0.0/0", "::/0"] } },
] as const;
const nodeIP = "192.0.2.1";
const clientIP = "192.0.2.2";
const lbIP = "203.0.113.1";
const names: Readonly<Record<string, string>> = {
  [`${pod1}:8080`]: "pod1",
  [`${pod2}:8080`]: "pod2",
  "[fd00:244:1::2]:8080": "pod1",
  "[fd00:244:2::2]:8080": "pod2",
};
// A packet that is dropped is one that nobody answers for this long.
const silenceMs = 300;

describe.each(modes)("$name", ({ name, options }) => {
  let net: TestNet;
  let running: RunningProxy;
  let kernel: Kernel;

  beforeAll(async () => {
    net = await TestNet.create();
    kernel = { commands: net.commands, read: async (path) => await net.onNode("cat", [path]) };
    running = new RunningProxy(net, options).markSynced();
    const { services, endpointSlices } = running;
    const put = (service: Parameters<typeof makeService>, ...endpoints: Parameters<typeof makeSlice>[1]) => {
      services.put(makeService(...service));
      endpointSlices.put(makeSlice(service[0], endpoints, { ports: slicePorts }));
    };
    put(["web", { clusterIP: vip, ports }], pod1, pod2);
    put(["one", { clusterIP: "10.96.0.11", ports }], pod2);
    put(["none", { clusterIP: "10.96.0.12", ports }]);
    put(["sticky", { clusterIP: "10.96.0.13", sessionAffinity: "ClientIP", ports }], pod1, pod2);
    const nodePorts = (from: number) => ports.map((port, i) => ({ ...port, nodePort: from + i }));
    put(["np", { type: "NodePort", clusterIP: "10.96.0.14", ports: nodePorts(30_080) }], pod1);
    const local = { externalTrafficPolicy: "Local", internalTrafficPolicy: "Local" } as const;
    const here = { address: pod1, nodeName: "n1" };
    const there = { address: pod2, nodeName: "n2" };
    put(["local", { type: "NodePort", clusterIP: "10.96.0.15", ports: nodePorts(30_090), ...local }], here, there);
    put(["away", { type: "NodePort", clusterIP: "10.96.0.16", ports: nodePorts(30_100), ...local }], there);
    put(
      [
        "lb",
        { type: "LoadBalancer", clusterIP: "10.96.0.17", ports, loadBalancerSourceRanges: [`${clientIP}/32`] },
        { status: { loadBalancer: { ingress: [{ ip: lbIP }] } } },
      ],
      pod2,
    );
    services.put(
      makeService("six", { clusterIP: "fd00:96::10", clusterIPs: ["fd00:96::10"], ipFamilies: ["IPv6"], ports }),
    );
    endpointSlices.put(makeSlice("six", ["fd00:244:2::2"], { ports: slicePorts, addressType: "IPv6" }));
    await running.settled();
  });
  afterAll(async () => {
    await running?.stop();
    await net?.[Symbol.asyncDispose]();
  });

  /** What became of a real packet, in the words of {@link foretold}. */
  async function happened(
    from: "pod1" | "pod2" | "client" | "node",
    source: string,
    proto: "tcp" | "udp",
    to: string,
    port: number,
    waitMs?: number,
  ) {
    try {
      const [endpoint = "", seen = ""] = (await net[from].ask(proto, to, port, waitMs)).split(" ");
      return { fate: "answered", endpoint, isMasqueraded: seen.replace("::ffff:", "") !== source };
    } catch (err) {
      return { fate: (err as Error).message === "ECONNREFUSED" ? "refused" : "silence" };
    }
  }

  async function foretold(source: string, protocol: "tcp" | "udp", destination: string, port: number) {
    const trace = await traceFromKernel({ source, destination, port, protocol, inInterface: undefined }, kernel);
    expect(trace.unjudged).toEqual([]);
    return trace.ends.map(({ fate, endpoint, source: leaves }) => {
      if (fate === "drop" || fate === "unreachable") return { fate: "silence" };
      // Nobody listens on the addresses of the node itself.
      if (fate === "reject" || endpoint === undefined) return { fate: "refused" };
      return { fate: "answered", endpoint: names[endpoint], isMasqueraded: leaves !== source };
    });
  }

  const peers = { pod1, pod2, client: clientIP, node: nodeIP } as const;
  const cases: [what: string, from: keyof typeof peers, to: string, port: number][] = [
    ["a ClusterIP from a pod", "pod1", vip, 80],
    ["a ClusterIP from the node", "node", vip, 80],
    ["a ClusterIP from outside", "client", vip, 80],
    ["an endpoint that reaches itself", "pod2", "10.96.0.11", 80],
    ["a service without endpoints", "pod1", "10.96.0.12", 80],
    ["a service without endpoints, from the node", "node", "10.96.0.12", 80],
    ["session affinity", "pod2", "10.96.0.13", 80],
    ["a node port from outside", "client", nodeIP, 30_080],
    ["a node port from a pod", "pod2", nodeIP, 30_080],
    ["a node port from the node", "node", nodeIP, 30_080],
    ["a node port under the policy Local", "client", nodeIP, 30_090],
    ["the same from a pod", "pod1", nodeIP, 30_090],
    ["an internal policy of Local", "pod2", "10.96.0.15", 80],
    ["a policy of Local without an endpoint here", "client", nodeIP, 30_100],
    ["the same inside", "pod1", "10.96.0.16", 80],
    ["a port of the node that nobody has", "client", nodeIP, 30_200],
    ["a load balancer's address from its range", "client", lbIP, 80],
    ["the same from elsewhere", "pod1", lbIP, 80],
  ];
  test.each(cases)("foretells what becomes of %s", async (_, from, to, port) => {
    // A new connection each time; what is random has to come out as one of what was foretold.
    for (const proto of ["tcp", "tcp", "tcp"] as const) {
      const want = await foretold(peers[from], proto, to, port);
      const waitMs = want.some(({ fate }) => fate === "silence") ? silenceMs : undefined;
      expect(want).toContainEqual(await happened(from, peers[from], proto, to, port, waitMs));
    }
  });

  test("IPv6", async () => {
    const want = await foretold("fd00:244:1::2", "tcp", "fd00:96::10", 80);
    expect(want).toEqual([{ fate: "answered", endpoint: "pod2", isMasqueraded: false }]);
    expect(want).toContainEqual(await happened("pod1", "fd00:244:1::2", "tcp", "fd00:96::10", 80));
  });

  async function nodelet(
    ...service: ["address", string] | ["name", string]
  ): Promise<{ code: number; out: string; err: string }> {
    const said = { code: -1, out: "", err: "" };
    const [kind, text] = service;
    const [namespace = "", serviceName = ""] = text.split("/");
    const which = kind === "address" ? { address: text } : { namespace, name: serviceName };
    said.code = await runRulesInspection(
      { kind: "rules", service: which, output: "text" },
      {
        out: (part) => void (said.out += part),
        err: (part) => void (said.err += part),
        columns: 80,
        isColoured: false,
      },
      kernel,
    );
    return said;
  }

  test("shows a service by its name and by any of its addresses, counters move", async () => {
    const { code, out, err } = await nodelet("name", "ns1/one");
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out).toContain("10.96.0.11:80  cluster IP");
    expect(out).toMatch(/100\.0%\s+10\.244\.2\.2:8080/);
    for (const address of ["10.96.0.11", lbIP, "fd00:96::10"]) expect((await nodelet("address", address)).code).toBe(0);
    expect((await nodelet("address", lbIP)).out).toMatch(/^ns1\/lb  IPv4/);
    expect((await nodelet("name", "ns1/six")).out).toContain("[fd00:96::10]:80  cluster IP");
    expect((await nodelet("name", "ns1/nix")).code).toBe(1);
    // Flows of earlier tests would time out any moment.
    await net.onNode("conntrack", ["-F"]);
    const counted = async () => {
      const { out: text } = await nodelet("name", "ns1/one");
      return [/10\.96\.0\.11:80  cluster IP +(\d+) (\w+)/, /10\.244\.2\.2:8080.* (\d+) (\w+)$/m].map((found) => {
        const [, count, what = ""] = found.exec(text) ?? [];
        return [Number(count), what.replace(/s$/, "")];
      });
    };
    const before = await counted();
    await net.pod1.ask("tcp", "10.96.0.11", 80);
    expect(await counted()).toEqual(
      before.map(([count]) => [Number(count) + 1, name === "nftables" ? "flow" : "packet"]),
    );
  });

  test("meets the rules of others", async () => {
    const rule = name === "nftables" ? undefined : `iptables-${name.slice("iptables-".length)}`;
    const change = async (verb: "add" | "delete") => {
      if (rule !== undefined) {
        await net.onNode(rule, [verb === "add" ? "-I" : "-D", "FORWARD", "-d", pod2, "-p", "tcp", "-j", "DROP"]);
        return;
      }
      await net.onNode("nft", [verb, "table", "inet", "fw"]);
      if (verb === "delete") return;
      await net.onNode("nft", ["add", "chain", "inet", "fw", "f", "{ type filter hook forward priority 5 ; }"]);
      await net.onNode("nft", ["add", "rule", "inet", "fw", "f", "ip", "daddr", pod2, "tcp", "dport", "8080", "drop"]);
    };
    await change("add");
    try {
      const want = await foretold(pod1, "tcp", "10.96.0.11", 80);
      expect(want).toEqual([{ fate: "silence" }]);
      expect(await happened("pod1", pod1, "tcp", "10.96.0.11", 80)).toEqual({ fate: "silence" });
      const { ends } = await traceFromKernel(
        { source: pod1, destination: "10.96.0.11", port: 80, protocol: "tcp", inInterface: undefined },
        kernel,
      );
      expect(ends[0]?.decidedBy?.chain).toBe(rule === undefined ? "f" : "FORWARD");
    } finally {
      await change("delete");
    }
  });

  test("answers all the same when the agent is dead", async () => {
    await running.stop();
    expect((await nodelet("name", "ns1/web")).out).toMatch(/50\.0%\s+10\.244\.1\.2:8080/);
    expect(await foretold(pod1, "tcp", "10.96.0.11", 80)).toMatchObject([{ endpoint: "pod2" }]);
  });
});
