import { promisify } from "node:util";
import { gzip } from "node:zlib";

/** A place in the code, as V8 names it. Lines count from 0. */
export interface CallFrame {
  readonly functionName: string;
  readonly url: string;
  readonly lineNumber: number;
}

/** What was measured at one stack: frames from the innermost out, and a value for each of the profile's kinds. */
export interface StackSample {
  readonly frames: readonly CallFrame[];
  readonly values: readonly number[];
}

export interface Profile {
  /** What the values of samples are, such as `{ type: "cpu", unit: "nanoseconds" }`. The last one is shown first. */
  readonly kinds: readonly { readonly type: string; readonly unit: string }[];
  readonly samples: Iterable<StackSample>;
  /** Distance of two samples, in the unit of the last kind. */
  readonly period: number;
  readonly startedAtMs: number;
  readonly durationMs: number;
}

/** The gzipped protobuf (`perftools.profiles.Profile`) that `go tool pprof` and its kin read. */
export async function encodePprof({ kinds, samples, period, startedAtMs, durationMs }: Profile): Promise<Buffer> {
  const strings = new Table<string>((text) => text);
  strings.idOf(""); // the format wants it first
  const text = (value: string) => strings.idOf(value) - 1;
  const functions = new Table<CallFrame>(({ functionName, url }) => `${functionName}\0${url}`);
  const locations = new Table<CallFrame>(
    ({ functionName, url, lineNumber }) => `${functionName}\0${url}\0${lineNumber}`,
  );
  const kind = ({ type, unit }: Profile["kinds"][number]) => [...field(1, text(type)), ...field(2, text(unit))];

  const parts: number[][] = kinds.map((one) => message(1, kind(one)));
  for (const { frames, values } of samples) {
    const ids = frames.map((frame) => locations.idOf(frame));
    parts.push(message(2, [...message(1, ids.flatMap(varint)), ...message(2, values.flatMap(varint))]));
  }
  for (const [frame, id] of locations) {
    const line = [...field(1, functions.idOf(frame)), ...field(2, frame.lineNumber + 1)];
    parts.push(message(4, [...field(1, id), ...message(4, line)]));
  }
  for (const [{ functionName, url }, id] of functions) {
    const name = text(functionName === "" ? "(anonymous)" : functionName);
    parts.push(message(5, [...field(1, id), ...field(2, name), ...field(3, name), ...field(4, text(url))]));
  }
  const last = kinds.at(-1);
  if (last !== undefined) parts.push(message(11, kind(last)));
  for (const [value] of strings) parts.push(message(6, [...Buffer.from(value)]));
  parts.push(
    field(9, BigInt(Math.round(startedAtMs)) * 1_000_000n),
    field(10, BigInt(Math.round(durationMs)) * 1_000_000n),
  );
  parts.push(field(12, period));
  return promisify(gzip)(Buffer.concat(parts.map((part) => Buffer.from(part))));
}

/** Gives equal values one ID, counted from 1. */
class Table<T> {
  readonly #keyOf: (value: T) => string;
  readonly #entries = new Map<string, [value: T, id: number]>();

  constructor(keyOf: (value: T) => string) {
    this.#keyOf = keyOf;
  }

  idOf(value: T): number {
    const key = this.#keyOf(value);
    const [, id] = this.#entries.get(key) ?? [value, this.#entries.size + 1];
    if (id > this.#entries.size) this.#entries.set(key, [value, id]);
    return id;
  }

  [Symbol.iterator](): Iterator<[value: T, id: number]> {
    return this.#entries.values();
  }
}

function field(number: number, value: number | bigint): number[] {
  return [...varint(number << 3), ...varint(value)];
}

function message(number: number, bytes: readonly number[]): number[] {
  return [...varint((number << 3) | 2), ...varint(bytes.length), ...bytes];
}

function varint(value: number | bigint): number[] {
  let rest = BigInt(typeof value === "number" ? Math.max(0, Math.round(value)) : value);
  const bytes: number[] = [];
  while (rest >= 0x80n) {
    bytes.push(Number(rest & 0x7fn) | 0x80);
    rest >>= 7n;
  }
  return [...bytes, Number(rest)];
}
