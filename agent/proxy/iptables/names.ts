import { base32Hash } from "../hash.ts";
import type { Protocol } from "../service.ts";

const suffixLength = 16;

/** The kernel's limit: XT_EXTENSION_MAXNAMELEN less the final NUL. */
export const chainNameLengthMax = 28;

/**
 * Prefixes of the chains that belong to one service, and of the dispatch tree's inner chains. They are kube-proxy's,
 * so that either program finds and removes what the other left behind.
 */
export const servicePrefixes = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"] as const;

/** Of services' chains before Kubernetes 1.24, in the nat table: all external traffic that stays on its node. */
export const oldServicePrefix = "KUBE-XLB-";

/** The suffix shared by the SVC, SVL, EXT and FW chains of a service port. */
export function portSuffix(servicePortName: string, protocol: Protocol): string {
  return hashSuffix(servicePortName + protocol);
}

/** The chain of one endpoint of a service port. */
export function endpointChain(servicePortName: string, protocol: Protocol, address: string): string {
  return `KUBE-SEP-${hashSuffix(servicePortName + protocol + address)}`;
}

/** First 16 characters of the base32 form of the SHA-256 of `text`: 80 bits. */
export function hashSuffix(text: string): string {
  return base32Hash(text, suffixLength);
}
