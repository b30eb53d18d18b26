import { cpus } from "node:os";
import type { ProxySettings } from "../config/load-proxy.ts";
import type { Logger } from "../lib/log.ts";
import { cleanup } from "../proxy/proxy.ts";
import { applySysctls, decideConntrackSysctls, systemSysctls } from "../proxy/sysctl.ts";
import { proxyOptions } from "./proxy.ts";

/** `nodelet proxy --cleanup`. @returns the exit code: 1 if something is left */
export async function cleanUpProxy(log: Logger, stop: AbortSignal): Promise<number> {
  const problems = await cleanup({ log }, stop);
  for (const problem of problems) log.error({ problem }, "not everything could be removed");
  if (problems.length === 0) log.info("no rules, chains or sets of the service proxy are left");
  return problems.length === 0 ? 0 : 1;
}

/** `nodelet proxy --init-only`: the kernel settings that need privileges. @returns the exit code */
export async function initProxy({ config }: ProxySettings, log: Logger): Promise<number> {
  const { conntrack } = proxyOptions(config, "", []);
  await applySysctls(decideConntrackSysctls(conntrack, cpus().length), systemSysctls, log);
  return 0;
}
