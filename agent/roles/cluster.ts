import { arch, platform } from "node:os";
import { ConfigError } from "../config/problems.ts";
import { type Access, createAccess } from "../kube/access.ts";
import type { ClientIdentity } from "../kube/certificates/client.ts";
import { createApiClient, type KubeClient } from "../kube/client.ts";
import type { ExecPluginMetrics } from "../kube/exec-metrics.ts";
import { createInformerFactory } from "../kube/informer.ts";
import { inClusterAccess, loadKubeconfig } from "../kube/kubeconfig.ts";
import type { RestClientMetrics } from "../kube/metrics.ts";
import type { InformerOptions, Resource, StartInformer, Store } from "../kube/port.ts";
import { nodes, services } from "../kube/resources.ts";
import type { KubeObject, Node, Service } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { hasCode } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { goArch } from "../node/facts.ts";
import { serviceProxyNameLabel } from "../proxy/service.ts";
import type { AgentHealth } from "../server/health.ts";
import type { RunningParts } from "./parts.ts";
import { trimService, withoutManagedFields } from "./trim.ts";
import { kubeletVersion, nodeletVersion } from "../version.ts";

/** What every role is wired with. */
export interface Surroundings {
  clock: Clock;
  log: Logger;
  parts: RunningParts;
  /** Aborts when the process was told to end; for waits during the start. */
  stop: AbortSignal;
  /** What /healthz and the supervisor's watchdog look at. */
  health: AgentHealth;
}

export interface ClusterOptions {
  /** What the API server's audit log shows: `kubelet` or `kube-proxy`. */
  component: "kubelet" | "kube-proxy";
  /** "": as a process in a pod, unless `server` is given. */
  kubeconfig: string;
  /** URL that overrides the kubeconfig's; "" for none. */
  server: string;
  qps: number;
  burst: number;
  /** Who we are, if that is not for the kubeconfig to say. */
  identity?: Pick<ClientIdentity, "access" | "subscribe"> | undefined;
  /** Where calls are counted. */
  metrics?: RestClientMetrics;
}

/** One role's way to the API server. */
export interface Cluster {
  readonly access: Access;
  readonly client: KubeClient;
  readonly userAgent: string;
  readonly startInformer: StartInformer;
  /** Calls `listener` when calls that were refused or not even sent may succeed now. @returns ends it */
  subscribeRetry(listener: () => void): () => void;
  /** Starts an informer that runs until the agent ends. */
  follow<T extends KubeObject>(resource: Resource<T>, options?: InformerOptions<T>): Store<T>;
}

/** What the kubelet role follows and a proxy role beside it can use, too. */
export interface SharedStores {
  /** undefined: the kubelet role runs without an API server. */
  cluster: Cluster | undefined;
  kubeconfig: string;
  ownNode: Store<Node>;
  services: Store<Service>;
}

/** What the API server's audit log shows of us. */
export function userAgentOf(component: ClusterOptions["component"]): string {
  return `${component}/${kubeletVersion} (${platform()}/${goArch(arch())}) nodelet/${nodeletVersion}`;
}

/** Reads how to reach the API server; nothing is sent yet. Rejects with ConfigError. */
export async function openCluster(options: ClusterOptions, { clock, log, parts }: Surroundings): Promise<Cluster> {
  const { component, qps, burst, identity, metrics } = options;
  const plugins = metrics === undefined ? {} : { execPlugins: metrics.execPlugins };
  const access = identity?.access ?? (await readAccess(options, { clock, log, ...plugins }));
  const userAgent = userAgentOf(component);
  const counted = metrics === undefined ? {} : { metrics };
  const client = createApiClient({ access, userAgent, qps, burst, log, clock, ...counted });
  const subscribeRetry: Cluster["subscribeRetry"] = (listener) => identity?.subscribe(listener) ?? (() => {});
  const unsubscribe = subscribeRetry(() => {
    // Rejected if the certificate has expired: those who call the API server say so.
    client.transport.renew().catch(() => {});
  });
  parts.defer(`${component}'s API connections`, async () => {
    unsubscribe();
    await client[Symbol.asyncDispose]();
  });
  const startInformer = createInformerFactory({ client, clock, log, subscribeRetry });
  return {
    access,
    client,
    userAgent,
    startInformer,
    subscribeRetry,
    follow: (resource, informerOptions = {}) => {
      const stop = new AbortController();
      const trim = informerOptions.trim ?? withoutManagedFields;
      const informer = startInformer(resource, { ...informerOptions, trim }, stop.signal);
      parts.defer(`${component}'s informer of ${resource.plural}`, () => {
        stop.abort();
        return informer.stopped;
      });
      return informer.store;
    },
  };
}

/** Follows the one Node that is ours. */
export function followOwnNode(cluster: Cluster, nodeName: string): Store<Node> {
  return cluster.follow(nodes, { fieldSelector: `metadata.name=${nodeName}` });
}

/** Follows the Services that a service proxy programs: not those of another proxy, nor headless ones. */
export function followServices(cluster: Cluster): Store<Service> {
  const labelSelector = `!${serviceProxyNameLabel}`;
  return cluster.follow(services, { labelSelector, fieldSelector: "spec.clusterIP!=None", trim: trimService });
}

async function readAccess(
  { kubeconfig, server }: ClusterOptions,
  deps: { clock: Clock; log: Logger; execPlugins?: ExecPluginMetrics },
): Promise<Access> {
  try {
    if (kubeconfig === "" && server !== "") {
      return createAccess({ server, origin: "--master", insecureSkipVerify: false, impersonate: {} }, deps);
    }
    const access = kubeconfig === "" ? await inClusterAccess(deps) : await loadKubeconfig(kubeconfig, deps);
    return server === "" ? access : { ...access, server: server.replace(/\/+$/, "") };
  } catch (err) {
    if (hasCode(err, "Invalid")) throw new ConfigError([err.message]);
    throw err;
  }
}
