import { posix } from "node:path";

/** A request's target, taken apart. */
export interface Target {
  /** As it was sent: percent-encoded, starts with "/". */
  readonly escapedPath: string;
  /** What stands behind the first "?", without it. */
  readonly query: string;
}

const authority = /^https?:\/\/[^/?#]*/i;
const controlCharacters = /[\0-\x20\x7f]/; // oxlint-disable-line no-control-regex -- they are what is looked for
const badEscape = /%(?![0-9a-f]{2})/i;

/** Takes a request line's target apart, with or without scheme and host. @returns undefined: it is malformed */
export function parseTarget(url: string): Target | undefined {
  const rest = url.replace(authority, "");
  const cut = rest.indexOf("?");
  const path = cut < 0 ? rest : rest.slice(0, cut);
  const escapedPath = path === "" && rest !== url ? "/" : path;
  if (!escapedPath.startsWith("/") || controlCharacters.test(url) || badEscape.test(escapedPath)) return undefined;
  return { escapedPath, query: cut < 0 ? "" : rest.slice(cut + 1) };
}

/** Resolves `.`, `..` and repeated slashes. Escaped ones stay: they are data, not structure. */
export function cleanPath(escapedPath: string): string {
  return posix.normalize(escapedPath);
}

/** Decodes percent-encoding once. Bytes that are no UTF-8 become U+FFFD, so they match no name. Never throws. */
export function decodePercent(escaped: string): string {
  // Node hands bytes above 0x7f over as Latin-1 characters.
  const isPlain = /^[\0-$&-\x7f]*$/.test(escaped); // oxlint-disable-line no-control-regex
  if (isPlain) return escaped;
  const bytes = Buffer.from(escaped, "latin1");
  let length = 0;
  for (let i = 0; i < bytes.length; i += 1) {
    const hex = bytes[i] === percentSign ? bytes.toString("latin1", i + 1, i + 3) : "";
    const isEscape = /^[0-9a-f]{2}$/i.test(hex);
    bytes[length] = isEscape ? Number.parseInt(hex, 16) : (bytes[i] ?? 0);
    length += 1;
    if (isEscape) i += 2;
  }
  return bytes.toString("utf8", 0, length);
}

const percentSign = 0x25;
