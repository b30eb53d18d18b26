import { parseDuration } from "../config/duration.ts";
import { AgentError } from "../lib/errors.ts";
import { exec } from "../lib/exec.ts";
import { isObject } from "../lib/json.ts";
import type { CredentialProvider } from "./credential-provider-config.ts";

/** What a plugin is asked. */
export interface ProviderRequest {
  /** Repository, without tag and digest. */
  image: string;
  serviceAccountToken?: string;
  serviceAccountAnnotations?: Readonly<Record<string, string>>;
}

/** What it answered. Passwords: never log. */
export interface ProviderResponse {
  cacheKeyType: "Image" | "Registry" | "Global";
  /** undefined: as the configuration says; 0: not to be kept. */
  cacheDurationMs: number | undefined;
  /** In the answer's order. */
  auths: readonly { registry: string; auth: { username: string; password: string } }[];
}

// kubelet's limit: a pod waits for the answer.
export const execTimeoutMs = 60_000;
// Credentials are small; more is a plugin gone wrong.
export const outputBytesMax = 1 << 20;
const cacheKeyTypes = ["Image", "Registry", "Global"] as const;

/**
 * Runs the plugin once. Rejects with Unavailable and one line that names it when it fails or answers nonsense; the line
 * holds neither its output nor the token.
 *
 * @param env of the agent; the plugin's own variables are added
 */
export async function execProvider(
  provider: CredentialProvider,
  request: ProviderRequest,
  { env, signal, timeoutMs = execTimeoutMs }: { env: NodeJS.ProcessEnv; signal: AbortSignal; timeoutMs?: number },
): Promise<ProviderResponse> {
  const { name, file, args, apiVersion } = provider;
  const result = await exec(file, args, {
    stdin: JSON.stringify({ kind: "CredentialProviderRequest", apiVersion, ...request }),
    env: { ...env, ...Object.fromEntries(provider.env.map((variable) => [variable.name, variable.value])) },
    timeoutMs,
    outputBytesMax,
    // A plugin that complains may quote a token, a variable, or what a registry sent it, in whatever form.
    isStderrSecret: true,
    signal,
  });
  if (result.failure !== undefined) {
    const hint = result.failure === "exit" ? "; run it by hand to see why" : "";
    throw failed(name, `${result.message}${hint}`);
  }
  if (result.truncated) throw failed(name, `it wrote more than ${outputBytesMax} bytes`);
  return parseResponse(result.stdout, provider);
}

/** Pure part of {@link execProvider}: the plugin's standard output to its answer. */
export function parseResponse(
  stdout: string,
  { name, apiVersion }: Pick<CredentialProvider, "name" | "apiVersion">,
): ProviderResponse {
  let parsed: unknown;
  try {
    parsed = JSON.parse(stdout);
  } catch {
    throw failed(name, "its output is not JSON"); // the parser's message would quote the output
  }
  if (!isObject(parsed) || parsed["kind"] !== "CredentialProviderResponse") {
    throw failed(name, "its output is not a CredentialProviderResponse");
  }
  if (parsed["apiVersion"] !== apiVersion) {
    throw failed(name, `it answered in another apiVersion than ${apiVersion}, in which it was asked`);
  }
  const cacheKeyType = cacheKeyTypes.find((type) => type === parsed["cacheKeyType"]);
  if (cacheKeyType === undefined) throw failed(name, `cacheKeyType is none of ${cacheKeyTypes.join(", ")}`);
  const duration = parsed["cacheDuration"] ?? undefined;
  const cacheDurationMs = typeof duration === "string" ? parseDuration(duration) : undefined;
  if (duration !== undefined && cacheDurationMs === undefined) {
    throw failed(name, 'cacheDuration is not a duration such as "10m"');
  }
  return { cacheKeyType, cacheDurationMs, auths: readAuths(parsed["auth"] ?? {}, name) };
}

function readAuths(value: unknown, name: string): ProviderResponse["auths"] {
  if (!isObject(value)) throw failed(name, "auth is not a map");
  return Object.entries(value).map(([registry, entry]) => {
    const { username = "", password = "" } = isObject(entry) ? entry : {};
    if (!isObject(entry) || typeof username !== "string" || typeof password !== "string") {
      throw failed(name, `auth of ${registry} has no username and password`);
    }
    return { registry, auth: { username, password } };
  });
}

function failed(name: string, what: string): AgentError {
  return new AgentError("Unavailable", `image credential provider ${name}: ${what}`);
}
