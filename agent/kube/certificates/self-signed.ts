import { mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { writeFileAtomic } from "../../lib/atomic-file.ts";
import { ignoreErrno } from "../../lib/errno.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import type { KubeDeps } from "../port.ts";
import { type CertificatePair, parsePair } from "./pair.ts";
import { buildCertificate, createKey, keyPem } from "./x509.ts";

export interface SelfSignedOptions {
  /** --cert-dir. Made if it is missing. */
  certDir: string;
  /** The node's host name: the certificate's name. */
  hostname: string;
  /** More addresses that clients may use. */
  ips?: readonly string[];
}

// The reference's: a year, and an hour of grace for clocks that are behind.
export const selfSignedLifetimeMs = 365 * 24 * 3_600_000;
export const selfSignedBackdateMs = 3_600_000;

/**
 * Sees to the serving certificate of a node for which nobody signs one: `kubelet.crt` and `kubelet.key` in the certificate
 * directory. They are made if one of them is missing, and then reused for ever, also expired: who trusts this very
 * certificate would not trust another one. `kubelet.crt` ends in the authority that signed it, whose key is thrown away.
 * Rejects with Invalid for files that are no pair: somebody else has put them there, and the key may be the only copy.
 *
 * @returns the paths of the pair
 */
export async function ensureSelfSigned(
  { certDir, hostname, ips = [] }: SelfSignedOptions,
  { clock, log }: KubeDeps,
): Promise<{ cert: string; key: string }> {
  const paths = { cert: join(certDir, "kubelet.crt"), key: join(certDir, "kubelet.key") };
  const found = await readPair(paths);
  if (found !== undefined) {
    const expiredAt = new Date(found.notAfterMs).toISOString();
    if (found.notAfterMs < clock.now()) {
      log.warn({ path: paths.cert, expiredAt }, "the serving certificate has expired; remove both files for a new one");
    }
    return paths;
  }
  const made = await makePair(hostname, ips, clock.now());
  await mkdir(certDir, { recursive: true, mode: 0o755 });
  // The key first: after a crash between the two the certificate is missing, and both are made again.
  await rm(paths.cert, { force: true });
  await writeFileAtomic(paths.key, made.key, 0o600);
  await writeFileAtomic(paths.cert, made.cert, 0o644);
  log.info({ path: paths.cert, hostname }, "made a self-signed serving certificate");
  return paths;
}

async function readPair(paths: { cert: string; key: string }): Promise<CertificatePair | undefined> {
  const read = (path: string) => readFile(path, "utf8").catch(ignoreErrno("ENOENT", "ENOTDIR"));
  const [cert, key] = await Promise.all([read(paths.cert), read(paths.key)]);
  if (cert === undefined || key === undefined) return undefined;
  try {
    return parsePair(cert, key);
  } catch (err) {
    const message = `${paths.cert} and ${paths.key} cannot be served with: ${messageOf(err)}; remove both for a new pair`;
    throw new AgentError("Invalid", message, { cause: err });
  }
}

async function makePair(hostname: string, ips: readonly string[], nowMs: number): Promise<CertificatePair> {
  const [authority, server] = await Promise.all([createKey(), createKey()]);
  const stamp = Math.floor(nowMs / 1_000);
  const nameless = { organizations: [], dnsNames: [], ips: [] };
  const authorityTemplate = { ...nameless, commonName: `${hostname}-ca@${stamp}` };
  const issuer = { name: authorityTemplate, key: authority.privateKey };
  const validity = { notBeforeMs: nowMs - selfSignedBackdateMs, notAfterMs: nowMs + selfSignedLifetimeMs };
  const authorityPem = buildCertificate({
    ...validity,
    template: authorityTemplate,
    publicKey: authority.publicKey,
    issuer,
    isAuthority: true,
  });
  const serverPem = buildCertificate({
    ...validity,
    template: { ...nameless, commonName: `${hostname}@${stamp}`, dnsNames: [hostname], ips },
    publicKey: server.publicKey,
    issuer,
    isAuthority: false,
  });
  return parsePair(serverPem + authorityPem, keyPem(server.privateKey));
}
