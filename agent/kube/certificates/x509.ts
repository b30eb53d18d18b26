import { createHash, createPublicKey, generateKeyPair, type KeyObject, randomBytes, sign } from "node:crypto";
import { promisify } from "node:util";
import { der, ipBytes, toPem } from "../../lib/der.ts";

/** What a certificate shall say about its holder. */
export interface CertificateTemplate {
  readonly commonName: string;
  readonly organizations: readonly string[];
  readonly dnsNames: readonly string[];
  /** IP addresses. */
  readonly ips: readonly string[];
}

/** A new key of the kind that the kubelet uses: ECDSA P-256. */
export interface NewKey {
  readonly privateKey: KeyObject;
  readonly publicKey: KeyObject;
}

const oid = {
  commonName: "2.5.4.3",
  organization: "2.5.4.10",
  subjectKeyIdentifier: "2.5.29.14",
  keyUsage: "2.5.29.15",
  subjectAltName: "2.5.29.17",
  basicConstraints: "2.5.29.19",
  authorityKeyIdentifier: "2.5.29.35",
  extKeyUsage: "2.5.29.37",
  serverAuth: "1.3.6.1.5.5.7.3.1",
  extensionRequest: "1.2.840.113549.1.9.14",
  ecdsaWithSHA256: "1.2.840.10045.4.3.2",
} as const;

// Bits of KeyUsage, the first one on the left.
const digitalSignature = Buffer.of(0b1000_0000);
const digitalSignatureAndCertSign = Buffer.of(0b1000_0100);

const makeKeyPair = promisify(generateKeyPair);

/** Makes a key, in a thread of its own. */
export async function createKey(): Promise<NewKey> {
  return makeKeyPair("ec", { namedCurve: "P-256" });
}

/** PEM of a private key, in the form that Go's tools write: `EC PRIVATE KEY`. Secret. */
export function keyPem(key: KeyObject): string {
  const type = key.asymmetricKeyType === "ec" ? "sec1" : "pkcs8";
  return key.export({ type, format: "pem" }).toString();
}

/** PEM of a PKCS#10 certificate request, signed with the key that it asks to certify (ECDSA). */
export function buildSigningRequest(template: CertificateTemplate, key: NewKey): string {
  const names = alternativeNames(template);
  const wanted = names === undefined ? [] : [der.sequence(names)];
  const attributes = wanted.map((list) => der.sequence(der.objectIdentifier(oid.extensionRequest), der.set(list)));
  const info = der.sequence(
    der.integer(Buffer.of(0)),
    distinguishedName(template),
    key.publicKey.export({ type: "spki", format: "der" }),
    der.constructed(0, ...attributes),
  );
  return toPem("CERTIFICATE REQUEST", signed(info, key.privateKey));
}

/** Who signs a certificate: itself (`issuer.key` is its own), or an authority. */
export interface Issuer {
  readonly name: Pick<CertificateTemplate, "commonName" | "organizations">;
  readonly key: KeyObject;
}

export interface CertificateOptions {
  readonly template: CertificateTemplate;
  readonly publicKey: KeyObject;
  readonly issuer: Issuer;
  /** An authority, or a server. */
  readonly isAuthority: boolean;
  /** Unix ms. */
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
}

/** PEM of a certificate (X.509 v3, ECDSA). */
export function buildCertificate(options: CertificateOptions): string {
  const { template, publicKey, issuer, isAuthority, notBeforeMs, notAfterMs } = options;
  const serial = randomBytes(16);
  serial[0] = (serial[0] ?? 0) & 0x7f; // positive
  const names = alternativeNames(template);
  const extensions = isAuthority
    ? [
        extension(oid.keyUsage, true, der.bitString(digitalSignatureAndCertSign, 2)),
        extension(oid.basicConstraints, true, der.sequence(der.boolean(true))),
        extension(oid.subjectKeyIdentifier, false, der.octetString(keyIdentifier(publicKey))),
      ]
    : [
        extension(oid.keyUsage, true, der.bitString(digitalSignature, 7)),
        extension(oid.extKeyUsage, false, der.sequence(der.objectIdentifier(oid.serverAuth))),
        extension(oid.basicConstraints, true, der.sequence()),
        extension(
          oid.authorityKeyIdentifier,
          false,
          der.sequence(der.primitive(0, keyIdentifier(createPublicKey(issuer.key)))),
        ),
        ...(names === undefined ? [] : [names]),
      ];
  const info = der.sequence(
    der.constructed(0, der.integer(Buffer.of(2))), // version 3
    der.integer(serial),
    der.sequence(der.objectIdentifier(oid.ecdsaWithSHA256)),
    distinguishedName(issuer.name),
    der.sequence(der.time(notBeforeMs), der.time(notAfterMs)),
    distinguishedName(template),
    publicKey.export({ type: "spki", format: "der" }),
    der.constructed(3, der.sequence(...extensions)),
  );
  return toPem("CERTIFICATE", signed(info, issuer.key));
}

function signed(info: Buffer, key: KeyObject): Buffer {
  const algorithm = der.sequence(der.objectIdentifier(oid.ecdsaWithSHA256));
  return der.sequence(info, algorithm, der.bitString(sign("sha256", info, key)));
}

function distinguishedName({ commonName, organizations }: Issuer["name"]): Buffer {
  const attribute = (type: string, value: string) =>
    der.set(der.sequence(der.objectIdentifier(type), der.utf8String(value)));
  return der.sequence(
    ...organizations.map((organization) => attribute(oid.organization, organization)),
    attribute(oid.commonName, commonName),
  );
}

/** Strict verifiers want certificates to name their authority's key. A hash of the key, as RFC 7093 allows. */
function keyIdentifier(key: KeyObject): Buffer {
  const spki = key.export({ type: "spki", format: "der" });
  return createHash("sha256").update(spki).digest().subarray(0, 20);
}

function extension(id: string, isCritical: boolean, value: Buffer): Buffer {
  const critical = isCritical ? [der.boolean(true)] : [];
  return der.sequence(der.objectIdentifier(id), ...critical, der.octetString(value));
}

/** The subjectAltName extension; undefined if there is nothing to say. What is no IP address is left out of `ips`. */
function alternativeNames({ dnsNames, ips }: CertificateTemplate): Buffer | undefined {
  const names = [
    ...dnsNames.map((name) => der.primitive(2, Buffer.from(name, "latin1"))),
    ...ips.flatMap((ip) => ipBytes(ip) ?? []).map((bytes) => der.primitive(7, bytes)),
  ];
  return names.length === 0 ? undefined : extension(oid.subjectAltName, false, der.sequence(...names));
}
