import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { writeFileAtomic } from "../../lib/atomic-file.ts";
import { ignoreErrno } from "../../lib/errno.ts";
import { messageOf } from "../../lib/errors.ts";
import type { KubeDeps } from "../port.ts";
import { type CertificatePair, parsePair } from "./pair.ts";
import type { FixedCertificate } from "./port.ts";
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
 * The serving certificate of a node for which nobody signs one: `kubelet.crt` and `kubelet.key` in the certificate
 * directory. They are made if they are missing or unusable, and then reused for ever, also expired: who trusts this
 * very certificate would not trust another one. `kubelet.crt` ends in the authority that signed it, whose key is thrown
 * away. Rejects if the directory cannot be written.
 */
export async function selfSignedServingCertificate(
  { certDir, hostname, ips = [] }: SelfSignedOptions,
  { clock, log }: KubeDeps,
): Promise<FixedCertificate> {
  const paths = { cert: join(certDir, "kubelet.crt"), key: join(certDir, "kubelet.key") };
  const found = await readPair(paths, log);
  if (found !== undefined) {
    const expiredAt = new Date(found.notAfterMs).toISOString();
    if (found.notAfterMs < clock.now()) {
      log.warn(
        { path: paths.cert, expiredAt },
        "the self-signed serving certificate has expired; remove it for a new one",
      );
    }
    return fixed(found);
  }
  const made = await makePair(hostname, ips, clock.now());
  await mkdir(certDir, { recursive: true, mode: 0o755 });
  // The key first: after a crash between the two, the pair is incomplete or does not fit, and is made again.
  await writeFileAtomic(paths.key, made.key, 0o600);
  await writeFileAtomic(paths.cert, made.cert, 0o644);
  log.info({ path: paths.cert, hostname }, "made a self-signed serving certificate");
  return fixed(made);
}

async function readPair(
  paths: { cert: string; key: string },
  log: KubeDeps["log"],
): Promise<CertificatePair | undefined> {
  const read = (path: string) => readFile(path, "utf8").catch(ignoreErrno("ENOENT", "ENOTDIR"));
  const [cert, key] = await Promise.all([read(paths.cert), read(paths.key)]);
  if (cert === undefined || key === undefined) return undefined;
  try {
    return parsePair(cert, key);
  } catch (err) {
    log.warn({ path: paths.cert, err: messageOf(err) }, "the serving certificate is unusable, making a new one");
    return undefined;
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

function fixed(pair: CertificatePair): FixedCertificate {
  return { current: () => pair, subscribe: () => () => {} };
}
