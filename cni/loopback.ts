import { AgentError } from "../agent/lib/errors.ts";
import { exec } from "../agent/lib/exec.ts";
import { parseNetworkConfig } from "./config.ts";
import { addToNetwork, resolveNetwork } from "./network.ts";
import type { Deadline, Plugins } from "./plugins.ts";

const commandTimeoutMs = 10_000;
// What other runtimes call it, in the version they use.
const config = parseNetworkConfig(
  "loopback.conflist",
  JSON.stringify({ cniVersion: "0.3.1", name: "cni-loopback", plugins: [{ type: "loopback" }] }),
);

/**
 * Brings `lo` up in a network namespace: through the loopback plugin, or directly where that is missing. There is nothing to undo:
 * it goes with the namespace.
 */
export async function setUpLoopback(
  plugins: Plugins,
  target: { containerID: string; netnsPath: string },
  { deadline, signal }: { deadline: Deadline; signal?: AbortSignal },
): Promise<void> {
  const network = await resolveNetwork(plugins, config);
  if (!("problem" in network)) {
    await addToNetwork(plugins, network, { ...target, ifName: "lo" }, { deadline, signal });
    return;
  }
  const args = [`--net=${target.netnsPath}`, "--", "ip", "link", "set", "lo", "up"];
  const options = { timeoutMs: commandTimeoutMs, ...(signal === undefined ? {} : { signal }) };
  const result = await exec("nsenter", args, options);
  if (result.failure === undefined) return;
  throw new AgentError("Internal", `lo cannot be set up: ${network.problem}, and ${result.message}`);
}
