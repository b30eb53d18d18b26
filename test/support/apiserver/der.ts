/** As much of ASN.1's distinguished encoding as X.509 certificates and PKCS#10 requests need. */

/** One element: its tag, its content, and its whole encoding. */
export interface DerElement {
  readonly tag: number;
  readonly content: Buffer;
  readonly raw: Buffer;
}

const encode = (tag: number, content: Uint8Array): Buffer => {
  const length = content.length;
  if (length < 0x80) return Buffer.concat([Buffer.from([tag, length]), content]);
  const bytes: number[] = [];
  for (let rest = length; rest > 0; rest = Math.floor(rest / 256)) bytes.unshift(rest % 256);
  return Buffer.concat([Buffer.from([tag, 0x80 | bytes.length, ...bytes]), content]);
};

export const der = {
  sequence: (...parts: Uint8Array[]) => encode(0x30, Buffer.concat(parts)),
  set: (...parts: Uint8Array[]) => encode(0x31, Buffer.concat(parts)),
  /** Non-negative integer from its big-endian bytes. */
  integer: (bytes: Uint8Array) => encode(0x02, (bytes[0] ?? 0) >= 0x80 ? Buffer.concat([Buffer.of(0), bytes]) : bytes),
  boolean: (value: boolean) => encode(0x01, Buffer.of(value ? 0xff : 0)),
  octets: (content: Uint8Array) => encode(0x04, content),
  bits: (content: Uint8Array, unused = 0) => encode(0x03, Buffer.concat([Buffer.of(unused), content])),
  utf8: (text: string) => encode(0x0c, Buffer.from(text)),
  time: (date: Date) => encode(0x18, Buffer.from(`${date.toISOString().replaceAll(/[-:T]/g, "").slice(0, 14)}Z`)),
  oid: (dotted: string) => encode(0x06, oidBytes(dotted)),
  /** [n] EXPLICIT or a constructed implicit tag. */
  tagged: (n: number, content: Uint8Array) => encode(0xa0 | n, content),
  /** [n] IMPLICIT of a primitive. */
  implicit: (n: number, content: Uint8Array) => encode(0x80 | n, content),
};

function oidBytes(dotted: string): Buffer {
  const [a = 0, b = 0, ...rest] = dotted.split(".").map(Number);
  const bytes = [a * 40 + b];
  for (const value of rest) {
    const groups = [value & 0x7f];
    for (let more = value >>> 7; more > 0; more >>>= 7) groups.unshift((more & 0x7f) | 0x80);
    bytes.push(...groups);
  }
  return Buffer.from(bytes);
}

/** The elements that follow one another in `data`. Throws on a truncated encoding. */
export function readDer(data: Buffer): DerElement[] {
  const elements: DerElement[] = [];
  for (let at = 0; at < data.length; ) {
    const tag = data[at] ?? 0;
    let length = data[at + 1] ?? 0;
    let start = at + 2;
    if (length >= 0x80) {
      const bytes = length & 0x7f;
      length = 0;
      for (const byte of data.subarray(start, start + bytes)) length = length * 256 + byte;
      start += bytes;
    }
    const end = start + length;
    if (end > data.length) throw new Error("truncated DER");
    elements.push({ tag, content: data.subarray(start, end), raw: data.subarray(at, end) });
    at = end;
  }
  return elements;
}

/** Dotted form of an object identifier's content. */
export function readOid(content: Buffer): string {
  const first = content[0] ?? 0;
  const parts = [Math.floor(first / 40), first % 40];
  let value = 0;
  for (const byte of content.subarray(1)) {
    value = (value << 7) | (byte & 0x7f);
    if (byte < 0x80) {
      parts.push(value);
      value = 0;
    }
  }
  return parts.join(".");
}

/** PEM block of a DER encoding. */
export function toPem(label: string, data: Buffer): string {
  const lines = data.toString("base64").match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join("\n")}\n-----END ${label}-----\n`;
}

/** DER of the first PEM block with `label`; throws when there is none. */
export function fromPem(label: string, pem: string): Buffer {
  const found = new RegExp(`-----BEGIN ${label}-----([\\s\\S]*?)-----END ${label}-----`).exec(pem);
  if (found === null) throw new Error(`no PEM block "${label}"`);
  return Buffer.from(found[1] ?? "", "base64");
}
