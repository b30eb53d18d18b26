import { isJson, type Json, listOf, textOf } from "./nft-values.ts";

/** A statement, expression or value of `nft --json` in nft's own words, or nearly. Pure. */
export function nftText(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (typeof value === "string" || typeof value === "number") return String(value);
  if (typeof value !== "object") return "";
  if (Array.isArray(value)) return value.map(nftText).join(", ");
  const [[kind, inner] = ["", undefined]] = Object.entries(value);
  const words = isJson(inner) ? inner : {};
  switch (kind) {
    case "match":
      return matchText(words);
    case "payload":
      return `${textOf(words["protocol"])} ${textOf(words["field"])}`;
    case "meta":
    case "ct":
      return words["key"] === "l4proto" || kind === "ct" || words["key"] === "mark"
        ? `${kind} ${textOf(words["key"])}`
        : textOf(words["key"]);
    case "fib":
      return `fib ${listOf(words["flags"]).join(" . ")} ${textOf(words["result"])}`;
    case "numgen":
      return `numgen ${textOf(words["mode"])} mod ${String(words["mod"])}`;
    case "concat":
      return listOf(inner).map(nftText).join(" . ");
    case "set":
      return Array.isArray(inner)
        ? bracketed(inner)
        : `${textOf(words["op"])} ${textOf(words["set"])} { ${nftText(words["elem"])} }`;
    case "prefix":
      return `${nftText(words["addr"])}/${String(words["len"])}`;
    case "range":
      return listOf(inner).map(nftText).join("-");
    case "elem":
      return nftText(words["val"]);
    case "mangle":
      return `${nftText(words["key"])} set ${nftText(words["value"])}`;
    case "|":
    case "&":
    case "^":
      return listOf(inner).map(markText).join(` ${kind} `);
    case "map":
      return `${nftText(words["key"])} map ${nftText(words["data"])}`;
    case "vmap":
      return `${nftText(words["key"])} vmap ${nftText(words["data"])}`;
    case "jump":
    case "goto":
      return `${kind} ${textOf(words["target"])}`;
    case "dnat":
    case "snat":
      return `${kind} to ${nftText(words["addr"])}${words["port"] === undefined ? "" : `:${nftText(words["port"])}`}`;
    case "reject":
      return ["reject", words["expr"] === undefined ? "" : `with ${textOf(words["type"])} ${textOf(words["expr"])}`]
        .filter(Boolean)
        .join(" ");
    case "counter":
      return ""; // shown apart
    case "accept":
    case "drop":
    case "return":
    case "continue":
    case "masquerade":
      return kind;
    default:
      return JSON.stringify(value);
  }
}

/** Bits are read in hexadecimal. */
function markText(value: unknown): string {
  return typeof value === "number" ? `0x${value.toString(16)}` : nftText(value);
}

function matchText({ op, left, right }: Json): string {
  const operator = op === "==" || op === "in" ? "" : ` ${textOf(op)}`;
  const shown = nftText(left).startsWith("meta mark") ? markText(right) : nftText(right);
  return `${nftText(left)}${operator} ${shown}`;
}

// Long lists are read nowhere; the map's own members are shown one by one.
const shownMax = 4;

function bracketed(members: readonly unknown[]): string {
  const shown = members.slice(0, shownMax).map((member) => {
    if (!Array.isArray(member)) return nftText(member);
    return `${nftText(member[0])} : ${nftText(member[1])}`;
  });
  const more = members.length - shown.length;
  return `{ ${shown.join(", ")}${more > 0 ? `, … ${more} more` : ""} }`;
}
