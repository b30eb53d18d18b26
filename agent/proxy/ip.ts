import { isIPv6 } from "node:net";

/** The two IP families, in the spelling of the Kubernetes API. */
export type Family = "IPv4" | "IPv6";

/** An address or, with `bits` shorter than the family's length, a prefix. */
export interface Prefix {
  readonly family: Family;
  /** The significant bits, as a string of "0" and "1": 32 or 128 for an address. */
  readonly bits: string;
}

/** Address length of a family, in bits. */
export const addressBits: Readonly<Record<Family, number>> = { IPv4: 32, IPv6: 128 };

/**
 * Reads an IP address as Kubernetes does: octets with leading zeros are decimal, an IPv4-mapped IPv6 address is IPv4.
 * `undefined` if it is none.
 */
export function parseIP(text: string): Prefix | undefined {
  if (!text.includes(":")) return parseIPv4(text);
  if (!isIPv6(text) || text.includes("%")) return undefined;
  const groups = ipv6Groups(text);
  if (groups === undefined) return undefined;
  const isMapped = groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff;
  const bits = groups.map((group) => group.toString(2).padStart(16, "0")).join("");
  return isMapped ? { family: "IPv4", bits: bits.slice(96) } : { family: "IPv6", bits };
}

/** The family and the canonical text of an address, read as by {@link parseIP}; `undefined` if it is none. */
export function canonicalIP(text: string): { readonly family: Family; readonly ip: string } | undefined {
  // As endpoints have it, and there are many of them.
  if (plainIPv4.test(text)) return { family: "IPv4", ip: text };
  const parsed = parseIP(text);
  return parsed === undefined ? undefined : { family: parsed.family, ip: formatIP(parsed) };
}

const octet = "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";
const plainIPv4 = new RegExp(`^${octet}(?:\\.${octet}){3}$`);

/** Reads `address/length`; bits behind the length are dropped. `undefined` if it is none. */
export function parseCIDR(text: string): Prefix | undefined {
  const slash = text.indexOf("/");
  if (slash < 0) return undefined;
  const address = parseIP(text.slice(0, slash));
  const lengthText = text.slice(slash + 1);
  if (address === undefined || !/^\d{1,4}$/.test(lengthText)) return undefined;
  const mapped = address.family === "IPv4" && text.includes(":");
  const length = Number(lengthText) - (mapped ? 96 : 0);
  if (length < 0 || length > addressBits[address.family]) return undefined;
  return { family: address.family, bits: address.bits.slice(0, length) };
}

/** The canonical text of an address. Pads a prefix with zeros. */
export function formatIP({ family, bits }: Prefix): string {
  if (family === "IPv4") {
    const value = bits.padEnd(32, "0");
    return [0, 8, 16, 24].map((at) => Number.parseInt(value.slice(at, at + 8), 2)).join(".");
  }
  const value = bits.padEnd(128, "0");
  const groups = Array.from({ length: 8 }, (_, i) => Number.parseInt(value.slice(i * 16, i * 16 + 16), 2).toString(16));
  const zeros = longestZeroRun(groups);
  if (zeros === undefined) return groups.join(":");
  return `${groups.slice(0, zeros.start).join(":")}::${groups.slice(zeros.start + zeros.length).join(":")}`;
}

/** The canonical `address/length` of a prefix. */
export function formatCIDR(prefix: Prefix): string {
  return `${formatIP(prefix)}/${prefix.bits.length}`;
}

/** True if `address` lies inside `prefix`. */
export function contains(prefix: Prefix, address: Prefix): boolean {
  return prefix.family === address.family && address.bits.startsWith(prefix.bits);
}

/** True for 127.0.0.0/8 and ::1. */
export function isLoopback({ family, bits }: Prefix): boolean {
  return family === "IPv4" ? bits.startsWith("01111111") : /^0{127}1$/.test(bits);
}

/** `ip:port`, the IPv6 address in brackets. */
export function hostPort(ip: string, port: number): string {
  return ip.includes(":") ? `[${ip}]:${port}` : `${ip}:${port}`;
}

function parseIPv4(text: string): Prefix | undefined {
  const octets = text.split(".");
  if (octets.length !== 4) return undefined;
  let bits = "";
  for (const octet of octets) {
    // Ten digits are far more than any sensible zero padding and keep Number exact.
    if (!/^\d{1,10}$/.test(octet) || Number(octet) > 255) return undefined;
    bits += Number(octet).toString(2).padStart(8, "0");
  }
  return { family: "IPv4", bits };
}

function ipv6Groups(text: string): number[] | undefined {
  let hex = text;
  const lastColon = text.lastIndexOf(":");
  if (text.includes(".")) {
    const tail = parseIPv4(text.slice(lastColon + 1));
    if (tail === undefined) return undefined;
    const words = [tail.bits.slice(0, 16), tail.bits.slice(16)].map((b) => Number.parseInt(b, 2).toString(16));
    hex = `${text.slice(0, lastColon + 1)}${words.join(":")}`;
  }
  const [head = "", rest] = hex.split("::");
  const words = (part: string) => (part === "" ? [] : part.split(":").map((word) => Number.parseInt(word, 16)));
  const before = words(head);
  if (rest === undefined) return before;
  const after = words(rest);
  return [...before, ...Array.from({ length: 8 - before.length - after.length }, () => 0), ...after];
}

function longestZeroRun(groups: readonly string[]): { start: number; length: number } | undefined {
  let best: { start: number; length: number } | undefined;
  let start = 0;
  for (let i = 0; i <= groups.length; i++) {
    if (groups[i] === "0") continue;
    const length = i - start;
    // RFC 5952: the longest run of at least two zero groups, the first one if there are several.
    if (length >= 2 && length > (best?.length ?? 0)) best = { start, length };
    start = i + 1;
  }
  return best;
}
