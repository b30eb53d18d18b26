import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { silentLogger } from "../../agent/lib/log.ts";
import { cleanup } from "../../agent/proxy/proxy.ts";
import { clear, pod1, pod2, ports, publish, testServices, vip } from "../support/proxy-scenarios.ts";
import { RunningProxy } from "../support/running-proxy.ts";
import { TestNet, until } from "../support/test-net.ts";

describe("nftables", () => {
  let net: TestNet;
  let running: RunningProxy;

  const nft = async (...args: string[]) => await net.onNode("nft", args);
  const start = () => new RunningProxy(net, { mode: "nftables", nodePortAddresses: ["0.0.0.0/0", "::/0"] });

  beforeAll(async () => {
    net = await TestNet.create();
    await nft("add", "table", "ip", "foreign");
    await nft("add", "chain", "ip", "foreign", "mine");
    await nft("add", "rule", "ip", "foreign", "mine", "counter");
    running = start().markSynced();
    await running.settled();
  });
  afterEach(() => clear({ net, running }));
  afterAll(async () => {
    await running?.stop();
    await net?.[Symbol.asyncDispose]();
  });

  testServices(() => ({ net, running }), { nodePortsOnLoopback: false });

  test("rules and elements that somebody took away come back", async () => {
    await publish({ net, running }, "web", { clusterIP: vip }, [pod1]);
    for (const [what, args] of [
      ["a chain's rules", ["flush", "chain", "ip", "kube-proxy", "services"]],
      ["an element", ["delete", "element", "ip", "kube-proxy", "service-ips", `{ ${vip} . tcp . 80 }`]],
      ["all elements of a map", ["flush", "map", "ip", "kube-proxy", "endpoints-1"]],
      ["the table", ["delete", "table", "ip", "kube-proxy"]],
    ] as const) {
      await nft(...args);
      await until(`the service answers after somebody took away ${what}`, () => net.pod2.ask("tcp", vip, 80, 100));
    }
    expect(await nft("list", "table", "ip", "foreign")).toContain("counter");
  });

  test("an address that no service has is dropped, a port that no service has is refused", async () => {
    await publish({ net, running }, "web", { clusterIP: vip }, [pod1]);
    await expect(net.pod1.ask("tcp", vip, 81)).rejects.toThrow("ECONNREFUSED");
    running.serviceCIDRs.put({ metadata: { name: "kubernetes" }, spec: { cidrs: ["10.96.0.0/16", "fd00:96::/112"] } });
    await running.settled();
    await until("an unused address is silent", async () =>
      (await nft("list", "chain", "ip", "kube-proxy", "cluster-ips-check")).includes("10.96.0.0/16"),
    );
    await expect(net.pod1.ask("tcp", "10.96.0.99", 80, 300)).rejects.toThrow(/ETIMEDOUT|timeout|no answer/i);
  });

  test("a new start keeps what clients remember of affinity, and removes what is stale", async () => {
    await publish({ net, running }, "web", { clusterIP: vip, sessionAffinity: "ClientIP" }, [pod1, pod2]);
    const [first] = (await net.client.ask("tcp", vip, 80)).split(" ");
    await publish({ net, running }, "old", { clusterIP: "10.96.0.12" }, [pod1]);
    await running.stop();
    const { services, endpointSlices } = running;
    running = start();
    services.remove("ns1/old");
    running.services.put(...services.list());
    running.endpointSlices.put(...endpointSlices.list());
    running.markSynced();
    await running.settled();
    for (let n = 0; n < 5; n += 1) expect((await net.client.ask("tcp", vip, 80)).split(" ")[0]).toBe(first);
    expect(await nft("list", "table", "ip", "kube-proxy")).not.toContain("10.96.0.12");
  });

  test("rules of the iptables mode go when this one has taken over, and the other way round", async () => {
    await publish({ net, running }, "web", { clusterIP: vip }, [pod1]);
    const { services, endpointSlices } = running;
    for (const mode of ["iptables", "nftables"] as const) {
      await running.stop();
      running = new RunningProxy(net, { mode, iptablesFlavour: "nft" });
      running.services.put(...services.list());
      running.endpointSlices.put(...endpointSlices.list());
      running.markSynced();
      await running.settled();
      expect(await net.pod2.ask("tcp", vip, 80)).toMatch(/^pod1 /);
      await until("only one mode's rules are left", async () => {
        const hasTable = (await nft("list", "tables")).includes("ip kube-proxy");
        const hasChains = (await net.onNode("iptables-nft-save", ["-t", "nat"])).includes("KUBE-SERVICES");
        return hasTable === (mode === "nftables") && hasChains === (mode === "iptables");
      });
    }
    await running.stop();
    running = start().markSynced();
    await running.settled();
  });

  test("cleanup leaves nothing but what is foreign", async () => {
    await publish(
      { net, running },
      "web",
      { type: "NodePort", clusterIP: vip, ports: [{ ...ports[0]!, nodePort: 30_090 }] },
      [pod1],
    );
    await running.stop();
    expect(await cleanup({ log: silentLogger, commands: net.commands }, new AbortController().signal)).toEqual([]);
    expect(await nft("list", "tables")).not.toContain("kube-proxy");
    expect(await nft("list", "table", "ip", "foreign")).toContain("counter");
    running = start().markSynced();
    await running.settled();
  });
});
