import { formatIP, parseCIDR, parseIP } from "../ip.ts";
import { type Counter, Entries, type Entry, type Value, type Verdict } from "./ruleset.ts";

/** A JSON object, as `nft --json` writes them. */
export type Json = Readonly<Record<string, unknown>>;

export function isJson(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Members of a set or map, as they stand in a declaration or in a rule. What is not understood is left out. Pure. */
export function entriesOf(elements: unknown): Entries {
  return new Entries(listOf(elements).flatMap((element) => entryOf(element)));
}

function entryOf(element: unknown): Entry[] {
  // Of a map: a pair of key and value.
  const [left, right] = Array.isArray(element) ? listOf(element) : [element, undefined];
  const wrapped = isJson(left) && isJson(left["elem"]) ? left["elem"] : undefined;
  const key = keyOf(wrapped === undefined ? left : wrapped["val"]);
  if (key === undefined) return [];
  const verdict = right === undefined ? undefined : (verdictOf(right) ?? destinationOf(right));
  const comment = wrapped?.["comment"];
  return [
    {
      key,
      ...(verdict === undefined ? {} : { verdict }),
      ...(typeof comment === "string" ? { comment } : {}),
    },
  ];
}

/** The values of a key with one or several parts; undefined if one of them is not understood. */
function keyOf(value: unknown): Value[] | undefined {
  const parts = isJson(value) && Array.isArray(value["concat"]) ? value["concat"] : [value];
  const values = parts.map((part) => valueOf(part));
  return values.includes(undefined) ? undefined : (values as Value[]);
}

/** One value: an address, a number, a word, a prefix or a range. */
export function valueOf(value: unknown): Value | undefined {
  if (typeof value === "number") return value;
  if (typeof value === "string") {
    if (value === "*") return { startsWith: "" };
    return value.endsWith("*") ? { startsWith: value.slice(0, -1) } : canonical(value);
  }
  if (!isJson(value)) return undefined;
  const { prefix, range, elem } = value;
  if (isJson(elem)) return valueOf(elem["val"]);
  if (isJson(prefix)) return parseCIDR(`${String(prefix["addr"])}/${String(prefix["len"])}`);
  const [first, last] = listOf(range);
  const isRange = (end: unknown) => typeof end === "string" || typeof end === "number";
  return isRange(first) && isRange(last) ? { first: first as string, last: last as string } : undefined;
}

/** A verdict statement, or the verdict of a map's element; undefined if it is none. */
export function verdictOf(value: unknown): Verdict | undefined {
  if (!isJson(value)) return undefined;
  const { jump, goto, reject } = value;
  for (const kind of ["accept", "drop", "return", "continue"] as const) if (kind in value) return { kind };
  if (isJson(jump)) return { kind: "jump", chain: textOf(jump["target"]) };
  if (isJson(goto)) return { kind: "goto", chain: textOf(goto["target"]) };
  if (!("reject" in value)) return undefined;
  const why = isJson(reject) ? [reject["type"], reject["expr"]].filter((part) => typeof part === "string") : [];
  return { kind: "reject", with: why.join(" ") };
}

/** What a map of a `dnat` statement says: an address, maybe with a port. */
export function destinationOf(value: unknown): Verdict | undefined {
  const [address, port] = isJson(value) ? listOf(value["concat"]) : [value];
  if (typeof address !== "string") return undefined;
  return { kind: "dnat", address: canonical(address), port: typeof port === "number" ? port : undefined };
}

/** A `counter`, if it is one with figures. */
export function counterOf(value: unknown): Counter | undefined {
  if (!isJson(value)) return undefined;
  const { packets, bytes } = value;
  return typeof packets === "number" && typeof bytes === "number" ? { packets, bytes } : undefined;
}

/** An address as the rest of the program writes it; other texts stay as they are. */
function canonical(text: string): string {
  const ip = /^[0-9a-f:.]+$/i.test(text) ? parseIP(text) : undefined;
  return ip === undefined ? text : formatIP(ip);
}

export function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

export function textOf(value: unknown): string {
  return typeof value === "string" ? value : "";
}
