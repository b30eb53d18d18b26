import { cpus, networkInterfaces } from "node:os";
import { readFile } from "node:fs/promises";
import type { EventRecorder, Store } from "../kube/port.ts";
import type { EndpointSlice, Node, Service } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { Backend } from "./backend.ts";
import { type Commands, createCommands } from "./commands.ts";
import { FamilyProxy, type FamilyStats, type SyncObserver } from "./family.ts";
import { cleanupIptables } from "./iptables/cleanup.ts";
import { createIptablesBackend } from "./iptables/backend.ts";
import { whyNoIpset } from "./iptables/exec.ts";
import { readNodePortAddresses } from "./iptables/fixed.ts";
import { decideFlavour, observeFlavours } from "./iptables/flavour.ts";
import { parseIP } from "./ip.ts";
import type { ProxyOptions } from "./options.ts";
import { applySysctls, decideConntrackSysctls, decideProxySysctls, type Sysctls, systemSysctls } from "./sysctl.ts";

/** What the proxy works with. */
export interface ProxyDeps {
  readonly services: Store<Service>;
  readonly endpointSlices: Store<EndpointSlice>;
  /** Holds this node's object, if it exists. */
  readonly nodes: Store<Node>;
  readonly clock: Clock;
  readonly log: Logger;
  readonly recorder?: EventRecorder;
  /** Hears of every sync; for metrics and health. */
  readonly observer?: SyncObserver;
  /** Defaults: this machine's. */
  readonly commands?: Commands;
  readonly sysctls?: Sysctls;
  readonly localIPs?: () => readonly string[];
}

/** The service proxy's role in the agent. */
export interface Proxy {
  /**
   * Programs the rules and keeps them until `signal` aborts; then resolves and leaves the rules in place.
   * Rejects if the machine cannot do it at all: no iptables, or none for the primary family.
   */
  run(signal: AbortSignal): Promise<void>;
  /** One entry for each family that is programmed; none before the start. */
  stats(): readonly FamilyStats[];
}

// The reference gives a new node this long to be assigned its pod CIDRs.
const podCIDRsTimeoutMs = 300_000;

/** Makes the proxy; nothing happens before `run`. */
export function createProxy(options: ProxyOptions, deps: ProxyDeps): Proxy {
  let families: FamilyProxy[] = [];
  return {
    stats: () => families.map((family) => family.stats()),
    run: async (signal) => {
      families = await buildFamilies(options, deps, signal);
      const about = { kind: "Node", name: options.nodeName, uid: options.nodeName };
      deps.recorder?.event(about, "Normal", "Starting", "Starting the service proxy.");
      // Not one rule before both lists are complete: rules of a half-known cluster would cut working connections.
      await Promise.all([deps.services.synced(signal), deps.endpointSlices.synced(signal), deps.nodes.synced(signal)]);
      const unsubscribe = [
        deps.services.subscribe(({ key, object }) => families.forEach((family) => family.setService(key, object))),
        deps.endpointSlices.subscribe(({ key, object }) => families.forEach((family) => family.setSlice(key, object))),
        deps.nodes.subscribe(({ object }) => {
          if (object?.metadata.name === options.nodeName) families.forEach((family) => family.setNode(object));
        }),
      ];
      try {
        await Promise.all(families.map((family) => family.run(signal)));
      } finally {
        for (const stop of unsubscribe) stop();
      }
    },
  };
}

/**
 * Removes every rule and set of the proxy from this machine, in both iptables flavours and IP families.
 *
 * @returns what could not be removed, one line each; empty: all is clean
 */
export async function cleanup(deps: { log: Logger; commands?: Commands }, signal: AbortSignal): Promise<string[]> {
  return cleanupIptables(deps.commands ?? createCommands(), deps.log, signal);
}

async function buildFamilies(options: ProxyOptions, deps: ProxyDeps, signal: AbortSignal): Promise<FamilyProxy[]> {
  const { log } = deps;
  const commands = deps.commands ?? createCommands();
  const sysctls = deps.sysctls ?? systemSysctls;
  const primary = parseIP(options.nodeIPs[0] ?? "")?.family ?? "IPv4";
  const flavour = options.iptablesFlavour ?? decideFlavour(await observeFlavours(commands, signal));
  const noIpset = await whyNoIpset(commands, signal);
  if (noIpset !== undefined) {
    log.warn({ err: noIpset }, "no ipset: packets find their service by the dispatch tree alone");
  }

  const ipv4Ports = readNodePortAddresses(options.nodePortAddresses, options.nodeIPs, "IPv4");
  const hasLocalhostNodePorts = options.localhostNodePorts && ipv4Ports.hasLoopback;
  await applySysctls(decideConntrackSysctls(options.conntrack, cpus().length), sysctls, log);
  await applySysctls(decideProxySysctls(hasLocalhostNodePorts), sysctls, log);
  const isLiberal = Number(await sysctls.read("net/netfilter/nf_conntrack_tcp_be_liberal").catch(() => "0")) !== 0;
  const detectLocal = await resolveDetectLocal(options, deps, signal);

  const localIPs = deps.localIPs ?? interfaceAddresses;

  const built: FamilyProxy[] = [];
  for (const family of options.families ?? (["IPv4", "IPv6"] as const)) {
    let backend: Backend;
    const familyLog = log.child({ family });
    try {
      if (family === "IPv6" && options.families === undefined) await expectIPv6(sysctls);
      backend = await createIptablesBackend(
        {
          family,
          options: { ...options, detectLocal },
          flavour,
          hasIpset: noIpset === undefined,
          dropsInvalid: !isLiberal,
          hasLocalhostNodePorts: family === "IPv4" && hasLocalhostNodePorts,
          localIPs,
          commands,
          log: familyLog,
        },
        signal,
      );
    } catch (err) {
      if (signal.aborted) throw err;
      if (family === primary) {
        throw new AgentError(
          "Unavailable",
          `${family} services cannot be programmed on this machine: ${messageOf(err)}`,
        );
      }
      log.info({ family, err: messageOf(err) }, "family is not programmed");
      continue;
    }
    built.push(
      new FamilyProxy({
        family,
        options: { ...options, detectLocal },
        backend,
        commands,
        clock: deps.clock,
        log: familyLog,
        observer: deps.observer,
        localIPs,
      }),
    );
  }
  if (built.length === 0) throw new AgentError("Unavailable", "no IP family can be programmed on this machine");
  const inUse = built.map(({ family }) => family);
  log.info(
    { families: inUse, primary, iptables: flavour ?? "default", ipset: noIpset === undefined },
    "proxy mode iptables",
  );
  return built;
}

async function expectIPv6(sysctls: Sysctls): Promise<void> {
  await readFile("/proc/net/if_inet6");
  if ((await sysctls.read("net/ipv6/conf/all/disable_ipv6")) === "1") throw new Error("IPv6 is disabled");
}

/** In NodeCIDR mode without CIDRs given, waits for those of the node object. */
async function resolveDetectLocal(
  options: ProxyOptions,
  deps: ProxyDeps,
  signal: AbortSignal,
): Promise<ProxyOptions["detectLocal"]> {
  const { detectLocal, nodeName } = options;
  if (detectLocal.mode !== "NodeCIDR" || detectLocal.cidrs.length > 0) return detectLocal;
  const found = new AbortController();
  let cidrs: readonly string[] = [];
  const unsubscribe = deps.nodes.subscribe(({ object }) => {
    if (object?.metadata.name !== nodeName) return;
    cidrs = object.spec?.podCIDRs ?? [];
    if (cidrs.length > 0) found.abort();
  });
  try {
    await deps.clock.sleep(podCIDRsTimeoutMs, AbortSignal.any([signal, found.signal])).catch(() => {});
  } finally {
    unsubscribe();
  }
  signal.throwIfAborted();
  if (cidrs.length > 0) return { ...detectLocal, cidrs };
  throw new AgentError("Unavailable", `node ${nodeName} has no pod CIDRs, which detectLocalMode NodeCIDR needs`);
}

function interfaceAddresses(): readonly string[] {
  return Object.values(networkInterfaces()).flatMap((list) => (list ?? []).map(({ address }) => address));
}
