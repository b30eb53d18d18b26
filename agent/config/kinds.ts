import { isIP } from "node:net";
import { parseQuantity } from "../kube/quantity.ts";
import { formatDuration, parseDuration } from "./duration.ts";
import { type At, show } from "./problems.ts";
import type { Kind } from "./schema.ts";

/** Range of a number; both ends belong to it. */
export interface Range {
  min?: number;
  max?: number;
}

type Check = (value: string) => string | undefined;

const goBooleans = new Map([
  ...["1", "t", "T", "TRUE", "true", "True"].map((text) => [text, true] as const),
  ...["0", "f", "F", "FALSE", "false", "False"].map((text) => [text, false] as const),
]);

export const bool: Kind<boolean> = {
  type: "bool",
  decode: (raw, at) => (typeof raw === "boolean" ? raw : at.fail(`must be true or false, not ${show(raw)}`)),
  encode: (value) => value,
  parseFlag: (text, at) => goBooleans.get(text) ?? at.fail(`must be true or false, not ${show(text)}`),
  isZero: (value) => !value,
};

/** A whole number within ±2^53. */
export function int(range: Range = {}): Kind<number> {
  return {
    type: "int",
    decode: (raw, at) =>
      Number.isSafeInteger(raw) ? Number(raw) : at.fail(`must be a whole number, not ${show(raw)}`),
    encode: (value) => value,
    parseFlag: (text, at) => {
      const value = /^[+-]?(?:\d+|0[xX][0-9a-fA-F]+)$/.test(text) ? signedNumber(text) : Number.NaN;
      return Number.isSafeInteger(value) ? value : at.fail(`must be a whole number, not ${show(text)}`);
    },
    check: (value) => outside(value, range, String),
    isZero: (value) => value === 0,
  };
}

function signedNumber(text: string): number {
  return text.startsWith("-") ? -Number(text.slice(1)) : Number(text.replace("+", ""));
}

export function float(range: Range = {}): Kind<number> {
  return {
    type: "float",
    decode: (raw, at) => (Number.isFinite(raw) ? Number(raw) : at.fail(`must be a number, not ${show(raw)}`)),
    encode: (value) => value,
    parseFlag: (text, at) => {
      const value = text.trim() === "" ? Number.NaN : Number(text);
      return Number.isFinite(value) ? value : at.fail(`must be a number, not ${show(text)}`);
    },
    check: (value) => outside(value, range, String),
    isZero: (value) => value === 0,
  };
}

function outside(value: number, { min, max }: Range, write: (n: number) => string): string | undefined {
  if ((min === undefined || value >= min) && (max === undefined || value <= max)) return undefined;
  if (max === undefined) return `must be ${write(min ?? 0)} or more`;
  if (min === undefined) return `must be ${write(max)} or less`;
  return `must be from ${write(min)} to ${write(max)}`;
}

/** Any text that passes `check` (empty text is not checked: it means "none"). */
export function string(check?: Check): Kind<string> {
  return {
    type: "string",
    decode: (raw, at) => (typeof raw === "string" ? raw : at.fail(`must be a string, not ${show(raw)}`)),
    encode: (value) => value,
    parseFlag: (text) => text,
    check: (value) => (value === "" ? undefined : check?.(value)),
    isZero: (value) => value === "",
  };
}

/** One of a few words. */
export function oneOf<const T extends string>(...words: readonly T[]): Kind<T> {
  const allowed = `must be one of ${words.map((word) => (word === "" ? '""' : word)).join(", ")}`;
  const pick = (raw: unknown, at: At) => {
    // Empty text passes: a field with a default takes it as "not set", the others list it or fail in `check`.
    const word = raw === "" ? ("" as T) : words.find((w) => w === raw);
    return word ?? at.fail(`${allowed}, not ${show(raw)}`);
  };
  return {
    type: "string",
    decode: pick,
    encode: (value) => value,
    parseFlag: pick,
    check: (value) => (words.includes(value) ? undefined : allowed),
    isZero: (value) => value === "",
  };
}

/** The same, and an empty word on the command line for "not set". The reader of the flags takes it as that. */
export function orNone<T extends string>(kind: Kind<T>): Kind<T> {
  return { ...kind, check: (value) => (value === "" ? undefined : kind.check?.(value)) };
}

/** A Go duration; milliseconds inside. */
export function duration(range: Range = {}): Kind<number> {
  const parse = (raw: unknown, at: At) =>
    (typeof raw === "string" ? parseDuration(raw) : undefined) ??
    at.fail(`must be a duration such as "1m30s", not ${show(raw)}`);
  return {
    type: "duration",
    decode: parse,
    encode: formatDuration,
    parseFlag: parse,
    check: (value) => outside(value, range, formatDuration),
    isZero: (value) => value === 0,
  };
}

/** logging.flushFrequency: a duration, or whole nanoseconds as old configurations and kubeadm write it. */
export const flushDuration: Kind<number> = {
  ...duration(),
  decode: (raw, at) => (Number.isSafeInteger(raw) ? Number(raw) / 1e6 : duration().decode(raw, at)),
};

/** A resource quantity, kept as written. Numbers are allowed in files where the API's own type is Quantity. */
export const quantity: Kind<string> = {
  type: "quantity",
  decode: (raw, at) => quantityText(typeof raw === "number" ? String(raw) : raw, at),
  encode: (value) => value,
  parseFlag: quantityText,
  isZero: (value) => parseQuantity(value) === 0n,
};

/** A resource quantity where the file must have a string. */
export const quantityString: Kind<string> = { ...quantity, decode: quantityText, isZero: (value) => value === "" };

function quantityText(raw: unknown, at: At): string | undefined {
  if (raw === "") return "";
  if (typeof raw === "string" && parseQuantity(raw) !== undefined) return raw;
  return at.fail(`must be a quantity in quotes such as "500m" or "1Gi", not ${show(raw)}`);
}

export const ip: Kind<string> = string((text) => (isIP(text) === 0 ? "must be an IP address" : undefined));

/** `address/prefix length` of either family. */
export function isCIDR(text: string): boolean {
  const match = /^([^/]+)\/(\d{1,3})$/.exec(text);
  if (match === null) return false;
  const family = isIP(match[1] ?? "");
  return family !== 0 && Number(match[2]) <= (family === 4 ? 32 : 128);
}

/**
 * A list; as a flag, comma separated, and repeated flags append.
 *
 * @param item kind of the elements, each checked
 */
export function list<T>(item: Kind<T>): Kind<T[]> {
  return {
    type: item.type === "string" ? "strings" : `${item.type}s`,
    decode: (raw, at) => {
      if (!Array.isArray(raw)) return at.fail(`must be a list, not ${show(raw)}`);
      return checkedAll(raw, (element, i) => [item.decode(element, at.child(i)), at.child(i)], item);
    },
    encode: (value) => value.map((element) => item.encode(element)),
    parseFlag: (text, at) => {
      if (text === "") return [];
      return checkedAll(text.split(","), (element) => [item.parseFlag(element, at), at], item);
    },
    combine: (earlier, later) => [...earlier, ...later],
    isZero: (value) => value.length === 0,
  };
}

function checkedAll<R, T>(raw: R[], read: (r: R, i: number) => [T | undefined, At], item: Kind<T>): T[] {
  return raw.flatMap((element, i) => {
    const [value, at] = read(element, i);
    if (value === undefined) return [];
    const wrong = item.check?.(value);
    if (wrong !== undefined) at.fail(`${wrong}, not ${show(element)}`);
    return [value];
  });
}

export interface MapOptions {
  /** Between key and value in a flag. Default `=`. */
  separator?: string;
  /** The only keys allowed. */
  keys?: readonly string[];
}

/** A map from names to values; as a flag `k=v,k2=v2`, and repeated flags add entries. */
export function map<T>(item: Kind<T>, { separator = "=", keys }: MapOptions = {}): Kind<Record<string, T>> {
  const put = (entries: Record<string, T>, key: string, value: T | undefined, at: At) => {
    if (keys?.includes(key) === false) at.fail(`is not known; allowed are ${keys.join(", ")}`);
    if (value === undefined) return;
    const wrong = item.check?.(value);
    if (wrong !== undefined) at.fail(`${wrong}, not ${show(value)}`);
    entries[key] = value;
  };
  return {
    type: "map",
    decode: (raw, at) => {
      if (typeof raw !== "object" || raw === null || Array.isArray(raw)) {
        return at.fail(`must be a map, not ${show(raw)}`);
      }
      const entries: Record<string, T> = {};
      for (const [key, value] of Object.entries(raw)) {
        put(entries, key, item.decode(value, at.child(key)), at.child(key));
      }
      return entries;
    },
    encode: (value) => Object.fromEntries(Object.entries(value).map(([key, v]) => [key, item.encode(v)])),
    parseFlag: (text, at) => {
      const entries: Record<string, T> = {};
      for (const pair of text.split(",")) {
        if (pair.trim() === "") continue;
        const cut = pair.indexOf(separator);
        const key = pair.slice(0, cut).trim();
        if (cut <= 0) at.fail(`must be pairs such as name${separator}value, not ${show(pair)}`);
        else put(entries, key, item.parseFlag(pair.slice(cut + separator.length).trim(), at.child(key)), at.child(key));
      }
      return entries;
    },
    combine: (earlier, later) => ({ ...earlier, ...later }),
    isZero: (value) => Object.keys(value).length === 0,
  };
}
