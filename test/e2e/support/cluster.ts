import { setTimeout as sleep } from "node:timers/promises";
import { createApiClient, type KubeClient } from "../../../agent/kube/client.ts";
import { createInformerFactory } from "../../../agent/kube/informer.ts";
import { loadKubeconfig } from "../../../agent/kube/kubeconfig.ts";
import type { Resource } from "../../../agent/kube/port.ts";
import { events, nodes, pods, serviceAccounts } from "../../../agent/kube/resources.ts";
import type { CoreEvent, KubeObject, Node, Pod } from "../../../agent/kube/types.ts";
import { systemClock } from "../../../agent/lib/clock.ts";
import { hasCode } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";

/** How long a test waits for what should happen soon; slow clusters of other people included. */
const waitMsDefault = 60_000;
const pollMs = 50;

const namespaces: Resource<KubeObject> = {
  group: "",
  version: "v1",
  plural: "namespaces",
  kind: "Namespace",
  namespaced: false,
};

/** A namespace of a cluster, for one test file; all that tests do goes through the API. */
export interface TestNamespace extends AsyncDisposable {
  readonly client: KubeClient;
  readonly namespace: string;
  /** Every version of every pod of the namespace that a watch showed, in order, since the pod was created. */
  history(name: string): readonly Pod[];
  create<T extends KubeObject>(resource: Resource<T>, object: T): Promise<T>;
  createPod(pod: Pod): Promise<Pod>;
  getPod(name: string): Promise<Pod>;
  /** Resolves with the first version of the pod that satisfies `check`. Rejects with the last one in the message. */
  waitForPod(name: string, what: string, check: (pod: Pod) => boolean, waitMs?: number): Promise<Pod>;
  /** Resolves when the pod is gone from the API server. */
  waitForPodGone(name: string, waitMs?: number): Promise<void>;
  deletePod(name: string, gracePeriodSeconds?: number): Promise<void>;
  /** Runs a pod to its end. @returns what it wrote to its termination log, and its exit code */
  run(pod: Pod, waitMs?: number): Promise<{ output: string; exitCode: number }>;
  eventsOf(name: string): Promise<CoreEvent[]>;
  /** The nodes that pods can run on. */
  readyNodes(): Promise<Node[]>;
}

/** Makes a namespace with a random name; disposing deletes it with all that is in it. */
export async function openNamespace(kubeconfig: string): Promise<TestNamespace> {
  const access = await loadKubeconfig(kubeconfig);
  const client = createApiClient({
    access,
    userAgent: "nodelet-e2e/1",
    qps: -1,
    burst: 0,
    log: silentLogger,
    clock: systemClock,
  });
  const { name: namespace } = (await client.create(namespaces, randomNamespace())).metadata;
  const history = new Map<string, Pod[]>();
  const stop = new AbortController();
  const startInformer = createInformerFactory({ client, clock: systemClock, log: silentLogger });
  const informer = startInformer(pods, { namespace }, stop.signal);
  await informer.store.synced(stop.signal);
  informer.store.subscribe(({ old, object }) => {
    if (object === undefined) return;
    const { name } = object.metadata;
    const isNew = old === undefined || old.metadata.uid !== object.metadata.uid;
    history.set(name, isNew ? [object] : [...(history.get(name) ?? []), object]);
  });
  await until("the namespace's default service account", async () => {
    await client.get(serviceAccounts, { namespace, name: "default" });
    return true;
  });

  const keyOf = (name: string) => `${namespace}/${name}`;
  const waitForPod: TestNamespace["waitForPod"] = async (name, what, check, waitMs = waitMsDefault) => {
    const { promise, resolve, reject } = Promise.withResolvers<Pod>();
    const timer = setTimeout(() => {
      const shown = JSON.stringify(informer.store.get(keyOf(name))?.status, undefined, 1);
      reject(new Error(`pod ${name}: not ${what} within ${waitMs} ms; its status: ${shown}`));
    }, waitMs);
    const unsubscribe = informer.store.subscribe(({ key, object }) => {
      if (key === keyOf(name) && object !== undefined && check(object)) resolve(object);
    });
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      unsubscribe();
    }
  };
  const create: TestNamespace["create"] = (resource, object) =>
    client.create(resource, { ...object, metadata: { ...object.metadata, namespace } });
  const eventsOf = async (name: string) => {
    const { items } = await client.list(events, { namespace });
    return items.filter(({ involvedObject }) => involvedObject.name === name);
  };

  return {
    client,
    namespace,
    history: (name) => history.get(name) ?? [],
    create,
    createPod: (pod) => create(pods, pod),
    getPod: (name) => client.get(pods, { namespace, name }),
    waitForPod,
    waitForPodGone: (name, waitMs = waitMsDefault) =>
      until(`pod ${name} gone`, async () => informer.store.get(keyOf(name)) === undefined, waitMs).then(() => {}),
    deletePod: (name, gracePeriodSeconds) =>
      client.delete(pods, { namespace, name }, gracePeriodSeconds === undefined ? {} : { gracePeriodSeconds }),
    run: async (pod, waitMs = waitMsDefault) => {
      const { name } = (await create(pods, pod)).metadata;
      const ended = await waitForPod(name, "finished", isFinished, waitMs);
      const terminated = ended.status?.containerStatuses?.[0]?.state?.terminated;
      return { output: terminated?.message ?? "", exitCode: terminated?.exitCode ?? Number.NaN };
    },
    eventsOf,
    readyNodes: async () => {
      const { items } = await client.list(nodes, {});
      return items.filter(({ spec, status }) => {
        const isReady = status?.conditions?.some(({ type, status: is }) => type === "Ready" && is === "True");
        return isReady === true && spec?.unschedulable !== true && (spec?.taints ?? []).length === 0;
      });
    },
    [Symbol.asyncDispose]: async () => {
      await client.delete(namespaces, { name: namespace }).catch(() => {});
      await until("pods of the namespace gone", async () => informer.store.size === 0).catch(() => {});
      stop.abort();
      await informer.stopped;
      await client[Symbol.asyncDispose]();
    },
  };
}

/** Asks until `check` answers something other than false or undefined; rejections and NotFound mean "not yet". */
export async function until<T>(what: string, check: () => Promise<T>, waitMs = waitMsDefault): Promise<T & {}> {
  const deadline = performance.now() + waitMs;
  let last: unknown;
  for (;;) {
    try {
      const answer = await check();
      if (answer !== undefined && answer !== null && answer !== false) return answer;
      last = answer;
    } catch (err) {
      if (!hasCode(err, "NotFound", "Unavailable", "DeadlineExceeded")) throw err;
      last = err;
    }
    if (performance.now() > deadline) throw new Error(`not within ${waitMs} ms: ${what} (last: ${String(last)})`);
    await sleep(pollMs);
  }
}

/** True if nodes run pods with Docker; the README's table says what differs there. */
export async function runsDocker({ client }: TestNamespace): Promise<boolean> {
  const { items } = await client.list(nodes, {});
  return items.some(({ status }) => status?.nodeInfo?.containerRuntimeVersion?.startsWith("docker://") === true);
}

/** Resolves when the node has rejected the pod, which its runtime cannot run. @returns the words that the pod has for it */
export async function rejectionOf({ waitForPod }: TestNamespace, name: string): Promise<string> {
  const { status } = await waitForPod(name, "rejected", (pod) => pod.status?.reason === "PodFeatureUnsupported");
  return `${status?.phase}: ${status?.message}`;
}

export function isFinished({ status }: Pod): boolean {
  return status?.phase === "Succeeded" || status?.phase === "Failed";
}

export function isReady({ status }: Pod): boolean {
  return status?.conditions?.some((condition) => condition.type === "Ready" && condition.status === "True") === true;
}

export function isRunning({ status }: Pod): boolean {
  return status?.phase === "Running";
}

function randomNamespace(): KubeObject {
  const suffix = Math.floor(Math.random() * 36 ** 6)
    .toString(36)
    .padStart(6, "0");
  return { apiVersion: "v1", kind: "Namespace", metadata: { name: `e2e-${suffix}` } };
}
