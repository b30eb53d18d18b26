import type { Family } from "../ip.ts";
import {
  counterOf,
  destinationOf,
  entriesOf,
  isJson,
  type Json,
  listOf,
  textOf,
  valueOf,
  verdictOf,
} from "./nft-values.ts";
import { nftText } from "./nft-text.ts";
import { type Counter, type Field, type Members, oneOf, type Rule, type Step } from "./ruleset.ts";

const allBits = 0xffffffff;
const markBits = 32;
// Statements that end nothing and change nothing that another rule looks at.
const harmless = new Set(["counter", "log", "set", "notrack", "comment", "ct timeout", "ct helper"]);

/** Reads one rule of `nft --json`. Pure. */
export function parseNftRule(rule: Json, family: Family): Rule {
  const steps: Step[] = [];
  let counter: Counter | undefined;
  const statements = listOf(rule["expr"]);
  for (const statement of statements) {
    if (!isJson(statement)) continue;
    if ("counter" in statement) counter = counterOf(statement["counter"]);
    steps.push(...(stepsOf(statement, family) ?? [{ kind: "unknown", text: nftText(statement) } as const]));
  }
  const comment = rule["comment"];
  return {
    text: statements.map(nftText).filter(Boolean).join(" "),
    comment: typeof comment === "string" ? comment : undefined,
    counter,
    steps,
  };
}

/** undefined: not understood */
function stepsOf(statement: Json, family: Family): Step[] | undefined {
  const { match, mangle, vmap, dnat, snat, masquerade, redirect } = statement;
  const verdict = verdictOf(statement);
  if (verdict !== undefined) return [{ kind: "verdict", verdict }];
  if (isJson(match)) return matchSteps(match, family);
  if (isJson(mangle)) return mangleSteps(mangle);
  if (isJson(vmap)) return lookup(vmap, family);
  if (isJson(dnat)) return dnatSteps(dnat, family);
  if ("masquerade" in statement && (masquerade === null || isJson(masquerade))) return [toSource("")];
  if (isJson(snat)) return typeof snat["addr"] === "string" ? [toSource(snat["addr"])] : undefined;
  if ("redirect" in statement) {
    const port = isJson(redirect) ? redirect["port"] : undefined;
    return [{ kind: "verdict", verdict: { kind: "redirect", port: typeof port === "number" ? port : undefined } }];
  }
  return Object.keys(statement).every((key) => harmless.has(key)) ? [] : undefined;
}

function toSource(to: string): Step {
  return { kind: "verdict", verdict: { kind: "snat", to } };
}

function matchSteps({ op, left, right }: Json, family: Family): Step[] | undefined {
  const fields = fieldsOf(left, family);
  // Whether a random number matches is no yes or no; our own rules look such numbers up in maps.
  if (fields === undefined || fields.some(({ kind }) => kind === "random")) return undefined;
  const implied = impliedProtocol(left);
  // A rule for both families asks for its own first; a packet of ours has it.
  if (isJson(left) && isJson(left["meta"]) && left["meta"]["key"] === "nfproto") return undefined;
  const bits = op === "==" || op === "!=" ? highBitsOf(left, right) : undefined;
  if (bits !== undefined) return [{ kind: "match", ...bits, isNegated: op === "!=" }];
  const among = membersOf(right);
  if (among === undefined || !["==", "!=", "in"].includes(textOf(op))) return undefined;
  return [...implied, { kind: "match", fields, among, isNegated: op === "!=" }];
}

/** Some highest bits of the mark, which nft writes as a prefix: `meta mark 0x80000000/1`; undefined: it is something else. */
function highBitsOf(left: unknown, right: unknown): { fields: Field[]; among: Members } | undefined {
  const isMark = isJson(left) && isJson(left["meta"]) && left["meta"]["key"] === "mark";
  const prefix = isMark && isJson(right) ? right["prefix"] : undefined;
  if (!isJson(prefix) || typeof prefix["addr"] !== "number" || typeof prefix["len"] !== "number") return undefined;
  const mask = (allBits << (markBits - prefix["len"])) >>> 0;
  return { fields: [{ kind: "mark", mask }], among: oneOf(prefix["addr"]) };
}

/** `tcp dport` matches packets of TCP only. */
function impliedProtocol(left: unknown): Step[] {
  const protocol = isJson(left) && isJson(left["payload"]) ? textOf(left["payload"]["protocol"]) : "";
  if (!["tcp", "udp", "sctp"].includes(protocol)) return [];
  return [{ kind: "match", fields: [{ kind: "protocol" }], among: oneOf(protocol), isNegated: false }];
}

function membersOf(right: unknown): Members | undefined {
  if (typeof right === "string" && right.startsWith("@")) return { set: right.slice(1) };
  const list = Array.isArray(right) ? right : isJson(right) && Array.isArray(right["set"]) ? right["set"] : undefined;
  if (list !== undefined) {
    const entries = entriesOf(list);
    return entries.size === list.length ? entries : undefined;
  }
  const value = valueOf(right);
  return value === undefined ? undefined : oneOf(value);
}

/** What a key is made of; undefined if a part of it is not understood. */
function fieldsOf(left: unknown, family: Family): Field[] | undefined {
  const parts = isJson(left) && Array.isArray(left["concat"]) ? left["concat"] : [left];
  const fields = parts.map((part) => fieldOf(part, family));
  return fields.includes(undefined) ? undefined : (fields as Field[]);
}

function fieldOf(part: unknown, family: Family): Field | undefined {
  if (!isJson(part)) return undefined;
  const { payload, meta, ct, fib, numgen } = part;
  if (isJson(payload)) {
    const { protocol, field } = payload;
    const own = family === "IPv4" ? "ip" : "ip6";
    if (protocol === own && (field === "saddr" || field === "daddr")) return { kind: field };
    const isTransport = ["th", "tcp", "udp", "sctp"].includes(textOf(protocol));
    return isTransport && (field === "sport" || field === "dport") ? { kind: field } : undefined;
  }
  if (isJson(meta)) {
    const kinds = { l4proto: "protocol", iifname: "iif", oifname: "oif", iif: "iif", oif: "oif" } as const;
    if (meta["key"] === "mark") return { kind: "mark", mask: allBits };
    const kind = kinds[textOf(meta["key"]) as keyof typeof kinds];
    return kind === undefined ? undefined : { kind };
  }
  if (isJson(ct)) {
    const { key } = ct;
    return key === "state" ? { kind: "ctstate" } : key === "status" ? { kind: "ctstatus" } : undefined;
  }
  if (isJson(fib)) {
    const [flag, ...more] = listOf(fib["flags"]);
    if (fib["result"] !== "type" || more.length > 0) return undefined;
    return flag === "daddr" ? { kind: "daddrType" } : flag === "saddr" ? { kind: "saddrType" } : undefined;
  }
  if (isJson(numgen)) {
    const { mod, offset } = numgen;
    return typeof mod === "number" && (offset ?? 0) === 0 ? { kind: "random", below: mod } : undefined;
  }
  const [value, mask] = listOf(part["&"]);
  const isMark = isJson(value) && isJson(value["meta"]) && value["meta"]["key"] === "mark";
  return isMark && typeof mask === "number" ? { kind: "mark", mask } : undefined;
}

function mangleSteps({ key, value }: Json): Step[] | undefined {
  if (!isJson(key)) return undefined;
  if ("ct" in key) return []; // marks of connections: seen by rules that are not understood either
  if (!isJson(key["meta"]) || key["meta"]["key"] !== "mark") return undefined;
  if (typeof value === "number") return [{ kind: "mark", keep: 0, flip: value }];
  if (!isJson(value)) return undefined;
  for (const operator of ["|", "&", "^"] as const) {
    const [, operand] = listOf(value[operator]);
    if (typeof operand !== "number") continue;
    if (operator === "|") return [{ kind: "mark", keep: ~operand >>> 0, flip: operand }];
    return [{ kind: "mark", keep: operator === "&" ? operand : allBits, flip: operator === "^" ? operand : 0 }];
  }
  return undefined;
}

function lookup({ key, data }: Json, family: Family): Step[] | undefined {
  const fields = fieldsOf(key, family);
  const map = membersOf(data);
  return fields === undefined || map === undefined ? undefined : [{ kind: "lookup", fields, map }];
}

function dnatSteps({ addr, port }: Json, family: Family): Step[] | undefined {
  const map = isJson(addr) ? addr["map"] : undefined;
  if (isJson(map)) return lookup(map, family);
  const found = destinationOf(addr);
  if (found?.kind !== "dnat" || (port !== undefined && typeof port !== "number")) return undefined;
  return [{ kind: "verdict", verdict: { ...found, port } }];
}
