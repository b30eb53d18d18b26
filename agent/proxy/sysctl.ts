import { readFile, writeFile } from "node:fs/promises";
import { errnoOf } from "../lib/errno.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { ConntrackOptions } from "./options.ts";

/** Kernel settings, by path below /proc/sys or as an absolute path below /sys. */
export interface Sysctls {
  read(path: string): Promise<string>;
  write(path: string, value: string): Promise<void>;
}

/** One setting that the proxy wants. */
export interface WantedSysctl {
  readonly path: string;
  readonly value: number;
  /** Leave a larger value alone. */
  readonly isMinimum?: boolean;
}

// The reference's cap: 2^20 entries are about 300 MB of kernel memory.
const conntrackMax = 1_048_576;
// Entries per bucket of the hash table above which the kernel's own advice is to grow it.
const entriesPerBucket = 4;

/** This machine's settings. */
export const systemSysctls: Sysctls = {
  read: async (path) => (await readFile(fullPath(path), "utf8")).trim(),
  write: async (path, value) => writeFile(fullPath(path), value),
};

/** Which settings connection tracking needs; 0 in the configuration leaves a setting alone. Pure. */
export function decideConntrackSysctls(options: ConntrackOptions, cpus: number): WantedSysctl[] {
  const wanted: WantedSysctl[] = [];
  if (options.maxPerCore > 0) {
    const scaled = options.maxPerCore * cpus;
    const max = scaled > conntrackMax ? conntrackMax : Math.max(scaled, options.min);
    wanted.push({ path: "net/netfilter/nf_conntrack_max", value: max });
    wanted.push({
      path: "/sys/module/nf_conntrack/parameters/hashsize",
      value: Math.floor(max / entriesPerBucket),
      isMinimum: true,
    });
  }
  const settings = [
    ["nf_conntrack_tcp_timeout_established", options.tcpEstablishedTimeoutSeconds],
    ["nf_conntrack_tcp_timeout_close_wait", options.tcpCloseWaitTimeoutSeconds],
    ["nf_conntrack_tcp_be_liberal", options.tcpBeLiberal ? 1 : 0],
    ["nf_conntrack_udp_timeout", options.udpTimeoutSeconds],
    ["nf_conntrack_udp_timeout_stream", options.udpStreamTimeoutSeconds],
  ] as const;
  for (const [name, value] of settings) if (value > 0) wanted.push({ path: `net/netfilter/${name}`, value });
  return wanted;
}

/** Other settings of the iptables backend. Pure. */
export function decideProxySysctls(hasLocalhostNodePorts: boolean): WantedSysctl[] {
  // Pods on a bridge reach each other past iptables otherwise, and replies come back without their DNAT undone.
  const bridge = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
  const wanted = bridge.map((path) => ({ path, value: 1 }));
  if (hasLocalhostNodePorts) wanted.push({ path: "net/ipv4/conf/all/route_localnet", value: 1 });
  return wanted;
}

/** What became of settings that were wanted and are not as they should be. */
interface UnappliedSysctls {
  /** The kernel has them, and they could not be set. */
  readonly failed: readonly WantedSysctl[];
  /** The kernel does not have them, at least not until the module that brings them is loaded. */
  readonly missing: readonly WantedSysctl[];
}

/**
 * Sets what differs. A setting that cannot be read or written is a warning: containers often have /proc/sys
 * read-only and the host's settings right. Of one that this kernel does not have only the caller knows whether it should.
 */
export async function applySysctls(
  wanted: readonly WantedSysctl[],
  sysctls: Sysctls,
  log: Logger,
): Promise<UnappliedSysctls> {
  const failed: WantedSysctl[] = [];
  const missing: WantedSysctl[] = [];
  for (const one of wanted) {
    const { path, value, isMinimum = false } = one;
    try {
      const current = Number(await sysctls.read(path));
      if (isMinimum ? current >= value : current === value) continue;
      await sysctls.write(path, `${value}`);
      log.info({ sysctl: path, from: current, to: value }, "kernel setting changed");
    } catch (err) {
      if (errnoOf(err) === "ENOENT") {
        missing.push(one);
        log.debug({ sysctl: path }, "no such kernel setting");
      } else {
        failed.push(one);
        log.warn({ sysctl: path, value, err: messageOf(err) }, "kernel setting could not be changed");
      }
    }
  }
  return { failed, missing };
}

function fullPath(path: string): string {
  return path.startsWith("/") ? path : `/proc/sys/${path}`;
}
