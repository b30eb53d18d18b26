import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { createServer, type IncomingHttpHeaders, type Server } from "node:http";
import { request as httpsRequest } from "node:https";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { stringify } from "yaml";
import { detectCgroupTree } from "../../agent/node/cgroup-detect.ts";
import type { Container, Pod, PodSpec } from "../../agent/kube/types.ts";
import { projectRoot } from "../support/cluster/local-cluster.ts";
import { busyboxImageName } from "../support/images/images.ts";
import type { NodeProcess } from "../support/node/containerd.ts";
import { createTestNode, type TestNode } from "../support/node/node.ts";

/** A node without any API server: all that people have is the manifests, the log and the kubelet API. */

const nodelet = process.env["NODELET"] ?? join(projectRoot, "dist/nodelet");
const waitMsDefault = 20_000;

let node: TestNode;
let manifests: string;
let agent: NodeProcess;
let manifestServer: Server;
/** What the server answers, and what it was asked with. */
const served: { status: number; body: string; headers: IncomingHttpHeaders } = { status: 200, body: "", headers: {} };

beforeAll(async () => {
  node = await createTestNode();
  manifests = join(node.dir, "manifests");
  manifestServer = createServer((request, response) => {
    served.headers = request.headers;
    response.writeHead(served.status).end(served.body);
  });
  await new Promise<void>((resolve) => manifestServer.listen(0, node.network.hostIP, resolve));
  const address = manifestServer.address();
  const port = typeof address === "object" ? (address?.port ?? 0) : 0;
  await (await detectCgroupTree()).create(node.cgroupRoot, {});
  const config = {
    apiVersion: "kubelet.config.k8s.io/v1beta1",
    kind: "KubeletConfiguration",
    containerRuntimeEndpoint: node.runtimeEndpoint,
    cgroupDriver: "cgroupfs",
    cgroupRoot: node.cgroupRoot,
    failCgroupV1: false,
    podLogsDir: join(node.dir, "pods"),
    oomScoreAdj: 0,
    readOnlyPort: 10_255,
    authentication: { anonymous: { enabled: true }, webhook: { enabled: false } },
    authorization: { mode: "AlwaysAllow" },
    staticPodPath: "manifests", // beside this file
    staticPodURL: `http://${node.network.hostIP}:${port}/pods`,
    staticPodURLHeader: { Authorization: ["Bearer hunter2"] },
    httpCheckFrequency: "500ms",
  };
  await writeFile(join(node.dir, "kubelet.yaml"), stringify(config));
  await startAgent();
});
afterAll(async () => {
  await agent?.stop("SIGTERM");
  manifestServer?.close();
  await node?.destroy();
});

async function startAgent(): Promise<void> {
  agent = await node.start(
    nodelet,
    [
      ...["--config", join(node.dir, "kubelet.yaml"), "--hostname-override", node.name, "--node-ip", node.nodeIP],
      ...["--root-dir", join(node.dir, "kubelet"), "--cert-dir", join(node.dir, "pki")],
    ],
    { name: "nodelet" },
  );
}

const log = async () => await readFile(join(node.paths.logDir, "nodelet.log"), "utf8");

async function until<T>(what: string, check: () => Promise<T | undefined>, waitMs = waitMsDefault): Promise<T> {
  const deadline = performance.now() + waitMs;
  for (;;) {
    const found = await check().catch(() => undefined); // the agent starts
    if (found !== undefined) return found;
    if (performance.now() > deadline) throw new Error(`not within ${waitMs} ms: ${what}`);
    await sleep(50);
  }
}

/** The pods that the read-only port shows. */
async function pods(): Promise<Pod[]> {
  const answer = await fetch(`http://${node.nodeIP}:10255/pods`);
  return ((await answer.json()) as { items: Pod[] | null }).items ?? [];
}

const named = (name: string) => `${name}-${node.name}`;
const find = async (name: string) => (await pods()).find(({ metadata }) => metadata.name === named(name));
const isReady = ({ status }: Pod) =>
  status?.conditions?.some(({ type, status: is }) => type === "Ready" && is === "True") === true;
const ready = (name: string) =>
  until(`pod ${name} ready`, async () => {
    const pod = await find(name);
    return pod !== undefined && isReady(pod) ? pod : undefined;
  });
const gone = (name: string) =>
  until(`pod ${name} gone`, async () => ((await find(name)) === undefined ? true : undefined));

function podOf(name: string, script: string, main: Partial<Container> = {}, spec: Partial<PodSpec> = {}): Pod {
  const command = ["sh", "-c", script];
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name },
    spec: {
      terminationGracePeriodSeconds: 2,
      ...spec,
      containers: [{ name: "main", image: busyboxImageName, command, ...main }],
    },
  };
}

const forEver = "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done";

async function put(pod: Pod): Promise<void> {
  const { name } = pod.metadata;
  await mkdir(manifests, { recursive: true });
  await writeFile(join(manifests, `.${name}`), JSON.stringify(pod));
  await rename(join(manifests, `.${name}`), join(manifests, `${name}.json`));
}

/** The kubelet API, as nobody in particular. */
function ask(method: string, path: string): Promise<{ status: number; text: string }> {
  return new Promise((resolve, reject) => {
    const options = { host: node.nodeIP, port: 10_250, method, path, rejectUnauthorized: false, agent: false };
    const request = httpsRequest(options, (response) => {
      let text = "";
      response.on("data", (chunk: Buffer) => (text += chunk.toString()));
      response.on("end", () => resolve({ status: response.statusCode ?? 0, text }));
    });
    request.on("error", reject).end();
  });
}

test("with the defaults of a cluster's node it refuses to start, and says what to set", async () => {
  const config = join(node.dir, "cluster.yaml");
  await writeFile(
    config,
    "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfailCgroupV1: false\n",
  );
  const { code, stderr } = await node.exec(nodelet, ["--config", config]);
  expect(code).toBe(1);
  expect(stderr).toContain("nodelet: authentication.webhook.enabled must be false: without --kubeconfig there is no");
  expect(stderr).toContain("nodelet: authorization.mode must be AlwaysAllow: without --kubeconfig there is no");
});

test("a directory that comes later is found, and its pod runs: probes, logs, commands, statistics", async () => {
  await until("the agent serves", async () => ((await pods()).length === 0 ? true : undefined));
  const readinessProbe = { exec: { command: ["true"] }, periodSeconds: 1 };
  const env = [{ name: "HOST", valueFrom: { fieldRef: { fieldPath: "status.hostIP" } } }];
  await put(podOf("first", `echo "on $HOST"; ${forEver}`, { readinessProbe, env }));
  const pod = await ready("first");
  expect(pod.status).toMatchObject({ phase: "Running", hostIP: node.nodeIP });
  expect(pod.metadata.annotations).toMatchObject({ "kubernetes.io/config.source": "file" });
  const path = `default/${named("first")}/main`;
  expect(await ask("GET", `/containerLogs/${path}`)).toEqual({ status: 200, text: `on ${node.nodeIP}\n` });
  expect(await ask("POST", `/run/${path}?cmd=hostname`)).toEqual({ status: 200, text: `${named("first")}\n` });
  const summary = await ask("GET", "/stats/summary");
  expect(summary.text).toContain(named("first"));
});

test("the agent's end is none of the pods'", async () => {
  const before = await ready("first");
  await agent.stop("SIGKILL");
  await startAgent();
  const after = await ready("first");
  expect(after.metadata.uid).toBe(before.metadata.uid);
  expect(after.status?.containerStatuses?.[0]?.containerID).toBe(before.status?.containerStatuses?.[0]?.containerID);
  expect(after.status?.containerStatuses?.[0]?.restartCount).toBe(0);
});

test("a pod that fails is started again; one that is done stays", async () => {
  await put(podOf("fails", "exit 3"));
  await put(podOf("done", "exit 0", {}, { restartPolicy: "Never" }));
  await until("a restart", async () => {
    const [status] = (await find("fails"))?.status?.containerStatuses ?? [];
    return (status?.restartCount ?? 0) > 0 ? true : undefined;
  });
  await until("the end", async () => ((await find("done"))?.status?.phase === "Succeeded" ? true : undefined));
  for (const name of ["fails", "done"]) await rm(join(manifests, `${name}.json`));
  await gone("fails");
  await gone("done");
});

test("what only an API server could give is refused by name", async () => {
  const projected = { sources: [{ serviceAccountToken: { path: "token" } }] };
  await put(podOf("asks", forEver, {}, { volumes: [{ name: "token", projected }] }));
  await until("a line in the log", async () =>
    /asks\.json.*spec\.volumes\[0\]\.projected\.sources\[0\]\.serviceAccountToken: must not be set/.test(await log())
      ? true
      : undefined,
  );
  expect(await find("asks")).toBeUndefined();
  await rm(join(manifests, "asks.json"));
});

test("pods of a URL come, stay while it fails, and go", async () => {
  served.body = JSON.stringify({ apiVersion: "v1", kind: "PodList", items: [podOf("served", forEver)] });
  const pod = await ready("served");
  expect(pod.metadata.annotations).toMatchObject({ "kubernetes.io/config.source": "http" });
  expect(served.headers.authorization).toBe("Bearer hunter2");
  served.status = 503;
  await until("the failure told about", async () => ((await log()).includes("HTTP 503") ? true : undefined));
  await sleep(1_200); // two more looks
  expect((await find("served"))?.metadata.uid).toBe(pod.metadata.uid);
  Object.assign(served, { status: 200, body: "" });
  await gone("served");
  expect(await log()).not.toContain("hunter2");
});

test("after the last manifest, nothing of the pods is left", async () => {
  await rm(manifests, { recursive: true });
  await gone("first");
  await until("empty directories", async () => {
    const { stdout } = await node.exec("find", [join(node.dir, "kubelet", "pods"), "-mindepth", "1"]);
    return stdout === "" ? true : undefined;
  });
  await agent.stop("SIGTERM");
  expect(await agent.exited).toBe(0);
});
