import { spawn } from "node:child_process";
import { once } from "node:events";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { messageOf } from "../../agent/lib/errors.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { portBase } from "../../agent/proxy/nftables/names.ts";
import { cleanup } from "../../agent/proxy/proxy.ts";
import { clear, pod1, pod2, ports, publish, testServices, vip } from "../support/proxy-scenarios.ts";
import type { ProxyObjects } from "../support/proxy-process.ts";
import { RunningProxy } from "../support/running-proxy.ts";
import { makeService, makeSlice } from "../support/service-objects.ts";
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
    const asked = async () => await net.pod2.ask("tcp", vip, 80, 100);
    for (const [what, args] of [
      ["a chain's rules", ["flush", "chain", "ip", "kube-proxy", "services"]],
      ["an element", ["delete", "element", "ip", "kube-proxy", "service-ips", `{ ${vip} . tcp . 80 }`]],
      ["all elements of a map", ["flush", "map", "ip", "kube-proxy", "endpoints-1"]],
      ["the table", ["delete", "table", "ip", "kube-proxy"]],
    ] as const) {
      await nft(...args);
      await until(`the service answers after somebody took away ${what}`, asked);
    }
    expect(await nft("list", "table", "ip", "foreign")).toContain("counter");
  });

  test("rules of one service that somebody took away come back", async () => {
    const nodePorts = [{ ...ports[0]!, nodePort: 30_094 }];
    await publish({ net, running }, "web", { type: "NodePort", clusterIP: vip, ports: nodePorts }, [pod1]);
    const asked = async () => await net.client.ask("tcp", "192.0.2.1", 30_094, 100);
    for (const chain of ["external", "service"]) {
      await nft(
        "flush",
        "chain",
        "ip",
        "kube-proxy",
        `${chain}-${portBase("ns1/web", { protocol: "tcp", portName: "p80" })}`,
      );
      await until(`the node port answers after somebody emptied its chain ${chain}`, asked);
    }
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
    const onlyLeft = (mode: "iptables" | "nftables") => async () => {
      const hasTable = (await nft("list", "tables")).includes("ip kube-proxy");
      const hasChains = (await net.onNode("iptables-nft-save", ["-t", "nat"])).includes("KUBE-SERVICES");
      return hasTable === (mode === "nftables") && hasChains === (mode === "iptables");
    };
    for (const mode of ["iptables", "nftables"] as const) {
      await running.stop();
      running = new RunningProxy(net, { mode, iptablesFlavour: "nft" });
      running.services.put(...services.list());
      running.endpointSlices.put(...endpointSlices.list());
      running.markSynced();
      await running.settled();
      expect(await net.pod2.ask("tcp", vip, 80)).toMatch(/^pod1 /);
      await until("only one mode's rules are left", onlyLeft(mode));
    }
    await running.stop();
    running = start().markSynced();
    await running.settled();
  });

  test("another timeout of session affinity counts from then on", async () => {
    for (const timeoutSeconds of [60, 90]) {
      const affinity = {
        sessionAffinity: "ClientIP" as const,
        sessionAffinityConfig: { clientIP: { timeoutSeconds } },
      };
      await publish({ net, running }, "web", { clusterIP: vip, ...affinity }, [pod1, pod2]);
      expect(await net.client.ask("tcp", vip, 80)).toMatch(/^pod/);
    }
    const table = await nft("list", "table", "ip", "kube-proxy");
    expect(table).toContain("timeout 1m30s");
    expect(table).not.toContain("timeout 1m\n");
  });

  test("services with the longest names are programmed", async () => {
    const metadata = { namespace: "n".repeat(63), name: "s".repeat(63) };
    const longPorts = [{ name: "p".repeat(63), port: 80, protocol: "TCP" as const, nodePort: 30_095 }];
    const spec = { type: "NodePort" as const, clusterIP: vip, ports: longPorts, sessionAffinity: "ClientIP" as const };
    running.services.put(makeService(metadata.name, spec, { metadata }));
    await running.settled();
    await expect(net.pod1.ask("tcp", vip, 80)).rejects.toThrow("ECONNREFUSED");
    const slice = makeSlice(metadata.name, [pod2], { ports: [{ name: "p".repeat(63), port: 8080, protocol: "TCP" }] });
    running.endpointSlices.put({ ...slice, metadata: { ...slice.metadata, namespace: metadata.namespace } });
    await running.settled();
    expect(await net.pod1.ask("tcp", vip, 80)).toMatch(/^pod2 /);
    expect(await net.client.ask("tcp", "192.0.2.1", 30_095)).toMatch(/^pod2 /);
    running.services.remove(`${metadata.namespace}/${metadata.name}`);
    running.endpointSlices.remove(`${metadata.namespace}/${slice.metadata.name}`);
    await running.settled();
  });

  test("SCTP services are programmed, whether or not this kernel speaks it", async () => {
    const sctp = [{ name: "s80", port: 80, protocol: "SCTP" as const, nodePort: 30_096 }];
    running.services.put(makeService("sctp", { type: "NodePort", clusterIP: vip, ports: sctp }));
    running.endpointSlices.put(
      makeSlice("sctp", [pod1, pod2], { ports: [{ name: "s80", port: 8080, protocol: "SCTP" }] }),
    );
    await running.settled();
    const table = await nft("list", "table", "ip", "kube-proxy");
    expect(table).toContain(`${vip} . sctp . 80`);
    expect(table).toContain("sctp . 30096");
    expect(table).toMatch(/meta l4proto sctp dnat/);
  });

  test("a table that another kube-proxy left is taken over, whatever it looks like", async () => {
    await publish({ net, running }, "web", { clusterIP: vip }, [pod1]);
    const { services, endpointSlices } = running;
    const isGone = async () => !(await nft("list", "table", "ip", "kube-proxy")).includes("gone");
    for (const lines of [
      // Its own make: chains and maps of services that are gone, an affinity set.
      [
        'add table ip kube-proxy { comment "rules for kube-proxy" ; }',
        'add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; comment "ClusterIP" ; }',
        "add chain ip kube-proxy service-ULMVA6XW-ns1/gone/tcp/p80",
        "add set ip kube-proxy affinity-5OJB2KTY-ns1/gone/tcp/p80__10.180.0.1/80 { type ipv4_addr ; flags dynamic,timeout ; timeout 60s ; }",
        "add rule ip kube-proxy service-ULMVA6XW-ns1/gone/tcp/p80 ip saddr @affinity-5OJB2KTY-ns1/gone/tcp/p80__10.180.0.1/80 drop",
        "add element ip kube-proxy service-ips { 10.96.0.77 . tcp . 80 : goto service-ULMVA6XW-ns1/gone/tcp/p80 }",
      ],
      // Another one: sets of another shape, base chains of another priority.
      [
        "add table ip kube-proxy",
        "add set ip kube-proxy cluster-ips { type inet_service ; }",
        "add chain ip kube-proxy filter-forward { type filter hook forward priority -42 ; }",
      ],
    ]) {
      await running.stop();
      await nft("delete", "table", "ip", "kube-proxy");
      await net.onNode("nft", ["-f", "-"], `${lines.join("\n")}\n`);
      running = start();
      running.services.put(...services.list());
      running.endpointSlices.put(...endpointSlices.list());
      running.markSynced();
      await running.settled();
      expect(await net.pod2.ask("tcp", vip, 80)).toMatch(/^pod1 /);
      await until("what was there is gone", isGone);
    }
    expect(await nft("list", "table", "ip", "kube-proxy")).not.toContain("priority -42");
  });

  test("node ports answer on loopback, in both families, over TCP and UDP", async () => {
    await running.stop();
    const script = new URL("../support/proxy-process.ts", import.meta.url).pathname;
    const child = spawn("nsenter", [`--net=/run/netns/${net.prefix}-node`, process.execPath, script], {
      stdio: ["ignore", "ignore", "inherit", "ipc"],
    });
    try {
      expect((await once(child, "message"))[0]).toBe("ready");
      const take = async (objects: ProxyObjects) => {
        child.send(objects);
        expect((await once(child, "message"))[0]).toBe("settled");
      };
      const nodePorts = ports.map((port) => ({ ...port, nodePort: 30_097 }));
      const clusterIPs = [vip, "fd00:96::10"];
      const ipFamilies = ["IPv4" as const, "IPv6" as const];
      const services = [
        makeService("web", { type: "NodePort", ports: nodePorts, clusterIP: vip, clusterIPs, ipFamilies }),
      ];
      const slicePorts = ports.map(({ name, protocol }) => ({ name, protocol, port: 8080 }));
      const slices = (name: "pod1" | "pod2") => [
        makeSlice("web", [name === "pod1" ? pod1 : pod2], { ports: slicePorts, suffix: "v4" }),
        makeSlice("web", [`fd00:244:${name.slice(-1)}::2`], { ports: slicePorts, suffix: "v6", addressType: "IPv6" }),
      ];
      const answers = (proto: "tcp" | "udp", host: string, wanted: string) => async () =>
        (await net.node.ask(proto, host, 30_097, 500).catch(messageOf)).startsWith(wanted);
      const everyWay = [
        ["tcp", "127.0.0.1"],
        ["udp", "127.0.0.1"],
        ["tcp", "::1"],
        ["udp", "::1"],
      ] as const;
      for (const name of ["pod1", "pod2"] as const) {
        await take({ services, slices: slices(name) });
        for (const [proto, host] of everyWay) {
          await until(`${name} answers on ${host} over ${proto}`, answers(proto, host, name));
        }
      }
      // Outside of the relay's loopback the rules answer, as ever.
      expect(await net.client.ask("tcp", "192.0.2.1", 30_097)).toMatch(/^pod2 /);
      await take({ services, slices: [] });
      for (const [proto, host] of everyWay) {
        await until(`${host} refuses over ${proto}`, answers(proto, host, "ECONNREFUSED"));
      }
    } finally {
      child.disconnect();
      if (child.exitCode === null) await once(child, "exit");
    }
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
