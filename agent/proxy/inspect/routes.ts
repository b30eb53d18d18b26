import { addressBits, type Family, isLoopback, parseCIDR, parseIP, type Prefix } from "../ip.ts";

/** What of the machine's routing decides about packets for services. */
export interface Routes {
  /** Addresses and networks whose packets are for the machine itself. */
  readonly local: readonly Prefix[];
  /** The main table. */
  readonly routes: readonly { readonly prefix: Prefix; readonly device: string; readonly metric: number }[];
}

/** Flag of routes that refuse; RTF_REJECT. */
const rejectFlag = 0x0200;
/** A route that is in use; RTF_UP. */
const upFlag = 0x0001;

/** Reads IPv4's `/proc/net/fib_trie` and `/proc/net/route`. Pure. */
export function parseRoutes4(fibTrie: string, route: string): Routes {
  const local: Prefix[] = [];
  let address = "";
  for (const line of fibTrie.split("\n")) {
    address = /\|-- (\S+)/.exec(line)?.[1] ?? address;
    const length = /^\s+\/(\d+) host LOCAL/.exec(line)?.[1];
    const prefix = length === undefined ? undefined : parseCIDR(`${address}/${length}`);
    if (prefix !== undefined) local.push(prefix);
  }
  const routes = route.split("\n").flatMap((line) => {
    const [device = "", to = "", , flags = "", , , metric = "", mask = ""] = line.split("\t");
    const bits = littleEndianBits(to);
    const length = littleEndianBits(mask)?.indexOf("0");
    if (bits === undefined || length === undefined) return [];
    const value = Number.parseInt(flags, 16);
    if ((value & upFlag) === 0 || (value & rejectFlag) !== 0) return [];
    return [
      {
        prefix: { family: "IPv4" as const, bits: bits.slice(0, length < 0 ? 32 : length) },
        device,
        metric: Number(metric),
      },
    ];
  });
  return { local, routes };
}

/** Reads `/proc/net/if_inet6` and `/proc/net/ipv6_route`. Pure. */
export function parseRoutes6(ifInet6: string, ipv6Route: string): Routes {
  const local = ifInet6.split("\n").flatMap((line) => {
    const bits = hexBits(line.split(" ", 1)[0] ?? "");
    return bits === undefined ? [] : [{ family: "IPv6" as const, bits }];
  });
  const routes = ipv6Route.split("\n").flatMap((line) => {
    const [to = "", length = "", , , , metric = "", , , flags = "", device = ""] = line.trim().split(/\s+/);
    const bits = hexBits(to);
    const value = Number.parseInt(flags, 16);
    if (bits === undefined || (value & upFlag) === 0 || (value & rejectFlag) !== 0) return [];
    const prefix = { family: "IPv6" as const, bits: bits.slice(0, Number.parseInt(length, 16)) };
    return [{ prefix, device, metric: Number.parseInt(metric, 16) }];
  });
  return { local, routes };
}

/** True if packets to the address stay on the machine. */
export function isLocalAddress({ local }: Routes, text: string): boolean {
  const address = parseIP(text);
  if (address === undefined) return false;
  return isLoopback(address) || local.some((prefix) => covers(prefix, address));
}

/** The interface by which packets to the address leave; undefined: there is no route. */
export function interfaceTo({ routes }: Routes, text: string): string | undefined {
  const address = parseIP(text);
  if (address === undefined) return undefined;
  let best: Routes["routes"][number] | undefined;
  for (const route of routes) {
    if (!covers(route.prefix, address)) continue;
    const isLonger = route.prefix.bits.length > (best?.prefix.bits.length ?? -1);
    const isAsLong = route.prefix.bits.length === best?.prefix.bits.length;
    if (isLonger || (isAsLong && route.metric < (best?.metric ?? 0))) best = route;
  }
  return best?.device;
}

function covers(prefix: Prefix, address: Prefix): boolean {
  return prefix.family === address.family && address.bits.startsWith(prefix.bits);
}

/** `0001F40A` is 10.244.1.0: the kernel prints the number as it lies in memory. */
function littleEndianBits(hex: string): string | undefined {
  if (!/^[0-9A-F]{8}$/.test(hex)) return undefined;
  return hexBits([6, 4, 2, 0].map((at) => hex.slice(at, at + 2)).join(""), "IPv4");
}

function hexBits(hex: string, family: Family = "IPv6"): string | undefined {
  if (!/^[0-9a-f]+$/i.test(hex) || hex.length * 4 !== addressBits[family]) return undefined;
  return hex.replaceAll(/./g, (digit) => Number.parseInt(digit, 16).toString(2).padStart(4, "0"));
}
