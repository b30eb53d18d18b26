import { createHash, createPrivateKey, createPublicKey } from "node:crypto";
import { mkdir, readFile, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { writeFileAtomic } from "../../lib/atomic-file.ts";
import { ignoreErrno } from "../../lib/errno.ts";
import { hasCode, messageOf } from "../../lib/errors.ts";
import { createAccess } from "../access.ts";
import { ApiError } from "../api-error.ts";
import { createApiClient } from "../client.ts";
import { readKubeconfig } from "../kubeconfig.ts";
import type { ApiClient, KubeDeps } from "../port.ts";
import { kubeconfigProblem, writeNodeKubeconfig } from "./bootstrap.ts";
import { clientSigner, clientStore, clientTemplate, openSigningApi } from "./client.ts";
import type { CertificatePair } from "./pair.ts";
import { awaitCertificate, checkIssued, sendSigningRequest } from "./signing.ts";
import { buildSigningRequest, type CertificateTemplate, createKey, keyPem, type NewKey } from "./x509.ts";

export interface BootstrapOptions {
  kubeconfig: string;
  bootstrapKubeconfig: string;
  /** --cert-dir */
  certDir: string;
  nodeName: string;
  userAgent: string;
}

// The reference's: the API server gets a minute to be healthy, asked every 2 s, and then an hour to sign.
export const healthyTimeoutMs = 60_000;
export const healthyPauseMs = 2_000;
export const healthyCallTimeoutMs = 1_000;
export const bootstrapTimeoutMs = 3_600_000;

/**
 * Gets a node that does not rotate its certificate one by the bootstrap kubeconfig, and writes the kubeconfig that uses
 * it. Nothing is done if the kubeconfig is of use already. The key and the request survive a kill, so that a new start
 * waits for the same request. Rejects with Invalid, Forbidden (denied) or DeadlineExceeded.
 */
export async function bootstrapOnce(options: BootstrapOptions, deps: KubeDeps, signal: AbortSignal): Promise<void> {
  const { kubeconfig, bootstrapKubeconfig, certDir, nodeName, userAgent } = options;
  const { clock, log } = deps;
  const store = clientStore(certDir, deps);
  await store.recover();
  const problem = await kubeconfigProblem(kubeconfig, deps);
  if (problem === undefined) return;
  log.info({ kubeconfig, why: problem, bootstrapKubeconfig }, "requesting a client certificate");
  const spec = await readKubeconfig(bootstrapKubeconfig);
  const access = createAccess(spec, deps);
  if (spec.exec === undefined) await access.credentials();
  const keyPath = join(certDir, "kubelet-client.key.tmp");
  const key = await keptKey(keyPath, deps);

  await using health = createApiClient({ ...deps, access, userAgent, qps: -1, burst: 0 });
  await untilHealthy(health, deps, signal);
  await using api = openSigningApi(access, userAgent, deps);
  const template = clientTemplate(nodeName);
  const order = { ...clientSigner, request: buildSigningRequest(template, key), name: requestName(key, template) };
  const sent = await sendSigningRequest(api, order, signal);
  log.info({ request: sent.name }, "waiting for the certificate to be approved and signed");
  let pair: CertificatePair;
  try {
    const pem = await awaitCertificate(api, sent, { clock, signal, timeoutMs: bootstrapTimeoutMs });
    pair = checkIssued(pem, keyPem(key.privateKey), { request: sent.name, nowMs: clock.now() });
  } catch (err) {
    // Denied, gone, or signed badly: the same request again would have the same end.
    if (hasCode(err, "Forbidden", "NotFound", "Invalid")) await removeKey(keyPath);
    throw err;
  }
  await store.save(pair, new Date(clock.now()));
  await writeNodeKubeconfig(kubeconfig, spec, store.currentPath);
  await removeKey(keyPath);
  log.info({ kubeconfig, notAfter: new Date(pair.notAfterMs).toISOString() }, "a client certificate was issued");
}

/** The name under which a request with this key is found again: any two different requests have different names. */
export function requestName(
  key: Pick<NewKey, "publicKey">,
  { commonName, organizations }: CertificateTemplate,
): string {
  const hash = createHash("sha512-256");
  const spki = key.publicKey.export({ type: "spki", format: "der" });
  for (const part of [spki, commonName, ...organizations, ...clientSigner.usages]) {
    // The separator is no letter of base64url, so that parts cannot run into each other.
    hash.update(`${Buffer.from(part).toString("base64url")}|`);
  }
  return `node-csr-${hash.digest("base64url")}`;
}

async function keptKey(path: string, { log }: KubeDeps): Promise<NewKey> {
  const text = await readFile(path, "utf8").catch(ignoreErrno("ENOENT"));
  if (text !== undefined) {
    try {
      const privateKey = createPrivateKey(text);
      return { privateKey, publicKey: createPublicKey(privateKey) };
    } catch {
      log.warn({ path }, "the key of an earlier certificate request is unusable, making a new one");
    }
  }
  const key = await createKey();
  await mkdir(dirname(path), { recursive: true, mode: 0o755 });
  await writeFileAtomic(path, keyPem(key.privateKey), 0o600);
  return key;
}

async function removeKey(path: string): Promise<void> {
  await rm(path, { force: true });
}

/** Waits until the API server says that it is well, but goes on after a while: the request then says what is wrong. */
async function untilHealthy(
  client: Pick<ApiClient, "request">,
  { clock, log }: KubeDeps,
  signal: AbortSignal,
): Promise<void> {
  const endMs = clock.monotonic() + healthyTimeoutMs;
  for (;;) {
    try {
      await client.request("GET", "/healthz", undefined, { signal, timeoutMs: healthyCallTimeoutMs });
      return;
    } catch (err) {
      if (signal.aborted) throw err;
      // It answers "ok", which is no JSON; or that we may not ask, which will do as well.
      if (err instanceof ApiError ? err.status < 500 : hasCode(err, "Internal")) return;
      if (clock.monotonic() >= endMs) {
        log.warn({ err: messageOf(err) }, "the API server is not healthy, requesting a certificate nevertheless");
        return;
      }
      await clock.sleep(healthyPauseMs, signal);
    }
  }
}
