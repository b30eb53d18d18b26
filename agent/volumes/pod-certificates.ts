import { type ApiClient, type Informer, keyOf, type StartInformer } from "../kube/port.ts";
import { namespaceOf, uidOf } from "../kube/pod-resources.ts";
import { podCertificateRequests, serviceAccounts } from "../kube/resources.ts";
import type { PodCertificateRequest } from "../kube/certificate-types.ts";
import type { Pod, PodCertificateProjection } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { trimMetadata } from "./object-readers.ts";
import { createPodKey } from "./pod-certificate-key.ts";
import {
  abandonJitterMs,
  abandonMs,
  asked,
  type CertificateEvent,
  type CertificateState,
  decideCertificate,
} from "./pod-certificate-state.ts";

/** One podCertificate source of a pod. */
export interface CertificateSource {
  pod: Pod;
  volumeName: string;
  /** Its place among the volume's sources. */
  index: number;
  projection: PodCertificateProjection;
}

/** What a source's files are made of. */
export interface PodCertificate {
  /** PEM. Secret. */
  keyPem: string;
  chainPem: string;
  /** Unix ms at which to ask again. */
  refreshAtMs: number;
}

/** Certificates of pods and their keys, kept in memory only: an agent that starts anew asks anew. */
export interface PodCertificates {
  /**
   * The certificate that the source has by now; asks for one if there is none or it is due. Rejects with Unavailable while
   * none was issued yet, Forbidden once it was refused for good, or with what the API server said.
   */
  certificate(source: CertificateSource, signal: AbortSignal): Promise<PodCertificate>;
  /** Forgets all of a pod. */
  forget(podUID: string): void;
  /** Calls `listener` with the UID of a pod whose certificate was issued or refused. @returns ends it */
  onChange(listener: (podUID: string) => void): () => void;
  /** One entry a source, for metrics. */
  states(): Iterable<{ signerName: string; state: CertificateState["kind"] }>;
  /** Stops watching. */
  close(): Promise<void>;
}

export interface PodCertificatesOptions {
  client: Pick<ApiClient, "create" | "get">;
  startInformer: StartInformer;
  nodeName: string;
  /** undefined while the node is not registered. */
  nodeUID(): string | undefined;
  clock: Clock;
  log: Logger;
  /** Records a Warning about the pod. */
  onEvent(pod: Pod, event: CertificateEvent): void;
  random?: () => number;
}

// A signer in the cluster answers within this or takes its time; until then the set-up of the volume has not failed.
export const issueWaitMs = 2_000;
// While a renewal is under way the pod looks after it this often, up to twice: the reference's pass over all pods.
export const refreshPassMs = 60_000;
const requestTimeoutMs = 10_000;

interface Entry {
  source: CertificateSource;
  state: CertificateState;
  asking: Promise<void> | undefined;
  /** Resolves with the next change of state. */
  changed: PromiseWithResolvers<void>;
}

/** Nothing is watched before a pod with such a source comes. */
export function createPodCertificates(options: PodCertificatesOptions): PodCertificates {
  const { client, startInformer, clock, log, random = Math.random } = options;
  const stop = new AbortController();
  const listeners = new Set<(podUID: string) => void>();
  const entries = new Map<string, Entry>();
  let informer: Informer<PodCertificateRequest> | undefined;

  function watch(): void {
    if (informer !== undefined) return;
    const fieldSelector = `spec.nodeName=${options.nodeName}`;
    informer = startInformer(podCertificateRequests, { fieldSelector, trim: trimRequest }, stop.signal);
    informer.store.subscribe(({ key }) => {
      for (const entry of entries.values()) {
        const before = entry.state;
        if (requestKey(entry) === key) look(entry);
        if (entry.state !== before) for (const listener of listeners) listener(uidOf(entry.source.pod));
      }
    });
  }

  /** @returns true if a request should be sent */
  function look(entry: Entry): boolean {
    const key = requestKey(entry);
    const request = key === undefined ? undefined : informer?.store.get(key);
    const decision = decideCertificate(entry.state, request, { nowMs: clock.now(), jitter: random() });
    change(entry, decision.state);
    if (decision.event !== undefined) options.onEvent(entry.source.pod, decision.event);
    return decision.mustAsk;
  }

  function change(entry: Entry, state: CertificateState): void {
    if (state === entry.state) return;
    entry.state = state;
    entry.changed.resolve();
    entry.changed = Promise.withResolvers();
  }

  async function ask(entry: Entry): Promise<void> {
    watch(); // before the request is sent: its answer must not be missed
    const { pod, projection } = entry.source;
    const { name: podName } = pod.metadata;
    const namespace = namespaceOf(pod);
    const podUID = uidOf(pod);
    const nodeUID = options.nodeUID();
    if (nodeUID === undefined) throw new AgentError("Unavailable", "the node is not registered yet");
    const callOptions = { signal: stop.signal, timeoutMs: requestTimeoutMs };
    const accountName = pod.spec.serviceAccountName ?? "default";
    const { keyPem, stubRequest } = await createPodKey(projection.keyType);
    const account = await client.get(serviceAccounts, { namespace, name: accountName }, callOptions);
    const { maxExpirationSeconds, userAnnotations } = projection;
    const request: PodCertificateRequest = {
      metadata: {
        name: "",
        generateName: "req-",
        namespace,
        ownerReferences: [{ apiVersion: "v1", kind: "Pod", name: podName, uid: podUID }],
      },
      spec: {
        signerName: projection.signerName,
        podName,
        podUID,
        serviceAccountName: accountName,
        serviceAccountUID: account.metadata.uid ?? "",
        nodeName: options.nodeName,
        nodeUID,
        stubPKCS10Request: stubRequest.toString("base64"),
        ...(maxExpirationSeconds === undefined ? {} : { maxExpirationSeconds }),
        ...(userAnnotations === undefined ? {} : { unverifiedUserAnnotations: userAnnotations }),
      },
    };
    const { metadata } = await client.create(podCertificateRequests, request, callOptions);
    const abandonAtMs = clock.now() + abandonMs + Math.floor(random() * abandonJitterMs);
    change(entry, asked(entry.state, { name: metadata.name, keyPem, abandonAtMs }));
    look(entry); // the answer may have been faster than ours
  }

  function askOnce(entry: Entry): Promise<void> {
    entry.asking ??= ask(entry).finally(() => {
      entry.asking = undefined;
    });
    return entry.asking;
  }

  function renew(entry: Entry): void {
    askOnce(entry).catch((err: unknown) => {
      if (stop.signal.aborted) return;
      const { pod, volumeName } = entry.source;
      const fields = { pod: keyOf(pod.metadata), podUID: uidOf(pod), volume: volumeName, err: messageOf(err) };
      log.warn(fields, "the renewal of a pod's certificate was not asked for, the old one stays");
    });
  }

  /** Resolves with the next change, or after a moment without one. */
  async function patience(entry: Entry, signal: AbortSignal): Promise<void> {
    const done = new AbortController();
    const pause = clock.sleep(issueWaitMs, AbortSignal.any([signal, done.signal])).catch(() => {});
    await Promise.race([entry.changed.promise, pause]);
    done.abort();
    signal.throwIfAborted();
  }

  return {
    async certificate(source, signal) {
      const key = JSON.stringify([uidOf(source.pod), source.volumeName, source.index]);
      let entry = entries.get(key);
      if (entry === undefined) {
        entry = { source, state: { kind: "Initial" }, asking: undefined, changed: Promise.withResolvers() };
        entries.set(key, entry);
      }
      entry.source = source;
      const mustAsk = look(entry);
      const isNew = entry.state.kind === "Initial" || entry.state.kind === "Wait";
      if (isNew) {
        if (mustAsk) await askOnce(entry);
        if (entry.state.kind === "Wait") await patience(entry, signal);
      } else if (mustAsk) renew(entry);
      return read(entry, { nowMs: clock.now(), passMs: refreshPassMs * (1 + random()) });
    },
    forget(podUID) {
      for (const [key, { source }] of entries) if (uidOf(source.pod) === podUID) entries.delete(key);
    },
    onChange(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    states: () =>
      [...entries.values()].map(({ source, state }) => ({
        signerName: source.projection.signerName,
        state: state.kind,
      })),
    async close() {
      stop.abort();
      await informer?.stopped;
    },
  };
}

function read({ source, state }: Entry, { nowMs, passMs }: { nowMs: number; passMs: number }): PodCertificate {
  switch (state.kind) {
    case "Initial":
    case "Wait": {
      const name = state.kind === "Wait" ? ` ${state.request.name}` : "";
      const { signerName } = source.projection;
      throw new AgentError("Unavailable", `waiting for signer ${signerName} to answer PodCertificateRequest${name}`);
    }
    case "Denied":
    case "Failed":
      throw new AgentError("Forbidden", `${state.why}; the pod has to be replaced to ask again`);
    case "Fresh":
    case "WaitRefresh": {
      const { keyPem, chainPem, refreshAtMs } = state.issued;
      const isDue = state.kind === "WaitRefresh" || refreshAtMs <= nowMs;
      return { keyPem, chainPem, refreshAtMs: isDue ? nowMs + passMs : refreshAtMs };
    }
  }
}

/** Key in the store of the request that the source waits for. */
function requestKey({ source, state }: Entry): string | undefined {
  if (state.kind !== "Wait" && state.kind !== "WaitRefresh") return undefined;
  return keyOf({ namespace: namespaceOf(source.pod), name: state.request.name });
}

/** Drops what no reader looks at. */
function trimRequest({ metadata, spec, status }: PodCertificateRequest): PodCertificateRequest {
  return {
    metadata: trimMetadata(metadata),
    spec: { ...spec, stubPKCS10Request: "" },
    ...(status === undefined ? {} : { status }),
  };
}
