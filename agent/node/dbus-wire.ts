/**
 * D-Bus values on the wire, little-endian (D-Bus specification, "Marshaling"). Values by signature: y u i t x → number or
 * bigint; b → boolean; s o g → string; a… → array; (…) and {…} → array of members; v → {@link Variant}.
 */
export type DBusValue = number | bigint | boolean | string | Variant | readonly DBusValue[];

/** A value that carries its own signature. */
export class Variant {
  readonly signature: string;
  readonly value: DBusValue;
  constructor(signature: string, value: DBusValue) {
    this.signature = signature;
    this.value = value;
  }
}

/** The value if it is a text, else "". */
export function textOf(value: DBusValue | undefined): string {
  return typeof value === "string" ? value : "";
}

/** The value's members if it is an array or structure, else none. */
export function membersOf(value: DBusValue | undefined): readonly DBusValue[] {
  return Array.isArray(value) ? (value as readonly DBusValue[]) : [];
}

/** Bytes of `values`, one for each complete type of `signature`. Throws a TypeError where they do not fit. */
export function marshal(signature: string, values: readonly DBusValue[]): Buffer {
  const types = completeTypes(signature);
  if (types.length !== values.length) {
    throw new TypeError(`D-Bus signature ${signature} has ${types.length} values, not ${values.length}`);
  }
  const writer = new Writer();
  types.forEach((type, index) => writer.write(type, values[index] as DBusValue));
  return writer.bytes();
}

/** The values in `bytes`. Throws a RangeError if they end too early, a TypeError for a type that is not known. */
export function unmarshal(signature: string, bytes: Buffer): DBusValue[] {
  const reader = new Reader(bytes);
  return completeTypes(signature).map((type) => reader.read(type));
}

/** Splits a signature: `sa(sv)u` → `s`, `a(sv)`, `u`. */
export function completeTypes(signature: string): string[] {
  const types: string[] = [];
  for (let start = 0; start < signature.length; ) {
    let end = start;
    while (signature[end] === "a") end += 1;
    if ("({".includes(signature[end] ?? " ")) {
      for (let depth = 0; end < signature.length; end += 1) {
        if ("({".includes(signature[end] ?? " ")) depth += 1;
        if (")}".includes(signature[end] ?? " ")) depth -= 1;
        if (depth === 0) break;
      }
    }
    types.push(signature.slice(start, end + 1));
    start = end + 1;
  }
  return types;
}

function alignmentOf(type: string): number {
  if ("ygv".includes(type[0] ?? "")) return 1;
  return "tx({".includes(type[0] ?? "") ? 8 : 4;
}

class Writer {
  #bytes = Buffer.alloc(1024);
  #length = 0;

  bytes(): Buffer {
    return this.#bytes.subarray(0, this.#length);
  }

  write(type: string, value: DBusValue): void {
    this.#align(alignmentOf(type));
    if (type[0] === "a" && Array.isArray(value)) this.#writeArray(type.slice(1), value);
    else if (type[0] === "(" && Array.isArray(value)) {
      completeTypes(type.slice(1, -1)).forEach((member, index) => this.write(member, value[index] as DBusValue));
    } else if (value instanceof Variant && type === "v") {
      this.write("g", value.signature);
      this.write(value.signature, value.value);
    } else if (typeof value === "string" && "so".includes(type)) this.#writeText(value, 4);
    else if (typeof value === "string" && type === "g") this.#writeText(value, 1);
    else if (typeof value === "boolean" && type === "b") this.#writeNumber(value ? 1 : 0, 4);
    else if (typeof value === "number" && type === "y") this.#writeNumber(value, 1);
    else if (typeof value === "number" && type === "u") this.#writeNumber(value, 4);
    else if ((typeof value === "number" || typeof value === "bigint") && type === "t") this.#writeNumber(value, 8);
    else throw new TypeError(`D-Bus type ${type} cannot hold ${JSON.stringify(value, (_, v: unknown) => String(v))}`);
  }

  #writeArray(type: string, values: readonly DBusValue[]): void {
    const lengthAt = this.#length;
    this.#writeNumber(0, 4);
    this.#align(alignmentOf(type)); // not part of the array's length
    const start = this.#length;
    for (const value of values) this.write(type, value);
    this.#bytes.writeUInt32LE(this.#length - start, lengthAt);
  }

  #writeText(text: string, lengthSize: 1 | 4): void {
    const length = Buffer.byteLength(text);
    this.#writeNumber(length, lengthSize);
    this.#reserve(length + 1);
    this.#bytes.write(text, this.#length, "utf8");
    this.#length += length + 1; // the NUL is already there
  }

  #writeNumber(value: number | bigint, size: 1 | 4 | 8): void {
    this.#reserve(size);
    if (size === 8) this.#bytes.writeBigUInt64LE(BigInt(value), this.#length);
    else this.#bytes.writeUIntLE(Number(value), this.#length, size);
    this.#length += size;
  }

  #align(size: number): void {
    const padding = (size - (this.#length % size)) % size;
    this.#reserve(padding);
    this.#length += padding;
  }

  #reserve(size: number): void {
    if (this.#length + size <= this.#bytes.length) return;
    const larger = Buffer.alloc((this.#bytes.length + size) * 2);
    this.#bytes.copy(larger);
    this.#bytes = larger;
  }
}

class Reader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  read(type: string): DBusValue {
    this.#align(alignmentOf(type));
    if (type[0] === "a") return this.#readArray(type.slice(1));
    if (type[0] === "(" || type[0] === "{") return completeTypes(type.slice(1, -1)).map((member) => this.read(member));
    switch (type) {
      case "y":
        return this.#bytes.readUInt8(this.#advance(1));
      case "b":
        return this.#bytes.readUInt32LE(this.#advance(4)) !== 0;
      case "u":
        return this.#bytes.readUInt32LE(this.#advance(4));
      case "i":
        return this.#bytes.readInt32LE(this.#advance(4));
      case "t":
        return this.#bytes.readBigUInt64LE(this.#advance(8));
      case "x":
        return this.#bytes.readBigInt64LE(this.#advance(8));
      case "s":
      case "o":
        return this.#readText(this.#bytes.readUInt32LE(this.#advance(4)));
      case "g":
        return this.#readText(this.#bytes.readUInt8(this.#advance(1)));
      case "v": {
        const signature = textOf(this.read("g"));
        return new Variant(signature, this.read(signature));
      }
      default:
        throw new TypeError(`D-Bus type ${type} is not known`);
    }
  }

  #readArray(type: string): DBusValue[] {
    const length = this.#bytes.readUInt32LE(this.#advance(4));
    this.#align(alignmentOf(type));
    const end = this.#at + length;
    if (end > this.#bytes.length) throw new RangeError("D-Bus array is longer than its message");
    const values: DBusValue[] = [];
    while (this.#at < end) values.push(this.read(type));
    return values;
  }

  #readText(length: number): string {
    const start = this.#advance(length + 1);
    if (this.#at > this.#bytes.length) throw new RangeError("D-Bus string is longer than its message");
    return this.#bytes.toString("utf8", start, start + length);
  }

  #align(size: number): void {
    this.#at += (size - (this.#at % size)) % size;
  }

  #advance(size: number): number {
    const start = this.#at;
    this.#at += size;
    return start;
  }
}
