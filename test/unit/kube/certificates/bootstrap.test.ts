import { mkdir, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { parse } from "yaml";
import { bootstrapOnce } from "../../../../agent/kube/certificates/bootstrap-once.ts";
import { type ClientIdentity, openClientIdentity } from "../../../../agent/kube/certificates/client.ts";
import { createApiClient } from "../../../../agent/kube/client.ts";
import { createInformerFactory } from "../../../../agent/kube/informer.ts";
import { loadKubeconfig } from "../../../../agent/kube/kubeconfig.ts";
import { certificateSigningRequests, nodes } from "../../../../agent/kube/resources.ts";
import { createTransport } from "../../../../agent/kube/transport.ts";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { createLogger } from "../../../../agent/lib/log.ts";
import { kubeconfigText } from "../../../support/apiserver/kubeconfig.ts";
import {
  startTestApiServer,
  type TestApiServer,
  type TestApiServerOptions,
} from "../../../support/apiserver/server.ts";
import { until } from "../support.ts";
import { temporaryDir } from "./support.ts";

const token = "abcdef.0123456789abcdef";
const bootstrapUser = { name: "system:bootstrap:abcdef", groups: ["system:bootstrappers", "system:authenticated"] };
const userAgent = "kubelet/test";

let server: TestApiServer;
let dir: Awaited<ReturnType<typeof temporaryDir>>;
let lines: string[];
let stop: AbortController;
let running: Promise<void>[];

beforeEach(async () => {
  dir = await temporaryDir();
  lines = [];
  stop = new AbortController();
  running = [];
});
afterEach(async () => {
  stop.abort();
  await Promise.allSettled(running);
  await server?.close();
  await dir[Symbol.asyncDispose]();
});

const kubeconfig = () => join(dir.path, "etc", "kubelet.conf");
const bootstrapKubeconfig = () => join(dir.path, "bootstrap-kubelet.conf");
const certDir = () => join(dir.path, "pki");
const current = () => join(certDir(), "kubelet-client-current.pem");
const deps = () => ({
  clock: systemClock,
  log: createLogger({ level: "info", stream: { write: (line: string) => void lines.push(line) } }),
});
const options = () => ({
  kubeconfig: kubeconfig(),
  bootstrapKubeconfig: bootstrapKubeconfig(),
  certDir: certDir(),
  nodeName: "n1",
  userAgent,
});

/** A cluster that a node may join by a token, which is good for nothing else. */
async function startCluster(more: TestApiServerOptions = {}): Promise<void> {
  server = await startTestApiServer({
    tokens: new Map([[token, bootstrapUser]]),
    authorizer: ({ user, resource, path }) =>
      user.name !== bootstrapUser.name || path !== undefined || resource === "certificatesigningrequests",
    ...more,
  });
  await writeBootstrap(token);
}

async function writeBootstrap(bearer: string, more: Record<string, string> = {}): Promise<void> {
  const certificateAuthority = server.caCertificate;
  const credentials = { token: bearer };
  const text = kubeconfigText({ server: server.url, certificateAuthority, userName: "tls-bootstrap", credentials });
  const document = parse(text) as { clusters: { cluster: Record<string, string> }[] };
  Object.assign(document.clusters[0]?.cluster ?? {}, more);
  await writeFile(bootstrapKubeconfig(), JSON.stringify(document));
}

async function open(): Promise<ClientIdentity> {
  const identity = await openClientIdentity(options(), deps());
  const run = identity.run(stop.signal);
  run.catch(() => {});
  running.push(run);
  return identity;
}

const requests = () => server.objects.list(certificateSigningRequests);

describe("a node that joins by a token, as kubeadm lets it", () => {
  test("has its kubeconfig at once, its certificate soon, and is itself from then on", async () => {
    await startCluster({ controllers: { signing: "sign" } });
    const identity = await open();
    expect((await stat(kubeconfig())).mode & 0o777).toBe(0o600);
    expect(parse(await readFile(kubeconfig(), "utf8"))).toEqual({
      apiVersion: "v1",
      kind: "Config",
      "current-context": "default-context",
      clusters: [
        {
          name: "default-cluster",
          cluster: {
            server: server.url,
            "certificate-authority-data": Buffer.from(server.caCertificate).toString("base64"),
          },
        },
      ],
      contexts: [
        {
          name: "default-context",
          context: { cluster: "default-cluster", user: "default-auth", namespace: "default" },
        },
      ],
      users: [{ name: "default-auth", user: { "client-certificate": current(), "client-key": current() } }],
    });
    await expect(identity.access.credentials()).rejects.toMatchObject({
      code: "Unavailable",
      message: `${server.url}: not asked, because this node has no client certificate yet`,
    });
    await until(() => requests().length === 1);
    const [request] = requests();
    expect(request).toMatchObject({
      metadata: { name: /^csr-/ },
      spec: { username: bootstrapUser.name, signerName: "kubernetes.io/kube-apiserver-client-kubelet" },
    });
    approve(request?.metadata.name ?? "");
    await until(() => lines.some((line) => line.includes("a certificate was issued")));

    await using client = createApiClient({ ...deps(), access: identity.access, userAgent, qps: -1, burst: 0 });
    await client.create(nodes, { metadata: { name: "n1" } });
    const sent = server.requests.filter({ method: "POST" }).at(-1);
    expect(sent?.user).toBe("system:node:n1");
    expect(lines.join("")).not.toContain(token);
  });

  test("has informers that go on the moment the certificate is there", async () => {
    await startCluster({ controllers: { signing: "sign" } });
    server.objects.create(nodes, { metadata: { name: "n1" } });
    const identity = await open();
    await using client = createApiClient({ ...deps(), access: identity.access, userAgent, qps: -1, burst: 0 });
    // Without a reason to go on sooner, the first retry comes after ten seconds.
    const limits = { backoffBaseMs: 10_000 };
    const startInformer = createInformerFactory({ ...deps(), client, limits, subscribeRetry: identity.subscribe });
    const informer = startInformer(nodes, {}, stop.signal);
    running.push(informer.stopped);
    await until(() => requests().length === 1 && lines.some((line) => line.includes("watch ended")));
    const startedAt = performance.now();
    approve(requests()[0]?.metadata.name ?? "");
    await until(() => informer.store.get("n1") !== undefined);
    expect(performance.now() - startedAt).toBeLessThan(2_000);
  });

  test("is found by the next start, which needs the token no more", async () => {
    await startCluster();
    await open();
    await until(() => lines.some((line) => line.includes("a certificate was issued")));
    await until(() => requests().length === 1);
    await waitForFile(current());
    stop.abort();
    await Promise.allSettled(running);
    await rm(bootstrapKubeconfig());
    stop = new AbortController();
    const again = await open();
    expect((await again.access.credentials()).headers).toEqual({});
    await using client = createApiClient({ ...deps(), access: again.access, userAgent, qps: -1, burst: 0 });
    await client.create(nodes, { metadata: { name: "n1" } });
    expect(requests()).toHaveLength(1);
  });
});

describe("which kubeconfig counts", () => {
  const isRewritten = async () => (await readFile(kubeconfig(), "utf8")).includes("default-auth");

  test.each([
    { name: "valid", make: () => server.kubeconfig("node:n1"), rewritten: false },
    { name: "empty", make: () => "", rewritten: true },
    { name: "cut off", make: () => server.kubeconfig("node:n1").slice(0, 200), rewritten: true },
    {
      name: "one whose certificate has expired",
      make: () => withCertificate(-60_000),
      rewritten: true,
    },
    {
      name: "one whose certificate is not there",
      make: () => server.kubeconfig("node:n1").replace(/client-certificate-data: .*/, "client-certificate: gone.pem"),
      rewritten: true,
    },
  ])("$name: bootstraps anew is $rewritten", async ({ make, rewritten }) => {
    await startCluster();
    await mkdir(dirname(kubeconfig()));
    await writeFile(kubeconfig(), make());
    const identity = await open();
    expect(await isRewritten()).toBe(rewritten);
    await until(() => requests().length === 1);
    await until(() => lines.some((line) => line.includes("a certificate was issued")));
    expect((await identity.access.credentials()).headers).toEqual({});
    // A valid one is used to renew itself at once.
    expect(requests()[0]?.spec).toMatchObject({ username: rewritten ? bootstrapUser.name : "system:node:n1" });
  });

  test("a valid kubeconfig needs no bootstrap file", async () => {
    await startCluster();
    await mkdir(dirname(kubeconfig()));
    await writeFile(kubeconfig(), server.kubeconfig("node:n1"));
    await rm(bootstrapKubeconfig());
    const identity = await open();
    expect((await identity.access.credentials()).tls.cert).toBeDefined();
    expect(await readdir(certDir())).toContain("kubelet-client-current.pem");
  });

  test.each([
    { name: "missing", make: async () => rm(bootstrapKubeconfig()), want: /bootstrap-kubelet\.conf: cannot read/ },
    {
      name: "malformed",
      make: async () => writeFile(bootstrapKubeconfig(), "kind: Config"),
      want: /bootstrap-kubelet\.conf: current-context is missing/,
    },
    {
      name: "of a server without TLS",
      make: async () => writeBootstrap(token, { server: "http://127.0.0.1:1", "certificate-authority-data": "" }),
      want: /needs an https server/,
    },
  ])("neither is of use when the bootstrap file is $name", async ({ make, want }) => {
    await startCluster();
    await make();
    await expect(openClientIdentity(options(), deps())).rejects.toMatchObject({ code: "Invalid", message: want });
  });

  test("the token's CA file is named by its absolute path", async () => {
    await startCluster();
    await writeFile(join(dir.path, "ca.crt"), server.caCertificate);
    await writeBootstrap(token, { "certificate-authority-data": "", "certificate-authority": "ca.crt" });
    await open();
    expect(await readFile(kubeconfig(), "utf8")).toContain(`certificate-authority: ${join(dir.path, "ca.crt")}\n`);
  });

  test("what a killed agent had linked but not put in place is found", async () => {
    await startCluster();
    await open();
    await waitForFile(current());
    stop.abort();
    await Promise.allSettled(running);
    const [dated = ""] = (await readdir(certDir())).filter((name) => name.includes("-20"));
    await rm(current());
    await symlink(join(certDir(), dated), join(certDir(), "kubelet-client-updated.pem"));
    await rm(bootstrapKubeconfig());
    const identity = await openClientIdentity(options(), deps());
    expect((await identity.access.credentials()).tls.cert).toBeDefined();
  });
});

describe("a node that does not rotate its certificate", () => {
  const once = () => bootstrapOnce(options(), deps(), stop.signal);

  test("waits for its certificate, and has a kubeconfig that works", async () => {
    await startCluster();
    await once();
    expect(requests()).toHaveLength(1);
    expect(requests()[0]?.metadata.name).toMatch(/^node-csr-[\w-]{43}$/);
    expect((await readdir(certDir())).sort()).toEqual([expect.stringMatching(/-20/), "kubelet-client-current.pem"]);
    const access = await loadKubeconfig(kubeconfig());
    await using client = createApiClient({ ...deps(), access, userAgent, qps: -1, burst: 0 });
    await client.create(nodes, { metadata: { name: "n1" } });
    await once();
    expect(requests()).toHaveLength(1);
  });

  test("that is killed while it waits finds its request again", async () => {
    await startCluster({ controllers: { signing: "sign" } });
    const first = once();
    first.catch(() => {});
    await until(() => requests().length === 1);
    stop.abort();
    await expect(first).rejects.toMatchObject({ code: "Canceled" });
    stop = new AbortController();
    const second = once();
    approve(requests()[0]?.metadata.name ?? "");
    await second;
    expect(requests()).toHaveLength(1);
    expect((await stat(current())).isFile()).toBe(true);
  });

  test("that is denied ends with the reason, and the next start asks anew", async () => {
    await startCluster({ controllers: { signing: "off" } });
    const denied = expect(once()).rejects.toMatchObject({
      code: "Forbidden",
      message: /was denied: NoReason: not you/,
    });
    await until(() => requests().length === 1);
    deny(requests()[0]?.metadata.name ?? "");
    await denied;
    const next = once();
    next.catch(() => {});
    await until(() => requests().length === 2);
    stop.abort();
    await expect(next).rejects.toMatchObject({ code: "Canceled" });
  });

  test("whose token is wrong ends with the server's answer", async () => {
    await startCluster();
    await writeBootstrap("wrong0.0000000000000000");
    await expect(once()).rejects.toMatchObject({ code: "Unauthorized" });
  });

  test("replaces a kept key that is damaged", async () => {
    await startCluster();
    await mkdir(certDir());
    await writeFile(join(certDir(), "kubelet-client.key.tmp"), "damaged");
    await once();
    expect(await readdir(certDir())).not.toContain("kubelet-client.key.tmp");
  });
});

test("a rotated certificate is used for new connections at once, and watches on old ones end", async () => {
  await startCluster({ controllers: { signing: "sign" } });
  await mkdir(dirname(kubeconfig()));
  await writeFile(kubeconfig(), server.kubeconfig("node:n1"));
  const identity = await open();
  const { access } = identity;
  await using transport = createTransport({ ...deps(), access, userAgent, limits: { retiredMs: 50 } });
  await using client = createApiClient({ ...deps(), transport, userAgent, qps: -1, burst: 0 });
  const ended: string[] = [];
  identity.subscribe(() => void transport.renew().catch(() => {}));
  const watch = await client.watch(nodes, { resourceVersion: "0", timeoutSeconds: 300 }, stop.signal);
  const reading = (async () => {
    for await (const _ of watch.body) continue;
  })().catch((err: unknown) => ended.push(String(err)));
  const before = (await access.credentials()).connectionKey;
  await until(() => requests().length === 1);
  approve(requests()[0]?.metadata.name ?? "");
  await until(() => lines.some((line) => line.includes("a certificate was issued")));
  await reading;
  expect(ended).toEqual([expect.stringContaining("credentials that were replaced")]);
  expect((await access.credentials()).connectionKey).not.toBe(before);
  await client.create(nodes, { metadata: { name: "n1" } });
});

function withCertificate(lifetimeMs: number): string {
  const clientPair = server.issueCertificate({
    commonName: "system:node:n1",
    organizations: ["system:nodes"],
    usage: "client",
    lifetimeMs,
  });
  const certificateAuthority = server.caCertificate;
  return kubeconfigText({ server: server.url, certificateAuthority, userName: "n1", credentials: { clientPair } });
}

function approve(name: string): void {
  setCondition(name, { type: "Approved", status: "True", reason: "Test", message: "" });
}

function deny(name: string): void {
  setCondition(name, { type: "Denied", status: "True", reason: "NoReason", message: "not you" });
}

function setCondition(name: string, condition: Record<string, string>): void {
  const patch = { status: { conditions: [condition] } };
  server.objects.patch(certificateSigningRequests, { name }, patch, { type: "merge", subresource: "approval" });
}

async function waitForFile(path: string): Promise<void> {
  let isThere = false;
  await until(() => {
    void stat(path).then(
      () => {
        isThere = true;
      },
      () => {},
    );
    return isThere;
  });
}
