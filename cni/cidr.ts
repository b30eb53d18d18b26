import { isIP } from "node:net";

/** The family of an address with a prefix length, `10.1.0.5/24`; `undefined` if the text is none. Pure. */
export function cidrFamily(text: string): 4 | 6 | undefined {
  const [host = "", prefix = ""] = text.split("/", 2);
  const family = isIP(host);
  const bits = /^\d{1,3}$/.test(prefix) ? Number(prefix) : Number.NaN;
  if (family === 4 && bits <= 32) return 4;
  return family === 6 && bits <= 128 ? 6 : undefined;
}

/** The address without its prefix length. Pure. */
export function cidrHost(cidr: string): string {
  return cidr.split("/", 1)[0] ?? cidr;
}
