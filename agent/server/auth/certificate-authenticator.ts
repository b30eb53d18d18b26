import type { X509Certificate } from "node:crypto";
import type { TLSSocket } from "node:tls";
import type { Clock } from "../../lib/clock.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import type { MetricsRegistry } from "../../lib/metrics.ts";
import type { UserInfo } from "../port.ts";
import { type Certificate, readCertificate } from "./certificate.ts";
import { certificateUser } from "./certificate-user.ts";
import { type ChainVerdict, intermediatesMax, verifyClient } from "./chain.ts";
import type { ClientCA } from "./client-ca.ts";

// Seconds, as the reference's histogram has them: from expired over minutes and days to a year.
const expirationBuckets = [
  0, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 345600, 604800, 2592000, 7776000, 15552000, 31104000,
];

export interface CertificateAuthenticatorOptions {
  readonly clientCA: Pick<ClientCA, "roots">;
  /** Feature gate AllowParsingUserUIDFromCertAuth. */
  readonly readsUID: boolean;
  readonly clock: Clock;
  readonly metrics: MetricsRegistry;
}

/** What is known about the client of one connection. */
interface Peer {
  readonly leaf: Certificate;
  readonly intermediates: readonly Certificate[];
  /** With the authorities it was found for: others ask for another look. */
  verdict?: {
    readonly roots: readonly Certificate[];
    readonly chain: readonly Certificate[];
    user: UserInfo | undefined;
  };
}

/**
 * Makes the check of client certificates: it resolves with the user, with undefined if the client sent no certificate or
 * one without a name, and rejects with AgentError Unauthorized if its certificate does not count now, by the authorities
 * of now. The handshake verifies nothing (see `withoutHandshakeVerdict`), so that this is the only place that does.
 */
export function createCertificateAuthenticator(
  options: CertificateAuthenticatorOptions,
): (socket: TLSSocket) => Promise<UserInfo | undefined> {
  const { clientCA, readsUID, clock, metrics } = options;
  const expirations = metrics.histogram(
    "apiserver_client_certificate_expiration_seconds",
    "Time that was left to client certificates when they were presented, in seconds",
    expirationBuckets,
  );
  const peers = new WeakMap<TLSSocket, Peer>();

  const peerOf = (socket: TLSSocket): Peer | undefined => {
    const known = peers.get(socket);
    if (known !== undefined) return known;
    const sent = socket.getPeerX509Certificate();
    if (sent === undefined) return undefined;
    const peer = { leaf: readCertificate(sent), intermediates: readIntermediates(sent) };
    peers.set(socket, peer);
    return peer;
  };

  return async (socket) => {
    let peer: Peer | undefined;
    try {
      peer = peerOf(socket);
    } catch (err) {
      throw new AgentError("Unauthorized", `the client certificate cannot be read: ${messageOf(err)}`, { cause: err });
    }
    if (peer === undefined) return undefined;
    const nowMs = clock.now();
    expirations.observe({}, (peer.leaf.notAfterMs - nowMs) / 1000);
    const roots = clientCA.roots();
    const { verdict } = peer;
    if (verdict !== undefined && verdict.roots === roots && isCurrent(verdict.chain, nowMs)) return verdict.user;
    delete peer.verdict;
    const found: ChainVerdict = verifyClient(peer.leaf, peer.intermediates, roots, nowMs);
    if ("error" in found) throw new AgentError("Unauthorized", found.error);
    const user = userOf(peer.leaf, readsUID);
    peer.verdict = { roots, chain: found.chain, user };
    return user;
  };
}

function userOf(leaf: Certificate, readsUID: boolean): UserInfo | undefined {
  try {
    return certificateUser(leaf, readsUID);
  } catch (err) {
    throw new AgentError("Unauthorized", messageOf(err), { cause: err });
  }
}

function isCurrent(chain: readonly Certificate[], nowMs: number): boolean {
  return chain.every(({ notBeforeMs, notAfterMs }) => nowMs >= notBeforeMs && nowMs <= notAfterMs);
}

/** What the client sent behind its own certificate, in that order. What cannot be read is left out: it helps nobody. */
function readIntermediates(leaf: X509Certificate): Certificate[] {
  const found: Certificate[] = [];
  let next = leaf.issuerCertificate;
  for (let i = 0; i < intermediatesMax && next !== undefined; i += 1, next = next.issuerCertificate) {
    try {
      found.push(readCertificate(next));
    } catch {
      // Not a certificate as we know them.
    }
  }
  return found;
}
