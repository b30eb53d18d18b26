import { uidOf } from "../kube/pod-resources.ts";
import type { ApiClient, EventRecorder } from "../kube/port.ts";
import type { ObjectReference, Pod, PodStatus } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { isAbort, messageOf } from "../lib/errors.ts";
import type { ImageUser } from "../runtime/images.ts";
import type { PodSnapshot, PullProgress, Runtime } from "../runtime/port.ts";
import { awaitedBy } from "../volumes/awaits.ts";
import { type Executor, type StepContext, StepError } from "./executor.ts";
import { imageVolumesOf } from "./image-volumes.ts";
import { newlyExited, type PodMetrics } from "./metrics.ts";
import { specContainers } from "./names.ts";
import type { PodAction } from "./plan.ts";
import { podStateWord } from "./pod-state.ts";
import { pullText } from "./pull-text.ts";
import { isTerminalPhase } from "./status.ts";
import { type OpenEntry, Timelines } from "./timeline.ts";

/** What a timeline's last entries are compared with. */
interface Last {
  pod: Pod;
  state: string;
  /** On the monotonic clock. */
  stateSinceMs: number;
  isReady: boolean;
}

/**
 * Writes the timelines of pods. It stands between the parts that run pods and those that they tell of it (the recorder of
 * events, metrics, the API server), and passes everything on: none of them has to know of it.
 */
export class TimelineRecorder {
  readonly timelines: Timelines;
  readonly #clock: Clock;
  readonly #last = new Map<string, Last>();
  // Sandboxes, pulls and starts under way: events and the runtime say how far they are. By keyOf.
  readonly #underWay = new Map<string, { open: OpenEntry; pod: Pod }>();

  constructor(clock: Clock) {
    this.#clock = clock;
    this.timelines = new Timelines(clock);
  }

  /** The pod's state in a word, and since when; undefined before its first status. */
  state(podUID: string): { state: string; sinceMs: number } | undefined {
    const last = this.#last.get(podUID);
    if (last === undefined || last.state === "") return undefined;
    return { state: last.state, sinceMs: this.#clock.now() - (this.#clock.monotonic() - last.stateSinceMs) };
  }

  admitted(pod: Pod): void {
    this.timelines.open(pod).note("admitted");
  }

  /** The pod could not be looked at, or not decided upon. */
  notSynced(pod: Pod, message: string): void {
    this.timelines.open(pod).note("look", "", message, { isFailure: true });
  }

  /** Nothing of the pod is left on the node. */
  ended(podUID: string): void {
    this.timelines.end(podUID);
    this.#last.delete(podUID);
  }

  /** A volume's set-up begins. @returns to be called at its end */
  volume(pod: Pod, volume: string): (err?: unknown) => void {
    const open = this.timelines.open(pod).begin("volume", volume);
    return (err) => {
      if (err === undefined) open.done();
      else if (isAbort(err)) open.forget();
      else open.failed(messageOf(err), { awaited: awaitedBy(err) });
    };
  }

  /** How far the pull of an image is that a container, or a volume, needs. */
  pullProgress(pod: Pod, { name, image = "" }: ImageUser, progress: PullProgress): void {
    const uid = uidOf(pod);
    const text = pullText(image, progress);
    this.#underWay.get(keyOf("image", uid, name))?.open.note(text);
    if (name === "") for (const open of this.#waitingForVolume(uid, text)) open.note(text);
  }

  /** The runtime, with what it says of a sandbox in the making written down. */
  sandboxes<R extends Pick<Runtime, "runPodSandbox">>(runtime: R): R {
    return {
      ...runtime,
      runPodSandbox: async (config, handler, onStep) =>
        await runtime.runPodSandbox(config, handler, (step) => {
          this.#underWay.get(keyOf("sandbox", config.uid, ""))?.open.note(step);
          onStep?.(step);
        }),
    };
  }

  /** The executor, with its steps written down. */
  executor(executor: Pick<Executor, "execute">): Pick<Executor, "execute"> {
    return {
      execute: async (action, context) => {
        const step = this.#beginStep(action, context);
        try {
          await executor.execute(action, context);
          step.done();
        } catch (err) {
          if (context.signal.aborted && isAbort(err)) step.forget();
          else step.failed(messageOf(err), { retryAtMs: err instanceof StepError ? err.retryAtMs : undefined });
          throw err;
        }
      },
    };
  }

  /** The recorder, with what it says about pods written down where no step says it. */
  events(recorder: EventRecorder): EventRecorder {
    return {
      event: (about, type, reason, message) => {
        recorder.event(about, type, reason, message);
        if (about.kind === "Pod") this.#event(about, type, reason, message);
      },
    };
  }

  /** The metrics, with what they hear of pods written down. */
  metrics(metrics: PodMetrics): PodMetrics {
    return {
      ...metrics,
      seen: (pod) => {
        metrics.seen(pod);
        this.#seen(pod);
      },
      gone: (podUID) => {
        metrics.gone(podUID);
        this.timelines.get(podUID)?.note("gone");
      },
      looked: (pod, before, now) => {
        metrics.looked(pod, before, now);
        this.#looked(pod, before, now);
      },
      statusWanted: (podUID, status) => {
        metrics.statusWanted(podUID, status);
        this.#statusWanted(podUID, status);
      },
    };
  }

  /** The way to the API server, with patches of statuses written down. */
  patches(client: Pick<ApiClient, "patch">): Pick<ApiClient, "patch"> {
    return {
      patch: async (resource, key, patch, options) => {
        const { namespace = "", name } = key;
        const timeline = this.timelines.find(namespace, name);
        const open = timeline?.begin("status", "", this.state(timeline.podUID)?.state ?? "");
        try {
          const answer = await client.patch(resource, key, patch, options);
          open?.done();
          return answer;
        } catch (err) {
          if (isAbort(err)) open?.forget();
          else open?.failed(messageOf(err));
          throw err;
        }
      },
    };
  }

  #beginStep(action: PodAction, { pod }: StepContext): Step {
    const timeline = this.timelines.open(pod);
    switch (action.kind) {
      case "SetUpVolumes": {
        const failedBefore = failuresOf("volume");
        // Each volume has an entry of its own: only what went wrong before the first of them is news.
        return {
          ...nothing,
          failed: (message) => {
            if (failuresOf("volume") === failedBefore) timeline.note("volumes", "", message, { isFailure: true });
          },
        };
      }
      case "CreateSandbox": {
        const attempt = action.attempt === 0 ? "" : `attempt ${action.attempt}`;
        const step = this.#follow(keyOf("sandbox", uidOf(pod), ""), pod, timeline.begin("sandbox", "", attempt));
        // How far it came counts as long as it is not there.
        return { ...step, done: () => step.done(attempt) };
      }
      case "EnsureImage":
        return this.#follow(
          keyOf("image", uidOf(pod), action.container),
          pod,
          timeline.begin("image", action.container),
        );
      case "StartContainer": {
        // Create, start and postStart hook are one step, of which events tell the parts.
        const what = action.createdID === undefined ? "create" : "start";
        return this.#follow(keyOf("start", uidOf(pod), action.container), pod, timeline.begin(what, action.container));
      }
      case "ResizePod":
        return timeline.begin("resize");
      case "PreStop":
        return timeline.begin("preStop", action.container);
      case "KillContainer":
        return timeline.begin("stop", action.container, `${action.why} (grace ${action.graceSeconds} s)`);
      case "StopSandbox":
        return timeline.begin("sandbox stop");
      case "RemoveContainer":
      case "RemoveSandbox":
        return { ...nothing, failed: (message) => timeline.note("remove", "", message, { isFailure: true }) };
      case "TearDownVolumes":
        return timeline.begin("volume tear-down");
      case "CleanUp":
        return timeline.begin("clean-up", "", "cgroup");
    }
    function failuresOf(what: string): number {
      return timeline.entries.reduce(
        (n, { what: is, state, times }) => (is === what && state === "failed" ? n + times : n),
        0,
      );
    }
  }

  #follow(key: string, pod: Pod, open: OpenEntry): Step {
    const step = { open, pod };
    this.#underWay.set(key, step);
    const end = () => {
      this.#underWay.delete(key);
      return step.open;
    };
    return {
      done: (detail) => end().done(detail),
      failed: (message, more) => end().failed(message, more),
      forget: () => end().forget(),
    };
  }

  #event({ uid = "", fieldPath = "" }: ObjectReference, type: string, reason: string, message: string): void {
    const timeline = this.timelines.get(uid);
    if (timeline === undefined) return;
    const container = /\{(.*)\}$/.exec(fieldPath)?.[1] ?? "";
    const image = this.#underWay.get(keyOf("image", uid, container));
    const start = this.#underWay.get(keyOf("start", uid, container));
    switch (reason) {
      case "Pulling":
      case "Pulled": {
        const text = reason === "Pulling" ? message : pulledText(message);
        image?.open.note(text);
        // What is said of no container is about the image of a volume: all that wait for it are told.
        if (container === "") for (const open of this.#waitingForVolume(uid, message)) open.note(text);
        return;
      }
      case "Created":
        if (start === undefined) return;
        start.open.done();
        start.open = timeline.begin("start", container);
        return;
      case "Started":
        if (start === undefined) return;
        start.open.done();
        if (hasPostStart(start.pod, container)) start.open = timeline.begin("postStart", container);
        return;
      case "Unhealthy":
      case "ProbeWarning": {
        const probe = /^(\w+) probe/.exec(message)?.[1]?.toLowerCase();
        const what = probe === undefined ? reason : `${probe} probe`;
        timeline.note(what, container, message, { isFailure: reason === "Unhealthy", isAnyDetail: true });
        return;
      }
    }
    if (!toldBySteps.has(reason)) timeline.note(reason, container, message, { isFailure: type === "Warning" });
  }

  #waitingForVolume(podUID: string, message: string): OpenEntry[] {
    const prefix = keyOf("image", podUID, "");
    return [...this.#underWay].flatMap(([key, { open, pod }]) => {
      const found = specContainers(pod).find(({ container: { name } }) => key === `${prefix}${name}`);
      if (!key.startsWith(prefix) || found === undefined) return [];
      const isMeant = imageVolumesOf(pod, found.container).some(({ user }) => message.includes(`"${user.image}"`));
      return isMeant ? [open] : [];
    });
  }

  #seen(pod: Pod): void {
    const uid = uidOf(pod);
    const timeline = this.timelines.open(pod);
    const last = this.#last.get(uid);
    const wasDeleted = last?.pod.metadata.deletionTimestamp !== undefined;
    if (last === undefined) {
      const isReady = isReadyStatus(pod.status ?? {});
      this.#last.set(uid, { pod, state: "", stateSinceMs: this.#clock.monotonic(), isReady });
      const wasBegun = pod.status?.startTime !== undefined;
      timeline.note("seen", "", wasBegun ? "known before this agent started" : "");
    } else {
      const { generation } = pod.metadata;
      if (generation !== last.pod.metadata.generation && pod.metadata.deletionTimestamp === undefined) {
        timeline.note("changed", "", `generation ${generation}`);
      }
      last.pod = pod;
    }
    const { deletionTimestamp, deletionGracePeriodSeconds: grace } = pod.metadata;
    if (deletionTimestamp !== undefined && !wasDeleted) {
      timeline.note("deleted", "", grace === undefined ? "" : `grace ${grace} s`);
    }
  }

  #looked(pod: Pod, before: PodSnapshot | undefined, now: PodSnapshot): void {
    const exited = newlyExited(before, now);
    if (exited.length === 0) return;
    const timeline = this.timelines.open(pod);
    for (const { name, exitCode, reason, startedAtMs, finishedAtMs } of exited) {
      const ran = startedAtMs > 0 && finishedAtMs >= startedAtMs ? { tookMs: finishedAtMs - startedAtMs } : {};
      timeline.note("exit", name, `exit code ${exitCode} (${reason})`, { isFailure: exitCode !== 0, ...ran });
    }
  }

  #statusWanted(podUID: string, status: PodStatus): void {
    const last = this.#last.get(podUID);
    const timeline = this.timelines.get(podUID);
    if (last === undefined || timeline === undefined) return;
    const isReady = isReadyStatus(status);
    if (isReady !== last.isReady) {
      const why = status.conditions?.find(({ type }) => type === "Ready")?.message ?? "";
      timeline.note(isReady ? "ready" : "not ready", "", isReady ? "" : why);
    }
    last.isReady = isReady;
    const state = podStateWord(last.pod, status);
    if (state === last.state) return;
    // What the first status says was so before, if the conditions say so.
    const sinceMs = (last.state === "" ? readySinceMs(status) : undefined) ?? this.#clock.now();
    last.stateSinceMs = this.#clock.monotonic() - (this.#clock.now() - sinceMs);
    last.state = state;
    if (isTerminalPhase(status.phase)) timeline.note("finished", "", status.message ?? state);
  }
}

type Step = Pick<OpenEntry, "done" | "failed" | "forget">;

const nothing: Step = { done: () => {}, failed: () => {}, forget: () => {} };

// Events that say what an entry of a step says already.
const toldBySteps: ReadonlySet<string> = new Set([
  "BackOff",
  "Failed",
  "FailedCreatePodContainer",
  "FailedCreatePodSandBox",
  "FailedKillPod",
  "FailedMount",
  "FailedPostStartHook",
  "InspectFailed",
  "Killing",
]);

function keyOf(step: "image" | "sandbox" | "start", podUID: string, container: string): string {
  return `${step}/${podUID}/${container}`;
}

function pulledText(message: string): string {
  const pulled = /pulled image "(.*)" in .* Image size: (\d+) bytes/.exec(message);
  if (pulled !== null) return `pulled ${pulled[1]}, ${pulled[2]} bytes`;
  const present = /^Container image "(.*)" already present/.exec(message);
  return present === null ? message : `${present[1]} is present`;
}

function hasPostStart(pod: Pod, name: string): boolean {
  return specContainers(pod).some(
    ({ container }) => container.name === name && container.lifecycle?.postStart !== undefined,
  );
}

function isReadyStatus({ conditions = [] }: PodStatus): boolean {
  return conditions.some(({ type, status }) => type === "Ready" && status === "True");
}

function readySinceMs({ conditions = [] }: PodStatus): number | undefined {
  const ms = Date.parse(conditions.find(({ type }) => type === "Ready")?.lastTransitionTime ?? "");
  return Number.isNaN(ms) ? undefined : ms;
}
