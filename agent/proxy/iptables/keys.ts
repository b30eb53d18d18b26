import { addressBits, type Family, formatCIDR, formatIP } from "../ip.ts";
import type { Protocol } from "../service.ts";
import { hashSuffix } from "./names.ts";

/**
 * Key spaces of the dispatch trees. A key is a string of bits whose prefixes are things that one iptables rule can
 * match: address prefix, then protocol, then port range.
 */
export interface KeySpace {
  /** Bits of a full key. */
  readonly length: number;
  /** Rule arguments that match exactly the packets whose key starts with `prefix`. */
  match(prefix: string): string;
  /** A short name for the prefix, at most 16 characters of [0-9A-Z-]; different prefixes have different names. */
  id(prefix: string): string;
}

// Two bits each; the fourth pattern is free.
const protocolBits: Readonly<Record<Protocol, string>> = { tcp: "00", udp: "01", sctp: "10" };
const protocolOfBits: Readonly<Record<string, Protocol>> = { "00": "tcp", "01": "udp", "10": "sctp" };

/** The key of an address, protocol and port. */
export function addressKey(ipBits: string, protocol: Protocol, port: number): string {
  return ipBits + portKey(protocol, port);
}

/** The key of a protocol and port. */
export function portKey(protocol: Protocol, port: number): string {
  return protocolBits[protocol] + port.toString(2).padStart(16, "0");
}

/** Protocol and port of any address. */
export const portKeys: KeySpace = {
  length: 18,
  match: matchPort,
  id: (prefix) => hexID(prefix, 18),
};

/** Address, protocol and port. */
export const addressKeys: Readonly<Record<Family, KeySpace>> = {
  IPv4: addressKeySpace("IPv4"),
  IPv6: addressKeySpace("IPv6"),
};

function addressKeySpace(family: Family): KeySpace {
  const bitsOfAddress = addressBits[family];
  return {
    length: bitsOfAddress + portKeys.length,
    match: (prefix) => {
      const address = { family, bits: prefix.slice(0, bitsOfAddress) };
      const isWhole = prefix.length >= bitsOfAddress;
      const destination = prefix === "" ? "" : `-d ${isWhole ? formatIP(address) : formatCIDR(address)}`;
      return isWhole ? [destination, matchPort(prefix.slice(bitsOfAddress))].filter(Boolean).join(" ") : destination;
    },
    // Readable for IPv4 prefixes ("0A600000-18" is 10.96.0.0/18); the others are too long for a chain's name.
    id: (prefix) => (family === "IPv4" && prefix.length <= 32 ? hexID(prefix, 32) : hashSuffix(prefix)),
  };
}

function matchPort(prefix: string): string {
  const protocol = protocolOfBits[prefix.slice(0, 2)];
  if (prefix.length < 2 || protocol === undefined) return "";
  const bits = prefix.slice(2);
  if (bits === "") return `-p ${protocol}`;
  const first = Number.parseInt(bits.padEnd(16, "0"), 2);
  const last = Number.parseInt(bits.padEnd(16, "1"), 2);
  return `-p ${protocol} -m ${protocol} --dport ${first === last ? first : `${first}:${last}`}`;
}

function hexID(prefix: string, length: number): string {
  const digits = Math.ceil(length / 4);
  const value = Number.parseInt(prefix.padEnd(length, "0"), 2);
  return `${value.toString(16).toUpperCase().padStart(digits, "0")}-${prefix.length}`;
}
