import { readFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { type Clock, systemClock } from "../lib/clock.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import { type Logger, silentLogger } from "../lib/log.ts";
import { type Access, type AccessSpec, createAccess, type Source } from "./access.ts";
import { execAPIVersions, type ExecPlugin, resolveExecCommand, runExecPlugin } from "./exec-credential.ts";
import type { ExecPluginMetrics } from "./exec-metrics.ts";
import { Field } from "./field.ts";

interface LoadDeps {
  clock?: Clock;
  log?: Logger;
  execPlugins?: ExecPluginMetrics;
}

/**
 * Reads a kubeconfig (YAML or JSON), checks its current context and the files it names, and returns the access it
 * describes. Rejects with Invalid and one line that names file and field. Exec plugins are not run yet.
 */
export async function loadKubeconfig(path: string, deps: LoadDeps = {}): Promise<Access> {
  const spec = await readKubeconfig(path);
  const access = createAccess(spec, { ...deps, clock: deps.clock ?? systemClock, log: deps.log ?? silentLogger });
  if (spec.exec === undefined) await access.credentials();
  return access;
}

/** Reads a kubeconfig and checks its current context, but not the files it names. Rejects as {@link loadKubeconfig} does. */
export async function readKubeconfig(path: string): Promise<AccessSpec> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (err) {
    throw new AgentError("Invalid", `${path}: cannot read kubeconfig: ${messageOf(err)}`, { cause: err });
  }
  return parseKubeconfig(await parseDocument(text, path), path);
}

/** Where Kubernetes mounts a pod's service account. */
const serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount";

/** Access for a process that runs in a pod, from its environment and service account. Rejects with Invalid outside of one. */
export async function inClusterAccess(
  deps: LoadDeps & { env?: NodeJS.ProcessEnv; serviceAccountDir?: string } = {},
): Promise<Access> {
  const env = deps.env ?? process.env;
  const dir = deps.serviceAccountDir ?? serviceAccountDir;
  const host = env["KUBERNETES_SERVICE_HOST"] ?? "";
  const port = env["KUBERNETES_SERVICE_PORT"] ?? "";
  if (host === "" || port === "") {
    throw new AgentError(
      "Invalid",
      "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: not in a pod, so give a kubeconfig",
    );
  }
  const spec: AccessSpec = {
    server: `https://${host.includes(":") ? `[${host}]` : host}:${port}`,
    origin: "in-cluster configuration",
    insecureSkipVerify: false,
    ca: { file: join(dir, "ca.crt") },
    token: { file: join(dir, "token") },
    impersonate: {},
  };
  const namespace = await readFile(join(dir, "namespace"), "utf8").catch(() => "");
  if (namespace.trim() !== "") spec.namespace = namespace.trim();
  const access = createAccess(spec, { clock: deps.clock ?? systemClock, log: deps.log ?? silentLogger });
  await access.credentials();
  return access;
}

async function parseDocument(text: string, path: string): Promise<unknown> {
  try {
    if (text.trimStart().startsWith("{")) return JSON.parse(text);
    const { parse } = await import("yaml"); // only needed once, so not loaded with the module
    return parse(text);
  } catch (err) {
    // Parsers quote the text around the error, which may be a token: keep the first line only, it holds the position.
    const line = messageOf(err).split("\n", 1)[0] ?? "";
    const where = /at line \d+, column \d+|at position \d+( \(line \d+ column \d+\))?/.exec(line)?.[0] ?? "";
    throw new AgentError("Invalid", `${path}: is neither YAML nor JSON${where === "" ? "" : ` (error ${where})`}`);
  }
}

/** Pure: a parsed kubeconfig document to the access of its current context. Throws Invalid. */
export function parseKubeconfig(document: unknown, path: string): AccessSpec {
  const root = new Field(document, path, "");
  root.record();
  const kind = root.at("kind").optionalString();
  if (kind !== undefined && kind !== "Config") {
    throw root.at("kind").error(`is ${JSON.stringify(kind)}, must be "Config"`);
  }
  const apiVersion = root.at("apiVersion").optionalString();
  if (apiVersion !== undefined && apiVersion !== "v1") {
    throw root.at("apiVersion").error(`is ${JSON.stringify(apiVersion)}, must be "v1"`);
  }
  const contextName = root.at("current-context").requiredString("the name of one of contexts");
  const context = named(root, "contexts", "context", contextName, "current-context");
  const clusterName = context.at("cluster").requiredString("the name of one of clusters");
  const cluster = named(root, "clusters", "cluster", clusterName, "the context's cluster");
  const userName = context.at("user").optionalString();
  const user = userName === undefined ? undefined : named(root, "users", "user", userName, "the context's user");
  const spec: AccessSpec = { ...clusterPart(cluster, path), origin: path, impersonate: {} };
  const namespace = context.at("namespace").optionalString();
  if (namespace !== undefined) spec.namespace = namespace;
  if (user !== undefined) addUser(spec, user, cluster, path);
  const needsTls = spec.ca ?? spec.cert ?? (spec.insecureSkipVerify || undefined);
  if (!spec.server.includes("://")) spec.server = `${needsTls === undefined ? "http" : "https"}://${spec.server}`;
  const url = URL.parse(spec.server);
  if (url === null || (url.protocol !== "https:" && url.protocol !== "http:")) {
    throw cluster.at("server").error("must be an http or https URL");
  }
  return spec;
}

function named(root: Field, list: string, member: string, name: string, wantedBy: string): Field {
  const found = root
    .at(list)
    .items()
    .find((item) => item.at("name").optionalString() === name);
  if (found === undefined) {
    throw root.at(list).error(`has no entry named ${JSON.stringify(name)}, which ${wantedBy} wants`);
  }
  const field = found.at(member);
  field.record();
  return field;
}

function clusterPart(
  cluster: Field,
  path: string,
): Pick<AccessSpec, "server" | "insecureSkipVerify" | "ca" | "serverName"> {
  if (cluster.at("proxy-url").optionalString() !== undefined) {
    throw cluster.at("proxy-url").error("is not supported: remove it and make the API server reachable directly");
  }
  const ca = source(cluster, "certificate-authority", path);
  const insecureSkipVerify = cluster.at("insecure-skip-tls-verify").optionalBoolean() ?? false;
  if (insecureSkipVerify && ca !== undefined) {
    throw cluster.at("insecure-skip-tls-verify").error("must not be true together with a certificate authority");
  }
  const serverName = cluster.at("tls-server-name").optionalString();
  return {
    server: cluster.at("server").requiredString("the API server's URL"),
    insecureSkipVerify,
    ...(ca === undefined ? {} : { ca }),
    ...(serverName === undefined ? {} : { serverName }),
  };
}

function addUser(spec: AccessSpec, user: Field, cluster: Field, path: string): void {
  if (user.at("auth-provider").isPresent) {
    throw user.at("auth-provider").error("is not supported since Kubernetes 1.26: use an exec plugin");
  }
  const cert = source(user, "client-certificate", path);
  const key = source(user, "client-key", path);
  if (cert !== undefined) {
    if (key === undefined) throw user.at("client-key").error("is missing, but there is a client-certificate");
    spec.cert = cert;
    spec.key = key;
  } else if (key !== undefined) {
    throw user.at("client-certificate").error("is missing, but there is a client-key");
  }
  const tokenFile = user.at("tokenFile").optionalString();
  const token = user.at("token").optionalString();
  // As in client-go, the file wins.
  if (tokenFile !== undefined) spec.token = { file: resolve(dirname(path), tokenFile) };
  else if (token !== undefined) spec.token = { data: Buffer.from(token) };
  const username = user.at("username").optionalString();
  const password = user.at("password").optionalString();
  if (username !== undefined || password !== undefined) {
    if (spec.token !== undefined) throw user.at("username").error("must not be set together with a token");
    spec.basic = { username: username ?? "", password: password ?? "" };
  }
  spec.impersonate = impersonation(user);
  if (user.at("exec").isPresent) {
    const plugin = execPlugin(user.at("exec"), cluster, spec, path);
    const { ca } = spec;
    spec.exec = async (called) => {
      if (plugin.cluster === undefined || ca === undefined) return runExecPlugin(plugin, called);
      const bytes = "data" in ca ? ca.data : await readFile(ca.file);
      const info = { ...plugin.cluster, "certificate-authority-data": bytes.toString("base64") };
      return runExecPlugin({ ...plugin, cluster: info }, called);
    };
  }
}

function source(field: Field, name: string, path: string): Source | undefined {
  const data = field.at(`${name}-data`).optionalString();
  if (data !== undefined) {
    const bytes = Buffer.from(data, "base64");
    if (!/^[A-Za-z0-9+/=\s]+$/.test(data) || bytes.length === 0) {
      throw field.at(`${name}-data`).error("is not base64");
    }
    return { data: bytes }; // inline data wins over the file, as in client-go
  }
  const file = field.at(name).optionalString();
  return file === undefined ? undefined : { file: resolve(dirname(path), file) };
}

function impersonation(user: Field): Record<string, string | string[]> {
  const headers: Record<string, string | string[]> = {};
  const as = user.at("as").optionalString();
  const uid = user.at("as-uid").optionalString();
  const groups = user.at("as-groups").optionalStrings();
  const extra = user.at("as-user-extra");
  if (as !== undefined) headers["impersonate-user"] = as;
  if (uid !== undefined) headers["impersonate-uid"] = uid;
  if (groups.length > 0) headers["impersonate-group"] = groups;
  if (extra.isPresent) {
    for (const key of Object.keys(extra.record())) {
      headers[`impersonate-extra-${encodeURIComponent(key.toLowerCase())}`] = extra.at(key).optionalStrings();
    }
  }
  if (as === undefined && Object.keys(headers).length > 0) {
    throw user.at("as").error("is missing, but other impersonation fields are set");
  }
  return headers;
}

function execPlugin(field: Field, cluster: Field, spec: AccessSpec, path: string): ExecPlugin {
  const apiVersion = field.at("apiVersion").requiredString(execAPIVersions.join(" or "));
  if (!execAPIVersions.includes(apiVersion)) {
    throw field.at("apiVersion").error(`is ${JSON.stringify(apiVersion)}, must be ${execAPIVersions.join(" or ")}`);
  }
  const mode = field.at("interactiveMode").optionalString();
  if (mode === undefined && apiVersion.endsWith("/v1")) {
    throw field.at("interactiveMode").error("is missing: must be Never or IfAvailable");
  }
  if (mode !== undefined && mode !== "Never" && mode !== "IfAvailable") {
    throw field
      .at("interactiveMode")
      .error(`is ${JSON.stringify(mode)}, must be Never or IfAvailable: a daemon has no terminal`);
  }
  const env = field
    .at("env")
    .items()
    .map((item) => ({
      name: item.at("name").requiredString("a variable's name"),
      value: item.at("value").optionalString() ?? "",
    }));
  const installHint = field.at("installHint").optionalString();
  const plugin: ExecPlugin = {
    apiVersion,
    command: resolveExecCommand(field.at("command").requiredString("the plugin's path or name"), path),
    args: field.at("args").optionalStrings(),
    env,
    ...(installHint === undefined ? {} : { installHint }),
  };
  if (field.at("provideClusterInfo").optionalBoolean() ?? false) {
    plugin.cluster = {
      server: spec.server,
      ...(spec.serverName === undefined ? {} : { "tls-server-name": spec.serverName }),
      ...(spec.insecureSkipVerify ? { "insecure-skip-tls-verify": true } : {}),
      ...pluginConfig(cluster),
    };
  }
  return plugin;
}

/** The cluster's extension `client.authentication.k8s.io/exec` is handed to the plugin as `config`. */
function pluginConfig(cluster: Field): { config?: unknown } {
  const extension = cluster
    .at("extensions")
    .items()
    .find((item) => item.at("name").optionalString() === "client.authentication.k8s.io/exec");
  return extension === undefined ? {} : { config: extension.at("extension").value };
}
