import { mkdir, readFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { writeFileAtomic } from "../../lib/atomic-file.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import { type Access, type AccessSpec, createAccess, type Source } from "../access.ts";
import { readKubeconfig } from "../kubeconfig.ts";
import type { KubeDeps } from "../port.ts";
import { type CertificatePair, parseCertificates, parsePair } from "./pair.ts";

export interface ClientConfigPaths {
  kubeconfig: string;
  /** "": none. */
  bootstrapKubeconfig: string;
  /** Link to the client certificate in use. */
  currentPath: string;
}

/** How a node reaches its API server, and by what it asks for its certificate. */
export interface ClientConfig {
  /** The server, without any credentials. */
  readonly server: AccessSpec;
  /** For requesting the certificate while there is none. */
  readonly request: Access;
  /** The kubeconfig's own certificate, unless that is the one in the store. */
  readonly initial: CertificatePair | undefined;
}

/**
 * Reads the kubeconfig if it is of use, else the bootstrap kubeconfig, from which the kubeconfig is then written: with the
 * store's certificate, which need not be there yet. Rejects with Invalid if neither can be used.
 */
export async function readClientConfig(paths: ClientConfigPaths, deps: KubeDeps): Promise<ClientConfig> {
  const { kubeconfig, bootstrapKubeconfig, currentPath } = paths;
  const problem = bootstrapKubeconfig === "" ? undefined : await kubeconfigProblem(kubeconfig, deps);
  const path = problem === undefined ? kubeconfig : bootstrapKubeconfig;
  const spec = await readKubeconfig(path);
  const request = createAccess(spec, deps);
  if (spec.exec === undefined) await request.credentials();
  if (problem === undefined) return { server: withoutUser(spec), request, initial: await pairOf(spec, currentPath) };
  deps.log.info({ kubeconfig, why: problem, bootstrapKubeconfig }, "writing the kubeconfig anew");
  await writeNodeKubeconfig(kubeconfig, spec, currentPath);
  return { server: { ...withoutUser(spec), origin: kubeconfig }, request, initial: undefined };
}

/** Why a kubeconfig is of no use now, for people; undefined if it is: it loads, and its client certificate is valid. */
export async function kubeconfigProblem(path: string, deps: KubeDeps): Promise<string | undefined> {
  try {
    const spec = await readKubeconfig(path);
    if (spec.exec !== undefined) return undefined;
    const { cert } = (await createAccess(spec, deps).credentials()).tls;
    if (cert === undefined) return undefined;
    const nowMs = deps.clock.now();
    for (const { validFromDate, validToDate } of parseCertificates(cert.toString("latin1"))) {
      if (validToDate.getTime() <= nowMs) return `its client certificate expired at ${validToDate.toISOString()}`;
      if (validFromDate.getTime() > nowMs) return `its client certificate begins at ${validFromDate.toISOString()}`;
    }
    return undefined;
  } catch (err) {
    return messageOf(err);
  }
}

/**
 * Writes a kubeconfig for the node: the server of `spec`, and the certificate that `currentPath` links to. Names in it
 * are those that the reference writes. Rejects with the system's error.
 */
export async function writeNodeKubeconfig(path: string, spec: AccessSpec, currentPath: string): Promise<void> {
  const { stringify } = await import("yaml");
  const { server, ca, serverName, insecureSkipVerify } = spec;
  const cluster = {
    ...authority(ca),
    ...(insecureSkipVerify ? { "insecure-skip-tls-verify": true } : {}),
    server,
    ...(serverName === undefined ? {} : { "tls-server-name": serverName }),
  };
  const certificate = resolve(currentPath);
  const document = {
    apiVersion: "v1",
    clusters: [{ cluster, name: "default-cluster" }],
    contexts: [
      { context: { cluster: "default-cluster", namespace: "default", user: "default-auth" }, name: "default-context" },
    ],
    "current-context": "default-context",
    kind: "Config",
    users: [{ name: "default-auth", user: { "client-certificate": certificate, "client-key": certificate } }],
  };
  try {
    await mkdir(dirname(path), { recursive: true, mode: 0o755 });
    await writeFileAtomic(path, stringify(document, { lineWidth: 0 }), 0o600);
  } catch (err) {
    throw new AgentError("Invalid", `${path}: cannot write the kubeconfig: ${messageOf(err)}`, { cause: err });
  }
}

function authority(ca: Source | undefined): Record<string, string> {
  if (ca === undefined) return {};
  return "file" in ca
    ? { "certificate-authority": ca.file }
    : { "certificate-authority-data": ca.data.toString("base64") };
}

/** What is left of a kubeconfig when nobody in particular uses it. */
function withoutUser({ server, origin, namespace, insecureSkipVerify, serverName, ca }: AccessSpec): AccessSpec {
  return {
    server,
    origin,
    insecureSkipVerify,
    impersonate: {},
    ...(namespace === undefined ? {} : { namespace }),
    ...(serverName === undefined ? {} : { serverName }),
    ...(ca === undefined ? {} : { ca }),
  };
}

/** The certificate that a kubeconfig brings along, if it is not the store's. */
async function pairOf({ cert, key, origin }: AccessSpec, currentPath: string): Promise<CertificatePair | undefined> {
  if (cert === undefined || key === undefined) return undefined;
  if ("file" in cert && cert.file === currentPath) return undefined;
  const text = async (source: Source) =>
    "data" in source ? source.data.toString("latin1") : await readFile(source.file, "latin1");
  try {
    return parsePair(await text(cert), await text(key));
  } catch (err) {
    throw new AgentError("Invalid", `${origin}: its client certificate is unusable: ${messageOf(err)}`, { cause: err });
  }
}
