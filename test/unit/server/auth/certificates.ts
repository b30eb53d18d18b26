import {
  createHash,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  sign,
  X509Certificate,
} from "node:crypto";
import { type Certificate, readCertificate } from "../../../../agent/server/auth/certificate.ts";
import { der, toPem } from "../../../support/apiserver/der.ts";

export const oid = {
  commonName: "2.5.4.3",
  organization: "2.5.4.10",
  uid: "1.3.6.1.4.1.57683.2",
  clientAuth: "1.3.6.1.5.5.7.3.2",
  serverAuth: "1.3.6.1.5.5.7.3.1",
  anyPurpose: "2.5.29.37.0",
} as const;

/** One relative name: attributes by OID and encoded value; more than one makes it multi-valued. */
export type RelativeName = readonly (readonly [type: string, value: Buffer])[];

/** A certificate and the key that belongs to it. */
export interface Issued {
  readonly certificate: Certificate;
  readonly pem: string;
  readonly key: KeyObject;
  readonly keyPem: string;
  readonly subject: Buffer;
}

export interface IssueOptions {
  /** Signs; absent: the certificate itself. */
  issuer?: Issued;
  /** What it says about its issuer, if that is a lie. */
  issuerName?: Buffer;
  subject?: Buffer;
  key?: KeyObject;
  notBeforeMs?: number;
  notAfterMs?: number;
  extensions?: readonly Buffer[];
  algorithm?: "sha256" | "sha1" | "ed25519";
  version1?: boolean;
}

export const dayMs = 24 * 3600 * 1000;
/** The FakeClock's beginning. */
export const startMs = Date.UTC(2026, 0, 1);

/** A name of relative names with one UTF-8 attribute each. */
export function name(...attributes: (readonly [type: string, text: string])[]): Buffer {
  return rdns(...attributes.map(([type, text]) => [[type, der.utf8(text)]] as const));
}

/** A name of any relative names. */
export function rdns(...names: readonly RelativeName[]): Buffer {
  return der.sequence(
    ...names.map((attributes) => der.set(...attributes.map(([type, value]) => der.sequence(der.oid(type), value)))),
  );
}

export const cn = (text: string): Buffer => name([oid.commonName, text]);

const extension = (type: string, value: Buffer, isCritical = false): Buffer =>
  der.sequence(der.oid(type), ...(isCritical ? [der.boolean(true)] : []), der.octets(value));

/** Extensions by what they say. */
export const ext = {
  authority: (pathLength?: number) =>
    extension(
      "2.5.29.19",
      der.sequence(der.boolean(true), ...(pathLength === undefined ? [] : [der.integer(Buffer.of(pathLength))])),
      true,
    ),
  noAuthority: () => extension("2.5.29.19", der.sequence(), true),
  /** keyCertSign and cRLSign, or digitalSignature alone. */
  keyUsage: (signs: boolean) => extension("2.5.29.15", der.bits(Buffer.of(signs ? 0b0000_0110 : 0b1000_0000), 1), true),
  purposes: (...purposes: string[]) => extension("2.5.29.37", der.sequence(...purposes.map((p) => der.oid(p)))),
  dnsNames: (...names: string[]) =>
    extension("2.5.29.17", der.sequence(...names.map((n) => der.implicit(2, Buffer.from(n))))),
  ips: (...ips: number[][]) =>
    extension("2.5.29.17", der.sequence(...ips.map((ip) => der.implicit(7, Buffer.from(ip))))),
  emails: (...names: string[]) =>
    extension("2.5.29.17", der.sequence(...names.map((n) => der.implicit(1, Buffer.from(n))))),
  /** General names, encoded, that are permitted or excluded. */
  nameConstraints: (
    { permitted = [], excluded = [] }: { permitted?: Buffer[]; excluded?: Buffer[] },
    isCritical = true,
  ) =>
    extension(
      "2.5.29.30",
      der.sequence(
        ...(permitted.length === 0 ? [] : [der.tagged(0, Buffer.concat(permitted.map((n) => der.sequence(n))))]),
        ...(excluded.length === 0 ? [] : [der.tagged(1, Buffer.concat(excluded.map((n) => der.sequence(n))))]),
      ),
      isCritical,
    ),
  unknown: (isCritical: boolean) => extension("1.2.3.4", der.utf8("?"), isCritical),
};

/** General names for name constraints. */
export const general = {
  dns: (text: string) => der.implicit(2, Buffer.from(text)),
  ip: (...bytes: number[]) => der.implicit(7, Buffer.from(bytes)),
  email: (text: string) => der.implicit(1, Buffer.from(text)),
  directory: (subject: Buffer) => der.tagged(4, subject),
};

const algorithms = { sha256: "1.2.840.10045.4.3.2", sha1: "1.2.840.10045.4.1", ed25519: "1.3.101.112" };

/** Makes any certificate, also such as no authority would. Its default is a leaf for "someone", valid for a day. */
export function issue(options: IssueOptions = {}): Issued {
  const { algorithm = "sha256", subject = cn("someone"), extensions = [], version1 = false } = options;
  const key = options.key ?? newKey(algorithm === "ed25519" && options.issuer === undefined ? "ed25519" : "ec");
  const signer = options.issuer?.key ?? key;
  const { notBeforeMs = startMs - dayMs, notAfterMs = startMs + dayMs } = options;
  const serial = randomBytes(8);
  serial[0] = 1;
  const identifier = der.sequence(der.oid(algorithms[algorithm]));
  const tbs = der.sequence(
    ...(version1 ? [] : [der.tagged(0, der.integer(Buffer.of(2)))]),
    der.integer(serial),
    identifier,
    options.issuerName ?? options.issuer?.subject ?? subject,
    der.sequence(der.time(new Date(notBeforeMs)), der.time(new Date(notAfterMs))),
    subject,
    createPublicKey(key).export({ type: "spki", format: "der" }),
    ...(extensions.length === 0 ? [] : [der.tagged(3, der.sequence(...extensions))]),
  );
  const signature = sign(algorithm === "ed25519" ? null : algorithm, tbs, signer);
  const encoded = der.sequence(tbs, identifier, der.bits(signature));
  return {
    certificate: readCertificate(new X509Certificate(encoded)),
    pem: toPem("CERTIFICATE", encoded),
    key,
    keyPem: key.export({ type: "pkcs8", format: "pem" }).toString(),
    subject,
  };
}

/** A root, or an intermediate with `issuer`. */
export function issueAuthority(text: string, options: IssueOptions & { pathLength?: number } = {}): Issued {
  const { pathLength, extensions = [], ...rest } = options;
  return issue({
    subject: cn(text),
    notAfterMs: startMs + 10 * dayMs,
    ...rest,
    extensions: [ext.authority(pathLength), ext.keyUsage(true), ...extensions],
  });
}

/** A client certificate as they usually are. */
export function issueClient(issuer: Issued, options: IssueOptions = {}): Issued {
  const { extensions = [], ...rest } = options;
  return issue({ issuer, ...rest, extensions: [ext.purposes(oid.clientAuth), ...extensions] });
}

export function sha256(data: Buffer): string {
  return createHash("sha256").update(data).digest("hex");
}

function newKey(type: "ec" | "ed25519"): KeyObject {
  return type === "ec"
    ? generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey
    : generateKeyPairSync("ed25519").privateKey;
}
