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

const unclean = /\/\/|\/\.\.?(?:\/|$)/;

/**
 * Resolves `.`, `..` and repeated slashes, as Go's path.Clean does, but keeps a slash at the end. Escaped ones stay:
 * they are data, not structure. In linear time, unlike Node's own `normalize`, which a crafted path of 1 MB keeps busy
 * for a minute.
 */
export function cleanPath(escapedPath: string): string {
  if (!unclean.test(escapedPath)) return escapedPath;
  const kept: string[] = [];
  for (const segment of escapedPath.split("/")) {
    if (segment === "..") kept.pop();
    else if (segment !== "" && segment !== ".") kept.push(segment);
  }
  return `/${kept.join("/")}${escapedPath.endsWith("/") && kept.length > 0 ? "/" : ""}`;
}

/** Decodes percent-encoding once. Bytes that are no UTF-8 become U+FFFD, so they match no name. Never throws. */
export function decodePercent(escaped: string): string {
  const isPlain = /^[\0-$&-\x7f]*$/.test(escaped); // oxlint-disable-line no-control-regex
  if (isPlain) return escaped;
  const bytes = Buffer.from(escaped, "latin1"); // which is how Node hands over bytes above 0x7f
  let length = 0;
  for (let i = 0; i < bytes.length; i += 1) {
    const decoded = bytes[i] === percentSign ? hexDigit(bytes[i + 1]) * 16 + hexDigit(bytes[i + 2]) : Number.NaN;
    if (!Number.isNaN(decoded)) i += 2;
    bytes[length] = Number.isNaN(decoded) ? (bytes[i] ?? 0) : decoded;
    length += 1;
  }
  return bytes.toString("utf8", 0, length);
}

const percentSign = 0x25;

/** @returns the digit's value, NaN if it is none */
function hexDigit(byte = 0): number {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30;
  const lower = byte | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x57 : Number.NaN;
}
