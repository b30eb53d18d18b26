import { X509Certificate } from "node:crypto";
import {
  DerError,
  type DerElement,
  derTag,
  expectTag,
  readBits,
  readBoolean,
  readElement,
  readElements,
  readOid,
  readSmallInteger,
  readText,
} from "../../lib/der-read.ts";
import { messageOf } from "../../lib/errors.ts";
import { type NameConstraints, type SubjectNames, readNameConstraints, readSubjectNames } from "./name-constraints.ts";

/** What the rules of a certificate chain look at. Times are Unix ms. */
export interface Certificate {
  readonly x509: X509Certificate;
  /** Encodings of the names: they are equal byte for byte where one certificate issued another. */
  readonly subject: Buffer;
  readonly issuer: Buffer;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  readonly signatureAlgorithm: string;
  /** Absent: the certificate does not say whether it is an authority, which only a root of version 1 may leave open. */
  readonly basicConstraints: { readonly isCA: boolean; readonly pathLength?: number } | undefined;
  readonly version: number;
  /** Absent: no restriction. */
  readonly keyUsage: { readonly maySignCertificates: boolean } | undefined;
  /** OIDs of the extended key usage. Absent: no restriction. */
  readonly purposes: readonly string[] | undefined;
  readonly names: SubjectNames | undefined;
  readonly nameConstraints: NameConstraints | undefined;
  /** OIDs of extensions that must not be ignored, and that nobody here understands. */
  readonly unknownCritical: readonly string[];
}

/** One attribute of a distinguished name, wherever in the name it stands. */
export interface NameAttribute {
  readonly type: string;
  /** Undefined if the value is no text. */
  readonly value: string | undefined;
}

// Extensions that a critical mark does not make unusable. Identifiers only help to find a parent and no policy is asked
// for, so these are not even read.
const extensionOid = {
  subjectKeyIdentifier: "2.5.29.14",
  keyUsage: "2.5.29.15",
  subjectAltName: "2.5.29.17",
  basicConstraints: "2.5.29.19",
  nameConstraints: "2.5.29.30",
  certificatePolicies: "2.5.29.32",
  authorityKeyIdentifier: "2.5.29.35",
  extendedKeyUsage: "2.5.29.37",
} as const;

/** Reads a certificate. Throws DerError when it is malformed. */
export function readCertificate(x509: X509Certificate): Certificate {
  const [tbs] = readElements(readElement(x509.raw, derTag.sequence).content);
  const fields = readElements(expectTag(tbs, derTag.sequence).content);
  // [0] version, serial number, algorithm, issuer, validity, subject, key, [1] and [2] unique IDs, [3] extensions
  const hasVersion = fields[0]?.tag === 0xa0;
  const [, algorithm, issuer, , subject] = hasVersion ? fields.slice(1) : fields;
  const extensions = readExtensions(fields.find(({ tag }) => tag === 0xa3));
  const alternatives = extensions.get(extensionOid.subjectAltName);
  const names = alternatives === undefined ? undefined : readSubjectNames(alternatives.value);
  const constraints = extensions.get(extensionOid.nameConstraints);
  const nameConstraints = constraints === undefined ? undefined : readNameConstraints(constraints.value);
  const isUnderstood = (oid: string) =>
    Object.values<string>(extensionOid).includes(oid) &&
    !(oid === extensionOid.subjectAltName && names?.isEmpty === true) &&
    !(oid === extensionOid.nameConstraints && nameConstraints?.hasOtherKinds === true);
  return {
    x509,
    subject: expectTag(subject, derTag.sequence).raw,
    issuer: expectTag(issuer, derTag.sequence).raw,
    notBeforeMs: timeOf(x509.validFromDate),
    notAfterMs: timeOf(x509.validToDate),
    signatureAlgorithm: readOid(readElements(expectTag(algorithm, derTag.sequence).content)[0]),
    version: hasVersion ? readSmallInteger(readElements(fields[0]?.content ?? Buffer.alloc(0))[0]) + 1 : 1,
    basicConstraints: readBasicConstraints(extensions.get(extensionOid.basicConstraints)),
    keyUsage: readKeyUsage(extensions.get(extensionOid.keyUsage)),
    purposes: readPurposes(extensions.get(extensionOid.extendedKeyUsage)),
    names,
    nameConstraints,
    unknownCritical: [...extensions].flatMap(([oid, { isCritical }]) =>
      isCritical && !isUnderstood(oid) ? [oid] : [],
    ),
  };
}

/**
 * The certificates of a PEM bundle; blocks of other kinds are left out. Throws an Error when there is none, or when one
 * cannot be read: half a bundle must not replace a whole one.
 */
export function readBundle(pem: Buffer): Certificate[] {
  const blocks = [
    ...pem.toString("latin1").matchAll(/-----BEGIN CERTIFICATE-----(?:[^-]*(-----END CERTIFICATE-----))?/g),
  ];
  if (blocks.length === 0) throw new Error("there is no PEM certificate in it");
  return blocks.map(([block, end], i) => {
    if (end === undefined) throw new Error(`certificate ${i + 1} of ${blocks.length} is cut off`);
    try {
      return readCertificate(new X509Certificate(block));
    } catch (err) {
      throw new Error(`certificate ${i + 1} of ${blocks.length} cannot be read: ${messageOf(err)}`, { cause: err });
    }
  });
}

/**
 * The attributes of a name in the order of their encoding, those of relative names with several values included.
 * Throws DerError.
 */
export function readName(name: Buffer): NameAttribute[] {
  const sets = readElements(readElement(name, derTag.sequence).content);
  return sets
    .flatMap((set) => readElements(expectTag(set, derTag.set).content))
    .map((attribute) => {
      const [type, value, ...more] = readElements(expectTag(attribute, derTag.sequence).content);
      if (value === undefined || more.length > 0) throw new DerError("a name's attribute is malformed");
      return { type: readOid(type), value: readText(value) };
    });
}

interface Extension {
  isCritical: boolean;
  value: Buffer;
}

function readExtensions(field: DerElement | undefined): Map<string, Extension> {
  const extensions = new Map<string, Extension>();
  if (field === undefined) return extensions;
  for (const one of readElements(readElement(field.content, derTag.sequence).content)) {
    const parts = readElements(expectTag(one, derTag.sequence).content);
    const oid = readOid(parts[0]);
    if (extensions.has(oid)) throw new DerError(`extension ${oid} is there twice`);
    const isCritical = parts.length === 3 && readBoolean(parts[1]);
    extensions.set(oid, { isCritical, value: expectTag(parts.at(-1), derTag.octetString).content });
  }
  return extensions;
}

function readBasicConstraints(extension: Extension | undefined): Certificate["basicConstraints"] {
  if (extension === undefined) return undefined;
  const [first, second] = readElements(readElement(extension.value, derTag.sequence).content);
  const isCA = first?.tag === derTag.boolean && readBoolean(first);
  const length = first?.tag === derTag.boolean ? second : first;
  return { isCA, ...(length === undefined ? {} : { pathLength: readSmallInteger(length) }) };
}

const keyCertSignBit = 5;

function readKeyUsage(extension: Extension | undefined): Certificate["keyUsage"] {
  if (extension === undefined) return undefined;
  const bits = readBits(readElements(extension.value)[0]);
  return { maySignCertificates: bits[keyCertSignBit] === true };
}

function readPurposes(extension: Extension | undefined): readonly string[] | undefined {
  if (extension === undefined) return undefined;
  return readElements(readElement(extension.value, derTag.sequence).content).map((purpose) => readOid(purpose));
}

function timeOf(date: Date): number {
  const ms = date.getTime();
  if (Number.isNaN(ms)) throw new DerError("a date cannot be read");
  return ms;
}
