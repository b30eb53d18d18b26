import { type ApiClient, type Informer, keyOf, type StartInformer } from "../kube/port.ts";
import { clusterTrustBundles } from "../kube/resources.ts";
import type { ClusterTrustBundle } from "../kube/certificate-types.ts";
import type { ClusterTrustBundleProjection } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { AgentError } from "../lib/errors.ts";
import { isServed } from "./discovery.ts";
import { describeSource, trustAnchors } from "./trust-anchors.ts";

/** Certificates of authorities that the cluster's ClusterTrustBundles spread. */
export interface TrustBundles {
  /**
   * PEM of what `source` stands for; "" if there is nothing and the source is optional.
   * Rejects with NotFound if there is nothing, Unimplemented if the API server has no such objects.
   */
  anchors(source: ClusterTrustBundleProjection, signal: AbortSignal): Promise<string>;
  /** Calls `listener` when any bundle has changed. @returns ends it */
  onChange(listener: () => void): () => void;
  /** Stops watching. */
  close(): Promise<void>;
}

// How long the first reader waits for the first list: the reference's.
export const syncWaitMs = 10_000;

/** Nothing is watched before somebody reads: most nodes have no pod that uses a bundle. */
export function createTrustBundles(options: {
  client: Pick<ApiClient, "request">;
  startInformer: StartInformer;
  clock: Clock;
}): TrustBundles {
  const { client, startInformer, clock } = options;
  const stop = new AbortController();
  const listeners = new Set<() => void>();
  let starting: Promise<Informer<ClusterTrustBundle>> | undefined;

  async function start(): Promise<Informer<ClusterTrustBundle>> {
    const resource = await findResource(client);
    const informer = startInformer(resource, { trim: trimBundle }, stop.signal);
    informer.store.subscribe(() => {
      for (const listener of listeners) listener();
    });
    return informer;
  }

  /** One start for all; one that failed is forgotten, so that the next reader tries again. */
  async function started(): Promise<Informer<ClusterTrustBundle>> {
    starting ??= start().catch((err: unknown) => {
      starting = undefined;
      throw err;
    });
    return await starting;
  }

  async function synced({ store }: Informer<ClusterTrustBundle>, signal: AbortSignal): Promise<void> {
    if (store.hasSynced) return;
    const patience = new AbortController();
    const timer = clock.after(syncWaitMs, () => patience.abort());
    try {
      await store.synced(AbortSignal.any([signal, patience.signal]));
    } catch (err) {
      if (signal.aborted || !patience.signal.aborted) throw err;
      throw new AgentError("Unavailable", "ClusterTrustBundles were not listed in time: is the API server reachable?");
    } finally {
      timer.cancel();
    }
  }

  return {
    async anchors(source, signal) {
      const informer = await started();
      await synced(informer, signal);
      const { name = "" } = source;
      const named = name === "" ? undefined : informer.store.get(keyOf({ name }));
      const bundles = name === "" ? informer.store.list() : named === undefined ? [] : [named];
      const found = trustAnchors(bundles, source);
      if (found === undefined && source.optional !== true) {
        throw new AgentError("NotFound", `there is no ${describeSource(source)}`);
      }
      return found ?? "";
    },
    onChange(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    async close() {
      stop.abort();
      const informer = await starting?.catch(() => undefined);
      await informer?.stopped;
    },
  };
}

async function findResource(client: Pick<ApiClient, "request">) {
  for (const resource of clusterTrustBundles) {
    const { group, version, plural } = resource;
    if (await isServed(client, `/apis/${group}/${version}`, plural)) return resource;
  }
  throw new AgentError(
    "Unimplemented",
    "the API server does not serve ClusterTrustBundles: it needs the feature gate ClusterTrustBundle, and " +
      "certificates.k8s.io/v1beta1 in --runtime-config",
  );
}

/** Drops what no reader looks at. */
function trimBundle(bundle: ClusterTrustBundle): ClusterTrustBundle {
  const { name, uid, resourceVersion, labels } = bundle.metadata;
  const metadata = {
    name,
    ...(uid === undefined ? {} : { uid }),
    ...(resourceVersion === undefined ? {} : { resourceVersion }),
    ...(labels === undefined ? {} : { labels }),
  };
  return { metadata, spec: bundle.spec };
}
