import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { silentLogger } from "../../agent/lib/log.ts";
import { cleanup } from "../../agent/proxy/proxy.ts";
import { clear, pod1, ports, publish, testServices, vip } from "../support/proxy-scenarios.ts";
import { RunningProxy } from "../support/running-proxy.ts";
import { TestNet, until } from "../support/test-net.ts";

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
    let running: RunningProxy;
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
      running = new RunningProxy(net, { iptablesFlavour: flavour }).markSynced();
      await running.settled();
    });

    afterEach(async () => {
      await clear({ net, running });
    });

    afterAll(async () => {
      await running?.stop();
      await net?.[Symbol.asyncDispose]();
    });

    testServices(() => ({ net, running }), { nodePortsOnLoopback: true });

    test("connections to node ports on loopback, and packets of no connection, are counted", async () => {
      const count = async () => await running.proxy.stats()[0]?.backend.packets?.();
      const { invalidDropped = -1, localhostNodePorts = -1 } = (await count()) ?? {};
      const nodePorts = ports.map((port) => ({ ...port, nodePort: 30_080 }));
      await publish({ net, running }, "web", { type: "NodePort", clusterIP: vip, ports: nodePorts }, [pod1]);
      for (let n = 0; n < 3; n += 1) await net.node.ask("tcp", "127.0.0.1", 30_080);
      await net.client.ask("tcp", "192.0.2.1", 30_080);
      // A connection that nobody knows any more, and that is not picked up in the middle.
      await net.pod1.request({ op: "echo", host: pod1, port: 8091 });
      await net.client.request({ op: "hold", host: pod1, port: 8091 });
      await net.sysctls.write("net/netfilter/nf_conntrack_tcp_loose", "0");
      await net.onNode("conntrack", ["-F"]);
      await net.client.request({ op: "dropHeld" });
      await until("both are counted", async () => {
        const now = await count();
        return now?.localhostNodePorts === localhostNodePorts + 3 && (now.invalidDropped ?? -1) > invalidDropped;
      });
      expect(invalidDropped).toBeGreaterThanOrEqual(0);
      expect(localhostNodePorts).toBeGreaterThanOrEqual(0);
      await net.sysctls.write("net/netfilter/nf_conntrack_tcp_loose", "1");
    });

    test("rules that somebody flushed come back, and so does a set", async () => {
      await publish({ net, running }, "web", { clusterIP: vip }, [pod1]);
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

    test("a new start adopts the rules before it knows the services, and then removes what is stale", async () => {
      await publish({ net, running }, "web", { clusterIP: vip }, [pod1]);
      await publish({ net, running }, "old", { clusterIP: "10.96.0.12" }, [pod1]);
      await running.stop();
      const { services, endpointSlices } = running;
      running = new RunningProxy(net, { iptablesFlavour: flavour });
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

    test("cleanup leaves exactly what was there before, and the guard of loopback", async () => {
      await publish(
        { net, running },
        "web",
        { type: "NodePort", clusterIP: vip, ports: [{ ...ports[0]!, nodePort: 30_090 }] },
        [pod1],
      );
      await running.stop();
      expect(await rulesOf(net, flavour)).toContain("KUBE-SEP-");
      expect(await cleanup({ log: silentLogger, commands: net.commands }, new AbortController().signal)).toEqual([]);
      const after = (await rulesOf(net, flavour)).split("\n");
      expect(after.filter((line) => !line.includes("KUBE-FIREWALL")).join("\n")).toBe(before);
      expect(after.filter((line) => line.includes("block incoming localnet connections"))).toHaveLength(1);
      expect(await net.onNode("ipset", ["list", "-name"])).toBe("");
      running = new RunningProxy(net, { iptablesFlavour: flavour }).markSynced();
      await running.settled();
    });
  });
}
