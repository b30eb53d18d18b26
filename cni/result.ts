import { isIP } from "node:net";
import { AgentError } from "../agent/lib/errors.ts";
import { cidrFamily, cidrHost } from "./cidr.ts";
import { fieldError, integerIn, isObject, type JSONObject, kindOf, listIn, stringIn, stringsIn } from "./json.ts";
import { isAtLeast, isSpecVersion, type SpecVersion } from "./version.ts";

/** An interface that a plugin made or knows of. */
export interface CNIInterface {
  name: string;
  mac?: string;
  mtu?: number;
  /** The path of the network namespace; absent for interfaces of the host. */
  sandbox?: string;
  socketPath?: string;
  pciID?: string;
}

/** An address given to an interface. */
export interface CNIIP {
  /** With its prefix length: `10.1.0.5/24`. */
  address: string;
  gateway?: string;
  /** Index into `interfaces`. */
  interface?: number;
}

export interface CNIRoute {
  /** `0.0.0.0/0` */
  dst: string;
  gw?: string;
  mtu?: number;
  advmss?: number;
  priority?: number;
  table?: number;
  scope?: number;
}

export interface CNIDNS {
  nameservers: string[];
  domain?: string;
  search: string[];
  options: string[];
}

/** What ADD brought about, in the form of the newest version. */
export interface CNIResult {
  interfaces: CNIInterface[];
  ips: CNIIP[];
  routes: CNIRoute[];
  dns: CNIDNS;
}

/**
 * Reads a result of any version. Pure.
 *
 * @param fallback the version it is taken for if it names none
 * @throws AgentError Invalid, with the field's path
 */
export function parseResult(raw: unknown, fallback: SpecVersion): { version: SpecVersion; result: CNIResult } {
  if (!isObject(raw)) throw new AgentError("Invalid", `the result must be an object, is ${kindOf(raw)}`);
  const named = stringIn(raw, "cniVersion") ?? "";
  const version = named === "" ? fallback : named;
  if (!isSpecVersion(version)) throw fieldError("cniVersion", `"${version}" is not supported`);
  const dns = parseDNS(raw);
  if (!isAtLeast(version, "0.3.0")) return { version, result: { ...parseOld(raw), dns } };
  return {
    version,
    result: {
      interfaces: objectsIn(raw, "interfaces").map(parseInterface),
      ips: objectsIn(raw, "ips").map(parseIP),
      routes: objectsIn(raw, "routes").map(parseRoute),
      dns,
    },
  };
}

/** Reads a result; `raw` is the same in the form of `version`, also where it came in another. Pure; throws as {@link parseResult}. */
export function resultIn(version: SpecVersion, from: unknown): { raw: JSONObject; result: CNIResult } {
  const { version: found, result } = parseResult(from, version);
  const isSame = found === version && isObject(from);
  return { raw: isSame ? { ...from, cniVersion: version } : renderResult(result, version), result };
}

/** A result in the form of `version`, as JSON. What that version cannot say is left out. Pure. */
export function renderResult(result: CNIResult, version: SpecVersion): JSONObject {
  const { interfaces, ips, routes, dns } = result;
  const isEmptyDNS = Object.values(dns).every(
    (value: unknown) => value === undefined || (value as unknown[]).length === 0,
  );
  const tail = isEmptyDNS ? {} : { dns };
  if (!isAtLeast(version, "0.3.0")) return { cniVersion: version, ...renderOld(result), ...tail };
  if (isAtLeast(version, "1.1.0")) return { cniVersion: version, interfaces, ips, routes, ...tail };
  return {
    cniVersion: version,
    interfaces: interfaces.map(({ name, mac, sandbox }) => ({ name, mac, sandbox })),
    ips: isAtLeast(version, "1.0.0") ? ips : ips.map((ip) => ({ version: String(cidrFamily(ip.address)), ...ip })),
    routes: routes.map(({ dst, gw }) => ({ dst, gw })),
    ...tail,
  };
}

/**
 * The addresses of the interface `ifName` in the sandbox, without prefix length, in the plugins' order. An address that names no
 * interface is the sandbox's: plugins older than 0.3.0 know no interfaces. Pure.
 */
export function addressesOf(result: CNIResult, ifName: string): string[] {
  return result.ips
    .filter(({ interface: index }) => {
      const named = index === undefined || index < 0 ? undefined : result.interfaces[index];
      return named === undefined ? index === undefined || index < 0 : named.name === ifName;
    })
    .map(({ address }) => cidrHost(address));
}

function parseInterface(from: JSONObject, path: string): CNIInterface {
  const name = stringIn(from, "name", path);
  if (name === undefined) throw fieldError(`${path}name`, "must be set");
  return {
    name,
    ...present("mac", stringIn(from, "mac", path)),
    ...present("mtu", integerIn(from, "mtu", path)),
    ...present("sandbox", stringIn(from, "sandbox", path)),
    ...present("socketPath", stringIn(from, "socketPath", path)),
    ...present("pciID", stringIn(from, "pciID", path)),
  };
}

function parseIP(from: JSONObject, path: string): CNIIP {
  return {
    address: cidrIn(from, "address", path),
    ...present("gateway", ipIn(from, "gateway", path)),
    ...present("interface", integerIn(from, "interface", path)),
  };
}

function parseRoute(from: JSONObject, path: string): CNIRoute {
  return {
    dst: cidrIn(from, "dst", path),
    ...present("gw", ipIn(from, "gw", path)),
    ...present("mtu", integerIn(from, "mtu", path)),
    ...present("advmss", integerIn(from, "advmss", path)),
    ...present("priority", integerIn(from, "priority", path)),
    ...present("table", integerIn(from, "table", path)),
    ...present("scope", integerIn(from, "scope", path)),
  };
}

function parseDNS(raw: JSONObject): CNIDNS {
  const dns = raw["dns"] ?? {};
  if (!isObject(dns)) throw fieldError("dns", `must be an object, is ${kindOf(dns)}`);
  return {
    nameservers: stringsIn(dns, "nameservers", "dns."),
    ...present("domain", stringIn(dns, "domain", "dns.")),
    search: stringsIn(dns, "search", "dns."),
    options: stringsIn(dns, "options", "dns."),
  };
}

/** 0.1.0 and 0.2.0: at most one address of each family, which has its own routes. */
function parseOld(raw: JSONObject): Omit<CNIResult, "dns"> {
  const ips: CNIIP[] = [];
  const routes: CNIRoute[] = [];
  for (const key of ["ip4", "ip6"]) {
    const from = raw[key] ?? undefined;
    if (from === undefined) continue;
    if (!isObject(from)) throw fieldError(key, `must be an object, is ${kindOf(from)}`);
    ips.push({ address: cidrIn(from, "ip", `${key}.`), ...present("gateway", ipIn(from, "gateway", `${key}.`)) });
    routes.push(...objectsIn(from, "routes", `${key}.`).map(parseRoute));
  }
  return { interfaces: [], ips, routes };
}

function renderOld({ ips, routes }: CNIResult): JSONObject {
  const found: Record<string, unknown> = {};
  for (const family of [4, 6]) {
    const ip = ips.find(({ address }) => cidrFamily(address) === family);
    if (ip === undefined) continue;
    found[`ip${family}`] = {
      ip: ip.address,
      ...present("gateway", ip.gateway),
      routes: routes.filter(({ dst }) => cidrFamily(dst) === family).map(({ dst, gw }) => ({ dst, gw })),
    };
  }
  return found;
}

/** The objects of a list, each with its path, given on to parse it. */
function objectsIn(from: JSONObject, key: string, path = "") {
  const list = listIn(from, key, path);
  return {
    map: <T>(parse: (item: JSONObject, path: string) => T): T[] =>
      list.map((item, i) => {
        if (!isObject(item)) throw fieldError(`${path}${key}[${i}]`, `must be an object, is ${kindOf(item)}`);
        return parse(item, `${path}${key}[${i}].`);
      }),
  };
}

function cidrIn(from: JSONObject, key: string, path: string): string {
  const text = stringIn(from, key, path);
  if (text === undefined) throw fieldError(path + key, "must be set");
  if (cidrFamily(text) === undefined) throw fieldError(path + key, `"${text}" is no address with a prefix length`);
  return text;
}

function ipIn(from: JSONObject, key: string, path: string): string | undefined {
  const text = stringIn(from, key, path);
  if (text === undefined || text === "") return undefined;
  if (isIP(text) === 0) throw fieldError(path + key, `"${text}" is no address`);
  return text;
}

function present<K extends string, T>(key: K, value: T | undefined): { [key in K]?: T } {
  return value === undefined ? {} : ({ [key]: value } as { [key in K]: T });
}
