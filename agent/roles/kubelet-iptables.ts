import { IptablesChains } from "../node/iptables-chains.ts";
import { createCommands } from "../proxy/commands.ts";
import { createIptables } from "../proxy/iptables/exec.ts";
import { decideFlavour, observeFlavours } from "../proxy/iptables/flavour.ts";
import type { Surroundings } from "./cluster.ts";

/** Keeps the kubelet's chains, in the kind of iptables that the node uses already. */
export function startIptablesChains({ clock, log, parts }: Surroundings): void {
  const commands = createCommands();
  // Both families together: two kinds of iptables on one node would each miss the other's rules.
  let flavour: ReturnType<typeof findFlavour> | undefined;
  const findFlavour = async (signal: AbortSignal) => decideFlavour(await observeFlavours(commands, signal));
  const chains = new IptablesChains({
    clock,
    log,
    open: async (family, signal) => {
      flavour ??= findFlavour(signal);
      return await createIptables(commands, family, await flavour, signal);
    },
  });
  parts.start("iptables chains", (signal) => chains.run(signal));
}
