import { exec, type ExecOptions, type ExecResult } from "../../../agent/lib/exec.ts";
import { startContainerd, startInNode, type NodeProcess, type TestContainerd } from "./containerd.ts";
import { pathsOf, type NodePaths } from "./containerd-config.ts";
import { mountsBelow, removeCgroups, removeCNICache, unmountBelow } from "./leftovers.ts";
import { createNetwork, deleteNetwork, networkOf, type NodeNetwork } from "./network.ts";
import { killAllIn } from "./processes.ts";
import { claimSlot, releaseSlot, type Slot, takeOverDeadSlots } from "./slot.ts";

export interface TestNodeOptions {
  /** The Node object's name and the host name that people see; "node" and the slot's number unless given. */
  name?: string;
  /** Start containerd and load the standard images. Default true. */
  containerd?: boolean;
}

/**
 * A machine for a test: a network namespace with containerd in it. The file system is the host's, so the agent's root
 * directory and everything it writes should lie below `dir`; its cgroups below `cgroupRoot`.
 *
 * ```
 *   host ── hostLink 10.200.N.1 ─── eth0 10.200.N.2 ── node's namespace ── cni0 10.201.N.1 ── pods 10.201.N.0/24
 * ```
 */
export interface TestNode {
  readonly name: string;
  readonly dir: string;
  readonly network: NodeNetwork;
  readonly nodeIP: string;
  readonly podCIDR: string;
  readonly paths: NodePaths;
  /** For `cgroupRoot` of the agent's configuration and for sandboxes' cgroup parents: keeps nodes apart. */
  readonly cgroupRoot: string;
  /** `unix:///…`, for `containerRuntimeEndpoint`. */
  readonly runtimeEndpoint: string;
  /** Rejects if the node was made without. */
  readonly containerd: TestContainerd;
  /** Runs a command in the node's network namespace to its end. Never rejects. Default timeout 30 s. */
  exec(file: string, args: readonly string[], options?: Partial<ExecOptions>): Promise<ExecResult>;
  /** Starts a long-running program there; its output goes to LOGDIR/NAME.log. */
  start(
    file: string,
    args: readonly string[],
    options?: { name?: string; env?: NodeJS.ProcessEnv; cwd?: string },
  ): Promise<NodeProcess>;
  /** Ends every process of the node, unmounts, and deletes all of it. Idempotent. */
  destroy(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

const execTimeoutMs = 30_000;

/** Makes a test node; needs root. Cleans up what a node of a dead process left, and after itself when it fails. */
export async function createTestNode(options: TestNodeOptions = {}): Promise<TestNode> {
  // What cannot be removed keeps its slot; it is no reason to have no node.
  await sweepTestNodes().catch(() => undefined);
  const slot = await claimSlot();
  const { number, dir } = slot;
  const network = networkOf(number);
  const paths = pathsOf(dir);
  // Once destroyed the slot may be another's: never touch it twice. After a failure it is still ours.
  let destroyed: Promise<void> | undefined;
  const destroy = async () => {
    destroyed ??= destroySlot(slot).catch((err: unknown) => {
      destroyed = undefined;
      throw err;
    });
    await destroyed;
  };
  try {
    await createNetwork(network);
    const containerd = options.containerd === false ? undefined : await startContainerd(network, paths);
    return {
      name: options.name ?? `node${number}`,
      dir,
      network,
      nodeIP: network.nodeIP,
      podCIDR: network.podCIDR,
      paths,
      cgroupRoot: `/${cgroupName(number)}`,
      runtimeEndpoint: `unix://${paths.containerdSocket}`,
      get containerd() {
        if (containerd === undefined) throw new Error("this test node was made without containerd");
        return containerd;
      },
      exec: async (file, args, execOptions = {}) =>
        await exec("nsenter", [`--net=${network.netnsPath}`, "--", file, ...args], {
          timeoutMs: execTimeoutMs,
          ...execOptions,
        }),
      start: async (file, args, startOptions = {}) =>
        await startInNode(network, paths.logDir, file, args, startOptions),
      destroy,
      [Symbol.asyncDispose]: destroy,
    };
  } catch (err) {
    await destroy();
    throw err;
  }
}

/** Removes nodes whose process died without destroying them. Rejects, after all were tried, if one could not be removed. */
export async function sweepTestNodes(): Promise<void> {
  const failures: unknown[] = [];
  for (const slot of await takeOverDeadSlots()) {
    await destroySlot(slot).catch((err: unknown) => failures.push(err));
  }
  if (failures.length > 0) throw failures[0];
}

async function destroySlot(slot: Slot): Promise<void> {
  const { number, dir } = slot;
  const network = networkOf(number);
  const podNetworks = (await mountsBelow(dir)).filter((path) => path.includes("/netns/"));
  await killAllIn([network.netnsPath, ...podNetworks]);
  await unmountBelow(dir);
  await deleteNetwork(network);
  await removeCgroups(cgroupName(number));
  await removeCNICache(network.netns);
  await releaseSlot(slot);
}

function cgroupName(slot: number): string {
  return `nltest-${slot}`;
}
