import { cpus } from "node:os";
import type { ProxySettings } from "../config/load-proxy.ts";
import type { Logger } from "../lib/log.ts";
import { cleanup } from "../proxy/proxy.ts";
import { readNodePortAddresses } from "../proxy/node-ports.ts";
import type { ProxyOptions } from "../proxy/options.ts";
import {
  applySysctls,
  decideConntrackSysctls,
  decideProxySysctls,
  systemSysctls,
  type WantedSysctl,
} from "../proxy/sysctl.ts";
import { proxyOptions } from "./proxy.ts";

/** `nodelet proxy --cleanup`. @returns the exit code: 1 if something is left */
export async function cleanUpProxy(log: Logger, stop: AbortSignal): Promise<number> {
  const problems = await cleanup({ log }, stop);
  for (const problem of problems) log.error({ problem }, "not everything could be removed");
  if (problems.length === 0) log.info("no rules, chains or sets of the service proxy are left");
  return problems.length === 0 ? 0 : 1;
}

/** What `--init-only` sets. Nobody knows the Node yet. Pure. */
export function decideInitSysctls(options: ProxyOptions, cpuCount: number): WantedSysctl[] {
  const wanted = decideConntrackSysctls(options.conntrack, cpuCount);
  if (options.mode === "iptables") {
    const { localhostNodePorts, nodePortAddresses, nodeIPs } = options;
    // The node's own addresses, whichever they are, are none of loopback.
    const isOwn = nodePortAddresses.length === 1 && nodePortAddresses[0] === "primary";
    const { hasLoopback } = readNodePortAddresses(nodePortAddresses, nodeIPs, "IPv4");
    wanted.push(...decideProxySysctls(localhostNodePorts && hasLoopback && !isOwn));
  }
  return wanted;
}

/**
 * `nodelet proxy --init-only`: the kernel settings that need privileges, so that the proxy itself can run without them.
 * @returns the exit code: 1 if one of them could not be set
 */
export async function initProxy({ config }: ProxySettings, log: Logger): Promise<number> {
  const wanted = decideInitSysctls(proxyOptions(config, "", []), cpus().length);
  const { failed } = await applySysctls(wanted, systemSysctls, log);
  return failed.length === 0 ? 0 : 1;
}
