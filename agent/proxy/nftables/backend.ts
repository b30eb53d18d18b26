import { release } from "node:os";
import type { Clock } from "../../lib/clock.ts";
import { AgentError } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { untilAborted } from "../../lib/loop.ts";
import type { Backend } from "../backend.ts";
import { type Commands, expectSuccess } from "../commands.ts";
import { type Family, parseCIDR } from "../ip.ts";
import { type RelayTarget, relayTargets } from "../localhost-choice.ts";
import { LocalhostRelay } from "../localhost-relay.ts";
import { markText, nodePortAddressesOf, nodePortIPs, readNodePortAddresses } from "../node-ports.ts";
import type { ProxyOptions } from "../options.ts";
import { isAtLeast } from "../version.ts";
import { createNft } from "./exec.ts";
import { detectLocalMatch } from "./local.ts";
import { withoutOverlaps } from "./render.ts";
import { type NftablesSyncRequest, NftablesRules } from "./sync.ts";

/** What decides the rules of an IP family, beyond the services. */
export interface NftablesBackendOptions {
  readonly family: Family;
  readonly options: ProxyOptions;
  /** This machine's addresses, asked for at each sync. */
  readonly localIPs: () => readonly string[];
  /** The cluster's ranges of service addresses, of both families, asked for at each sync. */
  readonly serviceCIDRs: () => readonly string[];
  readonly commands: Commands;
  readonly clock: Clock;
  readonly log: Logger;
  /** Hears once of each service whose rules the kernel refuses, with the reason. Must not throw. */
  readonly onRefused: (key: string, reason: string) => void;
}

/** The nftables mode of one family. */
export function createNftablesBackend(about: NftablesBackendOptions): Backend {
  const { family, options, localIPs, commands, clock, log } = about;
  const rules = new NftablesRules({ nft: createNft(commands, family), clock, log, onRefused: about.onRefused });
  const mark = markText(options.masqueradeBit);
  // The Node's addresses and pod CIDRs may change.
  const context = (): Pick<NftablesSyncRequest, "fixed" | "render"> => {
    const addresses = readNodePortAddresses(nodePortAddressesOf(options), options.nodeIPs, family);
    const local = detectLocalMatch(options.detectLocal, family);
    return {
      fixed: {
        family,
        mark,
        masqueradeAll: options.masqueradeAll,
        notFromLocalPods: local?.notMatch,
        nodePortIPs: nodePortIPs(addresses, localIPs, family, false),
        // One text whatever the order of the objects, of which some may lie in others.
        serviceCIDRs: withoutOverlaps(about.serviceCIDRs().filter((text) => parseCIDR(text)?.family === family)),
      },
      render: { family, mark, fromLocalPods: local?.match },
    };
  };
  const relay = relaysLocalhost(options, family) ? new LocalhostRelay({ family, clock, log }) : undefined;
  return {
    family,
    syncsFullyAtAnySize: true,
    get needsFull() {
      return rules.needsFull;
    },
    sync: async (request, signal) => {
      const relayed = new Map<string, readonly RelayTarget[]>();
      const describe = (key: string) => {
        const service = request.describe(key);
        relayed.set(key, relayTargets(service));
        return service;
      };
      const result = await rules.sync({ ...request, describe, ...context() }, signal);
      if (request.isFull) relay?.keepOnly(relayed);
      for (const [key, targets] of relayed) relay?.set(key, targets);
      return result;
    },
    figures: () => ({ cleanupFailures: rules.cleanupFailures }),
    findDamage: async (signal) => await rules.findDamage(signal),
    run: async (signal) => {
      await (relay?.run(signal) ?? untilAborted(signal));
      await rules.idle();
    },
  };
}

/**
 * Whether node ports are answered on loopback. Addresses that are configured decide it as they do for every other address; the
 * default, the node's own ones, leaves it as it is in iptables mode. Pure.
 */
export function relaysLocalhost(
  options: Pick<ProxyOptions, "localhostNodePorts" | "nodePortAddresses" | "nodeIPs">,
  family: Family,
): boolean {
  const { localhostNodePorts, nodePortAddresses, nodeIPs } = options;
  return localhostNodePorts && readNodePortAddresses(nodePortAddresses, nodeIPs, family).hasLoopback;
}

// The reference's requirements: earlier nft lack what it writes, earlier kernels have bugs that lose rules.
const nftVersionMin = [1, 0, 1];
const kernelVersionMin = [5, 13];
const versionTimeoutMs = 10_000;

/**
 * Makes sure that this machine can do nftables at all. Rejects with Unavailable and says what is missing.
 * @param kernelRelease as `uname -r` has it; not looked at when undefined
 */
export async function expectNftables(
  commands: Commands,
  signal: AbortSignal,
  kernelRelease: string | undefined = release(),
): Promise<void> {
  const result = await commands.run("nft", ["--version"], { timeoutMs: versionTimeoutMs, signal });
  expectSuccess(result, "ask nft for its version");
  if (!isAtLeast(versionIn(result.stdout), nftVersionMin)) {
    throw new AgentError(
      "Unavailable",
      `proxy mode nftables needs nft 1.0.1 or later, this is ${result.stdout.trim()}`,
    );
  }
  if (kernelRelease !== undefined && !isAtLeast(versionIn(kernelRelease), kernelVersionMin)) {
    throw new AgentError(
      "Unavailable",
      `proxy mode nftables needs Linux 5.13 or later, this is ${kernelRelease} (set KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK to try it anyway)`,
    );
  }
  const family = "IPv4";
  const refusal = await createNft(commands, family).tryOut("add table ip kube-proxy\n", signal);
  if (refusal !== undefined) {
    throw new AgentError("Unavailable", `the kernel refuses proxy mode nftables: ${refusal}`);
  }
}

/** The first version number in `text`. */
function versionIn(text: string): number[] {
  return (/\d+(?:\.\d+)*/.exec(text)?.[0] ?? "").split(".").map(Number);
}
