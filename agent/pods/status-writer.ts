import { uidOf } from "../kube/pod-resources.ts";
import type { ApiClient } from "../kube/port.ts";
import { pods } from "../kube/resources.ts";
import type { Pod, PodStatus } from "../kube/types.ts";
import { backoffMs } from "../lib/backoff.ts";
import type { Clock, Timer } from "../lib/clock.ts";
import { hasCode, isAbort, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { PodMetrics } from "./metrics.ts";
import { statusPatch } from "./status-patch.ts";

/** Patches under way at once, over all pods: enough to use one connection well, few enough to be fair. */
export const patchesInFlightMax = 16;
/** Rest after a failed patch: 200 ms doubling to the 10 s of kubelet's full pass. */
export const patchRetry = { baseMs: 200, maxMs: 10_000, jitter: 0.3 };

export interface StatusWriterDeps {
  client: Pick<ApiClient, "patch">;
  clock: Clock;
  log: Logger;
  onWritten(podUID: string): void;
  metrics?: Pick<PodMetrics, "statusSeconds" | "statusWanted">;
}

interface Entry {
  /** Newest object that the API server showed us, by watch or as the answer to a patch; that of a static pod's mirror pod. */
  known: Pod;
  /** The API server has no object to write to: a static pod without mirror pod. */
  isLocal: boolean;
  wanted: PodStatus | undefined;
  isQueued: boolean;
  isBusy: boolean;
  failures: number;
  /** Ends the rest after a failure. */
  rest: Timer | undefined;
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
    const entry = this.#entries.get(uidOf(pod));
    if (entry === undefined) this.#entries.set(uidOf(pod), newEntry(pod, false));
    else this.#show(uidOf(pod), entry, pod);
  }

  /** Keeps the status of a static pod; it is written nowhere as long as there is no mirror pod. */
  hold(pod: Pod): void {
    const entry = this.#entries.get(uidOf(pod));
    if (entry === undefined) this.#entries.set(uidOf(pod), newEntry(pod, true));
    else if (entry.isLocal) entry.known = pod;
  }

  /** The API server showed the mirror pod of a static pod. */
  observeMirror(podUID: string, mirror: Pod): void {
    const entry = this.#entries.get(podUID);
    if (entry !== undefined) this.#show(podUID, entry, mirror);
  }

  /** A mirror pod is gone. */
  forgetMirror(pod: Pod, mirror: Pod): void {
    const entry = this.#entries.get(uidOf(pod));
    if (entry === undefined || uidOf(entry.known) !== uidOf(mirror)) return; // another one has taken its place already
    this.#entries.set(uidOf(pod), { ...newEntry(pod, true), wanted: entry.wanted });
    entry.rest?.cancel();
  }

  #show(uid: string, entry: Entry, pod: Pod): void {
    if (isOlder(pod, entry.known)) return; // the watch is behind the answer to our own patch
    if (uidOf(pod) !== uidOf(entry.known)) {
      entry.isLocal = false;
      if (entry.rest !== undefined) entry.isBusy = false; // what failed, failed for another object
      entry.rest?.cancel();
      entry.rest = undefined;
    }
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

  /** True if the API server has an object to write to. */
  isStored(podUID: string): boolean {
    return this.#entries.get(podUID)?.isLocal === false;
  }

  /** The API object is gone. */
  forget(podUID: string): void {
    this.#entries.delete(podUID);
  }

  #patchOf(entry: Entry): object | undefined {
    if (entry.wanted === undefined || entry.isLocal) return undefined;
    return statusPatch(uidOf(entry.known), entry.known.status ?? {}, entry.wanted);
  }

  #enqueue(uid: string, entry: Entry): void {
    if (entry.isQueued || entry.isBusy) return;
    const patch = this.#patchOf(entry);
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
      if (entry?.isQueued !== true) continue;
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
    const patch = this.#patchOf(entry);
    const sinceMs = entry.dueSinceMs ?? clock.monotonic();
    entry.dueSinceMs = undefined;
    if (patch === undefined) return;
    entry.isBusy = true;
    const { name, namespace = "" } = entry.known.metadata;
    const pod = `${namespace}/${name}`;
    try {
      const before = uidOf(entry.known);
      const answer = await client.patch(pods, { namespace, name }, patch, {
        type: "strategic",
        subresource: "status",
        signal,
      });
      if (uidOf(entry.known) === before) entry.known = answer;
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
      entry.rest = clock.after(retryMs, () => {
        entry.rest = undefined;
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

function newEntry(known: Pod, isLocal: boolean): Entry {
  return {
    known,
    isLocal,
    wanted: undefined,
    isQueued: false,
    isBusy: false,
    failures: 0,
    rest: undefined,
    sent: undefined,
    dueSinceMs: undefined,
  };
}

// Resource versions are opaque but comparable as integers of one resource (KEP-5504); equal length first.
function isOlder(a: Pod, b: Pod): boolean {
  const [x = "", y = ""] = [a.metadata.resourceVersion, b.metadata.resourceVersion];
  return x.length === y.length ? x < y : x.length < y.length;
}
