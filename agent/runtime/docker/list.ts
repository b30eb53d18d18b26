import type { RuntimeList, SandboxSummary } from "../port.ts";
import { containersIn } from "./answers.ts";
import type { DockerClient } from "./client.ts";
import { containerSummary, sandboxSummary } from "./inspect.ts";
import { allSandboxesFilter, podFilters } from "./labels.ts";
import type { SandboxNetwork } from "./network.ts";
import { kindOfListed } from "./ownership.ts";
import type { WireContainer } from "./wire.ts";

/** What is known of sandboxes' networks. */
export interface SandboxNetworks extends Pick<SandboxNetwork, "ips"> {
  /** True for a sandbox that was seen without the process that its network was made for. */
  isLost(sandboxID: string): boolean;
}

/**
 * Everything that this node's pods have on the daemon, or one pod: one call. Most of what is other people's the daemon sorts out
 * itself, by label.
 */
export async function listPodObjects(
  client: DockerClient,
  network: SandboxNetworks,
  { nodeName, podUID }: { nodeName: string; podUID?: string | undefined },
): Promise<RuntimeList> {
  const what = podUID === undefined ? "list the pods' containers" : `list containers of pod ${podUID}`;
  const answer: unknown = await client.call(
    what,
    async (abortSignal) => await client.docker.listContainers({ all: true, filters: podFilters(podUID), abortSignal }),
  );
  const all = containersIn(answer, what);
  const ofKind = (kind: "sandbox" | "container") => all.filter((one) => kindOfListed(one, nodeName) === kind);
  return {
    sandboxes: await Promise.all(ofKind("sandbox").map(async (sandbox) => await withNetwork(sandbox, network))),
    containers: ofKind("container").map(containerSummary),
  };
}

/** Of the sandboxes on the daemon, those of other nodes too: whose networks may be in use. */
export async function listAllSandboxIDs(client: DockerClient): Promise<string[]> {
  const what = "list the sandboxes of all nodes";
  const answer: unknown = await client.call(
    what,
    async (abortSignal) =>
      await client.docker.listContainers({ all: true, filters: allSandboxesFilter(), abortSignal }),
  );
  return containersIn(answer, what).map(({ Id }) => Id);
}

/** A sandbox whose process runs but which has no address, or not in the namespace that it has now, is not ready. */
async function withNetwork(sandbox: WireContainer, network: SandboxNetworks): Promise<SandboxSummary> {
  const { networkMode, ...summary } = sandboxSummary(sandbox);
  if (!summary.ready || networkMode === "NODE") return summary;
  return { ...summary, ready: !network.isLost(summary.id) && (await network.ips(summary.id)).length > 0 };
}
