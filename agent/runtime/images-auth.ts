import type { Secret } from "../kube/types.ts";
import { messageOf } from "../lib/errors.ts";
import { parseImageName } from "./images-name.ts";
import type { ImageAuth } from "./port.ts";

/** An object of the API server, by name and identity. */
export interface Coordinates {
  uid: string;
  namespace: string;
  name: string;
}

/** A credential and where it comes from; without a `secret` or `serviceAccount` it is the node's own. */
export interface ImageCredential extends ImageAuth {
  secret?: Coordinates;
  /** A credential provider made it of this account's token. */
  serviceAccount?: Coordinates;
}

/** Credentials by registry, in the order in which they are tried. */
export interface Keyring {
  /** Most specific key first. */
  entries: readonly { key: string; auth: ImageCredential }[];
}

/** The two shapes of credential files: `{"auths": …}`, and the older one which is what `auths` holds. */
export type DockerConfigShape = "config.json" | "dockercfg";

// The name under which `docker login` files Docker Hub.
const dockerHubKey = "index.docker.io";

/**
 * Reads a pod's imagePullSecrets.
 *
 * @returns the credentials, and for each secret that could not be read a sentence without any of its content
 */
export function keyringFromSecrets(secrets: readonly Secret[]): { keyring: Keyring; problems: string[] } {
  const entries: { key: string; auth: ImageCredential }[] = [];
  const problems: string[] = [];
  for (const secret of secrets) {
    const { namespace = "", name, uid = "" } = secret.metadata;
    try {
      const read = readSecret(secret);
      entries.push(...read.map(({ key, auth }) => ({ key, auth: { ...auth, secret: { uid, namespace, name } } })));
    } catch (err) {
      problems.push(`image pull secret ${namespace}/${name}: ${messageOf(err)}`);
    }
  }
  return { keyring: sortKeyring(entries), problems };
}

/** Reads a credential file of the node. Throws, without any of its content, if it does not have that shape. */
export function keyringFromDockerConfig(text: string, shape: DockerConfigShape): Keyring {
  return sortKeyring(readDockerConfig(text, shape));
}

/** Makes a keyring of credentials by registry or pattern as people write them. Of equal ones the earlier is tried first. */
export function keyringOf(entries: readonly { registry: string; auth: ImageCredential }[]): Keyring {
  return sortKeyring(entries.map(({ registry, auth }) => ({ key: keyOf(registry), auth })));
}

/** The credentials to try for an image, in order; empty: try without. Keyrings are asked in the order given. */
export function authsFor(image: string, keyrings: readonly Keyring[]): ImageCredential[] {
  const name = parseImageName(image);
  if (typeof name === "string") return [];
  return keyrings.flatMap(({ entries }) => {
    const matching = entries.filter(({ key }) => keyMatches(key, name.repository));
    if (matching.length > 0 || !name.repository.startsWith("docker.io/")) return matching.map(({ auth }) => auth);
    return entries.filter(({ key }) => key === dockerHubKey).map(({ auth }) => auth);
  });
}

/** The credential alone, as the registry needs it. */
export function stripSource(credential: ImageCredential): ImageAuth {
  const { secret: _secret, serviceAccount: _serviceAccount, ...auth } = credential;
  return auth;
}

/** Same port, same number of host labels, each label a glob of its own, and the key's path a prefix of the image's. */
export function keyMatches(key: string, repository: string): boolean {
  const want = splitKey(key);
  const have = splitKey(repository);
  return (
    want.port === have.port &&
    want.labels.length === have.labels.length &&
    have.path.startsWith(want.path) &&
    want.labels.every((label, i) => globMatches(label, have.labels[i] ?? ""))
  );
}

function splitKey(key: string): { labels: string[]; port: string; path: string } {
  const slash = key.indexOf("/");
  const host = slash < 0 ? key : key.slice(0, slash);
  const path = slash < 0 ? "" : key.slice(slash);
  const [, name = host, port = ""] = /^(\[[^\]]*\]|[^:]*)(?::(\d*))?$/.exec(host) ?? [];
  return { labels: name.split("."), port, path };
}

/**
 * Matches `*`, `?`, `[a-z]` and `\\x` as Go's path.Match does within one label. Whoever writes a pod chooses pattern and
 * text: the time stays within the product of their lengths, which it would not with a regular expression.
 */
function globMatches(glob: string, text: string): boolean {
  const parts = parseGlob(glob);
  if (parts === undefined) return false; // an unbalanced bracket
  let [i, at] = [0, 0];
  // Where the last star stands, and how much of the text it has taken: only it ever has to take more.
  let [star, taken] = [-1, 0];
  while (at < text.length) {
    const part = parts[i];
    if (part === "*") {
      [star, taken] = [i, at];
      i += 1;
    } else if (part?.(text[at] ?? "") === true) {
      i += 1;
      at += 1;
    } else if (star >= 0) {
      taken += 1;
      [i, at] = [star + 1, taken];
    } else return false;
  }
  return parts.slice(i).every((part) => part === "*");
}

type GlobPart = "*" | ((char: string) => boolean);

function parseGlob(glob: string): GlobPart[] | undefined {
  const parts: GlobPart[] = [];
  for (let i = 0; i < glob.length; i += 1) {
    const char = glob[i] ?? "";
    if (char === "*") parts.push("*");
    else if (char === "?") parts.push(() => true);
    else if (char === "[") {
      const end = glob.indexOf("]", i + 2);
      if (end < 0) return undefined;
      parts.push(parseClass(glob.slice(i + 1, end)));
      i = end;
    } else {
      if (char === "\\") i += 1;
      const literal = glob[i];
      if (literal === undefined) return undefined;
      parts.push((other) => other === literal);
    }
  }
  return parts;
}

function parseClass(text: string): (char: string) => boolean {
  const isNegated = text.startsWith("^");
  const ranges = [...text.slice(isNegated ? 1 : 0).matchAll(/(.)-(.)|(.)/gs)].map(
    ([, low, high, single]) => [low ?? single ?? "", high ?? single ?? ""] as const,
  );
  return (char) => ranges.some(([low, high]) => low <= char && char <= high) !== isNegated;
}

// Secrets of other types are none of ours. People make types up: a map inherits none.
const secretShapes: ReadonlyMap<string, { key: string; shape: DockerConfigShape }> = new Map([
  ["kubernetes.io/dockerconfigjson", { key: ".dockerconfigjson", shape: "config.json" }],
  ["kubernetes.io/dockercfg", { key: ".dockercfg", shape: "dockercfg" }],
]);

function readSecret({ type = "", data }: Secret): { key: string; auth: ImageAuth }[] {
  const wanted = secretShapes.get(type);
  const value = wanted === undefined ? undefined : data?.[wanted.key];
  if (wanted === undefined || value === undefined) return [];
  return readDockerConfig(Buffer.from(value, "base64").toString(), wanted.shape);
}

function readDockerConfig(text: string, shape: DockerConfigShape): { key: string; auth: ImageAuth }[] {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    throw new Error("not valid JSON"); // the parser's own message would quote the content
  }
  const root = asObject(parsed, "a Docker config");
  const auths = shape === "dockercfg" ? root : asObject(root.auths ?? {}, "auths");
  return Object.entries(auths).map(([registry, entry]) => ({ key: keyOf(registry), auth: readEntry(registry, entry) }));
}

function readEntry(registry: string, value: unknown): ImageAuth {
  const entry = asObject(value, `the entry of ${registry}`);
  if (typeof entry.auth === "string" && entry.auth !== "") {
    // Docker pads with newlines and NULs at times.
    const decoded = Buffer.from(entry.auth.trim(), "base64").toString().replace(/\0+$/, "");
    const colon = decoded.indexOf(":");
    if (colon < 0) throw new Error(`auth of ${registry} is not base64 of user:password`);
    return { username: decoded.slice(0, colon), password: decoded.slice(colon + 1) };
  }
  return {
    username: typeof entry.username === "string" ? entry.username : "",
    password: typeof entry.password === "string" ? entry.password : "",
  };
}

/** `https://index.docker.io/v1/` and the like to host and path. */
function keyOf(registry: string): string {
  const bare = registry.replace(/^https?:\/\//, "").replace(/^([^/]*)\/v[12](\/.*)$/, "$1$2");
  return bare.endsWith("/") && bare.indexOf("/") === bare.length - 1 ? bare.slice(0, -1) : bare;
}

/** Reverse order puts the longer path of one host before the shorter; equal keys keep their order. */
function sortKeyring(entries: readonly { key: string; auth: ImageCredential }[]): Keyring {
  return { entries: entries.toSorted((a, b) => (a.key < b.key ? 1 : a.key > b.key ? -1 : 0)) };
}

function asObject(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Error(`${what} is not an object`);
  return value as Record<string, unknown>; // any own property of an object is unknown
}
