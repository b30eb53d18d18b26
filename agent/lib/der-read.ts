/**
 * Reads as much of ASN.1's distinguished encoding (DER) as X.509 certificates need. Strict: what a second encoding of the
 * same value could hide behind (indefinite or over-long lengths) is refused, as nothing that is signed has it.
 */

/** One element: its tag byte, its content, and its whole encoding. */
export interface DerElement {
  readonly tag: number;
  readonly content: Buffer;
  readonly raw: Buffer;
}

/** Tag bytes of the universal types that certificates are made of. */
export const derTag = {
  boolean: 0x01,
  integer: 0x02,
  bitString: 0x03,
  octetString: 0x04,
  oid: 0x06,
  utf8String: 0x0c,
  numericString: 0x12,
  printableString: 0x13,
  t61String: 0x14,
  ia5String: 0x16,
  bmpString: 0x1e,
  sequence: 0x30,
  set: 0x31,
} as const;

/** `data` is no distinguished encoding of what was expected. */
export class DerError extends Error {
  override readonly name = "DerError";
}

/** The elements that follow one another in `data`. Throws DerError. */
export function readElements(data: Buffer): DerElement[] {
  const elements: DerElement[] = [];
  for (let at = 0; at < data.length; ) {
    const element = elementAt(data, at);
    elements.push(element);
    at += element.raw.length;
  }
  return elements;
}

/** The only element in `data`, which has to have this tag. Throws DerError. */
export function readElement(data: Buffer, tag: number): DerElement {
  const [first, ...more] = readElements(data);
  if (more.length > 0) throw new DerError("data behind the value");
  return expectTag(first, tag);
}

/** `element`, if it is there and has this tag. Throws DerError. */
export function expectTag(element: DerElement | undefined, tag: number): DerElement {
  if (element?.tag === tag) return element;
  const found = element === undefined ? "nothing" : `0x${element.tag.toString(16)}`;
  throw new DerError(`expected tag 0x${tag.toString(16)}, found ${found}`);
}

function elementAt(data: Buffer, start: number): DerElement {
  const tag = data[start];
  const first = data[start + 1];
  if (tag === undefined || first === undefined) throw new DerError("the value is cut off");
  if ((tag & 0x1f) === 0x1f) throw new DerError("tags above 30 are not known");
  let length = first;
  let at = start + 2;
  if (first >= 0x80) {
    const bytes = first & 0x7f;
    // Four bytes say 4 GiB; no certificate comes near.
    if (bytes === 0 || bytes > 4) throw new DerError("a length is indefinite or too large");
    if (at + bytes > data.length) throw new DerError("the value is cut off");
    length = data.readUIntBE(at, bytes);
    if (length < 0x80 || (bytes > 1 && data[at] === 0)) throw new DerError("a length is longer than needed");
    at += bytes;
  }
  const end = at + length;
  if (end > data.length) throw new DerError("the value is cut off");
  return { tag, content: data.subarray(at, end), raw: data.subarray(start, end) };
}

// Arcs larger than this are in no object identifier that is compared here.
const arcMax = 2 ** 48;

/** Dotted form of an object identifier: `2.5.4.3`. Throws DerError. */
export function readOid(element: DerElement | undefined): string {
  const { content } = expectTag(element, derTag.oid);
  const arcs: number[] = [];
  let value = 0;
  let isOpen = false;
  for (const byte of content) {
    if (!isOpen && byte === 0x80) throw new DerError("an object identifier has a padded arc");
    value = value * 128 + (byte & 0x7f);
    if (value > arcMax) throw new DerError("an object identifier has too large an arc");
    isOpen = byte >= 0x80;
    if (isOpen) continue;
    if (arcs.length === 0) {
      const root = Math.min(Math.floor(value / 40), 2);
      arcs.push(root, value - root * 40);
    } else {
      arcs.push(value);
    }
    value = 0;
  }
  if (isOpen || arcs.length === 0) throw new DerError("an object identifier is cut off");
  return arcs.join(".");
}

/** A BOOLEAN. Throws DerError. */
export function readBoolean(element: DerElement | undefined): boolean {
  const { content } = expectTag(element, derTag.boolean);
  const [byte] = content;
  if (content.length !== 1 || (byte !== 0 && byte !== 0xff)) throw new DerError("a boolean is neither true nor false");
  return byte === 0xff;
}

/** A non-negative INTEGER below 2^31. Throws DerError. */
export function readSmallInteger(element: DerElement | undefined): number {
  const { content } = expectTag(element, derTag.integer);
  const [first, second] = content;
  if (first === undefined || first >= 0x80 || content.length > 4) throw new DerError("a number is out of range");
  if (first === 0 && second !== undefined && second < 0x80) throw new DerError("a number has leading zeros");
  return content.readUIntBE(0, content.length);
}

/** Bits of a BIT STRING, the first one first. Throws DerError. */
export function readBits(element: DerElement | undefined): boolean[] {
  const { content } = expectTag(element, derTag.bitString);
  const [unused = 8, ...bytes] = content;
  if (unused > 7 || (bytes.length === 0 && unused > 0)) throw new DerError("a bit string is malformed");
  const bits = bytes.flatMap((byte) => Array.from({ length: 8 }, (_, i) => ((byte >> (7 - i)) & 1) === 1));
  return bits.slice(0, bits.length - unused);
}

const printable = /^[A-Za-z0-9 '()+,\-./:=?*&]*$/;

/**
 * Text of any of the string types that names in certificates use; undefined for a value of another type.
 * Throws DerError when the bytes are not of their type.
 */
export function readText({ tag, content }: DerElement): string | undefined {
  switch (tag) {
    case derTag.utf8String:
      return decodeUtf8(content);
    case derTag.printableString:
      return matching(content.toString("latin1"), printable, "PrintableString");
    case derTag.numericString:
      return matching(content.toString("latin1"), /^[0-9 ]*$/, "NumericString");
    case derTag.ia5String:
      if (content.some((byte) => byte >= 0x80)) throw new DerError("an IA5String is not ASCII");
      return content.toString("latin1");
    case derTag.t61String:
      return content.toString("latin1");
    case derTag.bmpString:
      return decodeBmp(content);
    default:
      return undefined;
  }
}

function decodeUtf8(content: Buffer): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(content);
  } catch {
    throw new DerError("a UTF8String is not UTF-8");
  }
}

function decodeBmp(content: Buffer): string {
  if (content.length % 2 !== 0) throw new DerError("a BMPString is cut off");
  const text = Buffer.from(content).swap16().toString("utf16le");
  if (!text.isWellFormed()) throw new DerError("a BMPString is malformed");
  return text;
}

function matching(text: string, pattern: RegExp, type: string): string {
  if (!pattern.test(text)) throw new DerError(`a ${type} has characters that it may not have`);
  return text;
}
