import { randomBytes } from "node:crypto";
import { chmod, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { exec } from "../../agent/lib/exec.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { namesIn } from "../../agent/lib/names-in.ts";
import { type CNI, createCNI } from "../../cni/index.ts";
import { defaultConfigName, writeDefaultConfig } from "../../cni/default-config.ts";
import { podArgs, podCapabilities, type PodNetworkRequest } from "../../cni/pod.ts";
import { addressesOf, type CNIResult } from "../../cni/result.ts";
import { createTestNode, type TestNode } from "../support/node/node.ts";

const pluginDir = "/usr/lib/cni";
const podCIDR6 = "fd00:201::/64";
const commandMs = 20_000;

let stack: AsyncDisposableStack;
let node: TestNode;
let cni: CNI;
let confDir: string;
let binDir: string;
let hasIPv6: boolean;
let podCIDRs: string[];
const tag = randomBytes(3).toString("hex");

/** A pod's network namespace, with a server that says its name to whoever connects to port 80. */
interface Pod {
  readonly name: string;
  readonly netnsPath: string;
  /** Runs a command in it; its output, or its failure's message. */
  run(file: string, ...args: string[]): Promise<string>;
  add(more?: Partial<PodNetworkRequest>): Promise<CNIResult>;
  del(): Promise<void>;
}

beforeAll(async () => {
  stack = new AsyncDisposableStack();
  node = stack.use(await createTestNode({ containerd: false }));
  confDir = join(node.dir, "net.d");
  binDir = join(node.dir, "cni-bin");
  await mkdir(binDir);
  // The plugins run in the node's namespace, as they would if the agent did.
  for (const name of await readdir(pluginDir)) {
    const text = `#!/bin/sh\nexec nsenter --net=${node.network.netnsPath} -- ${join(pluginDir, name)}\n`;
    await writeFile(join(binDir, name), text);
    await chmod(join(binDir, name), 0o755);
  }
  // Debian's ip6tables and the kernel must both be able to, for masquerading.
  hasIPv6 = (await node.exec("ip6tables", ["-w", "-t", "nat", "-L", "-n"])).failure === undefined;
  podCIDRs = hasIPv6 ? [node.podCIDR, podCIDR6] : [node.podCIDR];
  const dataDir = join(node.dir, "ipam");
  await writeDefaultConfig({ confDir, binDirs: [binDir], podCIDRs, dataDir, log: silentLogger });
  cni = createCNI({ confDir, binDirs: [binDir], cacheDir: join(node.dir, "cni-cache"), log: silentLogger });
  stack.defer(async () => cni.close());
});
afterAll(async () => {
  // A test that was cut off has not removed its pods.
  for (const netns of await namesIn("/run/netns")) {
    if (netns.startsWith(`nlcni-${tag}-`)) await exec("ip", ["netns", "del", netns], { timeoutMs: commandMs });
  }
  await stack.disposeAsync();
});

async function createPod(name: string, own: AsyncDisposableStack): Promise<Pod> {
  const netns = `nlcni-${tag}-${name}`;
  const netnsPath = `/run/netns/${netns}`;
  const must = async (file: string, ...args: string[]) => {
    const result = await exec(file, args, { timeoutMs: commandMs });
    if (result.failure !== undefined) throw new Error(result.message);
  };
  await must("ip", "netns", "add", netns);
  own.defer(async () => {
    await cni.del({ containerID: `id-${name}`, netnsPath });
    await exec("ip", ["netns", "del", netns], { timeoutMs: commandMs });
  });
  const request: PodNetworkRequest = {
    ...{ podName: name, podNamespace: "test", podUID: `uid-${name}`, containerID: `id-${name}` },
    ...{ portMappings: [], annotations: {} },
  };
  return {
    name,
    netnsPath,
    run: async (file, ...args) => {
      const result = await exec("nsenter", [`--net=${netnsPath}`, "--", file, ...args], { timeoutMs: commandMs });
      return result.failure === undefined ? result.stdout : result.message;
    },
    add: async (more = {}) => {
      const asked = { ...request, ...more };
      const { containerID } = request;
      return cni.add({ containerID, netnsPath, args: podArgs(asked), capabilities: podCapabilities(asked) });
    },
    del: async () => cni.del({ containerID: request.containerID, netnsPath }),
  };
}

/** Serves the pod's name on a port until the test ends. */
async function serve(pod: Pod, own: AsyncDisposableStack, port = 80): Promise<void> {
  const stop = new AbortController();
  const listen = [`--net=${pod.netnsPath}`, "--", "busybox", "nc", "-ll", "-p", String(port), "-e", "echo", pod.name];
  const ended = exec("nsenter", listen, { timeoutMs: 120_000, signal: stop.signal });
  own.defer(async () => {
    stop.abort();
    await ended;
  });
}

/** What a server says, asked from `from` (a wrapper that runs a command somewhere); waits until it is up. */
async function ask(from: (...command: string[]) => Promise<string>, host: string, port: number): Promise<string> {
  let said = "";
  for (let i = 0; i < 20 && said.trim() === ""; i += 1) {
    said = await from("sh", "-c", `echo | timeout 2 busybox nc -w 1 ${host} ${port} 2>/dev/null; true`);
    if (said.trim() === "") await new Promise((resolve) => void setTimeout(resolve, 50));
  }
  return said.trim();
}

const onHost = async (file: string, ...args: string[]) => (await exec(file, args, { timeoutMs: commandMs })).stdout;
const onNode = async (file: string, ...args: string[]) => (await node.exec(file, args)).stdout;

describe("the default network with Debian's plugins", () => {
  test("is ready", async () => {
    expect(await cni.status()).toEqual({ ready: true, reason: "", message: "" });
  });

  test("two pods get addresses of each family, reach each other, and give their addresses back", async () => {
    await using own = new AsyncDisposableStack();
    const a = await createPod("a", own);
    const b = await createPod("b", own);
    const [resultA, resultB] = await Promise.all([a.add(), b.add()]);
    const ipsA = addressesOf(resultA, "eth0");
    const ipsB = addressesOf(resultB, "eth0");
    expect(ipsA).toHaveLength(podCIDRs.length);
    expect(new Set([...ipsA, ...ipsB]).size).toBe(2 * podCIDRs.length);
    expect(await cni.cachedResult("id-a")).toEqual(resultA);
    expect(await a.run("ip", "-o", "link", "show", "lo", "up")).toContain("LOOPBACK");
    const addresses = await a.run("ip", "-o", "addr", "show", "eth0");
    for (const ip of ipsA) expect(addresses).toContain(`${ip}/`);

    await serve(b, own);
    for (const ip of ipsB) expect(await ask(a.run, ip, 80), ip).toBe("b");
    expect(await ask(a.run, ipsB[0] ?? "", 80)).toBe("b");

    await a.del();
    await a.del();
    expect(await a.run("ip", "link", "show", "eth0")).toContain("does not exist");
    expect(await cni.cachedResult("id-a")).toBeUndefined();
    const inUse = async () =>
      (await readdir(join(node.dir, "ipam", "nodelet"))).filter((name) => /^[\d.]+$/.test(name));
    expect(await inUse()).toEqual(ipsB.filter((ip) => ip.includes(".")));
    await b.del();
    expect(await inUse()).toEqual([]);
  });

  test("a pod reaches the world outside with the node's address", async () => {
    await using own = new AsyncDisposableStack();
    const a = await createPod("out", own);
    await a.add();
    const sockets: Socket[] = [];
    const server = createServer((socket) => {
      sockets.push(socket.on("error", () => {}));
      socket.end(`${socket.remoteAddress}\n`);
    });
    own.defer(async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    });
    // The host's end of the node's link is the outside.
    await new Promise<void>((resolve) => server.listen(0, node.network.hostIP, resolve));
    const { port } = server.address() as AddressInfo;
    expect(await ask(a.run, node.network.hostIP, port)).toBe(node.nodeIP);
  });

  test("a host port leads to the pod from outside, from the node and from the pod itself, until it is deleted", async () => {
    await using own = new AsyncDisposableStack();
    const a = await createPod("port", own);
    await a.add({ portMappings: [{ protocol: "TCP", containerPort: 80, hostPort: 8088, hostIP: "" }] });
    await serve(a, own);
    expect(await ask(onHost, node.nodeIP, 8088)).toBe("port");
    expect(await ask(onNode, node.nodeIP, 8088)).toBe("port");
    expect(await ask(a.run, node.nodeIP, 8088)).toBe("port");
    expect(await onNode("iptables-save", "-t", "nat")).toContain("dport 8088");
    await a.del();
    expect(await onNode("iptables-save", "-t", "nat")).not.toContain("dport 8088");
  });

  test("bandwidth annotations become the kernel's limits, or the kernel's refusal the error", async () => {
    await using own = new AsyncDisposableStack();
    const a = await createPod("slow", own);
    const annotations = { "kubernetes.io/ingress-bandwidth": "1M", "kubernetes.io/egress-bandwidth": "2M" };
    const probe = await node.exec("ip", ["link", "add", "nlifb", "type", "ifb"]);
    const canShape = probe.failure === undefined;
    const tbf = await node.exec("tc", [..."qdisc add dev lo root tbf rate 1mbit burst 10kb latency 10ms".split(" ")]);
    await node.exec("ip", ["link", "del", "nlifb"]);
    await node.exec("tc", ["qdisc", "del", "dev", "lo", "root"]);
    if (!canShape || tbf.failure !== undefined) {
      await expect(a.add({ annotations })).rejects.toThrow('plugin type="bandwidth" failed (add)');
      expect(await a.run("ip", "link", "show", "eth0")).toContain("does not exist");
      return;
    }
    await a.add({ annotations });
    const limits = await onNode("tc", "qdisc", "show");
    expect(limits).toMatch(/tbf .*rate 1Mbit/);
    expect(limits).toMatch(/tbf .*rate 2Mbit/);
    await cni.check({ containerID: "id-slow", netnsPath: a.netnsPath });
    await a.run("ip", "addr", "flush", "dev", "eth0");
    await expect(cni.check({ containerID: "id-slow", netnsPath: a.netnsPath })).rejects.toThrow("failed (check)");
    await a.del();
    expect(await onNode("tc", "qdisc", "show")).not.toContain("tbf");
  });

  test("a namespace that has gone gives its address back all the same", async () => {
    await using own = new AsyncDisposableStack();
    const a = await createPod("gone", own);
    const [ip = ""] = addressesOf(await a.add(), "eth0");
    await exec("ip", ["netns", "del", `nlcni-${tag}-gone`], { timeoutMs: commandMs });
    await a.del();
    expect(await readdir(join(node.dir, "ipam", "nodelet"))).not.toContain(ip);
  });

  test("garbage collection frees what nobody has any more", async () => {
    await using own = new AsyncDisposableStack();
    const kept = await createPod("kept", own);
    const stale = await createPod("stale", own);
    const [keptIP = ""] = addressesOf(await kept.add(), "eth0");
    const [staleIP = ""] = addressesOf(await stale.add(), "eth0");
    await cni.gc([{ containerID: "id-kept" }]);
    const names = await readdir(join(node.dir, "ipam", "nodelet"));
    expect(names).toContain(keptIP);
    expect(names).not.toContain(staleIP);
    expect(await cni.cachedResult("id-stale")).toBeUndefined();
  });

  test("a plugin at the chain's end that fails leaves no interface, address or rule behind", async () => {
    await using own = new AsyncDisposableStack();
    const path = join(confDir, defaultConfigName);
    const before = await readFile(path, "utf8");
    const config = JSON.parse(before) as { plugins: object[] };
    config.plugins.push({ type: "broken" });
    await writeFile(join(binDir, "broken"), '#!/bin/sh\n[ "$CNI_COMMAND" = ADD ] || exit 0\necho garbage\nexit 255\n');
    await chmod(join(binDir, "broken"), 0o755);
    await writeFile(path, JSON.stringify(config));
    own.defer(async () => writeFile(path, before));
    const a = await createPod("half", own);
    const fresh = createCNI({ confDir, binDirs: [binDir], cacheDir: join(node.dir, "cni-cache"), log: silentLogger });
    own.defer(async () => fresh.close());
    const capabilities = { portMappings: [{ hostPort: 8099, containerPort: 80, protocol: "tcp" }] };
    const target = { containerID: "id-half", netnsPath: a.netnsPath, capabilities };
    await expect(fresh.add(target)).rejects.toThrow(
      /plugin type="broken" failed \(add\): .*exited with 255; it printed: garbage/,
    );
    expect(await a.run("ip", "link", "show", "eth0")).toContain("does not exist");
    expect(await onNode("iptables-save", "-t", "nat")).not.toContain("8099");
    expect((await readdir(join(node.dir, "ipam", "nodelet"))).filter((name) => /^\d/.test(name))).toEqual([]);
  });

  test("without the loopback plugin lo comes up all the same", async () => {
    await using own = new AsyncDisposableStack();
    const some = join(node.dir, "cni-bin-without-loopback");
    await mkdir(some);
    for (const name of ["bridge", "host-local", "portmap", "firewall", "bandwidth"]) {
      await writeFile(join(some, name), await readFile(join(binDir, name), "utf8"), { mode: 0o755 });
    }
    const cacheDir = join(node.dir, "cni-cache");
    const fresh = createCNI({ confDir, binDirs: [some], cacheDir, log: silentLogger });
    own.defer(async () => fresh.close());
    const a = await createPod("lo", own);
    await fresh.add({ containerID: "id-lo", netnsPath: a.netnsPath });
    expect(await a.run("ip", "-o", "link", "show", "lo", "up")).toContain("LOOPBACK");
  });

  test("other addresses for the node's pods: the bridge takes them over", async () => {
    await using own = new AsyncDisposableStack();
    const old = await createPod("old", own);
    await old.add();
    const [third] = node.podCIDR.split(".").slice(2, 3);
    const moved = `10.202.${third}.0/24`;
    const dataDir = join(node.dir, "ipam");
    const options = { confDir, binDirs: [binDir], dataDir, log: silentLogger };
    own.defer(async () => void (await writeDefaultConfig({ ...options, podCIDRs })));
    expect(await writeDefaultConfig({ ...options, podCIDRs: [moved] })).toBe("written");
    const fresh = createCNI({ confDir, binDirs: [binDir], cacheDir: join(node.dir, "cni-cache"), log: silentLogger });
    own.defer(async () => fresh.close());
    const a = await createPod("moved", own);
    const result = await fresh.add({ containerID: "id-moved", netnsPath: a.netnsPath });
    expect(addressesOf(result, "eth0")[0]).toMatch(new RegExp(`^10\\.202\\.${third}\\.`));
    await fresh.del({ containerID: "id-moved", netnsPath: a.netnsPath });
    // What was added before goes with the configuration of its time.
    await old.del();
    expect((await readdir(join(node.dir, "ipam", "nodelet"))).filter((name) => /^\d/.test(name))).toEqual([]);
  });
});
