import { createApiClient, type KubeClient } from "../../agent/kube/client.ts";
import { createInformerFactory } from "../../agent/kube/informer.ts";
import { loadKubeconfig } from "../../agent/kube/kubeconfig.ts";
import type { Store } from "../../agent/kube/port.ts";
import { nodes, pods } from "../../agent/kube/resources.ts";
import type { Pod } from "../../agent/kube/types.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import type { LocalCluster } from "../support/cluster/local-cluster.ts";
import { isReady, until } from "./until.ts";

const deps = { clock: systemClock, log: silentLogger };

/** A client of the cluster's API server that nothing holds back. */
export async function clientOf({ kubeconfig }: LocalCluster): Promise<KubeClient> {
  const access = await loadKubeconfig(kubeconfig);
  return createApiClient({ access, userAgent: "bench", qps: -1, burst: -1, ...deps });
}

/** The namespace's pods as a watch shows them, once the cluster's node is ready; until `signal` aborts. */
export async function readyPods(
  { node }: LocalCluster,
  client: KubeClient,
  namespace: string,
  signal: AbortSignal,
): Promise<Store<Pod>> {
  const informer = createInformerFactory({ client, ...deps });
  const { store } = informer(pods, { namespace }, signal);
  const nodeStore = informer(nodes, {}, signal).store;
  await until(nodeStore, (seen) => seen?.status?.conditions?.some(isReady) === true, node.name);
  await store.synced();
  return store;
}
