import { createPrivateKey, X509Certificate } from "node:crypto";
import { createSecureContext } from "node:tls";
import type { Clock } from "../../lib/clock.ts";
import type { Logger } from "../../lib/log.ts";
import type { ServingCertificate } from "../port.ts";
import { loadReloaded } from "./reloaded.ts";

/** A serving certificate that follows its files while `run` runs. */
export interface FileCertificate extends ServingCertificate {
  /** Follows the files until `signal` aborts; then resolves. Never rejects. Call it once. */
  run(signal: AbortSignal): Promise<void>;
}

/**
 * Serves with `tlsCertFile` and `tlsPrivateKeyFile`. Rejects with AgentError Invalid if they are no pair. Later, a pair
 * that does not fit together, as while only one of the files was replaced, is a warning, and the last good one stays.
 */
export async function certificateFromFiles(
  certFile: string,
  keyFile: string,
  options: {
    /** Feature gate ReloadKubeletServerCertificateFile. */
    reload: boolean;
    clock: Clock;
    log: Logger;
  },
): Promise<FileCertificate> {
  return loadReloaded({ ...options, what: "tlsCertFile", files: [certFile, keyFile], read: readPair });
}

function readPair([cert = Buffer.alloc(0), key = Buffer.alloc(0)]: readonly Buffer[]): { cert: Buffer; key: Buffer } {
  const leaf = parsed("the certificate", () => new X509Certificate(cert));
  const privateKey = parsed("the private key", () => createPrivateKey(key));
  if (!leaf.checkPrivateKey(privateKey)) throw new Error("the private key does not belong to the certificate");
  createSecureContext({ cert, key }); // whatever else TLS could refuse, as a key that is too short
  return { cert, key };
}

function parsed<T>(what: string, parse: () => T): T {
  try {
    return parse();
  } catch (err) {
    // The library's codes tell what is wrong (`no start line`); its messages never hold the content.
    throw new Error(`${what} cannot be read as PEM`, { cause: err });
  }
}
