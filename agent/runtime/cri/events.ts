import { backoffMs } from "../../lib/backoff.ts";
import type { Clock } from "../../lib/clock.ts";
import { type AgentError, hasCode } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { ignoreAbort } from "../../lib/loop.ts";
import type { RuntimeEvent } from "../port.ts";
import type { TaskEvent } from "./containerd-events.ts";
import type { PodIDs, PodObject } from "./pod-ids.ts";

/** What the event follower needs of the runtime. */
export interface EventSource {
  /** CRI's GetContainerEvents. Resolves when the stream ended. */
  streamCRI(onEvent: (event: RuntimeEvent) => void, signal: AbortSignal): Promise<AgentError | undefined>;
  /** containerd's own event service on the same socket. */
  streamContainerd(onEvent: (event: TaskEvent) => void, signal: AbortSignal): Promise<AgentError | undefined>;
  /** One cheap call on the same connection. Rejects while the runtime is away. */
  ping(): Promise<void>;
  /** True once CRI's own view says that this object has ended or is gone. */
  hasEnded(id: string, kind: PodObject["kind"]): Promise<boolean>;
  /** Asks the runtime whose object this is. */
  lookUp(id: string): Promise<PodObject | undefined>;
}

export interface EventFollowerOptions {
  source: EventSource;
  ids: PodIDs;
  clock: Clock;
  log: Logger;
}

// After the runtime went away: 100 ms doubling to 3 s, as kubelet's CRI dial.
const reconnect = { baseMs: 100, maxMs: 3_000, jitter: 0.2 };

// A server does not say when a subscription has begun. What happened between the wake at the start of a stream and
// that moment is covered by a second wake this much later.
const subscribedWithinMs = 250;

// A runtime that serves no events is asked again this often: it may have been upgraded in place.
const sourceRecheckMs = 300_000;

// containerd tells of an exit before CRI's view has it: first the task is deleted, which on 1.6 takes some 30 ms. We
// look until it does, most often around then, and wake the pod once, so that its worker reads once. After the last
// look it is woken anyway: 255 ms in all. These are the rests before each look.
const exitLooksMs = [8, 8, 4, 4, 4, 4, 4, 6, 8, 10, 15, 20, 35, 50, 75];

/**
 * Delivers wake-ups until `signal` aborts: CRI's events where the runtime serves them, else containerd's own, else
 * none (the caller's relist is the only source then). Each connection begins with a wake for all pods.
 *
 * ```
 * connect ──► GetContainerEvents ──Unimplemented──► containerd Subscribe ──Unimplemented──► rest 5 min ─┐
 *    ▲              │ ended                               │ ended                                        │
 *    └── backoff ◄──┴─────────────────────────────────────┘ ◄────────────────────────────────────────────┘
 * ```
 */
export async function followEvents(
  options: EventFollowerOptions,
  onEvent: (event: RuntimeEvent) => void,
  signal: AbortSignal,
): Promise<void> {
  const { source, clock, log } = options;
  let failures = 0;
  let lastSource: string | undefined;

  const follow = async (name: string, open: (stop: AbortSignal) => Promise<AgentError | undefined>) => {
    const stop = new AbortController();
    const ended = open(AbortSignal.any([signal, stop.signal]));
    const announced = announce(options, onEvent, stop.signal, (settled) => {
      failures = 0;
      if (settled && lastSource !== name) {
        lastSource = name;
        log.info({ source: name }, "following runtime events");
      }
    });
    const end = await ended;
    stop.abort();
    await announced;
    return end;
  };

  while (!signal.aborted) {
    let end = await follow("CRI", async (stop) => await source.streamCRI(onEvent, stop));
    if (hasCode(end, "Unimplemented")) {
      const wake = (event: TaskEvent) => void wakeForTask(options, event, onEvent, signal);
      end = await follow("containerd", async (stop) => await source.streamContainerd(wake, stop));
    }
    if (signal.aborted) return;
    const why = end?.message ?? "closed by the runtime";
    if (hasCode(end, "Unimplemented")) {
      if (lastSource !== "none") log.warn("the runtime serves no events: pod changes are noticed by relisting only");
      lastSource = "none";
      await clock.sleep(sourceRecheckMs, signal).catch(ignoreAbort);
      continue;
    }
    failures += 1;
    const delayMs = backoffMs(failures, reconnect);
    if (failures === 1) log.warn({ why }, "runtime event stream ended, reconnecting");
    await clock.sleep(delayMs, signal).catch(ignoreAbort);
  }
}

/** Wakes everything once the runtime answers on the stream's connection, and again when it must have subscribed us. */
async function announce(
  { source, clock }: EventFollowerOptions,
  onEvent: (event: RuntimeEvent) => void,
  stop: AbortSignal,
  onAlive: (settled: boolean) => void,
): Promise<void> {
  const everything: RuntimeEvent = { kind: "unknown", podUID: undefined, containerID: undefined };
  try {
    await source.ping();
  } catch {
    return; // the stream ends by the same trouble
  }
  if (stop.aborted) return;
  onAlive(false);
  onEvent(everything);
  await clock.sleep(subscribedWithinMs, stop).catch(ignoreAbort);
  if (stop.aborted) return;
  onAlive(true);
  onEvent(everything);
}

/** Turns one containerd event into a wake for its pod, when CRI's view shows what it tells. Never rejects. */
async function wakeForTask(
  { source, ids, clock, log }: EventFollowerOptions,
  event: TaskEvent,
  onEvent: (event: RuntimeEvent) => void,
  signal: AbortSignal,
): Promise<void> {
  const { kind, containerID, createdAtMs } = event;
  let object = ids.get(containerID);
  if (kind === "deleted") ids.delete(containerID);
  try {
    if (object === undefined) {
      // Started: whoever is starting it waits for that call. Deleted: there is nothing left to look at.
      if (kind === "started" || kind === "deleted") return;
      object = await source.lookUp(containerID);
      if (object !== undefined) ids.add(containerID, object);
    }
    if (object !== undefined && kind === "exited") {
      for (const delayMs of exitLooksMs) {
        await clock.sleep(delayMs, signal);
        if (await source.hasEnded(containerID, object.kind)) break;
      }
    }
  } catch (err) {
    // The runtime went away or we are stopping: wake regardless, the reader finds out itself.
    log.debug({ err, containerID }, "looking at a runtime event failed");
  }
  if (!signal.aborted) onEvent({ kind, podUID: object?.podUID, containerID, createdAtMs });
}
