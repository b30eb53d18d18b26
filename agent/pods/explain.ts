import { uidOf } from "../kube/pod-resources.ts";
import type { ContainerStatus, Pod, PodStatus } from "../kube/types.ts";
import type { PodSnapshot } from "../runtime/port.ts";
import { type Blocker, blockersOf } from "./blockers.ts";
import type { PodLocal } from "./local.ts";
import { specContainers } from "./names.ts";
import { podStateWord } from "./pod-state.ts";
import type { Obstacle } from "./predecessors.ts";
import { isTerminalPhase } from "./status.ts";
import { shortened, type Timeline, type TimelineEntry } from "./timeline.ts";

// A few lines of a terminal; the whole of it is in the pod's status and events.
const whyCharsMax = 480;

/** What the worker of a pod knows of it. */
export interface WorkerFacts {
  pod: Pod;
  /** As last made out; until then, the object's own. */
  status: PodStatus;
  /** Undefined until the runtime has been looked at. */
  observed: PodSnapshot | undefined;
  /** Undefined for a pod that nobody works on yet: see `isQueued`. */
  local: PodLocal | undefined;
  /** The pod has to wait until another one of its name, or with its UID, is gone. */
  isQueued?: boolean;
  /** Of a static pod: what ran in its place before this agent could not be removed yet. */
  obstacle?: Obstacle;
  /** The present on the clock that `local` goes by, as Unix ms; see steady-clock.ts. */
  nowMs?: number;
  /** Termination messages, by container ID. */
  lastWords: ReadonlyMap<string, string>;
  /** Why the node's network is not ready; "" if it is. */
  networkProblem: string;
}

/** What the node knows of one pod. */
export interface PodFacts extends WorkerFacts {
  /** The pod's state in a word and since when; undefined before the first status. */
  state: { state: string; sinceMs: number } | undefined;
  timeline: Pick<Timeline, "entries" | "omitted"> | undefined;
}

/** What is told first of a pod. Instants are RFC 3339. */
interface PodSummary {
  namespace: string;
  name: string;
  uid: string;
  /** A word: "Running", "ImagePullBackOff", "Terminating" … */
  state: string;
  since: string;
  /** Regular containers that are ready. */
  ready: number;
  restarts: number;
}

/** A pod in one line. */
export interface PodLine extends PodSummary {
  /** How many regular containers it has. */
  containers: number;
  /** What it waits for first; "" if nothing. */
  waitsFor: string;
}

/** What happened to a pod, and what it waits for now. Instants are RFC 3339, durations milliseconds. */
export interface Explanation extends PodSummary {
  phase: string;
  /** Why the pod as a whole is as it is, as its status says; "" as a rule. */
  message: string;
  node: string;
  /** When all was as told here. */
  now: string;
  containers: ExplainedContainer[];
  waitsFor: ExplainedBlocker[];
  timeline: ExplainedEntry[];
  /** Entries left out between the first and the last ones. */
  omitted: number;
}

export interface ExplainedContainer {
  name: string;
  kind: "init" | "regular" | "ephemeral";
  /** "running", "waiting: CrashLoopBackOff", "exited 1 (Error)" … */
  state: string;
  ready: boolean;
  restarts: number;
}

/** One reason why the pod is not where it should be. */
export interface ExplainedBlocker {
  /** What is held up: "volume config", "container app", "pod" … */
  what: string;
  why: string;
  /** What can be done about it, or what happens next; "" if there is nothing to say. */
  next: string;
  since?: string;
  nextTry?: string;
  tries?: number;
}

export interface ExplainedEntry {
  at: string;
  what: string;
  subject: string;
  state: "running" | "done" | "failed";
  tookMs?: number;
  detail: string;
  times: number;
  lastAt: string;
}

/** Explains one pod. Pure. @param nowMs Unix ms */
export function explainPod(facts: PodFacts, nowMs: number): Explanation {
  const { pod, status, timeline } = facts;
  return {
    ...summary(facts, nowMs),
    phase: status.phase ?? "Pending",
    message: shortened(status.message ?? "", whyCharsMax),
    node: pod.spec.nodeName ?? "",
    now: instant(nowMs),
    containers: explainContainers(pod, status),
    waitsFor: blockersOf(facts, nowMs).map(explainBlocker),
    timeline: explainTimeline(timeline?.entries ?? []),
    omitted: timeline?.omitted ?? 0,
  };
}

/** One line about a pod. Pure. @param nowMs Unix ms */
export function podLine(facts: PodFacts, nowMs: number): PodLine {
  const [blocker] = blockersOf(facts, nowMs);
  return {
    ...summary(facts, nowMs),
    containers: facts.pod.spec.containers.length,
    waitsFor: blocker === undefined ? "" : `${blocker.what}: ${shortened(blocker.why, whyCharsMax)}`,
  };
}

function summary({ pod, status, state, timeline }: PodFacts, nowMs: number): PodSummary {
  const { initContainerStatuses = [], containerStatuses = [] } = status;
  const sinceMs = state?.sinceMs ?? timeline?.entries[0]?.atMs ?? nowMs;
  return {
    namespace: pod.metadata.namespace ?? "",
    name: pod.metadata.name,
    uid: uidOf(pod),
    state: podStateWord(pod, status),
    since: instant(Math.min(deletedAtMs(pod, status) ?? sinceMs, nowMs)),
    ready: containerStatuses.filter(({ ready }) => ready).length,
    restarts: [...initContainerStatuses, ...containerStatuses].reduce((sum, one) => sum + one.restartCount, 0),
  };
}

/** The timeline as others read it. */
export function explainTimeline(entries: readonly TimelineEntry[]): ExplainedEntry[] {
  return entries.map(({ atMs, lastAtMs, retryAtMs: _retryAtMs, awaited: _awaited, tookMs, ...rest }) => ({
    ...rest,
    at: instant(atMs),
    lastAt: instant(lastAtMs),
    ...(tookMs === undefined ? {} : { tookMs: Math.round(tookMs) }),
  }));
}

// The time in the object is when the grace ends.
function deletedAtMs({ metadata }: Pod, { phase }: PodStatus): number | undefined {
  if (metadata.deletionTimestamp === undefined || isTerminalPhase(phase)) return undefined;
  return Date.parse(metadata.deletionTimestamp) - (metadata.deletionGracePeriodSeconds ?? 0) * 1_000;
}

function explainContainers(pod: Pod, status: PodStatus): ExplainedContainer[] {
  const { initContainerStatuses = [], containerStatuses = [], ephemeralContainerStatuses = [] } = status;
  const all = [...initContainerStatuses, ...containerStatuses, ...ephemeralContainerStatuses];
  return specContainers(pod).map(({ kind, container: { name } }) => {
    const own = all.find((candidate) => candidate.name === name);
    return { name, kind, state: stateText(own), ready: own?.ready ?? false, restarts: own?.restartCount ?? 0 };
  });
}

function stateText(status: ContainerStatus | undefined): string {
  const { running, terminated, waiting } = status?.state ?? {};
  if (running !== undefined) return "running";
  if (terminated !== undefined) return `exited ${terminated.exitCode} (${terminated.reason ?? "unknown"})`;
  return waiting?.reason === undefined ? "waiting" : `waiting: ${waiting.reason}`;
}

function explainBlocker({ what, why, next = "", sinceMs, nextTryMs, tries }: Blocker): ExplainedBlocker {
  return {
    what,
    why: shortened(why, whyCharsMax),
    next,
    ...(sinceMs === undefined ? {} : { since: instant(sinceMs) }),
    ...(nextTryMs === undefined ? {} : { nextTry: instant(nextTryMs) }),
    ...(tries === undefined || tries < 2 ? {} : { tries }),
  };
}

function instant(ms: number): string {
  return new Date(ms).toISOString();
}
