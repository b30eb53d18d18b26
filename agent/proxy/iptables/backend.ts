import type { Clock } from "../../lib/clock.ts";
import type { Logger } from "../../lib/log.ts";
import type { Backend } from "../backend.ts";
import type { Commands } from "../commands.ts";
import type { Family } from "../ip.ts";
import type { ProxyOptions } from "../options.ts";
import { PacketCounters } from "./counters.ts";
import { createIptables } from "./exec.ts";
import { createClientSets, createIpset } from "./ipset.ts";
import { markText, nodePortIPs, readNodePortAddresses } from "../node-ports.ts";
import { detectLocalMatch } from "./fixed.ts";
import type { IptablesSyncRequest } from "./request.ts";
import { IptablesBackend } from "./sync.ts";

/** What decides the rules of an IP family, beyond the services. */
export interface IptablesBackendOptions {
  readonly family: Family;
  readonly options: ProxyOptions;
  readonly flavour: "nft" | "legacy" | undefined;
  /** False: packets find their service by the dispatch tree alone. */
  readonly hasIpset: boolean;
  readonly dropsInvalid: boolean;
  readonly hasLocalhostNodePorts: boolean;
  /** This machine's addresses, asked for at each sync. */
  readonly localIPs: () => readonly string[];
  readonly commands: Commands;
  readonly clock: Clock;
  readonly log: Logger;
  /** Hears once of each service whose rules the kernel refuses, with the reason. Must not throw. */
  readonly onRefused: (key: string, reason: string) => void;
}

/** The iptables mode of one family. Rejects if the family's nat table cannot be read on this machine. */
export async function createIptablesBackend(about: IptablesBackendOptions, signal: AbortSignal): Promise<Backend> {
  const { family, options, commands, hasLocalhostNodePorts, dropsInvalid } = about;
  const iptables = await createIptables(commands, family, about.flavour, signal);
  await iptables.expectTable("nat", signal);
  const ipset = about.hasIpset ? createIpset(commands, family) : undefined;
  const clientSets = about.hasIpset ? createClientSets(commands, family) : undefined;
  const rules = new IptablesBackend({
    iptables,
    ipset,
    clientSets,
    clock: about.clock,
    log: about.log,
    onRefused: about.onRefused,
  });
  const counters = new PacketCounters({ iptables, clock: about.clock, log: about.log });

  const context = (): Pick<IptablesSyncRequest, "fixed" | "render"> => {
    const addresses = readNodePortAddresses(options.nodePortAddresses, options.nodeIPs, family);
    return {
      fixed: {
        family,
        mark: markText(options.masqueradeBit),
        nodePortIPs: nodePortIPs(addresses, about.localIPs, family, hasLocalhostNodePorts),
        hasLocalhostNodePorts,
        dropsInvalid,
        hasRandomFully: iptables.hasRandomFully,
      },
      render: {
        family,
        masqueradeAll: options.masqueradeAll,
        localPods: detectLocalMatch(options.detectLocal, family),
      },
    };
  };
  return {
    family,
    get needsFull() {
      return rules.needsFull;
    },
    sync: async (request, signal) => ({ ...(await rules.sync({ ...request, ...context() }, signal)) }),
    figures: () => ({ ...rules.figures(), packets: async () => await counters.read(signal) }),
    findDamage: async (signal) => await rules.findDamage(signal),
  };
}
