import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { isReady, openNamespace, type TestNamespace, until } from "./support/cluster.ts";
import { type Kubectl, openKubectl } from "./support/kubectl.ts";
import { podOf } from "./support/pods.ts";

let cluster: TestNamespace;
let kubectl: Kubectl;
let nodeName: string;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
  kubectl = openKubectl(inject("kubeconfig"), cluster.namespace);
  // Some 20 MB of memory and a good part of a CPU.
  const script = "head -c 20000000 /dev/zero > /dev/shm/ballast; while true; do :; done";
  const pod = podOf("busy", script);
  await cluster.createPod(pod);
  nodeName = (await cluster.waitForPod("busy", "ready", isReady)).spec.nodeName ?? "";
});
afterAll(() => cluster[Symbol.asyncDispose]());

const raw = async (path: string) => await kubectl.demand(["get", "--raw", `/api/v1/nodes/${nodeName}/proxy/${path}`]);
const json = async (path: string): Promise<Record<string, never>> => JSON.parse(await raw(path));

interface Summary {
  node: {
    nodeName: string;
    cpu: { usageNanoCores: number; usageCoreNanoSeconds: number };
    memory: { workingSetBytes: number; availableBytes: number };
    fs: { capacityBytes: number; usedBytes: number };
    runtime: { imageFs: { capacityBytes: number } };
    rlimit: { maxpid: number; curproc: number };
  };
  pods: {
    podRef: { name: string; namespace: string; uid: string };
    startTime: string;
    containers: { name: string; cpu: { usageNanoCores?: number }; memory: { workingSetBytes: number } }[];
    network?: { rxBytes: number };
    "ephemeral-storage"?: { usedBytes: number };
    process_stats?: { process_count: number };
  }[];
}

describe.concurrent("a node's own API, through the API server", () => {
  test("healthz: ok, and what it looked at", async () => {
    expect(await raw("healthz")).toBe("ok");
    const verbose = await raw("healthz?verbose");
    for (const name of ["ping", "log", "syncloop"]) expect(verbose).toContain(`[+]${name} ok`);
    expect(await raw("healthz/ping")).toBe("ok");
    expect(await raw("healthz/syncloop")).toBe("ok");
  });

  test("pods and runningpods: what it should run, and what runs", async () => {
    const named = (list: { items?: { metadata: { name: string; namespace: string } }[] }) =>
      (list.items ?? []).filter(({ metadata }) => metadata.namespace === cluster.namespace).map((p) => p.metadata.name);
    const desired = await json("pods");
    expect(desired).toMatchObject({ kind: "PodList", apiVersion: "v1" });
    expect(named(desired)).toContain("busy");
    const running = await json("runningpods/");
    expect(running).toMatchObject({ kind: "PodList", apiVersion: "v1" });
    expect(named(running)).toContain("busy");
  });

  test("stats/summary: figures of the node and of each pod that make sense", async () => {
    const { node, pods } = await until("figures of the new pod", async () => {
      const summary = JSON.parse(await raw("stats/summary")) as Summary;
      const own = summary.pods.find(({ podRef }) => podRef.name === "busy" && podRef.namespace === cluster.namespace);
      return (own?.containers[0]?.cpu.usageNanoCores ?? 0) > 1e7 ? { node: summary.node, pods: [own] } : undefined;
    });
    expect(node.nodeName).toBe(nodeName);
    expect(node.cpu.usageNanoCores).toBeGreaterThan(1e8);
    expect(node.memory.workingSetBytes).toBeGreaterThan(50e6);
    expect(node.fs.usedBytes).toBeGreaterThan(0);
    expect(node.fs.usedBytes).toBeLessThan(node.fs.capacityBytes);
    expect(node.runtime.imageFs.capacityBytes).toBeGreaterThan(0);
    expect(node.rlimit.curproc).toBeGreaterThan(0);
    const [pod] = pods;
    expect(Math.abs(Date.parse(pod?.startTime ?? "") - Date.now())).toBeLessThan(600_000);
    const memory = pod?.containers[0]?.memory.workingSetBytes ?? 0;
    expect(memory).toBeGreaterThan(18e6);
    expect(memory).toBeLessThan(60e6);
    expect(pod?.containers.map(({ name }) => name)).toEqual(["main"]);
    expect(pod?.network?.rxBytes).toBeGreaterThanOrEqual(0);
    expect(pod?.process_stats?.process_count).toBeGreaterThanOrEqual(1);
    const short = JSON.parse(await raw("stats/summary?only_cpu_and_memory=true")) as Summary;
    expect(short.node.fs).toBeUndefined();
    expect(short.node.memory.workingSetBytes).toBeGreaterThan(0);
  });

  test.each([
    ["metrics", ["kubelet_node_name", "kubelet_running_pods", "kubelet_runtime_operations_total", "process_open_fds"]],
    [
      "metrics/resource",
      ["node_cpu_usage_seconds_total", "node_memory_working_set_bytes", "pod_cpu_usage_seconds_total"],
    ],
    [
      "metrics/cadvisor",
      ["container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "machine_cpu_cores"],
    ],
    ["metrics/probes", []],
    ["metrics/slis", []],
  ])("%s: well-formed, with the families that dashboards use", async (path, families) => {
    const text = await raw(path);
    const lines = text.split("\n").filter((line) => line !== "");
    const sample = /^[a-zA-Z_:][a-zA-Z0-9_:]*(\{.*\})? (NaN|[+-]Inf|[-+0-9.e]+)( \d+)?$/;
    expect(lines.filter((line) => !line.startsWith("#") && !sample.test(line))).toEqual([]);
    for (const family of families) expect(text).toMatch(new RegExp(`^${family}[{ ]`, "m"));
  });

  test("configz, statusz, flagz: what it runs with", async () => {
    const { kubeletconfig } = await json("configz");
    expect(kubeletconfig).toMatchObject({ kind: "KubeletConfiguration", apiVersion: "kubelet.config.k8s.io/v1beta1" });
    expect(await raw("statusz")).toMatch(/^\nkubelet statusz\n/);
    expect(await raw("flagz")).toMatch(/^\nkubelet flagz\n/);
  });

  test("logs/: files of the node's /var/log", async () => {
    const listing = await raw("logs/");
    expect(listing).toMatch(/<a href="[^"]+">/);
    const { code, stderr } = await kubectl.run([
      "get",
      "--raw",
      `/api/v1/nodes/${nodeName}/proxy/logs/..%2f..%2fetc%2fpasswd`,
    ]);
    expect(code).toBe(1);
    expect(stderr).not.toContain("root:");
  });

  test("a path that it does not have", async () => {
    const { code, stderr } = await kubectl.run(["get", "--raw", `/api/v1/nodes/${nodeName}/proxy/nothing`]);
    expect(code).toBe(1);
    expect(stderr).toMatch(/not ?found/i);
  });
});

test("kubectl top shows nodes and pods", async () => {
  const rows = await until("the pod's figures", async () => {
    const { code, stdout } = await kubectl.run(["top", "pod", "--no-headers", "--containers"]);
    return code === 0 && /\bbusy\s+main\s+[1-9]/.test(stdout) ? stdout : undefined;
  });
  const [, cpu = "0", memory = "0"] = /\bbusy\s+main\s+(\d+)m\s+(\d+)Mi/.exec(rows) ?? [];
  expect(Number(cpu)).toBeGreaterThan(10);
  expect(Number(memory)).toBeGreaterThanOrEqual(17);
  expect(Number(memory)).toBeLessThan(60);
  expect(await kubectl.demand(["top", "node", nodeName, "--no-headers"])).toMatch(
    new RegExp(`^${nodeName}\\s+\\d+m\\s+\\d+%\\s+\\d+Mi\\s+\\d+%`),
  );
});
