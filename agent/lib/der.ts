import { isIPv4, isIPv6 } from "node:net";

/**
 * Writes as much of ASN.1's distinguished encoding (X.690) as certificates and certificate requests need. Nothing is
 * read here: node:crypto's X509Certificate does that. A library for both costs 12 MB of memory once it is loaded.
 */
export const der = {
  sequence: (...parts: Uint8Array[]): Buffer => encode(0x30, Buffer.concat(parts)),
  set: (...parts: Uint8Array[]): Buffer => encode(0x31, Buffer.concat(parts)),
  boolean: (value: boolean): Buffer => encode(0x01, Buffer.of(value ? 0xff : 0x00)),
  /** A non-negative integer from its big-endian bytes. */
  integer: (bytes: Uint8Array): Buffer => encode(0x02, shortest(bytes)),
  /** @param unused bits at the end that mean nothing */
  bitString: (bytes: Uint8Array, unused = 0): Buffer => encode(0x03, Buffer.concat([Buffer.of(unused), bytes])),
  octetString: (bytes: Uint8Array): Buffer => encode(0x04, bytes),
  objectIdentifier: (dotted: string): Buffer => encode(0x06, oidBytes(dotted)),
  utf8String: (text: string): Buffer => encode(0x0c, Buffer.from(text, "utf8")),
  /** The forms that RFC 5280 wants: UTCTime through 2049, GeneralizedTime after. Seconds are the finest. */
  time: (ms: number): Buffer => {
    const digits = `${new Date(ms).toISOString().replaceAll(/[-:T]/g, "").slice(0, 14)}Z`;
    return digits < "2050" ? encode(0x17, Buffer.from(digits.slice(2))) : encode(0x18, Buffer.from(digits));
  },
  /** Context tag [n] around whole elements: EXPLICIT, or IMPLICIT in place of a SEQUENCE's or SET's own tag. */
  constructed: (n: number, ...parts: Uint8Array[]): Buffer => encode(0xa0 | n, Buffer.concat(parts)),
  /** Context tag [n] IMPLICIT in place of a simple type's own tag. */
  primitive: (n: number, content: Uint8Array): Buffer => encode(0x80 | n, content),
} as const;

/** A PEM block. `label` is for instance `CERTIFICATE REQUEST`. */
export function toPem(label: string, data: Uint8Array): string {
  const lines = Buffer.from(data)
    .toString("base64")
    .match(/.{1,64}/g);
  return `-----BEGIN ${label}-----\n${(lines ?? []).join("\n")}\n-----END ${label}-----\n`;
}

/** The 4 or 16 bytes of an address as subjectAltName has them; undefined if `text` is no IP address. */
export function ipBytes(text: string): Buffer | undefined {
  if (isIPv4(text)) return Buffer.from(text.split(".").map(Number));
  if (!isIPv6(text) || text.includes("%")) return undefined;
  // The last 32 bits may be written as an IPv4 address.
  const tail = /[^:]*\.[^:]*$/.exec(text)?.[0];
  const [a = 0, b = 0, c = 0, d = 0] = tail?.split(".").map(Number) ?? [];
  const hex = (high: number, low: number) => ((high << 8) | low).toString(16);
  const plain = tail === undefined ? text : text.slice(0, -tail.length) + `${hex(a, b)}:${hex(c, d)}`;
  const [head = "", rest] = plain.split("::");
  const groups = (part: string) => (part === "" ? [] : part.split(":"));
  const before = groups(head);
  const after = groups(rest ?? "");
  const zeros = new Array<string>(8 - before.length - after.length).fill("0");
  const bytes = Buffer.alloc(16);
  for (const [i, group] of [...before, ...zeros, ...after].entries()) {
    bytes.writeUInt16BE(Number.parseInt(group, 16), i * 2);
  }
  return bytes;
}

function encode(tag: number, content: Uint8Array): Buffer {
  const { length } = content;
  if (length < 0x80) return Buffer.concat([Buffer.of(tag, length), content]);
  const bytes: number[] = [];
  for (let rest = length; rest > 0; rest = Math.floor(rest / 256)) bytes.unshift(rest % 256);
  return Buffer.concat([Buffer.of(tag, 0x80 | bytes.length, ...bytes), content]);
}

/** Without leading zeros, but with one where the first bit would make the number negative. */
function shortest(bytes: Uint8Array): Uint8Array {
  const start = bytes.findIndex((byte) => byte !== 0);
  if (start < 0) return Buffer.of(0);
  const digits = bytes.subarray(start);
  return (digits[0] ?? 0) >= 0x80 ? Buffer.concat([Buffer.of(0), digits]) : digits;
}

function oidBytes(dotted: string): Buffer {
  const [first = 0, second = 0, ...rest] = dotted.split(".").map(Number);
  const bytes = [first * 40 + second];
  for (const value of rest) {
    const digits = [value & 0x7f];
    for (let more = value >>> 7; more > 0; more >>>= 7) digits.unshift((more & 0x7f) | 0x80);
    bytes.push(...digits);
  }
  return Buffer.from(bytes);
}
