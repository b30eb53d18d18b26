import { cpus } from "node:os";
import type { ProxySettings } from "../config/load-proxy.ts";
import type { Logger } from "../lib/log.ts";
import { cleanup } from "../proxy/proxy.ts";
import { readNodePortAddresses } from "../proxy/node-ports.ts";
import { applySysctls, decideConntrackSysctls, decideProxySysctls, systemSysctls } from "../proxy/sysctl.ts";
import { proxyOptions } from "./proxy.ts";

/** `nodelet proxy --cleanup`. @returns the exit code: 1 if something is left */
export async function cleanUpProxy(log: Logger, stop: AbortSignal): Promise<number> {
  const problems = await cleanup({ log }, stop);
  for (const problem of problems) log.error({ problem }, "not everything could be removed");
  if (problems.length === 0) log.info("no rules, chains or sets of the service proxy are left");
  return problems.length === 0 ? 0 : 1;
}

/**
 * `nodelet proxy --init-only`: the kernel settings that need privileges, so that the proxy itself can run without them.
 * @returns the exit code: 1 if one of them could not be set
 */
export async function initProxy({ config }: ProxySettings, log: Logger): Promise<number> {
  const options = proxyOptions(config, "", []);
  const wanted = decideConntrackSysctls(options.conntrack, cpus().length);
  if (options.mode === "iptables") {
    const { hasLoopback } = readNodePortAddresses(options.nodePortAddresses, options.nodeIPs, "IPv4");
    wanted.push(...decideProxySysctls(options.localhostNodePorts && hasLoopback));
  }
  const { failed } = await applySysctls(wanted, systemSysctls, log);
  return failed.length === 0 ? 0 : 1;
}
