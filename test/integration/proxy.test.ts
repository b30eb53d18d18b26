import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { EndpointSlice, Node, Service } from "../../agent/kube/types.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { proxyOptionsDefault } from "../../agent/proxy/options.ts";
import { cleanup, createProxy, type Proxy } from "../../agent/proxy/proxy.ts";
import { MemoryStore } from "../support/memory-store.ts";
import { makeService, makeSlice } from "../support/service-objects.ts";
import { TestNet, until } from "../support/test-net.ts";

const ports = [
  { name: "p80", port: 80, protocol: "TCP" as const },
  { name: "u80", port: 80, protocol: "UDP" as const },
];
const slicePorts = [
  { name: "p80", port: 8080, protocol: "TCP" as const },
  { name: "u80", port: 8080, protocol: "UDP" as const },
];
const pod1 = "10.244.1.2";
const pod2 = "10.244.2.2";
const vip = "10.96.0.10";

/** A proxy at work on the test network's node. */
class Running {
  readonly services = new MemoryStore<Service>();
  readonly endpointSlices = new MemoryStore<EndpointSlice>();
  readonly nodes = new MemoryStore<Node>().markSynced();
  readonly proxy: Proxy;
  readonly #stop = new AbortController();
  readonly #done: Promise<void>;

  constructor(net: TestNet, flavour: "nft" | "legacy") {
    this.proxy = createProxy(
      {
        ...proxyOptionsDefault,
        nodeName: "n1",
        nodeIPs: ["192.0.2.1"],
        families: ["IPv4", "IPv6"],
        iptablesFlavour: flavour,
        minSyncPeriodMs: 10,
        syncPeriodMs: 500,
        detectLocal: { ...proxyOptionsDefault.detectLocal, cidrs: ["10.244.0.0/16", "fd00:244::/32"] },
      },
      {
        services: this.services,
        endpointSlices: this.endpointSlices,
        nodes: this.nodes,
        clock: systemClock,
        log: silentLogger,
        commands: net.commands,
        sysctls: net.sysctls,
        localIPs: () => net.localIPs,
      },
    );
    this.#done = this.proxy.run(this.#stop.signal);
  }

  markSynced(): this {
    this.services.markSynced();
    this.endpointSlices.markSynced();
    return this;
  }

  /** Resolves when all that was put in so far is in the kernel. */
  async settled(): Promise<void> {
    await until("the proxy has settled", async () => {
      const stats = this.proxy.stats();
      return stats.length === 2 && stats.every((one) => one.syncs > 0 && one.pendingSinceMs === undefined);
    });
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#done;
  }
}

async function rulesOf(net: TestNet, flavour: string): Promise<string> {
  const all = await Promise.all(
    [`iptables-${flavour}-save`, `ip6tables-${flavour}-save`].map((command) => net.onNode(command, [])),
  );
  // Comments hold the time, counters count.
  return all
    .join("")
    .split("\n")
    .filter((line) => !line.startsWith("#"))
    .map((line) => line.replace(/\[\d+:\d+\]/, ""))
    .join("\n");
}

async function addForeignRules(net: TestNet, command: string, table: string): Promise<void> {
  const iptables = (...args: string[]) => net.onNode(command, ["-t", table, ...args]);
  await iptables("-N", "FOREIGN");
  await iptables("-A", "FOREIGN", "-m", "comment", "--comment", "not ours", "-j", "RETURN");
  await iptables("-A", "OUTPUT", "-j", "FOREIGN");
}

for (const flavour of ["nft", "legacy"] as const) {
  describe(`iptables-${flavour}`, () => {
    let net: TestNet;
    let running: Running;
    let before: string;

    beforeAll(async () => {
      net = await TestNet.create();
      for (const family of ["iptables", "ip6tables"]) {
        const command = `${family}-${flavour}`;
        // Foreign rules of all kinds, in all the tables that exist afterwards anyway.
        for (const table of ["mangle", "nat", "filter"]) await addForeignRules(net, command, table);
        await net.onNode(command, ["-t", "filter", "-A", "FORWARD", "-p", "tcp", "--dport", "9", "-j", "DROP"]);
      }
      before = await rulesOf(net, flavour);
      running = new Running(net, flavour).markSynced();
      await running.settled();
    });

    afterEach(async () => {
      for (const service of [...running.services.list()]) running.services.remove(`ns1/${service.metadata.name}`);
      for (const slice of [...running.endpointSlices.list()]) {
        running.endpointSlices.remove(`ns1/${slice.metadata.name}`);
      }
      await running.settled();
    });

    afterAll(async () => {
      await running?.stop();
      await net?.[Symbol.asyncDispose]();
    });

    async function publish(
      name: string,
      spec: Parameters<typeof makeService>[1],
      endpoints: readonly string[],
    ): Promise<void> {
      running.services.put(makeService(name, { ports, ...spec }));
      running.endpointSlices.put(makeSlice(name, endpoints, { ports: slicePorts }));
      await running.settled();
    }

    test("a ClusterIP answers pods and the node, over TCP and UDP", async () => {
      await publish("web", { clusterIP: vip }, [pod2]);
      expect(await net.pod1.ask("tcp", vip, 80)).toMatch(/^pod2 (::ffff:)?10\.244\.1\.2$/);
      expect(await net.pod1.ask("udp", vip, 80)).toBe("pod2 10.244.1.2");
      expect(await net.node.ask("tcp", vip, 80)).toMatch(/^pod2 /);
      expect(await net.node.ask("udp", vip, 80)).toMatch(/^pod2 /);
    });

    test("an IPv6 ClusterIP answers", async () => {
      running.services.put(
        makeService("web6", { ports, clusterIP: "fd00:96::10", clusterIPs: ["fd00:96::10"], ipFamilies: ["IPv6"] }),
      );
      running.endpointSlices.put(makeSlice("web6", ["fd00:244:2::2"], { ports: slicePorts, addressType: "IPv6" }));
      await running.settled();
      expect(await net.pod1.ask("tcp", "fd00:96::10", 80)).toBe("pod2 fd00:244:1::2");
      expect(await net.node.ask("udp", "fd00:96::10", 80)).toMatch(/^pod2 /);
    });

    test("a pod reaches itself through its service", async () => {
      await publish("web", { clusterIP: vip }, [pod1]);
      expect(await net.pod1.ask("tcp", vip, 80)).toMatch(/^pod1 /);
      expect(await net.pod1.ask("udp", vip, 80)).toMatch(/^pod1 /);
    });

    test("a NodePort answers from outside, from pods and on loopback; the client is masqueraded", async () => {
      const nodePorts = ports.map((port, i) => ({ ...port, nodePort: 30_080 + i }));
      await publish("web", { type: "NodePort", clusterIP: vip, ports: nodePorts }, [pod1]);
      expect(await net.client.ask("tcp", "192.0.2.1", 30_080)).toMatch(/^pod1 (::ffff:)?10\.244\.1\.1$/);
      expect(await net.client.ask("udp", "192.0.2.1", 30_081)).toBe("pod1 10.244.1.1");
      expect(await net.pod2.ask("tcp", "192.0.2.1", 30_080)).toMatch(/^pod1 /);
      expect(await net.node.ask("tcp", "127.0.0.1", 30_080)).toMatch(/^pod1 /);
    });

    test("traffic to a ClusterIP from outside the cluster is masqueraded", async () => {
      await publish("web", { clusterIP: vip }, [pod2]);
      expect(await net.client.ask("tcp", vip, 80)).toMatch(/^pod2 (::ffff:)?10\.244\.2\.1$/);
    });

    test("a load is spread over all endpoints, and affinity keeps a client with one", async () => {
      await publish("web", { clusterIP: vip }, [pod1, pod2]);
      const spread = new Set<string>();
      await until("both endpoints answered", async () => {
        spread.add((await net.client.ask("tcp", vip, 80)).split(" ")[0] ?? "");
        return spread.size === 2;
      });
      await publish("web", { clusterIP: vip, sessionAffinity: "ClientIP" }, [pod1, pod2]);
      const names = new Set<string>();
      for (let n = 0; n < 10; n++) names.add((await net.client.ask("tcp", vip, 80)).split(" ")[0] ?? "");
      expect(names.size).toBe(1);
    });

    test("a service without endpoints refuses at once", async () => {
      await publish("web", { clusterIP: vip }, []);
      for (const peer of [net.pod1, net.node]) {
        const startedAt = performance.now();
        await expect(peer.ask("tcp", vip, 80)).rejects.toThrow("ECONNREFUSED");
        expect(performance.now() - startedAt).toBeLessThan(500);
      }
    });

    test("a one-way UDP sender finds new endpoints after there were none", async () => {
      const send = (text: string) => net.client.request({ op: "send", host: vip, port: 80, text, localPort: 5_555 });
      const received = async (peer: typeof net.pod1) => (await peer.request({ op: "received" })) !== "[]";
      await publish("web", { clusterIP: vip }, [pod1]);
      await until("pod1 hears the sender", () => send("1").then(() => received(net.pod1)));
      await publish("web", { clusterIP: vip }, []);
      await send("2");
      await publish("web", { clusterIP: vip }, [pod2]);
      await until("pod2 hears the sender", () => send("3").then(() => received(net.pod2)), 1_000);
      await net.pod1.request({ op: "received" });
      await send("4");
      expect(await received(net.pod1)).toBe(false);
    });

    test("rules that somebody flushed come back, and so does a set", async () => {
      await publish("web", { clusterIP: vip }, [pod1]);
      await net.onNode(`iptables-${flavour}`, ["-t", "nat", "-F"]);
      await until("the service answers after a flush of rules", () => net.pod2.ask("tcp", vip, 80, 100));
      for (const table of ["nat", "mangle"]) {
        for (const verb of ["-F", "-X"]) await net.onNode(`iptables-${flavour}`, ["-t", table, verb]);
      }
      await until("the service answers after a flush of chains", () => net.pod2.ask("tcp", vip, 80, 100));
      await net.onNode("ipset", ["flush", "KUBE-SERVICE-IPS"]);
      await until("the service answers after a flush of the set", () => net.pod2.ask("tcp", vip, 80, 100));
      // The foreign rules in those two tables went with the flush; put them back for the last test.
      for (const table of ["mangle", "nat"]) await addForeignRules(net, `iptables-${flavour}`, table);
      expect(await rulesOf(net, flavour)).toContain("KUBE-SERVICE-IPS");
    });

    test("changes of a service and its endpoints that race end as the newest of both", async () => {
      for (let n = 0; n < 20; n++) {
        const clusterIP = n % 2 === 0 ? vip : "10.96.0.11";
        running.services.put(makeService("web", { ports, clusterIP }));
        running.endpointSlices.put(makeSlice("web", [n % 3 === 0 ? pod1 : pod2], { ports: slicePorts }));
        await new Promise((resolve) => setTimeout(resolve, n));
      }
      await running.settled();
      expect(await net.client.ask("tcp", "10.96.0.11", 80)).toMatch(/^pod2 /); // n = 19
      await expect(net.pod1.ask("tcp", vip, 80, 200)).rejects.toThrow();
    });

    test("a new start adopts the rules before it knows the services, and then removes what is stale", async () => {
      await publish("web", { clusterIP: vip }, [pod1]);
      await publish("old", { clusterIP: "10.96.0.12" }, [pod1]);
      await running.stop();
      const { services, endpointSlices } = running;
      running = new Running(net, flavour);
      expect(await net.pod2.ask("tcp", vip, 80)).toMatch(/^pod1 /);
      services.remove("ns1/old");
      running.services.put(...services.list());
      running.endpointSlices.put(...endpointSlices.list());
      await new Promise((resolve) => setTimeout(resolve, 300)); // nothing may happen in this time
      expect(await net.pod2.ask("tcp", "10.96.0.12", 80)).toMatch(/^pod1 /);
      running.markSynced();
      await running.settled();
      expect(await net.pod2.ask("tcp", vip, 80)).toMatch(/^pod1 /);
      expect(await rulesOf(net, flavour)).not.toContain("ns1/old");
    });

    test("cleanup leaves exactly what was there before", async () => {
      await publish("web", { type: "NodePort", clusterIP: vip, ports: [{ ...ports[0]!, nodePort: 30_090 }] }, [pod1]);
      await running.stop();
      expect(await rulesOf(net, flavour)).toContain("KUBE-SEP-");
      expect(await cleanup({ log: silentLogger, commands: net.commands }, new AbortController().signal)).toEqual([]);
      expect(await rulesOf(net, flavour)).toBe(before);
      expect(await net.onNode("ipset", ["list", "-name"])).toBe("");
      running = new Running(net, flavour).markSynced();
      await running.settled();
    });
  });
}
