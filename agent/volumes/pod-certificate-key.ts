import { generateKeyPair, type KeyObject, sign } from "node:crypto";
import { promisify } from "node:util";
import { der } from "../lib/der.ts";
import { AgentError } from "../lib/errors.ts";

/** A new key for a pod. */
export interface PodKey {
  /** PEM, PKCS#8. Secret. */
  readonly keyPem: string;
  /** DER of a PKCS#10 request that says nothing but the public key, and proves that we have the private one. */
  readonly stubRequest: Buffer;
}

interface KeyType {
  generate(): Promise<{ privateKey: KeyObject; publicKey: KeyObject }>;
  /** Of the request's signature; null: the algorithm has its own. */
  hash: "sha256" | "sha384" | "sha512" | null;
  /** The signature algorithm in DER's terms. */
  algorithm: string;
  /** Algorithms of RSA have parameters, which are NULL. */
  hasNullParameters?: boolean;
}

// Keys are made in a thread of their own: one of RSA takes up to seconds.
const makeKeyPair = promisify(generateKeyPair);
const rsa = (modulusLength: number): KeyType => ({
  generate: async () => await makeKeyPair("rsa", { modulusLength }),
  hash: "sha256",
  algorithm: "1.2.840.113549.1.1.11", // sha256WithRSAEncryption
  hasNullParameters: true,
});
const ecdsa = (namedCurve: string, hash: "sha256" | "sha384" | "sha512", algorithm: string): KeyType => ({
  generate: async () => await makeKeyPair("ec", { namedCurve }),
  hash,
  algorithm,
});

const keyTypes = new Map<string, KeyType>([
  ["RSA3072", rsa(3072)],
  ["RSA4096", rsa(4096)],
  ["ECDSAP256", ecdsa("P-256", "sha256", "1.2.840.10045.4.3.2")],
  ["ECDSAP384", ecdsa("P-384", "sha384", "1.2.840.10045.4.3.3")],
  ["ECDSAP521", ecdsa("P-521", "sha512", "1.2.840.10045.4.3.4")],
  ["ED25519", { generate: async () => await makeKeyPair("ed25519"), hash: null, algorithm: "1.3.101.112" }],
]);

/** Makes a key of a `keyType` of podCertificate sources. Rejects with code Invalid for a type that there is not. */
export async function createPodKey(keyType: string): Promise<PodKey> {
  const type = keyTypes.get(keyType);
  if (type === undefined) {
    throw new AgentError(
      "Invalid",
      `podCertificate: keyType "${keyType}" is none of ${[...keyTypes.keys()].join(", ")}`,
    );
  }
  const { privateKey, publicKey } = await type.generate();
  const info = der.sequence(
    der.integer(Buffer.of(0)), // version 1
    der.sequence(), // no name
    publicKey.export({ type: "spki", format: "der" }),
    der.constructed(0), // no attributes
  );
  const parameters = type.hasNullParameters === true ? [Buffer.of(5, 0)] : [];
  const algorithm = der.sequence(der.objectIdentifier(type.algorithm), ...parameters);
  return {
    keyPem: privateKey.export({ type: "pkcs8", format: "pem" }).toString(),
    stubRequest: der.sequence(info, algorithm, der.bitString(sign(type.hash, info, privateKey))),
  };
}
