import { createHash } from "node:crypto";
import { constants } from "node:fs";
import { access, readdir, readFile, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { parseDocument } from "../config/document.ts";
import { bool, duration, list, oneOf, string } from "../config/kinds.ts";
import { type At, ConfigError, show } from "../config/problems.ts";
import { decodeObject, type Kind, type Table, type ValuesOf, withDefaults, works } from "../config/schema.ts";
import { decodeFields } from "../config/sources.ts";
import { messageOf } from "../lib/errors.ts";

/** A credential provider plugin as configured. `env` may hold secrets: never log it. */
export interface CredentialProvider {
  name: string;
  /** Absolute path of its executable. */
  file: string;
  matchImages: readonly string[];
  /** For answers that do not say how long they are good. */
  defaultCacheDurationMs: number;
  /** Of request and response. */
  apiVersion: string;
  args: readonly string[];
  env: readonly { name: string; value: string }[];
  /** Set if the plugin works with tokens of the pods' service accounts. */
  tokens?: {
    audience: string;
    /** Whether answers are kept for all of a service account's pods, or for one token. */
    cacheType: "ServiceAccount" | "Token";
    isRequired: boolean;
    /** Without one of these on the account, the plugin is not asked. */
    requiredAnnotations: readonly string[];
    optionalAnnotations: readonly string[];
  };
}

export interface CredentialProviderConfig {
  providers: readonly CredentialProvider[];
  /** `sha256:…` of the files' content. */
  hash: string;
}

const configVersions = ["v1", "v1beta1", "v1alpha1"].map((version) => `kubelet.config.k8s.io/${version}`);
const kind = "CredentialProviderConfig";
const tokenConfigVersion = "kubelet.config.k8s.io/v1";
const tokenGate = "feature gate KubeletServiceAccountTokenForCredentialProviders";
const tokenProviderVersion = "credentialprovider.kubelet.k8s.io/v1";

const envTable = { name: works(string(), "", "variable"), value: works(string(), "", "its value", { secret: true }) };
const tokenTable = {
  serviceAccountTokenAudience: works(string(), "", "audience of the tokens"),
  cacheType: works(oneOf("ServiceAccount", "Token"), "ServiceAccount", "what answers are kept for", {
    zeroIsUnset: false,
  }),
  requireServiceAccount: works(bool, false, "no answer without a service account"),
  requiredServiceAccountAnnotationKeys: works(list(string()), [], "annotations that the account must have"),
  optionalServiceAccountAnnotationKeys: works(list(string()), [], "annotations passed on where they are"),
};
const providerTable = {
  name: works(string(), "", "file name of the executable"),
  matchImages: works(list(string()), [], "patterns of the images it has credentials for"),
  defaultCacheDuration: works(duration({ min: 0 }), 0, "how long answers are kept that do not say"),
  apiVersion: works(
    oneOf(
      tokenProviderVersion,
      "credentialprovider.kubelet.k8s.io/v1beta1",
      "credentialprovider.kubelet.k8s.io/v1alpha1",
    ),
    tokenProviderVersion,
    "version of request and response",
    { zeroIsUnset: false },
  ),
  args: works(list(string()), [], "arguments"),
  env: works(list(object(envTable, ["name", "value"])), [], "variables beside the agent's own"),
  tokenAttributes: works(
    object(tokenTable, ["serviceAccountTokenAudience", "cacheType", "requireServiceAccount"]),
    undefined,
    "hands it tokens of service accounts",
  ),
};
const configTable = {
  providers: works(
    list(object(providerTable, ["name", "matchImages", "defaultCacheDuration", "apiVersion"])),
    [],
    "the providers",
  ),
};
type ProviderValues = ValuesOf<typeof providerTable>;
type TokenValues = ValuesOf<typeof tokenTable>;

/**
 * Reads `--image-credential-provider-config`: a file, or a directory whose json and yaml files are read in the order of
 * their names.
 *
 * @param binDir `--image-credential-provider-bin-dir`
 * @param mayHaveTokens feature gate KubeletServiceAccountTokenForCredentialProviders
 * @throws ConfigError with a line for each problem, naming file and field
 */
export async function readCredentialProviders(
  path: string,
  { binDir, mayHaveTokens }: { binDir: string; mayHaveTokens: boolean },
): Promise<CredentialProviderConfig> {
  const files = await filesOf(path);
  const hash = createHash("sha256");
  const providers: CredentialProvider[] = [];
  const problems: string[] = [];
  const fileOfName = new Map<string, string>();
  for (const file of files) {
    const text = await readText(file);
    hash.update(text);
    const { values, version } = decodeConfig(text, file);
    for (const [i, provider] of values.entries()) {
      const at = `${file}: providers[${i}]`;
      const wrong = problemsOf(provider, version).map((problem) => `${at}.${problem}`);
      if (provider.tokenAttributes !== undefined && !mayHaveTokens) {
        wrong.push(`${at}.tokenAttributes needs ${tokenGate}`);
      }
      const other = fileOfName.get(provider.name);
      if (other !== undefined) {
        wrong.push(`${at}.name must not be "${provider.name}" again${other === file ? "" : `, as ${other} has it`}`);
      }
      fileOfName.set(provider.name, file);
      const executable = join(binDir, provider.name);
      if (wrong.length === 0) wrong.push(...(await executableProblems(executable)).map((why) => `${at}.name: ${why}`));
      problems.push(...wrong);
      providers.push(toProvider(provider, executable));
    }
  }
  if (problems.length > 0) throw new ConfigError(problems);
  return { providers, hash: `sha256:${hash.digest("hex")}` };
}

async function filesOf(path: string): Promise<string[]> {
  try {
    if (!(await stat(path)).isDirectory()) return [path];
    const entries = await readdir(path, { withFileTypes: true });
    const names = entries.filter((entry) => !entry.isDirectory() && /\.(?:json|yaml|yml)$/.test(entry.name));
    if (names.length === 0) {
      throw new ConfigError([`--image-credential-provider-config: ${path} holds no .json, .yaml or .yml file`]);
    }
    return names.map(({ name }) => join(path, name)).toSorted();
  } catch (err) {
    if (err instanceof ConfigError) throw err;
    throw new ConfigError([`--image-credential-provider-config: ${path} cannot be read: ${messageOf(err)}`]);
  }
}

async function readText(file: string): Promise<string> {
  try {
    return await readFile(file, "utf8");
  } catch (err) {
    throw new ConfigError([`${file}: cannot be read: ${messageOf(err)}`]);
  }
}

function decodeConfig(text: string, file: string): { values: readonly ProviderValues[]; version: string } {
  const { apiVersion, kind: found, ...fields } = parseDocument(text, file);
  if (typeof apiVersion !== "string" || !configVersions.includes(apiVersion) || found !== kind) {
    const allowed = configVersions.join(" or ");
    throw new ConfigError([
      `${file}: must be apiVersion ${allowed}, kind ${kind}, not ${show(apiVersion)}, ${show(found)}`,
    ]);
  }
  const { providers } = withDefaults(configTable, decodeFields(configTable, fields, file));
  if (providers.length === 0) throw new ConfigError([`${file}: providers must name at least one provider`]);
  return { values: providers, version: apiVersion };
}

/** What is wrong beyond the types, as `field problem`. Pure. */
function problemsOf(provider: ProviderValues, configVersion: string): string[] {
  const { name, matchImages, env, tokenAttributes } = provider;
  const isFileName = name !== "." && name !== ".." && name === basename(name) && !/[\s/]/.test(name);
  return [
    ...(isFileName ? [] : [`name must be a file name without spaces, not ${show(name)}`]),
    ...(matchImages.length > 0 ? [] : ["matchImages must name at least one pattern"]),
    ...matchImages.flatMap((pattern, i) =>
      isPattern(pattern)
        ? []
        : [`matchImages[${i}] must be like *.example.com:5000/path, without a scheme, not ${show(pattern)}`],
    ),
    ...env.flatMap((variable, i) => (variable.name === "" ? [`env[${i}].name must be set`] : [])),
    ...(tokenAttributes === undefined ? [] : tokenProblems(tokenAttributes, provider.apiVersion, configVersion)),
  ];
}

function tokenProblems(tokens: TokenValues, providerVersion: string, configVersion: string): string[] {
  const { requiredServiceAccountAnnotationKeys: required, optionalServiceAccountAnnotationKeys: optional } = tokens;
  const at = "tokenAttributes";
  const twice = (keys: readonly string[]) => new Set(keys).size < keys.length;
  const isKey = (key: string) =>
    /^(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?\/)?[A-Za-z0-9](?:[\w.-]{0,61}[A-Za-z0-9])?$/.test(key);
  const keyProblems = (field: string, keys: readonly string[]) => [
    ...keys.flatMap((key, i) =>
      isKey(key) ? [] : [`${at}.${field}[${i}] must be an annotation's key, not ${show(key)}`],
    ),
    ...(twice(keys) ? [`${at}.${field} must not name anything twice`] : []),
  ];
  return [
    ...(configVersion === tokenConfigVersion ? [] : [`${at} needs a file of apiVersion ${tokenConfigVersion}`]),
    ...(providerVersion === tokenProviderVersion ? [] : [`${at} needs providers' apiVersion ${tokenProviderVersion}`]),
    ...(tokens.serviceAccountTokenAudience === "" ? [`${at}.serviceAccountTokenAudience must be set`] : []),
    ...(required.length > 0 && !tokens.requireServiceAccount
      ? [`${at}.requiredServiceAccountAnnotationKeys must be empty when requireServiceAccount is false`]
      : []),
    ...keyProblems("requiredServiceAccountAnnotationKeys", required),
    ...keyProblems("optionalServiceAccountAnnotationKeys", optional),
    ...(required.some((key) => optional.includes(key))
      ? [`${at}.optionalServiceAccountAnnotationKeys must not repeat required ones`]
      : []),
  ];
}

/** A host with an optional port and path, each part of which may be a glob. */
function isPattern(text: string): boolean {
  return /^[^\s/:]+(?::\d+)?(?:\/\S*)?$/.test(text);
}

async function executableProblems(file: string): Promise<string[]> {
  try {
    if (!(await stat(file)).isFile()) return [`${file} is not a file`];
    await access(file, constants.X_OK);
    return [];
  } catch (err) {
    return [`its executable cannot be used: ${messageOf(err)}`];
  }
}

function toProvider(provider: ProviderValues, file: string): CredentialProvider {
  const { name, matchImages, defaultCacheDuration, apiVersion, args, env, tokenAttributes } = provider;
  return {
    ...{ name, file, matchImages, apiVersion, args, env },
    defaultCacheDurationMs: defaultCacheDuration,
    ...(tokenAttributes === undefined
      ? {}
      : {
          tokens: {
            audience: tokenAttributes.serviceAccountTokenAudience,
            cacheType: tokenAttributes.cacheType,
            isRequired: tokenAttributes.requireServiceAccount,
            requiredAnnotations: tokenAttributes.requiredServiceAccountAnnotationKeys,
            optionalAnnotations: tokenAttributes.optionalServiceAccountAnnotationKeys,
          },
        }),
  };
}

/** An object with the fields of `table`, of which `required` ones must be there. */
function object<T extends Table>(table: T, required: readonly string[]): Kind<ValuesOf<T>> {
  const noFlag = (_text: string, at: At) => at.fail("cannot be given as a flag");
  return {
    type: "object",
    decode: (raw, at) => decodeObject(table, required, raw, at),
    encode: (value) => value,
    parseFlag: noFlag,
    isZero: () => false,
  };
}
