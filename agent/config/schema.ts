import { isObject } from "../lib/json.ts";
import { type At, show, suggestion } from "./problems.ts";

/**
 * A kind of value: how it is read from a file, from a flag, and written. Methods report problems to `at` and then
 * return undefined.
 */
export interface Kind<T> {
  /** Name in help texts: "duration", "int". */
  readonly type: string;
  decode(raw: unknown, at: At): T | undefined;
  /** As JSON, so that `decode(encode(v))` gives `v`. */
  encode(value: T): unknown;
  parseFlag(text: string, at: At): T | undefined;
  /** What is allowed, if `value` is not: `must be 0 or more`. Asked after decoding and only for values that are set. */
  check?(value: T): string | undefined;
  /** A flag given twice: both values as one. Absent: the later one counts. */
  combine?(earlier: T, later: T): T;
  /** Go's zero value, which files may write for "not set". */
  isZero(value: T): boolean;
}

/**
 * How far a field's feature is there. `works`; `partly`: see the field's note; `later`: accepted, checked, shown in /configz,
 * and a value other than the default is warned about; `noEffect`: has none in the reference either.
 */
export type Support = "works" | "partly" | "later" | "noEffect";

export interface FieldOptions<T> {
  /** Flag of the same meaning; `false`: none. Default: a top-level field's name in kebab-case, none for nested ones. */
  flag?: string | false;
  shorthand?: string;
  /** Zero in a file means "not set". Default: yes for durations and strings that have a default, no for others. */
  zeroIsUnset?: boolean;
  /** Says of what a `partly` field does and does not do, for the warning. */
  note?: string;
  /** True for values that need no warning, because nodelet behaves like that already. */
  quiet?(value: T): boolean;
  /** A path which, when relative, starts at the directory of the file that names it. */
  fileRelative?: true;
  /** The value may hold credentials: never shown. */
  secret?: true;
  /** The flag is not deprecated in favour of the field. */
  flagStays?: true;
}

/** One field: the single source for reading, defaulting, flags, help and lists. */
export interface Field<T> {
  readonly kind: Kind<Exclude<T, undefined>>;
  readonly default: T;
  readonly doc: string;
  readonly support: Support;
  readonly options: FieldOptions<Exclude<T, undefined>>;
}

/** Nested fields. */
export interface Group<T extends Table = Table> {
  readonly fields: T;
}

export interface Table {
  readonly [name: string]: Field<unknown> | Group;
}

/** The type of a decoded and defaulted table. Durations are numbers of milliseconds. */
export type ValuesOf<T extends Table> = {
  [K in keyof T]: T[K] extends Field<infer V> ? V : T[K] extends Group<infer G> ? ValuesOf<G> : never;
};

/** Titled tables, in the order in which people should read them. */
export interface Section {
  title: string;
  fields: Table;
  /** The fields are flags only: no file has them. */
  flagsOnly?: boolean;
}

/** A nested record of decoded values; what is not set is absent. */
export type Values = Record<string, unknown>;

type Make = {
  <T>(kind: Kind<T>, fallback: NoInfer<T>, doc: string, options?: FieldOptions<T>): Field<T>;
  /** Without a default: the value may be undefined. */
  <T>(kind: Kind<T>, fallback: undefined, doc: string, options?: FieldOptions<T>): Field<T | undefined>;
};

function maker(support: Support): Make {
  return <T>(kind: Kind<T>, fallback: T, doc: string, options: FieldOptions<T> = {}) =>
    ({ kind, default: fallback, doc, support, options }) as Field<T>;
}

export const works = maker("works");
export const partly = maker("partly");
export const later = maker("later");
export const noEffect = maker("noEffect");

export function group<T extends Table>(fields: T): Group<T> {
  return { fields };
}

export function isGroup(entry: Field<unknown> | Group): entry is Group {
  return "fields" in entry;
}

/** A field and where it stands. `flag` is its flag's name without dashes, if it has one. */
export interface FieldAt {
  path: readonly string[];
  field: Field<unknown>;
  flag: string | undefined;
}

/** Every field of a table, in its order. */
export function* fieldsOf(table: Table, prefix: readonly string[] = []): Generator<FieldAt> {
  for (const [name, entry] of Object.entries(table)) {
    const path = [...prefix, name];
    if (isGroup(entry)) {
      yield* fieldsOf(entry.fields, path);
      continue;
    }
    const { flag } = entry.options;
    const own = flag === undefined && path.length === 1 ? kebabCase(name) : flag;
    yield { path, field: entry, flag: own === false ? undefined : own };
  }
}

/**
 * Reads a JSON value as `table` says. Unknown fields, wrong types and values out of range are reported to `at`.
 * @returns what is set: `null` and, where a file cannot say zero, zero count as not set
 */
export function decodeTable(table: Table, raw: unknown, at: At): Values {
  const given: Values = {};
  if (raw === null || raw === undefined) return given;
  if (!isObject(raw)) {
    at.fail(`must be an object with fields, not ${show(raw)}`);
    return given;
  }
  for (const [name, value] of Object.entries(raw)) {
    const entry = Object.hasOwn(table, name) ? table[name] : undefined;
    const here = at.child(name);
    if (entry === undefined) {
      here.unknown(`is not a known field${suggestion(name, Object.keys(table))}`);
    } else if (isGroup(entry)) {
      given[name] = decodeTable(entry.fields, value, here);
    } else if (value !== null && value !== undefined) {
      const decoded = readField(entry, value, here);
      if (decoded !== undefined) given[name] = decoded;
    }
  }
  return given;
}

function readField(field: Field<unknown>, raw: unknown, at: At): unknown {
  const inner = field.options.secret ? at.withoutValues() : at;
  const decoded = field.kind.decode(raw, inner);
  if (decoded === undefined || isUnset(field, decoded)) return undefined;
  const wrong = field.kind.check?.(decoded);
  return wrong === undefined ? decoded : inner.fail(`${wrong}, not ${show(raw)}`);
}

function isUnset(field: Field<unknown>, value: unknown): boolean {
  return (field.options.zeroIsUnset ?? unsetByType(field)) && field.kind.isZero(value);
}

function unsetByType({ kind, default: fallback }: Field<unknown>): boolean {
  if (fallback === undefined || kind.isZero(fallback)) return false;
  return kind.type === "duration" || typeof fallback === "string";
}

/** Fills what `given` leaves out. */
export function withDefaults<T extends Table>(table: T, given: Values): ValuesOf<T> {
  const values: Values = {};
  for (const [name, entry] of Object.entries(table)) {
    const value = given[name];
    if (isGroup(entry)) values[name] = withDefaults(entry.fields, isObject(value) ? value : {});
    else values[name] = value === undefined ? structuredClone(entry.default) : value;
  }
  return values as ValuesOf<T>;
}

/** One whole object, such as an item of a list: {@link decodeTable} with defaults. A field of `required` that is not there is reported. */
export function decodeObject<T extends Table>(
  table: T,
  required: readonly string[],
  raw: unknown,
  at: At,
): ValuesOf<T> {
  const given = decodeTable(table, raw, at);
  const missing = required.filter((name) => !isObject(raw) || raw[name] === undefined || raw[name] === null);
  for (const name of missing) at.child(name).fail("must be set");
  return withDefaults(table, given);
}

/** The JSON form of decoded values, as files write it. Values that are not set are left out. */
export function encodeTable(table: Table, values: Values): Values {
  const json: Values = {};
  for (const [name, entry] of Object.entries(table)) {
    const value = values[name];
    if (value === undefined) continue;
    json[name] = isGroup(entry) ? encodeTable(entry.fields, isObject(value) ? value : {}) : entry.kind.encode(value);
  }
  return json;
}

/** The value at `path`, or undefined. */
export function valueAt(values: Values, path: readonly string[]): unknown {
  let value: unknown = values;
  for (const name of path) value = isObject(value) ? value[name] : undefined;
  return value;
}

/** Sets the value at `path`, making groups on the way. */
export function setValueAt(values: Values, path: readonly string[], value: unknown): void {
  const [name = "", ...rest] = path;
  if (rest.length === 0) {
    values[name] = value;
    return;
  }
  const inner = values[name];
  const nested = isObject(inner) ? inner : {};
  values[name] = nested;
  setValueAt(nested, rest, value);
}

function kebabCase(name: string): string {
  return name
    .replace(/([a-z0-9])([A-Z])/g, "$1-$2")
    .replace(/([A-Z]+)([A-Z][a-z])/g, "$1-$2")
    .toLowerCase();
}
