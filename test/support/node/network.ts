import { stat } from "node:fs/promises";
import { exec } from "../../../agent/lib/exec.ts";

/** Names and addresses of one test node; all follow from its slot number. */
export interface NodeNetwork {
  /** Network namespace, for `nsenter --net=/run/netns/NAME`. */
  netns: string;
  netnsPath: string;
  hostLink: string;
  /** The host's end of the veth pair, and the node's default gateway. */
  hostIP: string;
  nodeIP: string;
  podCIDR: string;
  /** Gateway of the pods: the bridge in the node. */
  podGateway: string;
}

const commandTimeoutMs = 10_000;

export function networkOf(slot: number): NodeNetwork {
  const netns = `nltest-${slot}`;
  return {
    netns,
    netnsPath: `/run/netns/${netns}`,
    hostLink: `nltest${slot}`,
    hostIP: `10.200.${slot}.1`,
    nodeIP: `10.200.${slot}.2`,
    podCIDR: `10.201.${slot}.0/24`,
    podGateway: `10.201.${slot}.1`,
  };
}

/** Makes the namespace with eth0 to the host, forwarding on, and the host's route to the pods. */
export async function createNetwork(network: NodeNetwork): Promise<void> {
  const { netns, hostLink, hostIP, nodeIP, podCIDR } = network;
  await run("ip", ["netns", "add", netns]);
  await run("ip", ["link", "add", hostLink, "type", "veth", "peer", "name", "eth0", "netns", netns]);
  await run("ip", ["-batch", "-"], [`addr add ${hostIP}/24 dev ${hostLink}`, `link set ${hostLink} up`]);
  await run(
    "ip",
    ["-n", netns, "-batch", "-"],
    ["link set lo up", `addr add ${nodeIP}/24 dev eth0`, "link set eth0 up", `route add default via ${hostIP}`],
  );
  // With the link up on both ends the host can reach the pods, as any machine of a node's network could.
  await run("ip", ["route", "add", podCIDR, "via", nodeIP]);
  const settings = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];
  const bridgeFilter = "/proc/sys/net/bridge/bridge-nf-call-iptables";
  if (await stat(bridgeFilter).catch(() => undefined)) {
    settings.push("net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1");
  }
  await run("nsenter", [`--net=${network.netnsPath}`, "/bin/busybox", "sysctl", "-w", ...settings]);
}

/** Deletes namespace and link (its route goes with it). What is not there is fine. */
export async function deleteNetwork({ netns, hostLink }: NodeNetwork): Promise<void> {
  // The link first: a namespace lives on while a process or socket holds it, and its eth0 with it.
  await exec("ip", ["link", "del", hostLink], { timeoutMs: commandTimeoutMs });
  await exec("ip", ["netns", "del", netns], { timeoutMs: commandTimeoutMs });
}

async function run(file: string, args: readonly string[], lines?: readonly string[]): Promise<void> {
  const stdin = lines === undefined ? {} : { stdin: `${lines.join("\n")}\n` };
  const result = await exec(file, args, { timeoutMs: commandTimeoutMs, ...stdin });
  if (result.failure !== undefined) throw new Error(`${result.message} (${[file, ...args].join(" ")})`);
}
