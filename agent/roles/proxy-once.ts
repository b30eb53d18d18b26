import { cpus } from "node:os";
import type { ProxySettings } from "../config/load-proxy.ts";
import type { Logger } from "../lib/log.ts";
import { type Commands, createCommands } from "../proxy/commands.ts";
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

// Asks for a version only.
const lookTimeoutMs = 10_000;

/** `nodelet proxy --cleanup`. @returns the exit code: 1 if something is left, or nobody could look */
export async function cleanUpProxy(
  log: Logger,
  stop: AbortSignal,
  commands: Commands = createCommands(),
): Promise<number> {
  const problems = await cleanup({ log, commands }, stop);
  if (problems.length === 0 && !(await canLook(commands, stop))) {
    problems.push("neither iptables nor nft can be run here: nobody could look whether there are rules");
  }
  for (const problem of problems) log.error({ problem }, "not everything could be removed");
  if (problems.length === 0) log.info("no rules, chains or sets of the service proxy are left");
  return problems.length === 0 ? 0 : 1;
}

/** Without one of the two commands its rules are hardly there; without both, this is the wrong place to look. */
async function canLook(commands: Commands, signal: AbortSignal): Promise<boolean> {
  for (const file of ["iptables", "iptables-nft", "iptables-legacy", "nft"]) {
    const { failure } = await commands.run(file, ["--version"], { timeoutMs: lookTimeoutMs, signal });
    if (failure !== "spawn") return true;
  }
  return false;
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
