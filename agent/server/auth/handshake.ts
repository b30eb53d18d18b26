import type { SecureContextOptions } from "node:tls";

/**
 * For the TLS context of a server that has a client CA: keeps the handshake from a verdict about client certificates.
 * `socket.authorized` is then always false, and clients still learn which authorities count.
 *
 * Node.js shows what a client sent behind its certificate only once, and when a handshake could verify the chain, it has
 * looked itself already: intermediate certificates would be lost, and with them every client that needs some. A list of
 * revoked certificates prevents it, because one authority's list makes OpenSSL ask for a list of each. This one is of an
 * authority that no longer exists, revokes nothing, and says so until 2126.
 */
export const withoutHandshakeVerdict: Pick<SecureContextOptions, "crl"> = {
  crl: `-----BEGIN X509 CRL-----
MIGXMD8wCgYIKoZIzj0EAwIwETEPMA0GA1UEAwwGbm9ib2R5Fw0yNjExMjExNDU4
MjNaGA8yMTI2MTAyODE0NTgyM1owCgYIKoZIzj0EAwIDSAAwRQIgVhxYzBFJvojl
fGOgsEgB+CorvW+4YZso4K8QCSfLfwkCIQC3unHLnTN0UoIRwgrzU1aiXQVsapA+
hUmJaHYXX7GlVw==
-----END X509 CRL-----
`,
};
