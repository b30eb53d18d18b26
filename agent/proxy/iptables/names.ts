import { hash } from "node:crypto";
import type { Protocol } from "../service.ts";

// RFC 4648 base32, without padding.
const base32Alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const suffixLength = 16;

/** The kernel's limit: XT_EXTENSION_MAXNAMELEN less the final NUL. */
export const chainNameLengthMax = 28;

/**
 * Prefixes of the chains that belong to one service, and of the dispatch tree's inner chains. They are kube-proxy's,
 * so that either program finds and removes what the other left behind.
 */
export const servicePrefixes = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"] as const;

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
  const digest = hash("sha256", text, "buffer");
  let out = "";
  let buffered = 0;
  let bits = 0;
  for (let i = 0; out.length < suffixLength; i++) {
    buffered = ((buffered << 8) | (digest[i] ?? 0)) & 0xfff;
    bits += 8;
    while (bits >= 5 && out.length < suffixLength) {
      bits -= 5;
      out += base32Alphabet[(buffered >> bits) & 31] ?? "";
    }
  }
  return out;
}
