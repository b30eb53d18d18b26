import { uidOf } from "../kube/pod-resources.ts";
import type { Pod } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import type { Awaited } from "../volumes/awaits.ts";

/**
 * What happened to one pod, for people: the steps of its life with their durations, errors and repeats. Kept small, so
 * that it can be kept of every pod.
 */
export interface TimelineEntry {
  /** Unix ms of its begin; of the first one, if it repeats. By the machine's clock as it is when this is read: see {@link Timeline}. */
  atMs: number;
  /** "sandbox", "image", "create", "exit" …; of events the reason. */
  what: string;
  /** The container or volume that it is about; "" for the pod itself. */
  subject: string;
  state: "running" | "done" | "failed";
  /** Of the last repeat; absent for moments, and while it runs. */
  tookMs?: number;
  /** What came of it; "" if there is nothing to say. */
  detail: string;
  /** How often this happened, with the same outcome. */
  times: number;
  /** Unix ms of the begin of the last repeat. */
  lastAtMs: number;
  /** Unix ms of the next attempt after a failure, where the step itself knows. */
  retryAtMs?: number;
  /** What has to come before it can succeed, where that is known. */
  awaited?: Awaited;
}

/** A step under way. Its end may be told once; what comes later counts for nothing. */
export interface OpenEntry {
  /** Says more about what it does. */
  note(detail: string): void;
  done(detail?: string): void;
  failed(detail: string, more?: { retryAtMs?: number | undefined; awaited?: Awaited | undefined }): void;
  /** It was called off: as if it had never begun. */
  forget(): void;
}

export interface Outcome {
  isFailure?: boolean;
  tookMs?: number;
  /** Counts as a repeat although its detail differs; the newest detail is kept. */
  isAnyDetail?: boolean;
}

// How a pod began is of interest as long as it lives, and so is what happened last: what is between goes first.
export const firstEntriesMax = 24;
export const lastEntriesMax = 32;
// An error message of the runtime fits; a stack of them does not.
export const detailCharsMax = 200;
// Pods whose end can still be looked up.
export const endedPodsMax = 32;

/**
 * What is kept of one pod. Times are kept as how long ago something was, and told on the machine's clock when they are read:
 * what happened before that was set still lies as far back as it does.
 */
export class Timeline {
  readonly namespace: string;
  readonly name: string;
  readonly podUID: string;
  readonly #clock: Clock;
  readonly #first: TimelineEntry[] = [];
  readonly #last: TimelineEntry[] = [];
  #omitted = 0;

  constructor({ metadata: { namespace = "", name, uid = "" } }: Pod, clock: Clock) {
    this.namespace = namespace;
    this.name = name;
    this.podUID = uid;
    this.#clock = clock;
  }

  /** In the order in which they first happened. */
  get entries(): readonly TimelineEntry[] {
    const shiftMs = this.#clock.now() - this.#clock.monotonic();
    return this.#all().map((entry) => ({
      ...entry,
      atMs: Math.round(entry.atMs + shiftMs),
      lastAtMs: Math.round(entry.lastAtMs + shiftMs),
      ...(entry.retryAtMs === undefined ? {} : { retryAtMs: Math.round(entry.retryAtMs + shiftMs) }),
    }));
  }

  // With times on the monotonic clock.
  #all(): TimelineEntry[] {
    return [...this.#first, ...this.#last];
  }

  /** How many are left out between the first and the last ones. */
  get omitted(): number {
    return this.#omitted;
  }

  /** Something that takes time begins. */
  begin(what: string, subject = "", detail = ""): OpenEntry {
    const startedAtMs = this.#clock.monotonic();
    const entry = this.#add({ what, subject, state: "running", detail });
    const end = (
      state: "done" | "failed",
      text: string,
      { retryAtMs, awaited }: Parameters<OpenEntry["failed"]>[1] = {},
    ) => {
      if (entry.state !== "running") return;
      entry.state = state;
      entry.tookMs = this.#clock.monotonic() - startedAtMs;
      entry.detail = clip(text);
      if (retryAtMs !== undefined) entry.retryAtMs = retryAtMs - this.#clock.now() + this.#clock.monotonic();
      if (awaited !== undefined) entry.awaited = awaited;
      this.#merge(entry);
    };
    return {
      note: (text) => {
        if (entry.state === "running") entry.detail = clip(text);
      },
      done: (text = entry.detail) => end("done", text),
      failed: (text, more) => end("failed", text, more),
      forget: () => this.#remove(entry),
    };
  }

  /** Something happened, or has come to its end after `tookMs`. */
  note(what: string, subject = "", detail = "", outcome: Outcome = {}): void {
    const { isFailure = false, tookMs, isAnyDetail } = outcome;
    const entry = this.#add({ what, subject, state: isFailure ? "failed" : "done", detail });
    if (tookMs !== undefined) entry.tookMs = tookMs;
    this.#merge(entry, isAnyDetail);
  }

  #add({ detail, ...rest }: Pick<TimelineEntry, "what" | "subject" | "state" | "detail">): TimelineEntry {
    const atMs = this.#clock.monotonic();
    const entry: TimelineEntry = { ...rest, atMs, lastAtMs: atMs, detail: clip(detail), times: 1 };
    if (this.#first.length < firstEntriesMax && this.#last.length === 0) this.#first.push(entry);
    else this.#last.push(entry);
    if (this.#last.length > lastEntriesMax) {
      this.#last.shift();
      this.#omitted += 1;
    }
    return entry;
  }

  // The same again, such as the tenth try to mount a volume, is one entry with a count.
  #merge(entry: TimelineEntry, isAnyDetail = false): void {
    const { what, subject, state, detail } = entry;
    const before = this.#all().find(
      (old) =>
        old !== entry &&
        old.what === what &&
        old.subject === subject &&
        old.state === state &&
        (isAnyDetail || old.detail === detail),
    );
    if (before === undefined) return;
    this.#remove(entry);
    before.times += 1;
    before.detail = detail;
    before.lastAtMs = entry.atMs;
    if (entry.tookMs !== undefined) before.tookMs = entry.tookMs;
    if (entry.retryAtMs !== undefined) before.retryAtMs = entry.retryAtMs;
    if (entry.awaited !== undefined) before.awaited = entry.awaited;
  }

  #remove(entry: TimelineEntry): void {
    for (const list of [this.#first, this.#last]) {
      const at = list.indexOf(entry);
      if (at >= 0) list.splice(at, 1);
    }
  }
}

/** The timelines of the node's pods, and of a few that are gone. */
export class Timelines {
  readonly #clock: Clock;
  readonly #pods = new Map<string, Timeline>();
  readonly #ended = new Map<string, Timeline>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** The pod's timeline; begins it if there is none. */
  open(pod: Pod): Timeline {
    const uid = uidOf(pod);
    const timeline = this.#pods.get(uid) ?? new Timeline(pod, this.#clock);
    this.#pods.set(uid, timeline);
    return timeline;
  }

  /** Undefined for pods that are not on the node. */
  get(podUID: string): Timeline | undefined {
    return this.#pods.get(podUID);
  }

  /** The newest pod of this name. */
  find(namespace: string, name: string): Timeline | undefined {
    return newest(this.#pods, namespace, name);
  }

  /** Nothing of the pod is left on the node. */
  end(podUID: string): void {
    const timeline = this.#pods.get(podUID);
    if (timeline === undefined) return;
    this.#pods.delete(podUID);
    this.#ended.set(podUID, timeline);
    const [oldest] = this.#ended.keys();
    if (oldest !== undefined && this.#ended.size > endedPodsMax) this.#ended.delete(oldest);
  }

  /** Of the pod of this name that ended last. */
  findEnded(namespace: string, name: string): Timeline | undefined {
    return newest(this.#ended, namespace, name);
  }
}

function newest(timelines: ReadonlyMap<string, Timeline>, namespace: string, name: string): Timeline | undefined {
  let found: Timeline | undefined;
  for (const timeline of timelines.values()) {
    if (timeline.name === name && timeline.namespace === namespace) found = timeline;
  }
  return found;
}

// IDs of containers and sandboxes tell people nothing, and make of each try another message. Digests of images stay.
const runtimeID = /(?<!sha256:)\b[0-9a-f]{64}\b/g;

// Looking through more than this for words that could go would take its time.
const searchedCharsMax = 16_384;

function clip(long: string): string {
  const text = shortened(long, searchedCharsMax);
  return shortened(text.trim().replaceAll(/\s+/g, " ").replaceAll(runtimeID, "<id>"), detailCharsMax);
}

/** A text of at most `charsMax`: its begin and, as causes come last in messages, more of its end. */
export function shortened(text: string, charsMax: number): string {
  if (text.length <= charsMax) return text;
  const gap = " ... ";
  const headChars = Math.floor(charsMax / 3);
  const short = `${text.slice(0, headChars)}${gap}${text.slice(headChars + gap.length - charsMax)}`;
  return Buffer.from(short).toString(); // a copy: parts of a string keep the whole of it in memory
}
