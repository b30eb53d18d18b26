import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { ProxyOptions } from "../../agent/proxy/options.ts";
import type { LoadReport } from "../support/net-load.ts";
import { testMatrix } from "../support/proxy-matrix.ts";
import { clear } from "../support/proxy-scenarios.ts";
import { RunningProxy } from "../support/running-proxy.ts";
import { makeService, makeSlice } from "../support/service-objects.ts";
import { TestNet, until } from "../support/test-net.ts";

type Mode = Partial<ProxyOptions> & Pick<ProxyOptions, "mode">;

const modes: readonly [name: string, options: Mode][] = [
  ["iptables-nft", { mode: "iptables", iptablesFlavour: "nft" }],
  ["iptables-legacy", { mode: "iptables", iptablesFlavour: "legacy" }],
  ["nftables", { mode: "nftables" }],
];
const vip = "10.96.0.20";
// While endpoints roll; a fifth of them would fail if nobody cared.
const connectionsMin = 10_000;

const concurrency = 4;
// A thousand connections one after another; a busy machine takes its time.
const stepMsMax = 30_000;

function start(net: TestNet, options: Partial<ProxyOptions>): RunningProxy {
  const running = new RunningProxy(net, { nodePortAddresses: ["0.0.0.0/0", "::/0"], ...options });
  running.nodes.put({ metadata: { name: "n1", labels: { "topology.kubernetes.io/zone": "zone-a" } } });
  return running;
}

/** Resolves when rules of one mode only are there. */
async function onlyLeft(net: TestNet, mode: Mode["mode"]): Promise<void> {
  await until(`only rules of mode ${mode} are left`, async () => {
    const rules = await net.onNode("iptables-nft-save", ["-t", "nat"]);
    const tables = await net.onNode("nft", ["list", "tables"]);
    return (
      rules.includes("KUBE-SERVICES") === (mode === "iptables") &&
      tables.includes("kube-proxy") === (mode === "nftables")
    );
  });
}

describe.each(modes)("packets with %s", (_, options) => {
  let net: TestNet;
  let running: RunningProxy;

  beforeAll(async () => {
    net = await TestNet.create();
    running = start(net, options).markSynced();
    await running.settled();
  });
  afterEach(() => clear({ net, running }));
  afterAll(async () => {
    await running?.stop();
    await net?.[Symbol.asyncDispose]();
  });

  testMatrix(() => ({ net, running }), options.mode);

  test("while endpoints roll, only connections to the one that goes may fail", async () => {
    // Five endpoints of one service, each with a port of its own; the last two on the other node.
    const first = 9_000;
    const endpoints = [net.pod1, net.pod1, net.pod2, net.node2, net.node2].map((peer, at) => {
      const address = peer === net.pod1 ? "10.244.1.2" : peer === net.pod2 ? "10.244.2.2" : "10.244.3.2";
      return { peer, address, port: first + at, name: `e${at}` };
    });
    const serve = async ({ peer, address, port, name }: (typeof endpoints)[number]) =>
      await peer.request({ op: "serve", name, host: address, port });
    const publish = async (without?: number) => {
      for (const [at, { address, port }] of endpoints.entries()) {
        const ports = [{ name: "p80", port, protocol: "TCP" as const }];
        running.endpointSlices.put(makeSlice("web", at === without ? [] : [address], { ports, suffix: `e${at}` }));
      }
      await running.settled();
    };
    const clients = [net.pod1, net.client];
    const perStep = Math.ceil(connectionsMin / clients.length / endpoints.length);
    for (const endpoint of endpoints) await serve(endpoint);
    running.services.put(makeService("web", { clusterIP: vip }));
    await publish();
    for (const peer of clients) await peer.request({ op: "load", host: vip, port: 80, concurrency });
    for (const [at, endpoint] of endpoints.entries()) {
      await publish(at);
      // Its rules are gone: whatever begins from now on must not notice that it ends.
      for (const peer of clients) await peer.request({ op: "phase" });
      await endpoint.peer.request({ op: "unserve", host: endpoint.address, port: endpoint.port });
      for (const peer of clients) {
        const before = Number(await peer.request({ op: "ended" }));
        const hasEnough = async () => Number(await peer.request({ op: "ended" })) >= before + perStep;
        await until("connections have met the endpoint's absence", hasEnough, stepMsMax);
      }
      await serve(endpoint);
      for (const peer of clients) await peer.request({ op: "phase" });
      await publish();
    }
    let all = 0;
    for (const peer of clients) {
      const report = JSON.parse(await peer.request({ op: "endLoad" })) as LoadReport;
      // Odd phases began without one endpoint, even ones before its end; connections to it were cut then.
      const odd = report.filter((_phase, n) => n % 2 === 1);
      expect(odd.map(({ failed }) => failed)).toEqual(odd.map(() => ({})));
      expect(odd.map(({ answered }, n) => answered[`e${n}`])).toEqual(odd.map(() => undefined));
      const total = (counts: Record<string, number>) => Object.values(counts).reduce((a, b) => a + b, 0);
      const failed = report.reduce((sum, one) => sum + total(one.failed), 0);
      // A handful was under way when its endpoint ended: no more than are open at a time.
      expect(failed).toBeLessThanOrEqual(concurrency * endpoints.length);
      all += report.reduce((sum, { answered, late }) => sum + total(answered) + total(late), failed);
    }
    expect(all).toBeGreaterThanOrEqual(connectionsMin);
    for (const { peer, address, port } of endpoints) await peer.request({ op: "unserve", host: address, port });
  });
});

// A table of nftables' own cannot let pass what iptables' refuse.
test.each(["nft", "legacy"] as const)(
  "what is masqueraded passes where nothing else is forwarded: %s",
  async (flavour) => {
    await using net = await TestNet.create();
    for (const command of ["iptables", "ip6tables"]) {
      await net.onNode(`${command}-${flavour}`, ["-P", "FORWARD", "DROP"]);
    }
    const running = start(net, { mode: "iptables", iptablesFlavour: flavour }).markSynced();
    try {
      const ports = [{ name: "p80", port: 80, protocol: "TCP" as const, nodePort: 30_080 }];
      running.services.put(makeService("web", { type: "NodePort", clusterIP: vip, ports }));
      running.endpointSlices.put(makeSlice("web", [{ address: "10.244.1.2", nodeName: "n1" }]));
      await running.settled();
      expect(await net.client.ask("tcp", "192.0.2.1", 30_080)).toMatch(/^pod1 /);
      expect(await net.pod1.ask("tcp", vip, 80)).toMatch(/^pod1 (::ffff:)?10\.244\.1\.1$/);
      await expect(net.pod2.ask("tcp", vip, 80, 250)).rejects.toThrow("ETIMEDOUT");
    } finally {
      await running.stop();
    }
  },
);

describe("a change of the mode under traffic", () => {
  let net: TestNet;
  let running: RunningProxy | undefined;

  beforeAll(async () => {
    net = await TestNet.create();
    await net.pod2.request({ op: "echo", host: "10.244.2.2", port: 8090 });
  });
  afterAll(async () => {
    await running?.stop();
    await net?.[Symbol.asyncDispose]();
  });

  test("loses no connection, neither one that is open nor one that begins", async () => {
    const put = (target: RunningProxy) => {
      const ports = [
        { name: "p80", port: 80, protocol: "TCP" as const, nodePort: 30_080 },
        { name: "echo", port: 81, protocol: "TCP" as const, nodePort: 30_081 },
      ];
      target.services.put(makeService("web", { type: "NodePort", clusterIP: vip, ports }));
      const slicePorts = [
        { name: "p80", port: 8080, protocol: "TCP" as const },
        { name: "echo", port: 8090, protocol: "TCP" as const },
      ];
      target.endpointSlices.put(makeSlice("web", ["10.244.2.2"], { ports: slicePorts }));
      return target.markSynced();
    };
    const kept = 20;
    const peers = [net.pod1, net.node, net.client];
    for (const [n, [, options]] of [...modes.slice(0, 1), modes[2]!, modes[0]!, modes[2]!].entries()) {
      const before = running;
      await before?.stop(); // the rules stay
      running = put(start(net, options));
      await running.settled();
      await onlyLeft(net, options.mode);
      if (n > 0) continue;
      for (const peer of peers) {
        for (let at = 0; at < kept; at += 1) await peer.request({ op: "hold", host: vip, port: 81 });
      }
      await net.client.request({ op: "hold", host: "192.0.2.1", port: 30_081 });
      for (const peer of peers) await peer.request({ op: "load", host: vip, port: 80, concurrency: 2 });
    }
    for (const peer of peers) {
      const report = JSON.parse(await peer.request({ op: "endLoad" })) as LoadReport;
      expect(report.map(({ failed }) => failed)).toEqual([{}]);
      expect(report[0]?.answered["pod2"]).toBeGreaterThan(50);
      const alive = peer === net.client ? kept + 1 : kept;
      expect(JSON.parse(await peer.request({ op: "held" }))).toEqual({ alive, lost: 0 });
      await peer.request({ op: "dropHeld" });
    }
  });
});
