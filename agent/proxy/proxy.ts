import { cpus, networkInterfaces, release } from "node:os";
import { readFile } from "node:fs/promises";
import type { EventRecorder, Store } from "../kube/port.ts";
import type { EndpointSlice, Node, Service, ServiceCIDR } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { untilAborted } from "../lib/loop.ts";
import type { Backend } from "./backend.ts";
import { type Commands, createCommands } from "./commands.ts";
import { FamilyProxy, type FamilyStats, type SyncObserver } from "./family.ts";
import { HealthCheckPorts, type ServeHealthChecks } from "./health-check-ports.ts";
import { judgeProxyHealth } from "./health.ts";
import { cleanupIptables } from "./iptables/cleanup.ts";
import { createIptablesBackend } from "./iptables/backend.ts";
import { whyNoIpset } from "./iptables/exec.ts";
import { decideFlavour, observeFlavours } from "./iptables/flavour.ts";
import { type Family, parseIP } from "./ip.ts";
import { createNftablesBackend, expectNftables } from "./nftables/backend.ts";
import { cleanupNftables } from "./nftables/cleanup.ts";
import { healthCheckIPs, nodePortAddressesOf, readNodePortAddresses } from "./node-ports.ts";
import type { ProxyOptions } from "./options.ts";
import { findRivals, type RivalProcess, RivalWatch } from "./rivals.ts";
import { applySysctls, decideConntrackSysctls, decideProxySysctls, type Sysctls, systemSysctls } from "./sysctl.ts";

/** What the proxy works with. */
export interface ProxyDeps {
  readonly services: Store<Service>;
  readonly endpointSlices: Store<EndpointSlice>;
  /** Holds this node's object, if it exists. */
  readonly nodes: Store<Node>;
  /** The cluster's ranges of service addresses; only nftables mode uses them. */
  readonly serviceCIDRs?: Store<ServiceCIDR>;
  readonly clock: Clock;
  readonly log: Logger;
  readonly recorder?: EventRecorder;
  /** Hears of every sync; for metrics and health. */
  readonly observer?: SyncObserver;
  /** Serves healthCheckNodePorts. Absent: they are not served. */
  readonly serveHealthChecks?: ServeHealthChecks;
  /** Defaults: this machine's. */
  readonly commands?: Commands;
  readonly sysctls?: Sysctls;
  readonly localIPs?: () => readonly string[];
  /** Looks for other service proxies on this machine. */
  readonly findRivals?: () => Promise<RivalProcess[]>;
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
  const isHealthy = () => {
    return judgeProxyHealth(
      families.map((family) => family.stats()),
      options.syncPeriodMs,
    ).isHealthy;
  };
  return {
    stats: () => families.map((family) => family.stats()),
    run: async (signal) => {
      const built = await buildFamilies(options, deps, isHealthy, signal);
      families = built.map(({ family }) => family);
      const about = { kind: "Node", name: options.nodeName, uid: options.nodeName };
      deps.recorder?.event(about, "Normal", "Starting", "Starting the service proxy.", "StartKubeProxy");
      // Not one rule before both lists are complete: rules of a half-known cluster would cut working connections.
      await Promise.all([deps.services.synced(signal), deps.endpointSlices.synced(signal), deps.nodes.synced(signal)]);
      const unsubscribe = [
        deps.services.subscribe(({ key, object }) => families.forEach((family) => family.setService(key, object))),
        deps.endpointSlices.subscribe(({ key, object }) => families.forEach((family) => family.setSlice(key, object))),
        deps.nodes.subscribe(({ object }) => {
          if (object?.metadata.name === options.nodeName) families.forEach((family) => family.setNode(object));
        }),
      ];
      unsubscribe.push(
        deps.serviceCIDRs?.subscribe(() => families.forEach((family) => family.refresh())) ?? (() => {}),
      );
      try {
        await Promise.all([
          ...built.flatMap(({ family, healthChecks }) => [family.run(signal), healthChecks?.run(signal)]),
          removeOtherMode(options, deps, families, signal),
        ]);
      } finally {
        for (const stop of unsubscribe) stop();
      }
    },
  };
}

/**
 * Takes away what an earlier run in the other mode left, once all of this mode is in place: at no moment is there no rule.
 * What cannot be removed is told and left.
 */
async function removeOtherMode(
  options: ProxyOptions,
  deps: ProxyDeps,
  families: readonly FamilyProxy[],
  signal: AbortSignal,
): Promise<void> {
  await Promise.race([Promise.all(families.map(({ firstSync }) => firstSync)), untilAborted(signal)]);
  if (signal.aborted) return;
  const commands = deps.commands ?? createCommands();
  const remove = options.mode === "nftables" ? cleanupIptables : cleanupNftables;
  for (const problem of await remove(commands, deps.log, signal)) {
    if (!signal.aborted) deps.log.warn({ problem }, "rules of another proxy mode could not be removed");
  }
}

/**
 * Removes every rule and set of the proxy from this machine, in all modes and IP families.
 *
 * @returns what could not be removed, one line each; empty: all is clean
 */
export async function cleanup(deps: { log: Logger; commands?: Commands }, signal: AbortSignal): Promise<string[]> {
  const commands = deps.commands ?? createCommands();
  return [
    ...(await cleanupIptables(commands, deps.log, signal)),
    ...(await cleanupNftables(commands, deps.log, signal)),
  ];
}

/** Makes the backend of one family; rejects if this machine cannot do the family. */
type BackendMaker = (family: Family, log: Logger) => Promise<Backend>;

interface BuiltFamily {
  readonly family: FamilyProxy;
  readonly healthChecks: HealthCheckPorts | undefined;
}

async function buildFamilies(
  options: ProxyOptions,
  deps: ProxyDeps,
  isProxyHealthy: () => boolean,
  signal: AbortSignal,
): Promise<BuiltFamily[]> {
  const { log } = deps;
  const commands = deps.commands ?? createCommands();
  const sysctls = deps.sysctls ?? systemSysctls;
  const primary = parseIP(options.nodeIPs[0] ?? "")?.family ?? "IPv4";
  await applySysctls(decideConntrackSysctls(options.conntrack, cpus().length), sysctls, log);
  const resolved = { ...options, detectLocal: await resolveDetectLocal(options, deps, signal) };
  const tools: Tools = { commands, sysctls, localIPs: deps.localIPs ?? interfaceAddresses };
  const makeBackend = await (options.mode === "nftables" ? nftables : iptables)(resolved, deps, tools, signal);

  const about = { kind: "Node", name: options.nodeName, uid: options.nodeName };
  const rivals = new RivalWatch({
    clock: deps.clock,
    log,
    find: deps.findRivals ?? findRivals,
    onRival: (message) => deps.recorder?.event(about, "Warning", "OtherServiceProxy", message),
  });
  void rivals.check(); // never rejects
  const built: BuiltFamily[] = [];
  for (const family of options.families ?? (["IPv4", "IPv6"] as const)) {
    const familyLog = log.child({ family });
    let backend: Backend;
    try {
      if (family === "IPv6" && options.families === undefined) await expectIPv6(sysctls);
      backend = await makeBackend(family, familyLog);
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
    const { clock, observer } = deps;
    const { localIPs } = tools;
    const healthChecks = createHealthCheckPorts({ family, options, localIPs, isProxyHealthy, log: familyLog }, deps);
    built.push({
      family: new FamilyProxy({
        family,
        options: resolved,
        backend,
        commands,
        clock,
        log: familyLog,
        observer,
        localIPs,
        healthChecks,
        onDamage: (damage) => void rivals.check(damage),
      }),
      healthChecks,
    });
  }
  if (built.length === 0) throw new AgentError("Unavailable", "no IP family can be programmed on this machine");
  log.info({ families: built.map(({ family }) => family.family), primary }, `proxy mode ${options.mode}`);
  return built;
}

function createHealthCheckPorts(
  about: Pick<Tools, "localIPs"> & {
    family: Family;
    options: ProxyOptions;
    isProxyHealthy: () => boolean;
    log: Logger;
  },
  { serveHealthChecks: serve, recorder, clock }: ProxyDeps,
): HealthCheckPorts | undefined {
  if (serve === undefined) return undefined;
  const { family, options, localIPs, isProxyHealthy, log } = about;
  const addresses = readNodePortAddresses(nodePortAddressesOf(options), options.nodeIPs, family);
  const hosts = () => healthCheckIPs(addresses, localIPs, family);
  return new HealthCheckPorts({ family, hosts, isProxyHealthy, serve, recorder, clock, log });
}

interface Tools {
  readonly commands: Commands;
  readonly sysctls: Sysctls;
  readonly localIPs: () => readonly string[];
}

async function iptables(
  options: ProxyOptions,
  { log, clock, recorder, services }: ProxyDeps,
  { commands, sysctls, localIPs }: Tools,
  signal: AbortSignal,
): Promise<BackendMaker> {
  const flavour = options.iptablesFlavour ?? decideFlavour(await observeFlavours(commands, signal));
  const noIpset = await whyNoIpset(commands, signal);
  if (noIpset !== undefined) {
    log.warn({ err: noIpset }, "no ipset: packets find their service by the dispatch tree alone");
  }
  const ipv4Ports = readNodePortAddresses(options.nodePortAddresses, options.nodeIPs, "IPv4");
  const hasLocalhostNodePorts = options.localhostNodePorts && ipv4Ports.hasLoopback;
  await applySysctls(decideProxySysctls(hasLocalhostNodePorts), sysctls, log);
  const isLiberal = Number(await sysctls.read("net/netfilter/nf_conntrack_tcp_be_liberal").catch(() => "0")) !== 0;
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
        onRefused: (key, reason) => {
          const about = { kind: "Service", ...referenceTo(key, services) };
          recorder?.event(
            about,
            "Warning",
            "FailedToProgram",
            `${family} rules on node ${options.nodeName}: ${reason}`,
          );
        },
      },
      signal,
    );
}

async function nftables(
  options: ProxyOptions,
  { clock, serviceCIDRs }: ProxyDeps,
  { commands, localIPs }: Tools,
  signal: AbortSignal,
): Promise<BackendMaker> {
  await expectNftables(commands, signal, options.skipsKernelCheck ? undefined : release());
  const cidrs = () => [...(serviceCIDRs?.list() ?? [])].flatMap(({ spec }) => spec?.cidrs ?? []);
  return async (family, log) =>
    createNftablesBackend({ family, options, localIPs, serviceCIDRs: cidrs, commands, clock, log });
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

/** What an event about a service says of it. */
function referenceTo(key: string, services: Store<Service>) {
  const [namespace = "", name = ""] = key.split("/");
  const uid = services.get(key)?.metadata.uid;
  return { namespace, name, ...(uid === undefined ? {} : { uid }) };
}

function interfaceAddresses(): readonly string[] {
  return Object.values(networkInterfaces()).flatMap((list) => (list ?? []).map(({ address }) => address));
}
