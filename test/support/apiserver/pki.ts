import {
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  sign,
  verify,
} from "node:crypto";
import { isIPv4 } from "node:net";
import { der, fromPem, readDer, readOid, toPem } from "./der.ts";

/** PEM texts of a certificate and its key. */
export interface KeyPair {
  readonly certificate: string;
  readonly key: string;
}

export interface CertificateRequest {
  /** Common name: the user, or the server's name. */
  commonName: string;
  /** Organizations: the user's groups. */
  organizations?: readonly string[];
  usage: "client" | "server" | "ca";
  /** DNS names and addresses of a server. */
  names?: readonly string[];
  /** Default: a year. Negative makes an expired certificate. */
  lifetimeMs?: number;
}

const oid = {
  commonName: "2.5.4.3",
  organization: "2.5.4.10",
  ecdsaWithSha256: "1.2.840.10045.4.3.2",
  keyUsage: "2.5.29.15",
  subjectAltName: "2.5.29.17",
  basicConstraints: "2.5.29.19",
  extendedKeyUsage: "2.5.29.37",
  serverAuth: "1.3.6.1.5.5.7.3.1",
  clientAuth: "1.3.6.1.5.5.7.3.2",
  extensionRequest: "1.2.840.113549.1.9.14",
} as const;

const yearMs = 365 * 24 * 3600 * 1000;
// Certificates begin in the past, as the reference's do, so that clocks that differ a little do not matter.
const backdateMs = 5 * 60 * 1000;

/** A certificate authority that lives in memory. */
export class CertificateAuthority {
  readonly certificate: string;
  readonly key: string;
  readonly #privateKey: KeyObject;
  readonly #name: string;

  constructor(pair: KeyPair, name = "kubernetes") {
    this.certificate = pair.certificate;
    this.key = pair.key;
    this.#privateKey = createPrivateKey(pair.key);
    this.#name = name;
  }

  /** A new authority with a key of its own. */
  static create(name = "kubernetes"): CertificateAuthority {
    const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    const request: CertificateRequest = { commonName: name, usage: "ca", lifetimeMs: 10 * yearMs };
    const certificate = makeCertificate(request, publicKey, { name, key: privateKey });
    return new CertificateAuthority({ certificate, key: privatePem(privateKey) }, name);
  }

  /** A certificate with a new key. */
  issue(request: CertificateRequest): KeyPair {
    const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    return { certificate: this.certify(request, publicKey), key: privatePem(privateKey) };
  }

  /** A certificate for someone else's public key. */
  certify(request: CertificateRequest, publicKey: KeyObject): string {
    return makeCertificate(request, publicKey, { name: this.#name, key: this.#privateKey });
  }
}

function privatePem(key: KeyObject): string {
  return key.export({ type: "pkcs8", format: "pem" }).toString();
}

function makeCertificate(
  { commonName, organizations = [], usage, names = [], lifetimeMs = yearMs }: CertificateRequest,
  publicKey: KeyObject,
  issuer: { name: string; key: KeyObject },
): string {
  const algorithm = der.sequence(der.oid(oid.ecdsaWithSha256));
  const serial = randomBytes(16);
  serial[0] = (serial[0] ?? 0) & 0x7f || 1;
  const now = Date.now();
  const notAfter = now + lifetimeMs;
  const notBefore = Math.min(now - backdateMs, notAfter - backdateMs);
  const tbs = der.sequence(
    der.tagged(0, der.integer(Buffer.of(2))),
    der.integer(serial),
    algorithm,
    distinguishedName(issuer.name, []),
    der.sequence(der.time(new Date(notBefore)), der.time(new Date(notAfter))),
    distinguishedName(commonName, organizations),
    publicKey.export({ type: "spki", format: "der" }),
    der.tagged(3, der.sequence(...extensions(usage, names))),
  );
  const signature = sign("sha256", tbs, issuer.key);
  return toPem("CERTIFICATE", der.sequence(tbs, algorithm, der.bits(signature)));
}

function distinguishedName(commonName: string, organizations: readonly string[]): Buffer {
  const attribute = (type: string, value: string) => der.set(der.sequence(der.oid(type), der.utf8(value)));
  return der.sequence(
    ...organizations.map((o) => attribute(oid.organization, o)),
    attribute(oid.commonName, commonName),
  );
}

function extensions(usage: CertificateRequest["usage"], names: readonly string[]): Buffer[] {
  const critical = der.boolean(true);
  if (usage === "ca") {
    return [
      der.sequence(der.oid(oid.basicConstraints), critical, der.octets(der.sequence(der.boolean(true)))),
      // digitalSignature, keyCertSign, cRLSign
      der.sequence(der.oid(oid.keyUsage), critical, der.octets(der.bits(Buffer.of(0b1000_0110), 1))),
    ];
  }
  const purpose = der.sequence(der.oid(usage === "client" ? oid.clientAuth : oid.serverAuth));
  const list = [
    der.sequence(der.oid(oid.keyUsage), critical, der.octets(der.bits(Buffer.of(0b1000_0000), 7))),
    der.sequence(der.oid(oid.extendedKeyUsage), der.octets(purpose)),
  ];
  if (names.length > 0) {
    const alternatives = names.map((name) => {
      const address = addressBytes(name);
      return address === undefined ? der.implicit(2, Buffer.from(name)) : der.implicit(7, address);
    });
    list.push(der.sequence(der.oid(oid.subjectAltName), der.octets(der.sequence(...alternatives))));
  }
  return list;
}

function addressBytes(name: string): Buffer | undefined {
  if (isIPv4(name)) return Buffer.from(name.split(".").map(Number));
  if (!name.includes(":")) return undefined;
  const [head = "", tail] = name.split("::");
  const groups = (text: string | undefined) => (text === undefined || text === "" ? [] : text.split(":"));
  const before = groups(head);
  const after = groups(tail);
  const zeros = tail === undefined ? [] : new Array<string>(8 - before.length - after.length).fill("0");
  const values = [...before, ...zeros, ...after].map((group) => Number.parseInt(group, 16));
  return Buffer.from(values.flatMap((value) => [value >> 8, value & 0xff]));
}

/** What a PKCS#10 request asks for. */
export interface ParsedSigningRequest {
  readonly commonName: string;
  readonly organizations: readonly string[];
  /** DNS names and addresses. */
  readonly names: readonly string[];
  readonly publicKey: KeyObject;
}

/** Reads a PEM certificate request and checks its signature. Throws an Error that says what is wrong. */
export function parseSigningRequest(pem: string): ParsedSigningRequest {
  const [request] = readDer(fromPem("CERTIFICATE REQUEST", pem));
  const [info, , signature] = readDer(request?.content ?? Buffer.alloc(0));
  if (info === undefined || signature === undefined) throw new Error("not a certificate request");
  const [, subject, spki, ...attributes] = readDer(info.content);
  if (subject === undefined || spki === undefined) throw new Error("certificate request without subject or key");
  const publicKey = createPublicKey({ key: spki.raw, type: "spki", format: "der" });
  const digest = publicKey.asymmetricKeyType === "ed25519" ? null : "sha256";
  if (!verify(digest, info.raw, publicKey, signature.content.subarray(1))) {
    throw new Error("the certificate request's signature does not fit its key");
  }
  const values = new Map<string, string[]>();
  for (const set of readDer(subject.content)) {
    for (const pair of readDer(set.content)) {
      const [type, value] = readDer(pair.content);
      const name = readOid(type?.content ?? Buffer.alloc(0));
      values.set(name, [...(values.get(name) ?? []), value?.content.toString("utf8") ?? ""]);
    }
  }
  return {
    commonName: values.get(oid.commonName)?.[0] ?? "",
    organizations: values.get(oid.organization) ?? [],
    names: attributes.flatMap((attribute) => readDer(attribute.content)).flatMap((a) => requestedNames(a.content)),
    publicKey,
  };
}

function requestedNames(attribute: Buffer): string[] {
  const [type, values] = readDer(attribute);
  if (type === undefined || values === undefined || readOid(type.content) !== oid.extensionRequest) return [];
  const names: string[] = [];
  for (const list of readDer(values.content)) {
    for (const extension of readDer(list.content)) {
      const parts = readDer(extension.content);
      if (readOid(parts[0]?.content ?? Buffer.alloc(0)) !== oid.subjectAltName) continue;
      const [sequence] = readDer(parts.at(-1)?.content ?? Buffer.alloc(0));
      for (const name of readDer(sequence?.content ?? Buffer.alloc(0))) {
        if (name.tag === 0x82) {
          names.push(name.content.toString("ascii"));
        } else if (name.tag === 0x87) {
          names.push(addressText(name.content));
        }
      }
    }
  }
  return names;
}

function addressText(bytes: Buffer): string {
  if (bytes.length === 4) return bytes.join(".");
  return Array.from({ length: 8 }, (_, i) => bytes.readUInt16BE(i * 2).toString(16)).join(":");
}
