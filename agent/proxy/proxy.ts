import { cpus, networkInterfaces } from "node:os";
import { readFile } from "node:fs/promises";
import type { EventRecorder, Store } from "../kube/port.ts";
import type { EndpointSlice, Node, Service, ServiceCIDR } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { backoffMs } from "../lib/backoff.ts";
import { AgentError, hasCode, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { ignoreAbort, untilAborted } from "../lib/loop.ts";
import { matchFamilies } from "./address-families.ts";
import type { Backend } from "./backend.ts";
import { type Commands, createCommands } from "./commands.ts";
import { ConntrackSettings } from "./conntrack-settings.ts";
import { FamilyProxy, type FamilyStats, type SyncObserver } from "./family.ts";
import { HealthCheckPorts, type ServeHealthChecks } from "./health-check-ports.ts";
import { judgeProxyHealth } from "./health.ts";
import { cleanupIptables } from "./iptables/cleanup.ts";
import { type Family, parseIP } from "./ip.ts";
import { prepareMode, type Tools } from "./modes.ts";
import { cleanupNftables } from "./nftables/cleanup.ts";
import { healthCheckIPs, nodePortAddressesOf, readNodePortAddresses } from "./node-ports.ts";
import { followNodeFacts, type NodeFacts, waitForPodCIDRs } from "./node-facts.ts";
import type { ProxyOptions } from "./options.ts";
import { findRivals, type RivalProcess, RivalWatch } from "./rivals.ts";
import { decideConntrackSysctls, type Sysctls, systemSysctls } from "./sysctl.ts";

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
  /** The addresses that the Node says it has, as `ProxyOptions.nodeIPs`. Absent: those of the options stay. */
  readonly nodeIPsOf?: (node: Node) => readonly string[];
  /** Looks for other service proxies on this machine. */
  readonly findRivals?: () => Promise<RivalProcess[]>;
}

/** The service proxy's role in the agent. */
export interface Proxy {
  /**
   * Programs the rules and keeps them until `signal` aborts; then resolves and leaves the rules in place.
   * Rejects if the machine cannot do it: no iptables, say, or none for the primary family. Nothing is left at work then, and it can
   * be called again.
   */
  run(signal: AbortSignal): Promise<void>;
  /** One entry for each family that is programmed; none before the start. */
  stats(): readonly FamilyStats[];
}

// First wait before something is tried again that another program may have held up; doubles up to the maximum.
const retryBaseMs = 5_000;
const retryMaxMs = 300_000;
// What another mode left harms nobody that the new rules serve; looking for it reads all rules of the machine.
const removalRetryMaxMs = 3_600_000;

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
      families = [];
      const builder = await prepare(options, deps, isHealthy, signal);
      const { built, heldUp } = await buildFamilies(builder, deps, signal);
      families = built.map(({ family }) => family);
      const about = { kind: "Node", name: options.nodeName, uid: options.nodeName };
      deps.recorder?.event(about, "Normal", "Starting", "Starting the service proxy.", "StartKubeProxy");
      // Not one rule before both lists are complete: rules of a half-known cluster would cut working connections.
      await Promise.all([deps.services.synced(signal), deps.endpointSlices.synced(signal), deps.nodes.synced(signal)]);
      const add = (one: BuiltFamily) => void (families = [...families, one.family]);
      try {
        await runTogether(signal, (own) => [
          ...built.map((one) => runFamily(one, builder, deps, own)),
          ...heldUp.map((family) => runHeldUp({ family, add }, builder, deps, own)),
        ]);
      } catch (err) {
        families = [];
        throw err;
      }
    },
  };
}

/** Runs all of them; the first failure ends the others, and is what it rejects with when they have ended. */
async function runTogether(
  signal: AbortSignal,
  start: (signal: AbortSignal) => readonly Promise<void>[],
): Promise<void> {
  const end = new AbortController();
  const runs = start(AbortSignal.any([signal, end.signal]));
  try {
    await Promise.all(runs);
  } finally {
    end.abort();
    await Promise.allSettled(runs);
  }
}

/** One family, from the first object to the last sync. */
async function runFamily(
  { family, healthChecks }: BuiltFamily,
  builder: FamilyBuilder,
  deps: ProxyDeps,
  signal: AbortSignal,
): Promise<void> {
  const { options } = builder.facts;
  const unsubscribe = [
    deps.services.subscribe(({ key, object }) => {
      family.setService(key, options.allowsExternalIPs ? object : withoutExternalIPs(object));
    }),
    deps.endpointSlices.subscribe(({ key, object }) => family.setSlice(key, object)),
    deps.nodes.subscribe(({ object }) => {
      if (object?.metadata.name !== options.nodeName) return;
      builder.nodeChanged(object);
      family.setNode(object);
    }),
    deps.serviceCIDRs?.subscribe(() => family.refresh()) ?? (() => {}),
  ];
  try {
    await runTogether(signal, (own) => [
      family.run(own),
      healthChecks?.run(own) ?? untilAborted(own),
      afterFirstSync(family, builder, deps, own),
    ]);
  } finally {
    for (const stop of unsubscribe) stop();
  }
}

/** A family that could not be had at the start, because somebody held the lock, say: tries again until it works. */
async function runHeldUp(
  { family, add }: { readonly family: Family; readonly add: (built: BuiltFamily) => void },
  builder: FamilyBuilder,
  deps: ProxyDeps,
  signal: AbortSignal,
): Promise<void> {
  for (let failures = 1; !signal.aborted; failures += 1) {
    const retryMs = backoffMs(failures, { baseMs: retryBaseMs, maxMs: retryMaxMs });
    await deps.clock.sleep(retryMs, signal).catch(ignoreAbort);
    if (signal.aborted) return;
    const built = await builder.build(family);
    if (built === "heldUp") continue;
    // Nobody asks again for one that this machine turned out to lack.
    if (built === "absent") return await untilAborted(signal);
    add(built);
    return await runFamily(built, builder, deps, signal);
  }
}

/**
 * What waits for a family's rules. Settings of connection tracking, whose module the rules bring. And what an earlier run in the
 * other mode left goes when all of this mode is in place: at no moment is there no rule. What cannot be removed is told once
 * and tried again.
 */
async function afterFirstSync(
  family: FamilyProxy,
  { facts, conntrack, commands }: FamilyBuilder,
  { clock, log }: ProxyDeps,
  signal: AbortSignal,
): Promise<void> {
  await Promise.race([family.firstSync, untilAborted(signal)]);
  if (signal.aborted) return;
  await conntrack.applyWithRules();
  const remove = facts.options.mode === "nftables" ? cleanupIptables : cleanupNftables;
  const told = new Set<string>();
  for (let failures = 1; !signal.aborted; failures += 1) {
    const problems = await remove(commands, log, signal, [family.family]);
    if (problems.length === 0 || signal.aborted) break;
    for (const problem of problems) {
      if (!told.has(problem)) log.warn({ problem }, "rules of another proxy mode could not be removed; trying again");
      told.add(problem);
    }
    const retryMs = backoffMs(failures, { baseMs: retryBaseMs, maxMs: removalRetryMaxMs });
    await clock.sleep(retryMs, signal).catch(ignoreAbort);
  }
  await untilAborted(signal);
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

interface BuiltFamily {
  readonly family: FamilyProxy;
  readonly healthChecks: HealthCheckPorts | undefined;
}

/** What makes families, at the start or later. */
interface FamilyBuilder {
  readonly facts: NodeFacts;
  readonly primary: Family;
  readonly commands: Commands;
  readonly conntrack: ConntrackSettings;
  /** Takes the Node as it is now; all families hear of it if rules depend on what is new. */
  nodeChanged(node: Node): void;
  /**
   * "absent": this machine does not have the family. "heldUp": it may work at another time. Rejects, without the primary
   * family, with Unavailable.
   */
  build(family: Family): Promise<BuiltFamily | "absent" | "heldUp">;
}

async function prepare(
  given: ProxyOptions,
  deps: ProxyDeps,
  isProxyHealthy: () => boolean,
  signal: AbortSignal,
): Promise<FamilyBuilder> {
  const { log, clock, observer } = deps;
  const commands = deps.commands ?? createCommands();
  const sysctls = deps.sysctls ?? systemSysctls;
  const localIPs = deps.localIPs ?? interfaceAddresses;
  const conntrack = new ConntrackSettings(decideConntrackSysctls(given.conntrack, cpus().length), sysctls, log);
  await conntrack.apply();
  const facts = followNodeFacts(given, deps.nodeIPsOf);
  await waitForPodCIDRs(facts, deps, signal);
  const { options } = facts;
  const primary = parseIP(options.nodeIPs[0] ?? "")?.family ?? "IPv4";
  const tools: Tools = { commands, sysctls, localIPs };
  const makeBackend = await prepareMode(options, deps, tools, signal);

  const about = { kind: "Node", name: options.nodeName, uid: options.nodeName };
  const rivals = new RivalWatch({
    clock,
    log,
    find: deps.findRivals ?? findRivals,
    onRival: (message) => deps.recorder?.event(about, "Warning", "OtherServiceProxy", message),
  });
  void rivals.check(); // never rejects
  const families: FamilyProxy[] = [];
  const told = new Set<string>();
  return {
    facts,
    primary,
    commands,
    conntrack,
    nodeChanged: (node) => {
      const changes = facts.update(node);
      if (changes.length === 0) return;
      log.info({ changes }, "the Node has changed; programming all services anew");
      for (const family of families) family.refresh({ isFull: true });
    },
    build: async (family) => {
      const familyLog = log.child({ family });
      let backend: Backend;
      try {
        if (family === "IPv6" && options.families === undefined) await expectIPv6(sysctls);
        backend = await makeBackend(family, familyLog);
      } catch (err) {
        if (signal.aborted) throw err;
        const why = messageOf(err);
        if (family === primary) {
          throw new AgentError("Unavailable", `${family} services cannot be programmed on this machine: ${why}`);
        }
        if (!hasCode(err, "Unavailable")) {
          log.info({ family, err: why }, "family is not programmed");
          return "absent";
        }
        if (!told.has(why)) log.warn({ family, err: why }, "family cannot be programmed yet; trying again");
        told.add(why);
        return "heldUp";
      }
      const healthChecks = createHealthCheckPorts({ family, options, localIPs, isProxyHealthy, log: familyLog }, deps);
      const onDamage = (damage: string) => void rivals.check(damage);
      const made = { family, options, backend, commands, clock, log: familyLog, observer, localIPs, healthChecks };
      const proxy = new FamilyProxy({ ...made, onDamage });
      families.push(proxy);
      return { family: proxy, healthChecks };
    },
  };
}

/** Makes the families that this machine has now; `heldUp` may work later. */
async function buildFamilies(
  { facts: { options }, primary, build }: FamilyBuilder,
  { log }: ProxyDeps,
  signal: AbortSignal,
): Promise<{ built: BuiltFamily[]; heldUp: Family[] }> {
  const built: BuiltFamily[] = [];
  const heldUp: Family[] = [];
  for (const family of options.families ?? (["IPv4", "IPv6"] as const)) {
    const one = await build(family);
    if (one === "heldUp") heldUp.push(family);
    else if (one !== "absent") built.push(one);
  }
  signal.throwIfAborted();
  if (built.length + heldUp.length === 0) {
    throw new AgentError("Unavailable", "no IP family can be programmed on this machine");
  }
  const { fatal, warnings } = matchFamilies(options, [...built.map((one) => one.family.family), ...heldUp], primary);
  if (fatal !== undefined) throw new AgentError("Invalid", fatal);
  for (const warning of warnings) log.warn(warning);
  log.info({ families: built.map(({ family }) => family.family), primary }, `proxy mode ${options.mode}`);
  return { built, heldUp };
}

function createHealthCheckPorts(
  about: Pick<Tools, "localIPs"> & {
    family: Family;
    options: ProxyOptions;
    isProxyHealthy: () => boolean;
    log: Logger;
  },
  { serveHealthChecks: serve, services, recorder, clock }: ProxyDeps,
): HealthCheckPorts | undefined {
  if (serve === undefined) return undefined;
  const { family, options, localIPs, isProxyHealthy, log } = about;
  const hosts = () => {
    const addresses = readNodePortAddresses(nodePortAddressesOf(options), options.nodeIPs, family);
    return healthCheckIPs(addresses, localIPs, family);
  };
  const uidOf = (key: string) => services.get(key)?.metadata.uid;
  return new HealthCheckPorts({ family, hosts, uidOf, isProxyHealthy, serve, recorder, clock, log });
}

function withoutExternalIPs(service: Service | undefined): Service | undefined {
  if (service?.spec?.externalIPs === undefined) return service;
  const { externalIPs: _, ...spec } = service.spec;
  return { ...service, spec };
}

async function expectIPv6(sysctls: Sysctls): Promise<void> {
  await readFile("/proc/net/if_inet6");
  if ((await sysctls.read("net/ipv6/conf/all/disable_ipv6")) === "1") throw new Error("IPv6 is disabled");
}

function interfaceAddresses(): readonly string[] {
  return Object.values(networkInterfaces()).flatMap((list) => (list ?? []).map(({ address }) => address));
}
