import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, readlink, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { connect } from "node:tls";
import { stringify } from "yaml";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type ClientIdentity, openClientIdentity } from "../../agent/kube/certificates/client.ts";
import { createApiClient } from "../../agent/kube/client.ts";
import { createInformerFactory } from "../../agent/kube/informer.ts";
import { certificateSigningRequests, configMaps, nodes } from "../../agent/kube/resources.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { exec } from "../../agent/lib/exec.ts";
import { createLogger } from "../../agent/lib/log.ts";
import { mountFilesystem, unmountAllUnder } from "../../agent/lib/mount.ts";
import { detectCgroupTree } from "../../agent/node/cgroup-detect.ts";
import { kubeconfigText } from "../support/apiserver/kubeconfig.ts";
import { startTestApiServer, type TestApiServer } from "../support/apiserver/server.ts";
import { projectRoot } from "../support/cluster/local-cluster.ts";
import { logTail, type NodeProcess } from "../support/node/containerd.ts";
import { createTestNode, type TestNode } from "../support/node/node.ts";

const token = "abcdef.0123456789abcdef";
const bootstrapUser = { name: "system:bootstrap:abcdef", groups: ["system:bootstrappers", "system:authenticated"] };
/** Bootstrap tokens are good for requesting certificates, and for nothing else. */
const authorizer = ({ user, resource, path }: { user: { name: string }; resource: string; path?: string }) =>
  user.name !== bootstrapUser.name || path !== undefined || resource === "certificatesigningrequests";

async function until(what: string, check: () => boolean | Promise<boolean>, waitMs = 30_000): Promise<void> {
  const deadline = performance.now() + waitMs;
  while (!(await check())) {
    if (performance.now() > deadline) throw new Error(`not within ${waitMs} ms: ${what}`);
    await sleep(20);
  }
}

function tokenKubeconfig(server: TestApiServer): string {
  const certificateAuthority = server.caCertificate;
  return kubeconfigText({
    server: server.url,
    certificateAuthority,
    userName: "tls-bootstrap",
    credentials: { token },
  });
}

const caller = { userAgent: "kubelet/test", qps: -1, burst: 0 };
const deps = (lines: string[]) => ({
  clock: systemClock,
  log: createLogger({ level: "info", stream: { write: (line: string) => void lines.push(line) } }),
});

/** The identity of a node that has a token, and keeps its certificates in `pki` below `dir`. */
async function joinByToken(server: TestApiServer, dir: string, kube: ReturnType<typeof deps>): Promise<ClientIdentity> {
  await writeFile(join(dir, "bootstrap.conf"), tokenKubeconfig(server));
  return openClientIdentity(
    {
      kubeconfig: join(dir, "kubelet.conf"),
      bootstrapKubeconfig: join(dir, "bootstrap.conf"),
      certDir: join(dir, "pki"),
      nodeName: "n1",
      userAgent: caller.userAgent,
    },
    kube,
  );
}

async function temporaryDir(): Promise<{ path: string; [Symbol.asyncDispose](): Promise<void> }> {
  const path = await mkdtemp(join(tmpdir(), "nodelet-identity-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

describe("a machine that kubeadm has prepared", () => {
  let node: TestNode;
  let server: TestApiServer;
  let etc: string;
  let pki: string;
  let agent: NodeProcess | undefined;

  /** Starts the agent with the flags that kubeadm's unit gives it. */
  const start = async () =>
    node.start(
      process.execPath,
      [
        join(projectRoot, "agent/main.ts"),
        ...["--bootstrap-kubeconfig", join(etc, "bootstrap-kubelet.conf"), "--kubeconfig", join(etc, "kubelet.conf")],
        ...["--config", join(etc, "config.yaml"), "--cert-dir", pki, "--root-dir", join(node.dir, "kubelet")],
        ...["--hostname-override", node.name, "--node-ip", node.nodeIP],
      ],
      { name: "nodelet" },
    );
  const log = async () => readFile(join(node.paths.logDir, "nodelet.log"), "utf8");
  /** Fails with the agent's last words. */
  const untilSo = async (what: string, check: () => boolean | Promise<boolean>) =>
    until(what, check).catch(async (err: unknown) => {
      throw new Error(`${String(err)}\n${await logTail(join(node.paths.logDir, "nodelet.log"))}`, { cause: err });
    });
  const isReady = () =>
    server.objects
      .find(nodes, { name: node.name })
      ?.status?.conditions?.some(({ type, status }) => type === "Ready" && status === "True") ?? false;
  const requests = () => server.objects.list(certificateSigningRequests);

  const approve = (name: string) => {
    const status = { conditions: [{ type: "Approved", status: "True", reason: "Test", message: "" }] };
    server.objects.patch(certificateSigningRequests, { name }, { status }, { type: "merge", subresource: "approval" });
  };
  /** The certificate that the kubelet API shows to the cluster's own CA; undefined while it refuses the handshake. */
  const served = async () => {
    const socket = connect({ host: node.nodeIP, port: 10_250, ca: server.caCertificate });
    try {
      await once(socket, "secureConnect");
      return socket.getPeerX509Certificate();
    } catch {
      return undefined;
    } finally {
      socket.destroy();
    }
  };

  beforeAll(async () => {
    node = await createTestNode();
    server = await startTestApiServer({
      listen: [{ host: node.network.hostIP, port: 0 }],
      tokens: new Map([[token, bootstrapUser]]),
      authorizer,
      controllers: { signing: "sign" },
    });
    etc = join(node.dir, "etc");
    pki = join(node.dir, "pki");
    await mkdir(etc, { recursive: true });
    await writeFile(join(etc, "bootstrap-kubelet.conf"), tokenKubeconfig(server), { mode: 0o600 });
    await writeFile(
      join(etc, "config.yaml"),
      stringify({
        apiVersion: "kubelet.config.k8s.io/v1beta1",
        kind: "KubeletConfiguration",
        rotateCertificates: true,
        serverTLSBootstrap: true,
        containerRuntimeEndpoint: node.runtimeEndpoint,
        cgroupDriver: "cgroupfs",
        cgroupRoot: node.cgroupRoot,
        failCgroupV1: false,
        failSwapOn: false,
        podLogsDir: join(node.dir, "pods"),
      }),
    );
    await (await detectCgroupTree()).create(node.cgroupRoot, {});
  });
  afterAll(async () => {
    await agent?.stop("SIGTERM");
    await node?.destroy();
    await server?.close();
  });

  test("writes its kubeconfig at once, and is a Ready node soon after somebody approves its request", async () => {
    agent = await start();
    await untilSo("the kubeconfig", async () => (await readdir(etc)).includes("kubelet.conf"));
    await untilSo("a request", () => requests().length === 1);
    expect(server.objects.find(nodes, { name: node.name })).toBeUndefined();
    await sleep(3_000); // long enough for retries to back off
    const approvedAt = performance.now();
    approve(requests()[0]?.metadata.name ?? "");
    await untilSo("the Node", () => server.objects.find(nodes, { name: node.name }) !== undefined);
    expect(performance.now() - approvedAt).toBeLessThan(10_000);
    await untilSo("a Ready node", isReady);
    expect(server.requests.filter({ method: "POST", resource: "nodes" }).at(-1)?.user).toBe(`system:node:${node.name}`);
    const kubeconfig = await exec(
      "openssl",
      ["x509", "-noout", "-subject", "-in", join(pki, "kubelet-client-current.pem")],
      {
        timeoutMs: 5_000,
      },
    );
    expect(kubeconfig.stdout).toContain(`O = system:nodes, CN = system:node:${node.name}`);
    expect(await log()).not.toContain(token);
  });

  test("serves nobody before its serving certificate is signed, then everybody who trusts the cluster", async () => {
    const isServing = ({ spec }: { spec: { signerName: string } }) =>
      spec.signerName === "kubernetes.io/kubelet-serving";
    await untilSo("a request for the serving certificate", () => requests().some(isServing));
    const request = requests().find(isServing);
    expect(request?.spec).toMatchObject({
      username: `system:node:${node.name}`,
      usages: ["digital signature", "server auth"],
    });
    expect(await served()).toBeUndefined();
    approve(request?.metadata.name ?? "");
    await untilSo("a served certificate", async () => (await served()) !== undefined);
    expect((await served())?.checkIP(node.nodeIP)).toBe(node.nodeIP);
  });

  test("starts again without the bootstrap file, as itself", async () => {
    await agent?.stop("SIGTERM");
    await writeFile(join(etc, "bootstrap-kubelet.conf"), ""); // kubeadm removes it; what is in it must not matter
    server.requests.clear();
    agent = await start();
    await untilSo("a heartbeat", () => server.requests.count({ user: `system:node:${node.name}`, verb: "patch" }) > 0);
    expect(requests()).toHaveLength(2);
    expect(server.requests.count({ user: bootstrapUser.name })).toBe(0);
    await untilSo("the serving certificate of before", async () => (await served()) !== undefined);
  });
});

describe.each([
  { name: "is full", fill: "size=16k", free: "remount,size=1m", why: /ENOSPC/ },
  { name: "is read-only", fill: "ro", free: "remount,rw", why: /EROFS/ },
])("a certificate directory that $name", ({ fill, free, why }) => {
  test("keeps the node from nothing: the certificate is used, asked for once, and saved when it can be", async () => {
    await using tmp = await temporaryDir();
    await using server = await startTestApiServer({ tokens: new Map([[token, bootstrapUser]]), authorizer });
    const certDir = join(tmp.path, "pki");
    await mkdir(certDir);
    await mountFilesystem({ type: "tmpfs", source: "tmpfs", target: certDir, options: [fill] });
    const stop = new AbortController();
    let running: Promise<void> | undefined;
    try {
      if (fill !== "ro") await writeFile(join(certDir, "filler"), Buffer.alloc(32_768)).catch(() => {});
      const lines: string[] = [];
      const identity = await joinByToken(server, tmp.path, deps(lines));
      running = identity.run(stop.signal);
      await until("the failure", () => lines.some((line) => why.test(line)));
      await using client = createApiClient({ ...deps(lines), ...caller, access: identity.access });
      await client.create(nodes, { metadata: { name: "n1" } });
      expect((await readdir(certDir)).filter((name) => name.startsWith("kubelet"))).toEqual([]);

      await mountFilesystem({ type: "tmpfs", source: "tmpfs", target: certDir, options: [free] });
      await until("the file", async () => (await readdir(certDir)).includes("kubelet-client-current.pem"), 20_000);
      expect(server.objects.list(certificateSigningRequests)).toHaveLength(1);
    } finally {
      stop.abort();
      await running;
      await unmountAllUnder(certDir);
    }
  });
});

test("certificates that live for 20 s are replaced again and again, and no watch event is lost", {
  timeout: 90_000,
}, async () => {
  await using tmp = await temporaryDir();
  await using server = await startTestApiServer({
    tokens: new Map([[token, bootstrapUser]]),
    authorizer,
    controllers: { signedLifetimeMs: 20_000 },
  });
  const lines: string[] = [];
  const identity = await joinByToken(server, tmp.path, deps(lines));
  const stop = new AbortController();
  const running = identity.run(stop.signal);
  await using client = createApiClient({ ...deps(lines), ...caller, access: identity.access });
  const renewing = identity.subscribe(() => void client.transport.renew().catch(() => {}));
  const startInformer = createInformerFactory({ ...deps(lines), client, subscribeRetry: identity.subscribe });
  const informer = startInformer(configMaps, {}, stop.signal);
  try {
    await informer.store.synced(AbortSignal.timeout(10_000));
    const seen = new Set<string>();
    informer.store.subscribe(({ key }) => void seen.add(key));
    const endMs = performance.now() + 52_000;
    const made: string[] = [];
    const failures: unknown[] = [];
    for (let n = 0; performance.now() < endMs; n += 1) {
      made.push(`default/m${n}`);
      server.objects.create(configMaps, { metadata: { name: `m${n}`, namespace: "default" }, data: { n: String(n) } });
      await client.get(configMaps, { namespace: "default", name: `m${n}` }).catch((err: unknown) => failures.push(err));
      await sleep(50);
    }
    await until("every event", () => made.every((key) => seen.has(key)), 20_000);
    expect(failures).toEqual([]);
    expect(server.objects.list(certificateSigningRequests).length).toBeGreaterThanOrEqual(3);
    const users = server.requests
      .filter({ resource: "certificatesigningrequests", verb: "create" })
      .map(({ user }) => user);
    expect(users.slice(0, 3)).toEqual([bootstrapUser.name, "system:node:n1", "system:node:n1"]);
    const current = await readlink(join(tmp.path, "pki", "kubelet-client-current.pem"));
    const newest = (await readdir(join(tmp.path, "pki")))
      .filter((name) => name.includes("-20"))
      .sort()
      .at(-1);
    expect(current.endsWith(`/${newest}`)).toBe(true);
  } finally {
    renewing();
    stop.abort();
    await Promise.all([running, informer.stopped]);
  }
});
