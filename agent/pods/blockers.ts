import { isSidecar } from "../kube/pod-resources.ts";
import type { Container, Pod } from "../kube/types.ts";
import type { ContainerStatus } from "../runtime/port.ts";
import { formatDelay } from "./crash-backoff.ts";
import { decide } from "./decide.ts";
import type { PodFacts } from "./explain.ts";
import type { Attempt, PodLocal } from "./local.ts";
import { isAlive, type Plan } from "./plan.ts";
import { sandboxState } from "./sandbox.ts";
import { isTerminalPhase } from "./status.ts";
import type { TimelineEntry } from "./timeline.ts";
import { soonerText, volumeBlockers } from "./volume-blockers.ts";
import { onWallClock } from "./wall-clock.ts";

/** What keeps a pod from being where it should be. Instants are Unix ms. */
export interface Blocker {
  /** What is held up: "volume config", "container app", "pod" … */
  what: string;
  why: string;
  /** What happens next, or what somebody has to do. */
  next?: string;
  sinceMs?: number;
  nextTryMs?: number;
  tries?: number;
}

// More reasons than a screen has room for help nobody.
export const blockersMax = 12;

/**
 * What the pod waits for, the cause before what follows from it. Pure; empty for a pod that is ready, or done.
 *
 * @param nowMs Unix ms
 */
export function blockersOf(facts: PodFacts, nowMs: number): Blocker[] {
  const found = [...podBlockers(onWallClock(facts, nowMs), nowMs), ...unsentStatus(facts, nowMs)];
  return found.slice(0, blockersMax);
}

function podBlockers(facts: PodFacts, nowMs: number): Blocker[] {
  const { pod, local, observed, obstacle, status } = facts;
  if (local === undefined && obstacle !== undefined) {
    const { message, retryAtMs, failures } = obstacle;
    return [{ what: "pod", why: `waits for what ran in its place: ${message}`, nextTryMs: retryAtMs, tries: failures }];
  }
  if (local === undefined && facts.isQueued === true) {
    return [{ what: "pod", why: "waits until the one of its name that was here before is gone" }];
  }
  if (local === undefined) {
    const next = "decided as soon as the API server has told all pods of the node; a critical pod may first make room";
    return [{ what: "admission", why: "the node has not decided yet whether it takes the pod", next }];
  }
  if (local.terminating !== undefined) return terminationBlockers(facts, local, nowMs);
  if (isTerminalPhase(status.phase)) return [];
  if (!local.isRuntimeReady) {
    const next = "goes on by itself when the runtime does: look at its service and log";
    return [{ what: "container runtime", why: "does not answer, or says that it is not ready", next }];
  }
  if (observed === undefined) {
    const error = latestFailure(facts.timeline?.entries, "look")?.detail;
    const why = `has not said yet what it has of this pod${error === undefined ? "" : `: ${error}`}`;
    const sinceMs = facts.timeline?.entries.find(({ what }) => what !== "seen")?.atMs;
    return [{ what: "container runtime", why, ...(sinceMs === undefined ? {} : { sinceMs }) }];
  }
  if (!local.isNetworkReady && pod.spec.hostNetwork !== true) {
    const next = "goes on by itself when the network plugin is there (see the runtime's CNI configuration directory)";
    return [{ what: "network", why: facts.networkProblem || "is not ready", next }];
  }
  const plan = decide(pod, observed, local, nowMs);
  const found = [
    ...volumeBlockers(facts, local, nowMs),
    ...sandboxBlockers(facts, local),
    ...[...(pod.spec.initContainers ?? []), ...pod.spec.containers].flatMap((container) =>
      containerBlockers(container, facts, local, plan),
    ),
    ...stoppingBlockers(facts, local),
  ];
  return [...found, ...(found.length > 0 ? [] : readinessBlockers(facts)), ...resizeBlockers(facts)];
}

function sandboxBlockers({ pod, observed, timeline }: PodFacts, { attempts }: PodLocal): Blocker[] {
  if (observed !== undefined && sandboxState(pod, observed).kind === "ready") return [];
  const attempt = attempts.get("sandbox");
  const running = openEntry(timeline?.entries, "sandbox");
  if (attempt?.state === "running") {
    const since = running === undefined ? {} : { sinceMs: running.atMs };
    const step = running === undefined || running.detail === "" ? "" : ` (${running.detail})`;
    return [{ what: "sandbox", why: `the runtime makes the pod's sandbox and its network${step}`, ...since }];
  }
  return attempt?.state === "failed" ? [{ what: "sandbox", why: attempt.message, ...failedOf(attempt) }] : [];
}

function containerBlockers(container: Container, facts: PodFacts, local: PodLocal, plan: Plan): Blocker[] {
  const { name } = container;
  const what = `${isInit(facts.pod, name) ? "init container" : "container"} ${name}`;
  const newest = facts.observed?.containers.find((one) => one.name === name);
  const backoff = plan.backoff.get(name);
  if (backoff !== undefined && newest !== undefined) return [crashBlocker(what, newest, backoff.untilMs, facts)];
  const image = local.attempts.get(`image/${name}`);
  if (image !== undefined) return imageBlocker(container, what, image, facts);
  const start = local.attempts.get(`start/${name}`);
  if (start !== undefined) return startBlocker(name, what, start, facts);
  if (newest?.state === "running") return runningBlockers(container, what, newest, facts, local);
  return [];
}

function crashBlocker(what: string, newest: ContainerStatus, untilMs: number, facts: PodFacts): Blocker {
  const { namespace = "default", name } = facts.pod.metadata;
  const restarts = restartsOf(facts, newest.name);
  const why = `crashed: ${exitText(newest, facts.lastWords)}${restarts > 0 ? `; restarted ${times(restarts)}` : ""}`;
  // One that could not even be started has written nothing.
  const logs = newest.startedAtMs > 0 ? `kubectl logs -n ${namespace} ${name} -c ${newest.name} --previous` : "";
  return { what, why, next: logs, sinceMs: newest.finishedAtMs, nextTryMs: untilMs };
}

function imageBlocker(container: Container, what: string, attempt: Attempt, { timeline }: PodFacts): Blocker[] {
  const { name, image = "" } = container;
  if (attempt.state === "running") {
    const open = openEntry(timeline?.entries, "image", name);
    const why = open === undefined || open.detail === "" ? `looks for image ${image}` : open.detail;
    return [{ what, why, ...(open === undefined ? {} : { sinceMs: open.atMs }) }];
  }
  const entry = latestFailure(timeline?.entries, "image", name);
  const nextTryMs = entry?.retryAtMs ?? attempt.retryAtMs;
  const why = `${attempt.reason}: ${attempt.message}`;
  const first = firstFailure(timeline?.entries, "image", name);
  return [{ what, why, nextTryMs, ...(first === undefined ? {} : { sinceMs: first.atMs }) }];
}

function startBlocker(name: string, what: string, attempt: Attempt, { timeline }: PodFacts): Blocker[] {
  if (attempt.state === "failed") {
    const reason = attempt.reason === "ContainerCreating" ? "" : `${attempt.reason}: `;
    const first = ["create", "start", "postStart"].flatMap((step) => firstFailure(timeline?.entries, step, name) ?? []);
    const since = first[0] === undefined ? {} : { sinceMs: first[0].atMs };
    return [
      { what, why: `${reason}${attempt.message}`, next: soonerText(attempt.awaited), ...since, ...failedOf(attempt) },
    ];
  }
  const doing: Record<string, string> = {
    create: "is being created by the runtime",
    start: "is being started by the runtime",
    postStart: "its postStart hook has not ended yet",
  };
  for (const [step, why] of Object.entries(doing)) {
    const open = openEntry(timeline?.entries, step, name);
    if (open !== undefined) return [{ what, why, sinceMs: open.atMs }];
  }
  return [{ what, why: "is being started" }];
}

function runningBlockers(
  container: Container,
  what: string,
  newest: ContainerStatus,
  { pod, timeline }: PodFacts,
  local: PodLocal,
): Blocker[] {
  const { name } = container;
  if (isInit(pod, name) && !isSidecar(container)) {
    const inits = pod.spec.initContainers ?? [];
    const at = inits.findIndex((one) => one.name === name) + 1;
    return [
      { what, why: `runs (${at} of ${inits.length}); the pod begins when it has ended`, sinceMs: newest.startedAtMs },
    ];
  }
  for (const type of ["Startup", "Readiness"] as const) {
    const probe = type === "Startup" ? container.startupProbe : container.readinessProbe;
    if (probe === undefined || local.verdict(name, newest.id, type) === "success") continue;
    const word = type.toLowerCase();
    const entry = timeline?.entries.findLast(({ what: is, subject }) => is === `${word} probe` && subject === name);
    const isOfThis = entry?.state === "failed" && entry.lastAtMs >= newest.startedAtMs;
    const next = `probed every ${probe.periodSeconds ?? periodSecondsDefault} s`;
    if (!isOfThis) return [{ what, why: `its ${word} probe has not passed yet`, next, sinceMs: newest.startedAtMs }];
    const sinceMs = Math.max(entry.atMs, newest.startedAtMs);
    return [{ what, why: entry.detail, next, sinceMs, tries: entry.times }];
  }
  return [];
}

// The API server's default.
const periodSecondsDefault = 10;

function stoppingBlockers(facts: PodFacts, local: PodLocal): Blocker[] {
  return (facts.observed?.containers ?? []).filter(isAlive).flatMap((status) => stopOf(status, facts, local));
}

/** What a container that has to stop waits for; empty if nobody stops it. */
function stopOf({ id, name }: ContainerStatus, { timeline }: PodFacts, { attempts }: PodLocal): Blocker[] {
  const what = `container ${name}`;
  const hook = attempts.get(`prestop/${id}`);
  if (hook?.state === "running") {
    const open = openEntry(timeline?.entries, "preStop", name);
    return [{ what, why: "its preStop hook has not ended yet", ...(open === undefined ? {} : { sinceMs: open.atMs }) }];
  }
  for (const [key, attempt] of attempts) {
    if (!key.startsWith(`kill/${id}/`)) continue;
    if (attempt.state === "failed") return [{ what, why: `not stopped: ${attempt.message}`, ...failedOf(attempt) }];
    const open = openEntry(timeline?.entries, "stop", name);
    const why = "has its stop signal and has not ended yet";
    return [{ what, why, ...(open === undefined ? {} : { sinceMs: open.atMs }) }];
  }
  return [];
}

function terminationBlockers(facts: PodFacts, local: PodLocal, nowMs: number): Blocker[] {
  const { pod, observed, timeline } = facts;
  const { terminating } = local;
  const alive = (observed?.containers ?? []).filter(isAlive);
  if (alive.length > 0 && terminating !== undefined) {
    const deadlineMs = terminating.sinceMs + terminating.graceSeconds * 1_000;
    const next =
      deadlineMs > nowMs ? `killed in ${formatDelay(deadlineMs - nowMs)} at the latest` : "its grace is over";
    return alive.flatMap((status) => {
      const own = stopOf(status, facts, local);
      const waits: Blocker = {
        what: `container ${status.name}`,
        why: "stops after the others",
        sinceMs: terminating.sinceMs,
      };
      return (own.length > 0 ? own : [waits]).map((blocker) => ({ ...blocker, next }));
    });
  }
  const failed = [...local.attempts.values()].find((attempt) => attempt.state === "failed");
  if (failed?.state === "failed" && !local.isCleanedUp) {
    return [{ what: "pod", why: failed.message, ...failedOf(failed) }];
  }
  const underWay = [
    { what: "sandbox stop", why: "its sandbox and network are being removed" },
    { what: "volume tear-down", why: "its volumes are being removed" },
    { what: "clean-up", why: "its cgroup is being removed" },
  ].flatMap(({ what, why }): Blocker[] => {
    const open = openEntry(timeline?.entries, what);
    return open === undefined ? [] : [{ what: "pod", why, sinceMs: open.atMs }];
  });
  if (underWay.length > 0) return underWay;
  if (!local.isCleanedUp || local.isGone || pod.metadata.deletionTimestamp === undefined) return [];
  const finalizers = pod.metadata.finalizers ?? [];
  const held =
    finalizers.length === 0
      ? "the API server is to remove the object"
      : `others hold the object by finalizers: ${finalizers.join(", ")}`;
  return [{ what: "API server", why: `nothing is left on the node; ${held}` }];
}

function readinessBlockers({ status }: PodFacts): Blocker[] {
  const ready = status.conditions?.find(({ type }) => type === "Ready");
  if (ready === undefined || ready.status === "True" || ready.message === undefined) return [];
  return [{ what: "pod", why: `${ready.reason}: ${ready.message}` }];
}

function resizeBlockers({ status }: PodFacts): Blocker[] {
  return (status.conditions ?? []).flatMap(({ type, status: is, reason = "", message = "" }): Blocker[] => {
    if (is !== "True" || (type !== "PodResizePending" && type !== "PodResizeInProgress")) return [];
    const why = [type === "PodResizePending" ? "not made yet" : "under way", reason, message];
    return [{ what: "resize", why: why.filter((text) => text !== "").join(": ") }];
  });
}

// Far longer than a patch takes.
const patchMsUsual = 2_000;

function unsentStatus({ timeline, local }: PodFacts, nowMs: number): Blocker[] {
  if (local?.isGone === true) return []; // nobody wants to know
  const open = openEntry(timeline?.entries, "status");
  if (open !== undefined && nowMs - open.atMs > patchMsUsual) {
    return [{ what: "API server", why: "has not answered to the pod's status yet", sinceMs: open.atMs }];
  }
  const sent = (timeline?.entries ?? []).filter(({ what, state }) => what === "status" && state !== "running");
  const newest = sent.toSorted((a, b) => a.lastAtMs - b.lastAtMs).at(-1);
  if (newest?.state !== "failed") return [];
  const why = `has not taken the pod's status: ${newest.detail}`;
  return [{ what: "API server", why, next: "sent again until it does", sinceMs: newest.atMs, tries: newest.times }];
}

function openEntry(entries: readonly TimelineEntry[] = [], what: string, subject = ""): TimelineEntry | undefined {
  return entries.findLast((entry) => entry.state === "running" && entry.what === what && entry.subject === subject);
}

function firstFailure(
  entries: readonly TimelineEntry[] = [],
  what: string,
  subject: string,
): TimelineEntry | undefined {
  return entries.find((entry) => entry.state === "failed" && entry.what === what && entry.subject === subject);
}

function latestFailure(entries: readonly TimelineEntry[] = [], what: string, subject = ""): TimelineEntry | undefined {
  return entries
    .filter((entry) => entry.state === "failed" && entry.what === what && entry.subject === subject)
    .toSorted((a, b) => a.lastAtMs - b.lastAtMs)
    .at(-1);
}

function failedOf(attempt: Attempt): Pick<Blocker, "nextTryMs" | "tries"> {
  return attempt.state === "failed" ? { nextTryMs: attempt.retryAtMs, tries: attempt.failures } : {};
}

function isInit({ spec }: Pod, name: string): boolean {
  return (spec.initContainers ?? []).some((container) => container.name === name);
}

function restartsOf({ status }: PodFacts, name: string): number {
  const all = [...(status.initContainerStatuses ?? []), ...(status.containerStatuses ?? [])];
  return all.find((one) => one.name === name)?.restartCount ?? 0;
}

function exitText({ id, exitCode, reason }: ContainerStatus, lastWords: ReadonlyMap<string, string>): string {
  const words = (lastWords.get(id) ?? "").trim().split("\n").at(-1) ?? "";
  return `exit code ${exitCode} (${reason})${words === "" ? "" : `, "${words}"`}`;
}

function times(count: number): string {
  return count === 1 ? "once" : `${count} times`;
}
