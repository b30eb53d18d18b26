import { DerError, derTag, expectTag, readElement, readElements } from "../../lib/der-read.ts";

/** Alternative names of a certificate, by kind. IP addresses are 4 or 16 bytes. */
export interface SubjectNames {
  readonly dns: readonly string[];
  readonly ips: readonly Buffer[];
  readonly emails: readonly string[];
  readonly uris: readonly string[];
  /** True if there is no name of these kinds. */
  readonly isEmpty: boolean;
}

interface Subtrees {
  readonly dns: readonly string[];
  /** Address and mask, one behind the other: 8 or 32 bytes. */
  readonly ips: readonly Buffer[];
  readonly hasEmails: boolean;
  readonly hasUris: boolean;
}

/** For which names an authority may issue. */
export interface NameConstraints {
  readonly permitted: Subtrees;
  readonly excluded: Subtrees;
  /** It restricts names of kinds that are not looked at. */
  readonly hasOtherKinds: boolean;
}

// Context tags of GeneralName.
const kind = { email: 0x81, dns: 0x82, uri: 0x86, ip: 0x87 } as const;

/** Reads the value of a subjectAltName extension. Throws DerError. */
export function readSubjectNames(value: Buffer): SubjectNames {
  const all = readElements(readElement(value, derTag.sequence).content);
  const of = (tag: number) => all.filter((name) => name.tag === tag).map(({ content }) => content);
  const texts = (tag: number) => of(tag).map((content) => content.toString("latin1"));
  const names = { dns: texts(kind.dns), emails: texts(kind.email), uris: texts(kind.uri), ips: of(kind.ip) };
  return { ...names, isEmpty: Object.values(names).every((list) => list.length === 0) };
}

/** Reads the value of a nameConstraints extension. Throws DerError. */
export function readNameConstraints(value: Buffer): NameConstraints {
  const parts = readElements(readElement(value, derTag.sequence).content);
  const bases = (tag: number) =>
    readElements(parts.find((part) => part.tag === tag)?.content ?? Buffer.alloc(0)).map((subtree) => {
      const [base] = readElements(expectTag(subtree, derTag.sequence).content);
      if (base === undefined) throw new DerError("a name constraint is empty");
      return base;
    });
  const [permitted, excluded] = [bases(0xa0), bases(0xa1)];
  const known: readonly number[] = Object.values(kind);
  return {
    permitted: subtrees(permitted),
    excluded: subtrees(excluded),
    hasOtherKinds: [...permitted, ...excluded].some(({ tag }) => !known.includes(tag)),
  };
}

function subtrees(bases: readonly { tag: number; content: Buffer }[]): Subtrees {
  const of = (tag: number) => bases.filter((base) => base.tag === tag).map(({ content }) => content);
  const ips = of(kind.ip);
  if (ips.some(({ length }) => length !== 8 && length !== 32)) throw new DerError("an address constraint is malformed");
  return {
    dns: of(kind.dns).map((content) => content.toString("latin1").toLowerCase()),
    ips,
    hasEmails: of(kind.email).length > 0,
    hasUris: of(kind.uri).length > 0,
  };
}

/**
 * Whether an authority with these constraints may have issued for all of `names`. Pure. Mail addresses and URIs are
 * not compared: where they are both constrained and present, the answer is no.
 */
export function allowsNames({ permitted, excluded }: NameConstraints, names: SubjectNames): boolean {
  const isDnsFine = names.dns.every(
    (name) =>
      (permitted.dns.length === 0 || permitted.dns.some((domain) => isWithin(name, domain))) &&
      !excluded.dns.some((domain) => isWithin(name, domain)),
  );
  const isIpFine = names.ips.every(
    (ip) =>
      (permitted.ips.length === 0 || permitted.ips.some((range) => isInRange(ip, range))) &&
      !excluded.ips.some((range) => isInRange(ip, range)),
  );
  const isEmailFine = names.emails.length === 0 || !(permitted.hasEmails || excluded.hasEmails);
  const isUriFine = names.uris.length === 0 || !(permitted.hasUris || excluded.hasUris);
  return isDnsFine && isIpFine && isEmailFine && isUriFine;
}

/** `example.com` holds itself and what is below it, `.example.com` only the latter, the empty domain everything. */
function isWithin(name: string, domain: string): boolean {
  const lower = name.toLowerCase();
  if (domain === "" || lower === domain) return true;
  return lower.endsWith(domain.startsWith(".") ? domain : `.${domain}`);
}

function isInRange(ip: Buffer, range: Buffer): boolean {
  if (range.length !== 2 * ip.length) return false;
  const [address, mask] = [range.subarray(0, ip.length), range.subarray(ip.length)];
  return ip.every((byte, i) => ((byte ^ (address[i] ?? 0)) & (mask[i] ?? 0)) === 0);
}
