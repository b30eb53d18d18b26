import type { ApiClient } from "../kube/port.ts";
import { pods } from "../kube/resources.ts";
import type { Pod, PodStatus } from "../kube/types.ts";
import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { hasCode, isAbort, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { PodMetrics } from "./metrics.ts";
import { uidOf } from "./names.ts";
import { statusPatch } from "./status-patch.ts";

/** Patches under way at once, over all pods: enough to use one connection well, few enough to be fair. */
export const patchesInFlightMax = 16;
/** Rest after a failed patch: 200 ms doubling to the 10 s of kubelet's full pass. */
export const patchRetry = { baseMs: 200, maxMs: 10_000, jitter: 0.3 };

export interface StatusWriterDeps {
  client: ApiClient;
  clock: Clock;
  log: Logger;
  onWritten(podUID: string): void;
  metrics?: Pick<PodMetrics, "statusSeconds" | "statusWanted">;
}

interface Entry {
  /** Newest object that the API server showed us, by watch or as the answer to a patch. */
  known: Pod;
  wanted: PodStatus | undefined;
  isQueued: boolean;
  isBusy: boolean;
  failures: number;
  /** The last patch that the server took. It is not sent again unless somebody changed the object after it. */
  sent: string | undefined;
  /** Monotonic ms since which there is something to send that the server has not. */
  dueSinceMs: number | undefined;
}

/**
 * Brings pods' statuses to the API server. For each pod only the latest counts and only one patch is under way; over all
 * pods a bounded number is. There is no GET before a patch: the difference is taken to the newest object seen, and the
 * UID in the patch makes the server refuse it for any other pod.
 */
export class StatusWriter {
  readonly #deps: StatusWriterDeps;
  readonly #entries = new Map<string, Entry>();
  readonly #queue: string[] = [];
  #inFlight = 0;
  #stop: AbortSignal | undefined;

  constructor(deps: StatusWriterDeps) {
    this.#deps = deps;
  }

  /** Patches begin; they end when `signal` aborts. */
  start(signal: AbortSignal): void {
    this.#stop = signal;
    this.#drain();
  }

  /** The API server showed this object. */
  observe(pod: Pod): void {
    const uid = uidOf(pod);
    const entry = this.#entries.get(uid);
    if (entry === undefined) {
      this.#entries.set(uid, {
        known: pod,
        wanted: undefined,
        isQueued: false,
        isBusy: false,
        failures: 0,
        sent: undefined,
        dueSinceMs: undefined,
      });
      return;
    }
    if (isOlder(pod, entry.known)) return; // the watch is behind the answer to our own patch
    if (pod.metadata.resourceVersion !== entry.known.metadata.resourceVersion) entry.sent = undefined;
    entry.known = pod;
    if (entry.wanted !== undefined) this.#enqueue(uid, entry);
  }

  /** Wants this status for the pod. */
  set(podUID: string, status: PodStatus): void {
    const entry = this.#entries.get(podUID);
    if (entry === undefined) return; // gone: nobody to tell
    entry.wanted = status;
    this.#deps.metrics?.statusWanted(podUID, status);
    if (entry.isBusy) entry.dueSinceMs ??= this.#deps.clock.monotonic();
    this.#enqueue(podUID, entry);
  }

  /** The status last set, whether or not the API server has it yet. */
  wanted(podUID: string): PodStatus | undefined {
    return this.#entries.get(podUID)?.wanted;
  }

  /** The newest object known to be stored by the API server. */
  known(podUID: string): Pod | undefined {
    return this.#entries.get(podUID)?.known;
  }

  /** The API object is gone. */
  forget(podUID: string): void {
    this.#entries.delete(podUID);
  }

  #patchOf(uid: string, entry: Entry): object | undefined {
    return entry.wanted === undefined ? undefined : statusPatch(uid, entry.known.status ?? {}, entry.wanted);
  }

  #enqueue(uid: string, entry: Entry): void {
    if (entry.isQueued || entry.isBusy) return;
    const patch = this.#patchOf(uid, entry);
    if (patch === undefined || JSON.stringify(patch) === entry.sent) {
      entry.dueSinceMs = undefined;
      return;
    }
    entry.isQueued = true;
    entry.dueSinceMs ??= this.#deps.clock.monotonic();
    this.#queue.push(uid);
    this.#drain();
  }

  #drain(): void {
    while (this.#stop?.aborted === false && this.#inFlight < patchesInFlightMax) {
      const uid = this.#queue.shift();
      if (uid === undefined) return;
      const entry = this.#entries.get(uid);
      if (entry === undefined) continue;
      this.#inFlight += 1;
      void this.#write(uid, entry, this.#stop).finally(() => {
        this.#inFlight -= 1;
        this.#drain();
      });
    }
  }

  async #write(uid: string, entry: Entry, signal: AbortSignal): Promise<void> {
    const { client, clock, log, metrics, onWritten } = this.#deps;
    entry.isQueued = false;
    const patch = this.#patchOf(uid, entry);
    const sinceMs = entry.dueSinceMs ?? clock.monotonic();
    entry.dueSinceMs = undefined;
    if (patch === undefined) return;
    entry.isBusy = true;
    const { name, namespace = "" } = entry.known.metadata;
    const pod = `${namespace}/${name}`;
    try {
      entry.known = await client.patch(pods, { namespace, name }, patch, {
        type: "strategic",
        subresource: "status",
        signal,
      });
      entry.failures = 0;
      entry.sent = JSON.stringify(patch);
      metrics?.statusSeconds.observe({}, (clock.monotonic() - sinceMs) / 1_000);
    } catch (err) {
      if (isAbort(err)) return;
      // Deleted, or another pod has the name now: the watch will say so, and it is of no use to repeat it quickly.
      const isGone = hasCode(err, "NotFound", "Conflict");
      entry.failures += 1;
      entry.dueSinceMs = sinceMs;
      const retryMs = isGone ? patchRetry.maxMs : backoffMs(entry.failures, patchRetry);
      log[isGone ? "debug" : "warn"]({ pod, podUID: uid, err: messageOf(err), retryMs }, "pod status not written");
      clock.after(retryMs, () => {
        entry.isBusy = false;
        if (this.#entries.get(uid) === entry) this.#enqueue(uid, entry);
      });
      return;
    }
    entry.isBusy = false;
    this.#enqueue(uid, entry); // what was set meanwhile
    onWritten(uid);
  }
}

// Resource versions are opaque but comparable as integers of one resource (KEP-5504); equal length first.
function isOlder(a: Pod, b: Pod): boolean {
  const [x = "", y = ""] = [a.metadata.resourceVersion, b.metadata.resourceVersion];
  return x.length === y.length ? x < y : x.length < y.length;
}
