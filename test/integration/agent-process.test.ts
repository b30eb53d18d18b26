import { access, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { detectCgroupTree } from "../../agent/node/cgroup-detect.ts";
import { type LocalCluster, projectRoot, startLocalCluster } from "../support/cluster/local-cluster.ts";
import { createTestNode, type TestNode } from "../support/node/node.ts";
import { freeze } from "../support/node/processes.ts";

const nodelet = join(projectRoot, "dist/nodelet");

/** Looks again until `check` holds. */
async function until(what: string, check: () => Promise<boolean>, waitMs = 30_000): Promise<void> {
  const deadline = performance.now() + waitMs;
  while (!(await check())) {
    if (performance.now() > deadline) throw new Error(`not within ${waitMs} ms: ${what}`);
    await sleep(50);
  }
}

describe("the executable", () => {
  let node: TestNode;
  let dir: string;
  /** Runs it in the node, to its end. */
  const run = (...args: string[]) => node.exec(nodelet, args);
  const config = (text: string) => `apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n${text}\n`;

  beforeAll(async () => {
    node = await createTestNode({ containerd: false });
    dir = join(node.dir, "etc");
    await mkdir(dir, { recursive: true });
    await writeFile(join(dir, "kubelet.yaml"), config("failCgroupV1: false"));
    await writeFile(join(dir, "typo.yaml"), config("failCgroupV1: false\nmaxPodz: 5"));
    await writeFile(join(dir, "bad.kubeconfig"), "apiVersion: v1\nkind: Config\ncurrent-context: nowhere\n");
  });
  afterAll(() => node?.destroy());

  test.each([
    {
      what: "a kubeconfig that is not given, where the API server is to be asked",
      args: () => ["--config", join(dir, "kubelet.yaml")],
      line: /^nodelet: authentication\.webhook\.enabled must be false: without --kubeconfig there is no API server/m,
    },
    {
      what: "a kubeconfig that is not there",
      args: () => ["--config", join(dir, "kubelet.yaml"), "--kubeconfig", "/nowhere/conf"],
      line: /^nodelet: \/nowhere\/conf: cannot read kubeconfig: .*no such file/m,
    },
    {
      what: "a kubeconfig that would have to be requested, with nothing to request it by",
      args: () => [
        "--config",
        join(dir, "kubelet.yaml"),
        "--kubeconfig",
        "/nowhere/conf",
        "--bootstrap-kubeconfig",
        "/b",
      ],
      line: /^nodelet: \/b: cannot read kubeconfig: .*no such file/m,
    },
    {
      what: "a kubeconfig that makes no sense",
      args: () => ["--config", join(dir, "kubelet.yaml"), "--kubeconfig", join(dir, "bad.kubeconfig")],
      line: /^nodelet: .*bad\.kubeconfig: contexts has no entry named "nowhere"/m,
    },
    {
      what: "a field that does not exist",
      args: () => ["--config", join(dir, "typo.yaml")],
      line: /^nodelet: .*typo\.yaml: maxPodz .*did you mean "maxPods"/m,
    },
    { what: "a flag that does not exist", args: () => ["--max-podz=5"], line: /^nodelet: .*--max-podz/m },
    {
      what: "a proxy that is in no pod and has no kubeconfig",
      args: () => ["proxy"],
      line: /^nodelet: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set/m,
    },
  ])("refuses $what: exit code 1, and one line that says so", async ({ args, line }) => {
    const { code, stderr } = await run(...args());
    expect(stderr).toMatch(line);
    expect(code).toBe(1);
  });

  test("writes the proxy's configuration to a file that it can read again", async () => {
    const path = join(dir, "written.yaml");
    expect(await run("proxy", "--cluster-cidr", "10.7.0.0/16", "--write-config-to", path)).toMatchObject({ code: 0 });
    expect(await readFile(path, "utf8")).toContain("clusterCIDR: 10.7.0.0/16");
    expect((await run("proxy", "--config", path)).stderr).toContain("KUBERNETES_SERVICE_HOST");
  });
});

describe("the daemon", () => {
  let cluster: LocalCluster;
  const log = async () => await readFile(cluster.agent.logPath, "utf8");
  const natChains = async () => (await cluster.node.exec("iptables-save", ["-t", "nat"])).stdout;

  beforeAll(async () => {
    cluster = await startLocalCluster();
    await until("rules for the kubernetes Service", async () =>
      (await natChains()).includes("default/kubernetes:https"),
    );
  });
  afterAll(() => cluster?.destroy());

  test("ends with exit code 0 when told to, and leaves the rules where they are", async () => {
    expect(await cluster.agent.stop("SIGTERM")).toBe(0);
    expect(await natChains()).toContain("default/kubernetes:https");
  });

  test("ends although the runtime never answered", async () => {
    await cluster.node.containerd.stop();
    await cluster.agent.start();
    await until("it waits for the runtime", async () => (await log()).includes("trying until it does"));
    expect(await cluster.agent.stop("SIGTERM")).toBe(0);
    await cluster.node.containerd.start();
  });

  test("ends although the API server does not answer, and at once when told twice", async () => {
    await freeze(cluster.apiServer.pid);
    try {
      await cluster.agent.start();
      await sleep(1_500);
      const startedAt = performance.now();
      expect(await cluster.agent.stop("SIGTERM")).toBe(0);
      expect(performance.now() - startedAt).toBeLessThan(9_000);

      await cluster.agent.start();
      await sleep(1_000);
      process.kill(cluster.agent.pid, "SIGTERM");
      await sleep(100);
      // It may have been quicker.
      expect([0, 130, null]).toContain(await cluster.agent.stop("SIGINT"));
    } finally {
      process.kill(cluster.apiServer.pid, "SIGCONT");
    }
  });

  test("runs the proxy role alone, and removes its rules when asked to", async () => {
    const { node } = cluster;
    const kubeProxy = join(node.dir, "etc", "kube-proxy.yaml");
    const kubeconfig = cluster.kubeconfig;
    const text = await readFile(kubeProxy, "utf8");
    const alone = join(node.dir, "etc", "kube-proxy-alone.yaml");
    await writeFile(alone, `${text}clientConnection: { kubeconfig: ${kubeconfig} }\nhostnameOverride: ${node.name}\n`);
    expect(await node.exec(nodelet, ["proxy", "--cleanup"])).toMatchObject({ code: 0 });
    // The kubelet role's own chain stays.
    const serviceChains = async () => (await natChains()).replaceAll("KUBE-KUBELET-CANARY", "");
    expect(await serviceChains()).not.toContain("KUBE-");

    const proxy = await node.start(nodelet, ["proxy", "--config", alone], { name: "proxy" });
    await until("rules for the kubernetes Service", async () =>
      (await natChains()).includes("default/kubernetes:https"),
    );
    await proxy.stop("SIGTERM");
    expect(await proxy.exited).toBe(0);

    expect(await node.exec(nodelet, ["proxy", "--cleanup"])).toMatchObject({ code: 0 });
    expect(await serviceChains()).not.toContain("KUBE-");
    expect((await node.exec("ipset", ["list", "-name"])).stdout).toBe("");
  });

  test("stays below its memory budget with both roles", async () => {
    await cluster.agent.start();
    await until("rules for the kubernetes Service", async () =>
      (await natChains()).includes("default/kubernetes:https"),
    );
    await sleep(2_000);
    const status = await readFile(`/proc/${cluster.agent.pid}/status`, "utf8");
    const kilobytes = Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]);
    expect(kilobytes / 1_000).toBeLessThan(100);
    expect(await cluster.agent.stop()).toBe(0);
  });

  test("names its process, and makes the directories that Kubernetes expects", async () => {
    await cluster.agent.start();
    const comm = async () => (await readFile(`/proc/${cluster.agent.pid}/comm`, "utf8")).trim();
    await until("its name", async () => (await comm()) === "nodelet");
    await access(join(cluster.rootDir, "checkpoints"));
    expect(await (await detectCgroupTree()).exists(`${cluster.node.cgroupRoot}/kubepods`)).toBe(true);
  });
});
