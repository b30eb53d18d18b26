import type { KubeletSettings } from "../config/load-kubelet.ts";
import { ConfigError } from "../config/problems.ts";
import { bootstrapOnce } from "../kube/certificates/bootstrap-once.ts";
import { type ClientIdentity, openClientIdentity } from "../kube/certificates/client.ts";
import { hasCode } from "../lib/errors.ts";
import { type Surroundings, userAgentOf } from "./cluster.ts";
import type { KubeletMetrics } from "./kubelet-metrics.ts";

/**
 * Sees to it that the node is somebody on the API server. Resolves with the identity that this agent renews; undefined if
 * the kubeconfig says who we are. In that case, a node that has no kubeconfig yet gets one before this resolves.
 * Rejects with ConfigError.
 */
export async function openIdentity(
  { flags, config }: KubeletSettings,
  { nodeName, measures }: { nodeName: string; measures: Pick<KubeletMetrics, "registry" | "restClient"> },
  { clock, log, parts, stop }: Surroundings,
): Promise<ClientIdentity | undefined> {
  const { kubeconfig, bootstrapKubeconfig, certDir } = flags;
  const options = { kubeconfig, bootstrapKubeconfig, certDir, nodeName, userAgent: userAgentOf("kubelet") };
  const deps = { clock, log, execPlugins: measures.restClient.execPlugins };
  try {
    if (config.rotateCertificates) {
      const identity = await openClientIdentity({ ...options, metrics: measures.registry }, deps);
      parts.start("client certificate", (signal) => identity.run(signal));
      return identity;
    }
    if (bootstrapKubeconfig !== "") await bootstrapOnce(options, deps, stop);
    return undefined;
  } catch (err) {
    if (hasCode(err, "Invalid")) throw new ConfigError([err.message]);
    throw err;
  }
}
