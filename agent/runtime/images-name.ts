/** An image reference taken apart, with Docker's defaults filled in for the parts that decide credentials. */
export interface ImageName {
  /** Registry and repository, without tag and digest: `docker.io/library/busybox`. */
  repository: string;
  /** As written, else `latest` when there is no digest either, else "". */
  tag: string;
  digest: string;
}

// The grammar of docker references: https://pkg.go.dev/github.com/distribution/reference
const hostLabel = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?";
const hostPattern = new RegExp(`^(?:${hostLabel}(?:\\.${hostLabel})*|\\[[a-fA-F0-9:]+\\])(?::[0-9]+)?$`);
const pathComponent = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*";
const pathPattern = new RegExp(`^${pathComponent}(?:/${pathComponent})*$`);
const tagPattern = /^\w[\w.-]{0,127}$/;
const digestPattern = /^[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}$/;
const digestHexLengths: Readonly<Record<string, number>> = { sha256: 64, sha384: 96, sha512: 128 };
const repositoryLengthMax = 255;

/**
 * Parses an image reference as written in a pod.
 *
 * @returns the parts, or a sentence saying why it is none
 */
export function parseImageName(image: string): ImageName | string {
  const invalid = (why = "") => `couldn't parse image name ${JSON.stringify(image)}: invalid reference format${why}`;
  if (image === "") return invalid();
  if (/^[a-f0-9]{64}$/.test(image)) {
    return `couldn't parse image name ${JSON.stringify(image)}: invalid repository name (${image}), cannot specify 64-byte hexadecimal strings`;
  }
  const at = image.indexOf("@");
  const digest = at < 0 ? "" : image.slice(at + 1);
  const beforeDigest = at < 0 ? image : image.slice(0, at);
  // A colon behind the last slash begins the tag; one before it a port.
  const colon = beforeDigest.indexOf(":", beforeDigest.lastIndexOf("/") + 1);
  const tag = colon < 0 ? "" : beforeDigest.slice(colon + 1);
  const name = colon < 0 ? beforeDigest : beforeDigest.slice(0, colon);
  if (colon >= 0 && !tagPattern.test(tag)) return invalid();
  if (at >= 0 && !isDigest(digest)) return invalid();

  const { host, path } = splitHost(name);
  if (path !== path.toLowerCase()) return invalid(`: repository name (${path}) must be lowercase`);
  if (!hostPattern.test(host) || !pathPattern.test(path)) return invalid();
  const repository = `${host}/${path}`;
  if (path.length > repositoryLengthMax) {
    return `couldn't parse image name ${JSON.stringify(image)}: repository name must not be more than ${repositoryLengthMax} characters`;
  }
  return { repository, tag: tag === "" && digest === "" ? "latest" : tag, digest };
}

/**
 * The reference to hand to the runtime: what the pod says, with `:latest` when it says neither tag nor digest. No
 * registry is added: which one a short name means is the runtime's business.
 */
export function withDefaultTag(image: string, name: ImageName): string {
  return name.digest === "" && !image.endsWith(`:${name.tag}`) ? `${image}:${name.tag}` : image;
}

/** With registry and tag or digest. A digest decides where there is a tag, too, as it does for runtimes. */
export function fullName({ repository, tag, digest }: ImageName): string {
  return digest === "" ? `${repository}:${tag}` : `${repository}@${digest}`;
}

/** The same of what is written; what is no image reference stays as it is. */
export function fullNameOf(image: string): string {
  const name = parseImageName(image);
  return typeof name === "string" ? image : fullName(name);
}

/** The API server's default for `imagePullPolicy`, for pods that did not pass it. */
export function defaultPullPolicy(image: string): "Always" | "IfNotPresent" {
  const name = parseImageName(image);
  return typeof name !== "string" && name.tag === "latest" ? "Always" : "IfNotPresent";
}

/** The first part is a host if it could not be part of a repository: it has a dot, a port, capitals, or is localhost. */
function splitHost(name: string): { host: string; path: string } {
  const slash = name.indexOf("/");
  const first = slash < 0 ? "" : name.slice(0, slash);
  const isHost = first !== "" && (/[.:]/.test(first) || first === "localhost" || first !== first.toLowerCase());
  const host = isHost ? first.replace(/^index\.docker\.io$/, "docker.io") : "docker.io";
  const path = isHost ? name.slice(slash + 1) : name;
  return { host, path: host === "docker.io" && !path.includes("/") ? `library/${path}` : path };
}

function isDigest(digest: string): boolean {
  if (!digestPattern.test(digest)) return false;
  const [algorithm = "", hex = ""] = digest.split(":");
  const length = digestHexLengths[algorithm];
  return length !== undefined && hex.length === length && hex === hex.toLowerCase();
}
