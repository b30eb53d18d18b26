import type { TestProject } from "vitest/node";
import { startLocalCluster } from "../../support/cluster/local-cluster.ts";

declare module "vitest" {
  interface ProvidedContext {
    /** Path of the kubeconfig of the cluster that tests share. */
    kubeconfig: string;
    /** True if the cluster is ours, so that tests may look behind the API and break things. */
    isLocal: boolean;
    /** The agent's `podLogsDir`; "" for a foreign cluster. */
    podLogsDir: string;
    /** An address of the test's own machine that pods can reach; "" for a foreign cluster. */
    hostIP: string;
  }
}

/** The cluster of `KUBECONFIG`, or one made for this run out of test API server, test node and dist/nodelet. */
export async function setup(project: TestProject): Promise<() => Promise<void>> {
  const given = process.env["KUBECONFIG"] ?? "";
  if (given !== "") {
    project.provide("kubeconfig", given);
    project.provide("isLocal", false);
    project.provide("podLogsDir", "");
    project.provide("hostIP", "");
    return async () => {};
  }
  const cluster = await startLocalCluster();
  project.provide("kubeconfig", cluster.kubeconfig);
  project.provide("isLocal", true);
  project.provide("podLogsDir", cluster.podLogsDir);
  project.provide("hostIP", cluster.node.network.hostIP);
  return () => cluster.destroy();
}
