import { lookup } from "node:dns/promises";
import { readFile } from "node:fs/promises";
import { networkInterfaces } from "node:os";
import type { Clock, Timer } from "../lib/clock.ts";
import { type AddressOptions, type AddressSources, canonicalIP, needsLookup } from "./addresses.ts";

// A resolver that does not answer must not hold up the node's heartbeat (every 10 s).
const lookupTimeoutMs = 2_000;

/** Reads interfaces, routes and the resolver. Never rejects: what cannot be read is empty. */
export async function readAddressSources(options: AddressOptions, clock: Clock): Promise<AddressSources> {
  const interfaces = networkInterfaces();
  const ipsOf = (name: string) => (interfaces[name] ?? []).map(({ address }) => canonicalIP(withoutZone(address)));
  const localIPs = Object.keys(interfaces).flatMap(ipsOf);
  if (!needsLookup(options)) return { localIPs, resolvedIPs: [], defaultRouteIPs: [] };
  const [resolvedIPs, ipv4Routes, ipv6Routes] = await Promise.all([
    resolve(options.hostname, clock),
    readFile("/proc/net/route", "utf8").catch(() => ""),
    readFile("/proc/net/ipv6_route", "utf8").catch(() => ""),
  ]);
  const routed = (names: string[], family: 4 | 6) =>
    names.flatMap(ipsOf).filter((ip) => ip.includes(":") === (family === 6));
  return {
    localIPs,
    resolvedIPs,
    defaultRouteIPs: [
      ...routed(parseDefaultRoutesIPv4(ipv4Routes), 4),
      ...routed(parseDefaultRoutesIPv6(ipv6Routes), 6),
    ],
  };
}

/** Interfaces of the default routes in /proc/net/route, best metric first. */
export function parseDefaultRoutesIPv4(text: string): string[] {
  const routes = text
    .split("\n")
    .slice(1)
    .map((line) => line.trim().split(/\s+/))
    .filter((fields) => fields[1] === "00000000" && fields[7] === "00000000")
    .map((fields) => ({ name: fields[0] ?? "", metric: Number(fields[6]) }));
  return byMetric(routes);
}

/** Interfaces of the default routes in /proc/net/ipv6_route, best metric first; `lo` holds the reject route. */
export function parseDefaultRoutesIPv6(text: string): string[] {
  const routes = text
    .split("\n")
    .map((line) => line.trim().split(/\s+/))
    .filter((fields) => /^0{32}$/.test(fields[0] ?? "") && fields[1] === "00" && fields[9] !== "lo")
    .map((fields) => ({ name: fields[9] ?? "", metric: Number.parseInt(fields[5] ?? "", 16) }));
  return byMetric(routes);
}

function byMetric(routes: { name: string; metric: number }[]): string[] {
  return routes.sort((a, b) => a.metric - b.metric).map(({ name }) => name);
}

async function resolve(hostname: string, clock: Clock): Promise<string[]> {
  let timer: Timer | undefined;
  const timeout = new Promise<never[]>((done) => {
    timer = clock.after(lookupTimeoutMs, () => done([]));
  });
  const answers = lookup(hostname, { all: true }).catch(() => []);
  try {
    return (await Promise.race([answers, timeout])).map(({ address }) => canonicalIP(withoutZone(address)));
  } finally {
    timer?.cancel();
  }
}

function withoutZone(ip: string): string {
  return ip.split("%", 1)[0] ?? ip;
}
