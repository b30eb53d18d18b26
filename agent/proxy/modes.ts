import { release } from "node:os";
import type { EventRecorder, Store } from "../kube/port.ts";
import type { Service, ServiceCIDR } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import type { Logger } from "../lib/log.ts";
import type { Backend } from "./backend.ts";
import type { Commands } from "./commands.ts";
import type { Family } from "./ip.ts";
import { createIptablesBackend } from "./iptables/backend.ts";
import { whyNoIpset } from "./iptables/ipset.ts";
import { decideFlavour, observeFlavours } from "./iptables/flavour.ts";
import { createNftablesBackend, expectNftables } from "./nftables/backend.ts";
import { readNodePortAddresses } from "./node-ports.ts";
import type { ProxyOptions } from "./options.ts";
import { applySysctls, decideProxySysctls, type Sysctls } from "./sysctl.ts";

/** Makes the backend of one family; rejects if this machine cannot do the family. */
export type BackendMaker = (family: Family, log: Logger) => Promise<Backend>;

/** What the modes need of the proxy's surroundings. */
interface ModeDeps {
  readonly services: Store<Service>;
  readonly serviceCIDRs?: Store<ServiceCIDR>;
  readonly clock: Clock;
  readonly log: Logger;
  readonly recorder?: EventRecorder;
}

/** This machine. */
export interface Tools {
  readonly commands: Commands;
  readonly sysctls: Sysctls;
  readonly localIPs: () => readonly string[];
}

/**
 * Looks what this machine has for the configured mode. Rejects with Unavailable if the mode cannot work here.
 *
 * @param options follow the Node: they are read at each sync
 */
export async function prepareMode(
  options: ProxyOptions,
  deps: ModeDeps,
  tools: Tools,
  signal: AbortSignal,
): Promise<BackendMaker> {
  return await (options.mode === "nftables" ? nftables : iptables)(options, deps, tools, signal);
}

async function iptables(
  options: ProxyOptions,
  deps: ModeDeps,
  { commands, sysctls, localIPs }: Tools,
  signal: AbortSignal,
): Promise<BackendMaker> {
  const { log, clock } = deps;
  const flavour = options.iptablesFlavour ?? decideFlavour(await observeFlavours(commands, signal));
  const noIpset = await whyNoIpset(commands, signal);
  if (noIpset !== undefined) {
    log.warn({ err: noIpset }, "no ipset: packets find their service by the dispatch tree alone");
  }
  const ipv4Ports = readNodePortAddresses(options.nodePortAddresses, options.nodeIPs, "IPv4");
  const hasLocalhostNodePorts = options.localhostNodePorts && ipv4Ports.hasLoopback;
  await applySysctls(decideProxySysctls(hasLocalhostNodePorts), sysctls, log);
  const liberal = await sysctls.read("net/netfilter/nf_conntrack_tcp_be_liberal").catch(() => "0");
  // It may be set only when the rules have brought connection tracking.
  const isLiberal = options.conntrack.tcpBeLiberal || Number(liberal) !== 0;
  log.info({ iptables: flavour ?? "default", ipset: noIpset === undefined }, "iptables commands found");
  return async (family, familyLog) =>
    await createIptablesBackend(
      {
        family,
        options,
        flavour,
        hasIpset: noIpset === undefined,
        dropsInvalid: !isLiberal,
        hasLocalhostNodePorts: family === "IPv4" && hasLocalhostNodePorts,
        localIPs,
        commands,
        clock,
        log: familyLog,
        onRefused: tellRefused(options, deps, family),
      },
      signal,
    );
}

async function nftables(
  options: ProxyOptions,
  deps: ModeDeps,
  { commands, localIPs }: Tools,
  signal: AbortSignal,
): Promise<BackendMaker> {
  await expectNftables(commands, signal, options.skipsKernelCheck ? undefined : release());
  const { clock, serviceCIDRs } = deps;
  const cidrs = () => [...(serviceCIDRs?.list() ?? [])].flatMap(({ spec }) => spec?.cidrs ?? []);
  return async (family, log) => {
    const onRefused = tellRefused(options, deps, family);
    return createNftablesBackend({ family, options, localIPs, serviceCIDRs: cidrs, commands, clock, log, onRefused });
  };
}

/** Tells of a service whose rules the kernel refuses in an event about it. */
function tellRefused({ nodeName }: ProxyOptions, { recorder, services }: ModeDeps, family: Family) {
  return (key: string, reason: string) => {
    const [namespace = "", name = ""] = key.split("/");
    const uid = services.get(key)?.metadata.uid;
    const about = { kind: "Service", namespace, name, ...(uid === undefined ? {} : { uid }) };
    recorder?.event(about, "Warning", "FailedToProgram", `${family} rules on node ${nodeName}: ${reason}`);
  };
}
