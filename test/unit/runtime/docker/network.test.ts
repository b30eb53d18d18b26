import { describe, expect, test } from "vitest";
import type { CNI } from "../../../../cni/index.ts";
import { createCNINetwork, type NetworkTarget } from "../../../../agent/runtime/docker/network.ts";

type Result = Awaited<ReturnType<CNI["add"]>>;

const result: Result = {
  interfaces: [{ name: "cni0" }, { name: "eth0", sandbox: "/proc/7/ns/net" }],
  ips: [{ address: "10.1.0.1/24", interface: 0 }, { address: "10.1.0.5/24", interface: 1 }, { address: "fd00::5/64" }],
  routes: [],
  dns: { nameservers: [], search: [], options: [] },
};

/** CNI whose cache is a map; `gc` runs what `during` says before it begins. */
function scriptedCNI(during: () => Promise<void> = async () => {}) {
  const attached = new Map<string, Result>();
  const asked: string[] = [];
  const cni = {
    add: async ({ containerID }: { containerID: string }) => {
      attached.set(containerID, result);
      return result;
    },
    del: async ({ containerID }: { containerID: string }) => void attached.delete(containerID),
    hasRecord: async (containerID: string) => attached.has(containerID),
    cachedResult: async (containerID: string) => {
      asked.push(containerID);
      return attached.get(containerID);
    },
    gc: async (valid: readonly { containerID: string }[]) => {
      await during();
      const ids = new Set(valid.map(({ containerID }) => containerID));
      for (const id of attached.keys()) if (!ids.has(id)) attached.delete(id);
    },
    status: async () => ({ ready: false, reason: "NetworkPluginNotReady", message: "no config" }),
  } as unknown as CNI;
  return { cni, attached, asked };
}

function targetOf(containerID: string): NetworkTarget {
  const pod = { podName: "web", podNamespace: "shop", podUID: "u" };
  return { containerID, netnsPath: "/proc/7/ns/net", ...pod, portMappings: [], annotations: {} };
}

describe("a sandbox's network by CNI", () => {
  test("its addresses are those inside of it, without prefix, in the plugins' order", async () => {
    const network = createCNINetwork(scriptedCNI().cni);
    expect(await network.setUp(targetOf("a"))).toEqual({ ips: ["10.1.0.5", "fd00::5"] });
    expect(await network.ips("a")).toEqual(["10.1.0.5", "fd00::5"]);
    await network.tearDown(targetOf("a"));
    expect(await network.ips("a")).toEqual([]);
  });

  test("those of further interfaces are not the pod's", async () => {
    const { cni } = scriptedCNI();
    const interfaces = [{ name: "net1", sandbox: "/x" }, { name: "eth0" }];
    const ips = [
      { address: "192.168.9.5/24", interface: 0 },
      { address: "10.1.0.5/24", interface: 1 },
    ];
    cni.add = async () => ({ ...result, interfaces, ips });
    expect(await createCNINetwork(cni).setUp(targetOf("a"))).toEqual({ ips: ["10.1.0.5"] });
  });

  test("a network that gives no address is a failure, and taken down", async () => {
    const { cni, attached } = scriptedCNI();
    const add = cni.add.bind(cni);
    cni.add = async (target) => ({ ...(await add(target)), ips: [] });
    await expect(createCNINetwork(cni).setUp(targetOf("a"))).rejects.toThrow("gave the pod no address");
    expect([...attached.keys()]).toEqual([]);
    cni.del = async () => await Promise.reject(new Error("busy"));
    const both = "the network gave the pod no address on eth0; cleaning up failed too: busy";
    await expect(createCNINetwork(cni).setUp(targetOf("a"))).rejects.toThrow(both);
  });

  test("passes the node's pod addresses to plugins that ask for them, a set for each family", async () => {
    const { cni } = scriptedCNI();
    const asked: unknown[] = [];
    cni.add = async ({ capabilities }) => {
      asked.push(capabilities?.["ipRanges"]);
      return result;
    };
    const network = createCNINetwork(cni);
    await network.setUp(targetOf("a"));
    network.setPodCIDRs(["10.1.0.0/24", "fd00::/64"]);
    await network.setUp(targetOf("b"));
    expect(asked).toEqual([undefined, [[{ subnet: "10.1.0.0/24" }], [{ subnet: "fd00::/64" }]]]);
  });

  test("another agent finds them in CNI's cache, and asks it once", async () => {
    const { cni, asked } = scriptedCNI();
    await createCNINetwork(cni).setUp(targetOf("a"));
    const next = createCNINetwork(cni);
    expect(await next.ips("a")).toEqual(["10.1.0.5", "fd00::5"]);
    expect(await next.ips("a")).toEqual(["10.1.0.5", "fd00::5"]);
    expect(asked).toEqual(["a"]);
  });

  test("a collection takes what no sandbox has, and spares what is set up while it waits", async () => {
    const { cni, attached } = scriptedCNI(async () => void (await network.setUp(targetOf("new"))));
    const network = createCNINetwork(cni);
    await network.setUp(targetOf("lost"));
    await network.setUp(targetOf("kept"));
    await network.collect(async () => ["kept"]);
    expect([...attached.keys()]).toEqual(["kept", "new"]);
    expect(await network.ips("lost")).toEqual([]);
    expect(await network.ips("new")).not.toEqual([]);
  });

  test("says why it is not ready", async () => {
    const want = { status: false, reason: "NetworkPluginNotReady", message: "no config" };
    expect(await createCNINetwork(scriptedCNI().cni).status()).toEqual(want);
  });
});
