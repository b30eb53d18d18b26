import { access, mkdir, readdir, readFile, readlink, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { stringify } from "yaml";
import { detectCgroupTree } from "../../../agent/node/cgroup-detect.ts";
import { objectAt } from "../apiserver/json.ts";
import { pauseImageName } from "../images/images.ts";
import { logTail, type NodeProcess } from "../node/containerd.ts";
import { createTestNode, type TestNode } from "../node/node.ts";
import { startTestDocker, type TestDocker, type TestDockerOptions } from "../runtime/docker.ts";
import { type ClusterRuntime, containerdOf, dockerOf, type RuntimeName, runtimeNamed } from "./runtime.ts";

/** A program of the cluster that can be ended and started again with the same arguments. */
export interface Restartable {
  readonly logPath: string;
  /** Throws while it does not run. */
  readonly pid: number;
  readonly isRunning: boolean;
  /** Resolves when the program has been started, not when it is of use. */
  start(): Promise<void>;
  /** Ends it; SIGKILL follows if the signal does not do it. @returns the exit code, null if a signal ended it */
  stop(signal?: NodeJS.Signals): Promise<number | null>;
}

/**
 * A one-node cluster on this machine: a test node, and in its network namespace the test API server, containerd or dockerd, and
 * nodelet as built. Everything lies below `node.dir`, and dies with the node even if this process is killed.
 */
export interface LocalCluster {
  readonly node: TestNode;
  readonly runtime: ClusterRuntime;
  /** The daemon, if pods run with Docker. */
  readonly docker: TestDocker | undefined;
  /** Path of the administrator's kubeconfig; works on the host and in the node. */
  readonly kubeconfig: string;
  readonly apiServer: Restartable;
  readonly agent: Restartable;
  /** The agent's `--root-dir`. */
  readonly rootDir: string;
  readonly podLogsDir: string;
  /** The certificate authority of the cluster: by it the agent knows the API server. */
  readonly clientCAFile: string;
  /** Its certificate and key, and the key of tokens, as JSON: who has these is anybody. */
  readonly serverKeysFile: string;
  /** Ends and removes everything. Idempotent. */
  destroy(): Promise<void>;
}

export interface LocalClusterOptions {
  /** What runs the pods; what the variable TEST_RUNTIME says, or containerd, unless given. */
  runtime?: RuntimeName;
  /** Of the daemon, where that is Docker's. */
  docker?: TestDockerOptions;
  /** Puts something between the agent and its runtime. @returns the endpoint for the agent */
  endpointFor?(runtime: ClusterRuntime): Promise<string>;
  /** Told what happens next, in a few words. */
  onStep?(what: string): void;
  /** Over the KubeletConfiguration. */
  kubelet?: Record<string, unknown>;
  /** Path of the executable; that of the variable NODELET, or dist/nodelet, unless given. */
  nodelet?: string;
  /** Beside the flags that the agent gets anyway. */
  agentArgs?: readonly string[];
}

export const projectRoot = new URL("../../..", import.meta.url).pathname;
const apiServerTimeoutMs = 20_000;
const containerLogsDir = "/var/log/containers";
// Not kube-apiserver's 6443: somebody may run one here.
const apiServerPort = 16_443;

/** Starts it; nothing waits for the node to be Ready. Needs root and what `.ci/prepare` installs. */
export async function startLocalCluster(options: LocalClusterOptions = {}): Promise<LocalCluster> {
  const { onStep = () => {}, nodelet = process.env["NODELET"] ?? join(projectRoot, "dist/nodelet") } = options;
  const name = options.runtime ?? runtimeNamed(process.env["TEST_RUNTIME"] ?? "containerd");
  onStep(`starting ${name} in a network namespace of its own`);
  const docker = name === "docker" ? await startTestDocker(options.docker) : undefined;
  const node = docker?.node ?? (await createTestNode());
  const runtime = docker === undefined ? containerdOf(node) : dockerOf(docker);
  try {
    await removeDeadLogLinks(dirname(node.dir));
    const apiDir = join(node.dir, "api");
    const rootDir = join(node.dir, "kubelet");
    const podLogsDir = join(node.dir, "pods");
    const clientCAFile = join(apiDir, "ca.crt");
    onStep("starting the test API server");
    const apiServer = restartable(node, "apiserver", process.execPath, [
      join(projectRoot, "test/support/apiserver/main.ts"),
      ...["--dir", apiDir, "--node", node.name, "--listen", `${node.nodeIP}:${apiServerPort}`],
    ]);
    await apiServer.start();
    await untilReady(apiServer);

    onStep("starting nodelet");
    const endpoint = (await options.endpointFor?.(runtime)) ?? runtime.endpoint;
    const configDir = join(node.dir, "etc");
    await mkdir(configDir, { recursive: true });
    await writeFile(
      join(configDir, "kubelet.yaml"),
      stringify(kubeletConfig(node, { podLogsDir, clientCAFile, endpoint }, options.kubelet)),
    );
    await writeFile(join(configDir, "kube-proxy.yaml"), stringify(proxyConfig(node)));
    await (await detectCgroupTree()).create(node.cgroupRoot, {});
    const agent = restartable(node, "nodelet", nodelet, [
      ...["--config", join(configDir, "kubelet.yaml"), "--proxy-config", join(configDir, "kube-proxy.yaml")],
      ...["--kubeconfig", join(apiDir, "node.kubeconfig"), "--hostname-override", node.name],
      ...["--root-dir", rootDir, "--cert-dir", join(rootDir, "pki"), "--node-ip", node.nodeIP],
      ...(docker === undefined ? [] : dockerArgs(docker)),
      ...(options.agentArgs ?? []),
    ]);
    await agent.start();
    const kubeconfig = join(apiDir, "admin.kubeconfig");
    const destroy = async () => {
      await agent.stop();
      await node.destroy();
      await removeLogLinks(node.dir);
    };
    const serverKeysFile = join(apiDir, "server.json");
    return {
      node,
      runtime,
      docker,
      kubeconfig,
      apiServer,
      agent,
      rootDir,
      podLogsDir,
      clientCAFile,
      serverKeysFile,
      destroy,
    };
  } catch (err) {
    await node.destroy();
    throw err;
  }
}

function dockerArgs({ cni }: TestDocker): string[] {
  return [
    ...["--pod-infra-container-image", pauseImageName, "--cni-conf-dir", cni.confDir],
    ...["--cni-bin-dir", cni.binDirs.join(","), "--cni-cache-dir", cni.cacheDir],
  ];
}

function kubeletConfig(
  node: TestNode,
  { podLogsDir, clientCAFile, endpoint }: { podLogsDir: string; clientCAFile: string; endpoint: string },
  changes: Record<string, unknown> = {},
): object {
  return {
    apiVersion: "kubelet.config.k8s.io/v1beta1",
    kind: "KubeletConfiguration",
    containerRuntimeEndpoint: endpoint,
    cgroupDriver: "cgroupfs",
    cgroupRoot: node.cgroupRoot,
    failCgroupV1: false,
    podLogsDir,
    clusterDNS: ["10.96.0.10"],
    clusterDomain: "cluster.local",
    serializeImagePulls: false,
    // However full the machine's disk is: the images are those that tests rely on.
    imageGCHighThresholdPercent: 100,
    // As for the proxy below.
    oomScoreAdj: 0,
    ...changes,
    authentication: { x509: { clientCAFile }, ...objectAt(changes, "authentication") },
  };
}

function proxyConfig(node: TestNode): object {
  return {
    apiVersion: "kubeproxy.config.k8s.io/v1alpha1",
    kind: "KubeProxyConfiguration",
    mode: "iptables",
    clusterCIDR: node.podCIDR,
    // Limits of the whole machine, and the score of a process that may not lower it, are none of a test's business.
    conntrack: { maxPerCore: 0 },
    oomScoreAdj: 0,
  };
}

function restartable(node: TestNode, name: string, file: string, args: readonly string[]): Restartable {
  const logPath = join(node.paths.logDir, `${name}.log`);
  let running: NodeProcess | undefined;
  return {
    logPath,
    get pid() {
      if (running === undefined) throw new Error(`${name} does not run`);
      return running.pid;
    },
    get isRunning() {
      return running !== undefined;
    },
    start: async () => {
      if (running !== undefined) throw new Error(`${name} runs already`);
      const started = await node.start(file, args, { name });
      running = started;
      void started.exited.then(() => {
        if (running === started) running = undefined;
      });
    },
    stop: async (signal = "SIGTERM") => {
      const stopping = running;
      if (stopping === undefined) return null;
      await stopping.stop(signal);
      return await stopping.exited;
    },
  };
}

async function untilReady(apiServer: Restartable): Promise<void> {
  const deadline = performance.now() + apiServerTimeoutMs;
  while (!(await readFile(apiServer.logPath, "utf8").catch(() => "")).includes("ready at")) {
    if (!apiServer.isRunning || performance.now() > deadline) {
      throw new Error(`the test API server does not start:\n${await logTail(apiServer.logPath)}`);
    }
    await sleep(20);
  }
}

/** The agent's links to logs are where log collectors look, which is not below the node's directory. */
async function removeLogLinks(dir: string): Promise<void> {
  for (const { path, target } of await logLinks()) if (target.startsWith(`${dir}/`)) await rm(path, { force: true });
}

/** The same for nodes whose process was killed. */
async function removeDeadLogLinks(nodesDir: string): Promise<void> {
  for (const { path, target } of await logLinks()) {
    if (!target.startsWith(`${nodesDir}/`)) continue;
    const isAlive = await access(target).then(
      () => true,
      () => false,
    );
    if (!isAlive) await rm(path, { force: true });
  }
}

async function logLinks(): Promise<{ path: string; target: string }[]> {
  const names = await readdir(containerLogsDir).catch(() => []);
  const links = await Promise.all(
    names.map(async (name) => {
      const path = join(containerLogsDir, name);
      return { path, target: await readlink(path).catch(() => "") }; // not everything there is a link
    }),
  );
  return links.filter(({ target }) => target !== "");
}
