import { constants } from "node:crypto";
import type { SecureContextOptions } from "node:tls";
import { withoutHandshakeVerdict } from "./auth/handshake.ts";
import type { ServingCertificate } from "./port.ts";

/** PEM certificates of the authorities that client certificates may come from. */
export interface ClientCA {
  current(): Buffer | undefined;
  /** Calls `listener` after the bundle changed. @returns ends it */
  subscribe(listener: () => void): () => void;
}

export interface KubeletTls {
  /** Versions, ciphers and curves, as configured. */
  readonly options: Pick<SecureContextOptions, "minVersion" | "maxVersion" | "ciphers" | "ecdhCurve">;
  /** With it, clients are asked for a certificate; whether it is good is the authenticator's to say. */
  readonly clientCA?: ClientCA;
  readonly certificate: ServingCertificate;
}

/**
 * The TLS context for new connections. Without a certificate, handshakes fail.
 *
 * Sessions are never resumed: a resumed one would carry the client certificate of an earlier handshake without its
 * chain, which the authenticator could not verify against the present authorities. Tickets are switched off for that;
 * session IDs need a store that we do not offer. It costs a returning client a full handshake, about a millisecond.
 * Renegotiation is off, as in the reference: it only helps to keep a server busy.
 */
export function secureContextOptions({ options, clientCA, certificate }: KubeletTls): SecureContextOptions {
  const ca = clientCA?.current();
  return {
    ...options,
    ...certificate.current(),
    ...(ca === undefined ? {} : { ca, ...withoutHandshakeVerdict }),
    secureOptions: constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION,
  };
}
