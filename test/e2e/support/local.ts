import { readdir, readFile } from "node:fs/promises";
import type { ContainerStatus, Pod } from "../../../agent/kube/types.ts";
import type { RuntimeList } from "../../../agent/runtime/port.ts";
import { type LocalCluster, type LocalClusterOptions, startLocalCluster } from "../../support/cluster/local-cluster.ts";
import { openNamespace, type TestNamespace, until } from "./cluster.ts";

/** A cluster of a test file's own, which it may break. Files that use it are for local runs only. */
export interface BreakableCluster extends AsyncDisposable {
  readonly local: LocalCluster;
  readonly cluster: TestNamespace;
  /** What the container runtime has, whoever made it. */
  list(): Promise<RuntimeList>;
  /** Asks the test API server to misbehave; see its /test/faults. */
  fault(body: Record<string, unknown>): Promise<void>;
}

/** @param kubelet over the KubeletConfiguration @param agentArgs flags beside the usual ones */
export async function openBreakableCluster(
  kubelet: Record<string, unknown> = {},
  agentArgs: readonly string[] = [],
  options: Pick<LocalClusterOptions, "runtime" | "docker" | "endpointFor"> = {},
): Promise<BreakableCluster> {
  const local = await startLocalCluster({ kubelet, agentArgs, ...options });
  try {
    const cluster = await openNamespace(local.kubeconfig);
    await until("the node is Ready", async () => (await cluster.readyNodes()).length === 1);
    return {
      local,
      cluster,
      list: async () => {
        const runtime = await local.runtime.connect();
        try {
          return await runtime.list();
        } finally {
          await runtime.close();
        }
      },
      fault: async (body) => void (await cluster.client.request("POST", "/test/faults", body)),
      [Symbol.asyncDispose]: async () => {
        await cluster[Symbol.asyncDispose]();
        await local.destroy();
      },
    };
  } catch (err) {
    await local.destroy();
    throw err;
  }
}

/** Ends the agent as given and starts it again; resolves when it has heard of its pods anew. */
export async function restartAgent({ local }: BreakableCluster, signal: NodeJS.Signals): Promise<number | null> {
  const code = await local.agent.stop(signal);
  await local.agent.start();
  return code;
}

/** A container's ID as a pod's status has it. */
export function statusIDOf({ local }: BreakableCluster, containerID: string): string {
  return `${local.runtime.name}://${containerID}`;
}

/** What must not change in a pod while nothing happens to its containers. */
export function identityOf({ status }: Pod): unknown {
  const ofContainer = ({ name, containerID, restartCount, state }: ContainerStatus) => ({
    name,
    containerID,
    restartCount,
    startedAt: state?.running?.startedAt,
  });
  return { podIP: status?.podIP, containers: (status?.containerStatuses ?? []).map(ofContainer) };
}

/** Directories of pods below the agent's root. */
export async function podDirs({ local }: BreakableCluster): Promise<string[]> {
  return await readdir(`${local.rootDir}/pods`);
}

/** Mount points below the agent's root, without the root itself. */
export async function mountsOf({ local }: BreakableCluster): Promise<string[]> {
  const lines = (await readFile("/proc/self/mountinfo", "utf8")).split("\n");
  return lines.map((line) => line.split(" ")[4] ?? "").filter((path) => path.startsWith(`${local.rootDir}/`));
}

/** Cgroups of pods, in any hierarchy. */
export async function podCgroups({ local }: BreakableCluster): Promise<string[]> {
  const { stdout } = await local.node.exec("find", [
    ...["/sys/fs/cgroup", "-type", "d", "-path", `*${local.node.cgroupRoot}/kubepods/*`, "-name", "pod*"],
  ]);
  return stdout.trim() === "" ? [] : stdout.trim().split("\n");
}
