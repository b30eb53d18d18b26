import { dirname, isAbsolute, resolve } from "node:path";
import { AgentError } from "../lib/errors.ts";
import { exec } from "../lib/exec.ts";
import { isObject } from "../lib/json.ts";
import type { ExecPluginMetrics } from "./exec-metrics.ts";

/** What an exec credential plugin answered. Token and key are secret: never log. */
export interface ExecCredential {
  token?: string;
  certificate?: Buffer;
  key?: Buffer;
  /** Unix ms after which the plugin has to be asked again; absent: only after a 401. */
  expiresAtMs?: number;
}

/** `users[].user.exec` of a kubeconfig, validated. */
export interface ExecPlugin {
  apiVersion: string;
  command: string;
  args: string[];
  env: { name: string; value: string }[];
  installHint?: string;
  /** `spec.cluster` for the plugin, when provideClusterInfo is set. */
  cluster?: Record<string, unknown>;
}

const group = "client.authentication.k8s.io";
export const execAPIVersions: readonly string[] = [`${group}/v1`, `${group}/v1beta1`];

// client-go waits for ever; a plugin that hangs must not hold every API call of the agent for ever.
export const execTimeoutMs = 60_000;

/** A command with a slash is relative to the kubeconfig's directory, a bare name is looked up in PATH. */
export function resolveExecCommand(command: string, kubeconfigPath: string): string {
  return isAbsolute(command) || !command.includes("/") ? command : resolve(dirname(kubeconfigPath), command);
}

/**
 * Runs the plugin once, without a terminal. Rejects with Unavailable and one line that names the command when it fails
 * or answers nonsense.
 *
 * @param called told how the run ended, whatever it answered
 */
export async function runExecPlugin(
  plugin: ExecPlugin,
  called: ExecPluginMetrics["called"] = () => {},
): Promise<ExecCredential> {
  const { apiVersion, command, args, env, installHint, cluster } = plugin;
  const info = {
    apiVersion,
    kind: "ExecCredential",
    spec: { interactive: false, ...(cluster === undefined ? {} : { cluster }) },
  };
  const childEnv: NodeJS.ProcessEnv = { ...process.env };
  for (const { name, value } of env) childEnv[name] = value;
  childEnv["KUBERNETES_EXEC_INFO"] = JSON.stringify(info);
  const result = await exec(command, args, { timeoutMs: execTimeoutMs, env: childEnv });
  if (result.failure === undefined) called(0, "no_error");
  else if (result.failure === "spawn") called(1, "plugin_not_found_error");
  else called(result.code ?? -1, "plugin_execution_error");
  if (result.failure !== undefined) {
    const hint = installHint === undefined || result.failure !== "spawn" ? "" : `. ${installHint.trim()}`;
    throw new AgentError("Unavailable", `exec credential plugin: ${result.message}${hint}`);
  }
  return parseExecCredential(result.stdout, plugin);
}

/** Pure part of {@link runExecPlugin}: the plugin's standard output to a credential. */
export function parseExecCredential(
  stdout: string,
  plugin: Pick<ExecPlugin, "apiVersion" | "command">,
): ExecCredential {
  const fail = (what: string) =>
    new AgentError(
      "Unavailable",
      `exec credential plugin ${plugin.command}: ${what}; run it by hand to see its answer`,
    );
  let parsed: unknown;
  try {
    parsed = JSON.parse(stdout);
  } catch {
    throw fail("its output is not JSON"); // the parser's message would quote the output, which may hold a token
  }
  if (!isObject(parsed) || parsed["kind"] !== "ExecCredential") throw fail("its output is not an ExecCredential");
  if (parsed["apiVersion"] !== plugin.apiVersion) {
    throw fail(`it answered apiVersion ${String(parsed["apiVersion"])}, the kubeconfig says ${plugin.apiVersion}`);
  }
  const status = parsed["status"];
  if (!isObject(status)) throw fail("its answer has no status");
  const { token, clientCertificateData, clientKeyData, expirationTimestamp } = status;
  const text = (value: unknown) => (typeof value === "string" && value !== "" ? value : undefined);
  const certificate = text(clientCertificateData);
  const key = text(clientKeyData);
  const bearer = text(token);
  if ((certificate === undefined) !== (key === undefined)) {
    throw fail("status needs both of clientCertificateData and clientKeyData, or none");
  }
  if (bearer === undefined && certificate === undefined) throw fail("status has neither token nor client certificate");
  const isTime =
    expirationTimestamp === undefined || expirationTimestamp === null || typeof expirationTimestamp === "string";
  const expiresAtMs = typeof expirationTimestamp === "string" ? Date.parse(expirationTimestamp) : undefined;
  if (!isTime || Number.isNaN(expiresAtMs)) throw fail("status.expirationTimestamp is not an RFC 3339 time");
  return {
    ...(bearer === undefined ? {} : { token: bearer }),
    ...(certificate === undefined ? {} : { certificate: Buffer.from(certificate) }),
    ...(key === undefined ? {} : { key: Buffer.from(key) }),
    ...(expiresAtMs === undefined ? {} : { expiresAtMs }),
  };
}
