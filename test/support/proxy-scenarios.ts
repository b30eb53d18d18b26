import { expect, test } from "vitest";
import type { RunningProxy } from "./running-proxy.ts";
import { makeService, makeSlice } from "./service-objects.ts";
import { type TestNet, until } from "./test-net.ts";

export const ports = [
  { name: "p80", port: 80, protocol: "TCP" as const },
  { name: "u80", port: 80, protocol: "UDP" as const },
];
export const slicePorts = [
  { name: "p80", port: 8080, protocol: "TCP" as const },
  { name: "u80", port: 8080, protocol: "UDP" as const },
];
export const pod1 = "10.244.1.2";
export const pod2 = "10.244.2.2";
export const vip = "10.96.0.10";

/** What scenarios need; every part is asked for anew, as a test may start another proxy. */
export interface ScenarioPlace {
  readonly net: TestNet;
  readonly running: RunningProxy;
}

/** Puts a service and its endpoints in place and waits until the kernel has them. */
export async function publish(
  { running }: ScenarioPlace,
  name: string,
  spec: Parameters<typeof makeService>[1],
  endpoints: readonly string[],
): Promise<void> {
  running.services.put(makeService(name, { ports, ...spec }));
  running.endpointSlices.put(makeSlice(name, endpoints, { ports: slicePorts }));
  await running.settled();
}

/** Removes all services. */
export async function clear({ running }: ScenarioPlace): Promise<void> {
  for (const service of [...running.services.list()]) running.services.remove(`ns1/${service.metadata.name}`);
  for (const slice of [...running.endpointSlices.list()]) running.endpointSlices.remove(`ns1/${slice.metadata.name}`);
  await running.settled();
}

/**
 * What holds in every mode of the proxy, with packets between namespaces.
 * @param nodePortsOnLoopback they answer on 127.0.0.1, too
 */
export function testServices(
  place: () => ScenarioPlace,
  { nodePortsOnLoopback }: { nodePortsOnLoopback: boolean },
): void {
  test("a ClusterIP answers pods and the node, over TCP and UDP", async () => {
    const { net } = place();
    await publish(place(), "web", { clusterIP: vip }, [pod2]);
    expect(await net.pod1.ask("tcp", vip, 80)).toMatch(/^pod2 (::ffff:)?10\.244\.1\.2$/);
    expect(await net.pod1.ask("udp", vip, 80)).toBe("pod2 10.244.1.2");
    expect(await net.node.ask("tcp", vip, 80)).toMatch(/^pod2 /);
    expect(await net.node.ask("udp", vip, 80)).toMatch(/^pod2 /);
  });

  test("an IPv6 ClusterIP answers", async () => {
    const { net, running } = place();
    running.services.put(
      makeService("web6", { ports, clusterIP: "fd00:96::10", clusterIPs: ["fd00:96::10"], ipFamilies: ["IPv6"] }),
    );
    running.endpointSlices.put(makeSlice("web6", ["fd00:244:2::2"], { ports: slicePorts, addressType: "IPv6" }));
    await running.settled();
    expect(await net.pod1.ask("tcp", "fd00:96::10", 80)).toBe("pod2 fd00:244:1::2");
    expect(await net.node.ask("udp", "fd00:96::10", 80)).toMatch(/^pod2 /);
  });

  test("a pod reaches itself through its service", async () => {
    const { net } = place();
    await publish(place(), "web", { clusterIP: vip }, [pod1]);
    expect(await net.pod1.ask("tcp", vip, 80)).toMatch(/^pod1 /);
    expect(await net.pod1.ask("udp", vip, 80)).toMatch(/^pod1 /);
  });

  test("a NodePort answers from outside, from pods and on loopback; the client is masqueraded", async () => {
    const { net } = place();
    const nodePorts = ports.map((port, i) => ({ ...port, nodePort: 30_080 + i }));
    await publish(place(), "web", { type: "NodePort", clusterIP: vip, ports: nodePorts }, [pod1]);
    expect(await net.client.ask("tcp", "192.0.2.1", 30_080)).toMatch(/^pod1 (::ffff:)?10\.244\.1\.1$/);
    expect(await net.client.ask("udp", "192.0.2.1", 30_081)).toBe("pod1 10.244.1.1");
    expect(await net.pod2.ask("tcp", "192.0.2.1", 30_080)).toMatch(/^pod1 /);
    if (nodePortsOnLoopback) expect(await net.node.ask("tcp", "127.0.0.1", 30_080)).toMatch(/^pod1 /);
  });

  test("traffic to a ClusterIP from outside the cluster is masqueraded", async () => {
    const { net } = place();
    await publish(place(), "web", { clusterIP: vip }, [pod2]);
    expect(await net.client.ask("tcp", vip, 80)).toMatch(/^pod2 (::ffff:)?10\.244\.2\.1$/);
  });

  test("a load is spread over all endpoints, and affinity keeps a client with one", async () => {
    const { net } = place();
    await publish(place(), "web", { clusterIP: vip }, [pod1, pod2]);
    const spread = new Set<string>();
    await until("both endpoints answered", async () => {
      spread.add((await net.client.ask("tcp", vip, 80)).split(" ")[0] ?? "");
      return spread.size === 2;
    });
    await publish(place(), "web", { clusterIP: vip, sessionAffinity: "ClientIP" }, [pod1, pod2]);
    const names = new Set<string>();
    for (let n = 0; n < 10; n++) names.add((await net.client.ask("tcp", vip, 80)).split(" ")[0] ?? "");
    expect(names.size).toBe(1);
  });

  test("a service without endpoints refuses at once", async () => {
    const { net } = place();
    await publish(place(), "web", { clusterIP: vip }, []);
    for (const peer of [net.pod1, net.node]) {
      await expect(peer.ask("tcp", vip, 80)).rejects.toThrow("ECONNREFUSED");
    }
  });

  const senders = [
    { family: "IPv4" as const, address: vip, first: pod1, second: pod2 },
    { family: "IPv6" as const, address: "fd00:96::10", first: "fd00:244:1::2", second: "fd00:244:2::2" },
  ];
  test.each(senders)("a one-way UDP sender finds new endpoints after there were none: $family", async (row) => {
    const { family, address, first, second } = row;
    const { net, running } = place();
    const serve = async (endpoints: readonly string[]) => {
      const spec = { ports, clusterIP: address, clusterIPs: [address], ipFamilies: [family] };
      running.services.put(makeService("web", spec));
      running.endpointSlices.put(makeSlice("web", endpoints, { ports: slicePorts, addressType: family }));
      await running.settled();
    };
    const send = (text: string) => net.client.request({ op: "send", host: address, port: 80, text, localPort: 5_555 });
    const hears = async (peer: typeof net.pod1, text: string) =>
      (JSON.parse(await peer.request({ op: "received" })) as string[]).includes(text);
    await serve([first]);
    await until("pod1 hears the sender", () => send("1").then(() => hears(net.pod1, "1")));
    await serve([]);
    await send("2");
    await serve([second]);
    await until("pod2 hears the sender", () => send("3").then(() => hears(net.pod2, "3")));
    // A "3" may still be on its way to pod1, or wait there to be read: it was sent before the flow was moved.
    await send("4");
    await until("pod2 hears the rest", () => hears(net.pod2, "4"));
    expect(await hears(net.pod1, "4")).toBe(false);
  });

  test("changes of a service and its endpoints that race end as the newest of both", async () => {
    const { net, running } = place();
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
}
