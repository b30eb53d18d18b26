import { chmod, mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { inClusterAccess, loadKubeconfig, parseKubeconfig } from "../../../agent/kube/kubeconfig.ts";
import { clientPair, fakeCA } from "../../support/fake-http.ts";
import { FakeClock } from "./fake-clock.ts";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-kube-"));
});
afterEach(async () => rm(dir, { recursive: true }));

const base64 = (text: string) => Buffer.from(text).toString("base64");
const pair = clientPair("system:node:n1");

/** A kubeconfig document with one cluster and one user. */
function config(user: Record<string, unknown> = {}, cluster: Record<string, unknown> = {}): unknown {
  return {
    apiVersion: "v1",
    kind: "Config",
    "current-context": "ctx",
    contexts: [{ name: "ctx", context: { cluster: "c", user: "u", namespace: "ns" } }],
    clusters: [
      {
        name: "c",
        cluster: { server: "https://10.0.0.1:6443", "certificate-authority-data": base64(fakeCA), ...cluster },
      },
    ],
    users: [{ name: "u", user }],
  };
}

async function load(document: unknown, clock = new FakeClock()) {
  const path = join(dir, "kubeconfig");
  await writeFile(path, typeof document === "string" ? document : JSON.stringify(document));
  return loadKubeconfig(path, { clock });
}

test("reads YAML with certificates inline", async () => {
  const access = await load(`
apiVersion: v1
kind: Config
current-context: default-context
contexts:
- {name: default-context, context: {cluster: default-cluster, user: default-auth, namespace: default}}
clusters:
- name: default-cluster
  cluster:
    certificate-authority-data: ${base64(fakeCA)}
    server: https://10.0.0.1:6443/
    tls-server-name: kubernetes
users:
- name: default-auth
  user:
    client-certificate-data: ${base64(pair.certificate)}
    client-key-data: ${base64(pair.key)}
`);
  expect(access.server).toBe("https://10.0.0.1:6443");
  expect(access.namespace).toBe("default");
  const { tls, headers } = await access.credentials();
  expect(tls).toEqual({
    ca: Buffer.from(fakeCA),
    cert: Buffer.from(pair.certificate),
    key: Buffer.from(pair.key),
    serverName: "kubernetes",
    insecureSkipVerify: false,
  });
  expect(headers).toEqual({});
});

test("paths are relative to the kubeconfig", async () => {
  await writeFile(join(dir, "ca.crt"), fakeCA);
  await writeFile(join(dir, "me.pem"), pair.certificate + pair.key);
  await writeFile(join(dir, "token"), "t1\n");
  const user = { "client-certificate": "me.pem", "client-key": "./me.pem", tokenFile: "token", token: "inline" };
  const access = await load(config(user, { "certificate-authority-data": "", "certificate-authority": "ca.crt" }));
  const { tls, headers } = await access.credentials();
  expect(tls.ca?.toString()).toBe(fakeCA);
  expect(headers).toEqual({ authorization: "Bearer t1" });
});

test.each([
  { name: "token", user: { token: "t" }, want: { authorization: "Bearer t" } },
  { name: "basic", user: { username: "u", password: "p" }, want: { authorization: `Basic ${base64("u:p")}` } },
  {
    name: "impersonation",
    user: { token: "t", as: "jane", "as-uid": "7", "as-groups": ["a", "b"], "as-user-extra": { "Ex/ample": ["x"] } },
    want: {
      authorization: "Bearer t",
      "impersonate-user": "jane",
      "impersonate-uid": "7",
      "impersonate-group": ["a", "b"],
      "impersonate-extra-ex%2Fample": ["x"],
    },
  },
])("credentials by $name", async ({ user, want }) => {
  expect((await (await load(config(user))).credentials()).headers).toEqual(want);
});

test.each([
  { server: "10.0.0.1:6443", cluster: {}, want: "https://10.0.0.1:6443" },
  { server: "localhost:8080", cluster: { "certificate-authority-data": "" }, want: "http://localhost:8080" },
])("server $server without scheme is $want", ({ server, cluster, want }) => {
  expect(parseKubeconfig(config({}, { ...cluster, server }), "k").server).toBe(want);
});

const v1 = "client.authentication.k8s.io/v1";

test.each([
  { name: "a list", document: [], want: "k: document must be a mapping" },
  {
    name: "another kind",
    document: { kind: "KubeletConfiguration" },
    want: 'k: kind is "KubeletConfiguration", must be "Config"',
  },
  { name: "no context", document: {}, want: "k: current-context is missing: must be the name of one of contexts" },
  {
    name: "an unknown context",
    document: { "current-context": "x", contexts: [{ name: "y", context: {} }] },
    want: 'k: contexts has no entry named "x", which current-context wants',
  },
  {
    name: "no server",
    document: config({}, { server: "" }),
    want: "k: clusters[0].cluster.server is missing: must be the API server's URL",
  },
  {
    name: "a server that is no URL",
    document: config({}, { server: "ftp://x" }),
    want: "k: clusters[0].cluster.server must be an http or https URL",
  },
  {
    name: "a proxy",
    document: config({}, { "proxy-url": "http://p" }),
    want: /clusters\[0\].cluster.proxy-url is not supported/,
  },
  {
    name: "both CA and no verification",
    document: config({}, { "insecure-skip-tls-verify": true }),
    want: /insecure-skip-tls-verify must not be true together/,
  },
  {
    name: "a CA that is not base64",
    document: config({}, { "certificate-authority-data": "?" }),
    want: /certificate-authority-data is not base64/,
  },
  { name: "a token that is a number", document: config({ token: 7 }), want: "k: users[0].user.token must be a string" },
  { name: "a certificate without key", document: config({ "client-certificate": "a" }), want: /client-key is missing/ },
  { name: "a key without certificate", document: config({ "client-key": "a" }), want: /client-certificate is missing/ },
  {
    name: "token and password",
    document: config({ token: "t", username: "u" }),
    want: /username must not be set together/,
  },
  {
    name: "an auth provider",
    document: config({ "auth-provider": { name: "gcp" } }),
    want: /auth-provider is not supported/,
  },
  { name: "groups without a user", document: config({ "as-groups": ["a"] }), want: /users\[0\].user.as is missing/ },
  {
    name: "exec of an old version",
    document: config({ exec: { apiVersion: "client.authentication.k8s.io/v1alpha1" } }),
    want: /exec.apiVersion is/,
  },
  {
    name: "exec without mode",
    document: config({ exec: { apiVersion: v1, command: "x" } }),
    want: /interactiveMode is missing/,
  },
  {
    name: "exec that needs a terminal",
    document: config({ exec: { apiVersion: v1, command: "x", interactiveMode: "Always" } }),
    want: /a daemon has no terminal/,
  },
  {
    name: "exec without command",
    document: config({ exec: { apiVersion: v1, interactiveMode: "Never" } }),
    want: /exec.command is missing/,
  },
])("$name is refused in one line that names file and field", ({ document, want }) => {
  const check = () => parseKubeconfig(document, "k");
  expect(check).toThrow(want);
  expect(check).toThrow(expect.objectContaining({ code: "Invalid", message: expect.not.stringContaining("\n") }));
});

test.each([
  { name: "text that is no YAML", document: "a: [token: s3cret", want: /is neither YAML nor JSON/ },
  { name: "text that is no JSON", document: '{"token": "s3cret"', want: /is neither YAML nor JSON/ },
  { name: "an empty file", document: "", want: /document must be a mapping/ },
  {
    name: "a certificate file that is missing",
    document: config({ "client-certificate": "no.pem", "client-key": "no.pem" }),
    want: /cannot read .*no\.pem/,
  },
  {
    name: "a certificate that is no PEM",
    document: config({ "client-certificate-data": base64("x"), "client-key-data": base64("y") }),
    want: /certificate authority, client certificate or key is malformed/,
  },
  {
    name: "a key of another certificate",
    document: config({
      "client-certificate-data": base64(pair.certificate),
      "client-key-data": base64(clientPair("x").key),
    }),
    want: /does not match/,
  },
])("loading $name fails with the file's name and no secret", async ({ document, want }) => {
  const loading = load(document);
  await expect(loading).rejects.toThrow(want);
  await expect(loading).rejects.toMatchObject({
    code: "Invalid",
    message: expect.stringMatching(/^\/(?!.*s3cret).*kubeconfig: /),
  });
});

test("a kubeconfig that is missing", async () => {
  await expect(loadKubeconfig(join(dir, "none"))).rejects.toThrow(/none: cannot read kubeconfig: ENOENT/);
});

test("a replaced certificate or token is used within a second; a half-written one leaves the old in use", async () => {
  const clock = new FakeClock();
  await writeFile(join(dir, "me.pem"), pair.certificate + pair.key);
  await writeFile(join(dir, "token"), "t1");
  const access = await load(
    config({ "client-certificate": "me.pem", "client-key": "me.pem", tokenFile: "token" }),
    clock,
  );
  const first = await access.credentials();
  await writeFile(join(dir, "token"), "t2!");
  expect(await access.credentials()).toBe(first);
  await clock.advance(1_000);
  const second = await access.credentials();
  expect(second.headers).toEqual({ authorization: "Bearer t2!" });
  expect(second.connectionKey).toBe(first.connectionKey);
  await writeFile(join(dir, "me.pem"), pair.certificate.slice(0, 100));
  await clock.advance(1_000);
  expect((await access.credentials()).connectionKey).toBe(first.connectionKey);
  const next = clientPair("system:node:n1");
  await writeFile(join(dir, "next.pem"), next.certificate + next.key);
  await rename(join(dir, "next.pem"), join(dir, "me.pem"));
  await clock.advance(1_000);
  const third = await access.credentials();
  expect(third.connectionKey).not.toBe(first.connectionKey);
  expect(third.tls.cert?.toString()).toBe(next.certificate + next.key);
});

test("in a pod, the service account is used", async () => {
  await writeFile(join(dir, "ca.crt"), fakeCA);
  await writeFile(join(dir, "token"), "sa");
  await writeFile(join(dir, "namespace"), "kube-system");
  const env = { KUBERNETES_SERVICE_HOST: "fd00::1", KUBERNETES_SERVICE_PORT: "443" };
  const access = await inClusterAccess({ env, serviceAccountDir: dir });
  expect([access.server, access.namespace]).toEqual(["https://[fd00::1]:443", "kube-system"]);
  expect((await access.credentials()).headers).toEqual({ authorization: "Bearer sa" });
  await expect(inClusterAccess({ env: {}, serviceAccountDir: dir })).rejects.toThrow(
    /KUBERNETES_SERVICE_HOST .* not set/,
  );
});

/** An exec plugin that counts its runs and answers what the file `answer` holds. */
async function plugin(answer: unknown, more: Record<string, unknown> = {}) {
  await writeFile(join(dir, "answer"), typeof answer === "string" ? answer : JSON.stringify(answer));
  const script = `#!/bin/sh
cd "$(dirname "$0")" || exit 1
echo run >> runs
printf '%s' "$KUBERNETES_EXEC_INFO" > info
printf '%s %s' "$GREETING" "$*" > seen
cat answer
`;
  await writeFile(join(dir, "plugin.sh"), script);
  await chmod(join(dir, "plugin.sh"), 0o700);
  return { apiVersion: v1, command: "./plugin.sh", interactiveMode: "Never", ...more };
}

const credential = (status: Record<string, unknown>) => ({ apiVersion: v1, kind: "ExecCredential", status });
const linesOf = async (name: string) => {
  const { readFile } = await import("node:fs/promises");
  return (await readFile(join(dir, name), "utf8")).trim().split("\n");
};

test("an exec plugin is run once until its credential expires, or a 401", async () => {
  const clock = new FakeClock();
  const expirationTimestamp = new Date(clock.now() + 60_000).toISOString();
  const exec = await plugin(credential({ token: "x1", expirationTimestamp }));
  const access = await load(config({ exec }), clock);
  await Promise.all([access.credentials(), access.credentials()]);
  await clock.advance(59_000);
  expect((await access.credentials()).headers).toEqual({ authorization: "Bearer x1" });
  expect(await linesOf("runs")).toHaveLength(1);
  await writeFile(join(dir, "answer"), JSON.stringify(credential({ token: "x2" })));
  await clock.advance(1_000);
  expect((await access.credentials()).headers).toEqual({ authorization: "Bearer x2" });
  await clock.advance(3_600_000);
  await access.credentials();
  expect(await linesOf("runs")).toHaveLength(2);
  access.invalidate();
  await access.credentials();
  expect(await linesOf("runs")).toHaveLength(3);
});

test("an exec plugin gets its arguments, environment and the cluster; its certificate is used", async () => {
  const exec = await plugin(credential({ clientCertificateData: pair.certificate, clientKeyData: pair.key }), {
    args: ["get", "a token"],
    env: [{ name: "GREETING", value: "hello" }],
    provideClusterInfo: true,
  });
  const extensions = [{ name: "client.authentication.k8s.io/exec", extension: { audience: "x" } }];
  const access = await load(config({ exec }, { extensions }));
  const { tls } = await access.credentials();
  expect(tls.cert?.toString()).toBe(pair.certificate);
  expect(await linesOf("seen")).toEqual(["hello get a token"]);
  expect(JSON.parse((await linesOf("info"))[0] ?? "")).toEqual({
    apiVersion: v1,
    kind: "ExecCredential",
    spec: {
      interactive: false,
      cluster: {
        server: "https://10.0.0.1:6443",
        "certificate-authority-data": base64(fakeCA),
        config: { audience: "x" },
      },
    },
  });
});

test.each([
  { name: "no JSON", answer: "s3cret", want: /output is not JSON/ },
  { name: "another kind", answer: { kind: "Token" }, want: /not an ExecCredential/ },
  { name: "another version", answer: { kind: "ExecCredential", apiVersion: "v0" }, want: /answered apiVersion v0/ },
  { name: "no status", answer: { kind: "ExecCredential", apiVersion: v1 }, want: /no status/ },
  { name: "nothing usable", answer: credential({}), want: /neither token nor client certificate/ },
  { name: "half a pair", answer: credential({ clientKeyData: "s3cret" }), want: /needs both/ },
  {
    name: "a strange time",
    answer: credential({ token: "s3cret", expirationTimestamp: "soon" }),
    want: /not an RFC 3339 time/,
  },
])(
  "an exec plugin that answers $name fails the call with one line, and is not run at every call",
  async ({ answer, want }) => {
    const clock = new FakeClock();
    const access = await load(config({ exec: await plugin(answer) }), clock);
    await expect(access.credentials()).rejects.toThrow(want);
    await expect(access.credentials()).rejects.toMatchObject({
      code: "Unavailable",
      message: expect.stringMatching(/^(?!.*s3cret).*plugin\.sh/),
    });
    expect(await linesOf("runs")).toHaveLength(1);
    await clock.advance(1_000);
    await expect(access.credentials()).rejects.toThrow(want);
    expect(await linesOf("runs")).toHaveLength(2);
  },
);

test("an exec plugin that is not installed says how to install it", async () => {
  const exec = {
    apiVersion: v1,
    command: "no-such-plugin-anywhere",
    interactiveMode: "IfAvailable",
    installHint: "Install it from example.com.",
  };
  const access = await load(config({ exec }));
  await expect(access.credentials()).rejects.toThrow(
    /no-such-plugin-anywhere could not be started.*Install it from example\.com/,
  );
});
