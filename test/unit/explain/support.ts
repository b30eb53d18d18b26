import type { ExplainedEntry, Explanation, PodLine } from "../../../agent/pods/explain.ts";

const beginMs = Date.UTC(2026, 10, 21, 15, 33, 2);

/** Instants of a story: milliseconds after its begin. */
export function at(ms: number): string {
  return new Date(beginMs + ms).toISOString();
}

export function entryOf(ms: number, what: string, changes: Partial<ExplainedEntry> = {}): ExplainedEntry {
  return { at: at(ms), lastAt: at(ms), what, subject: "", state: "done", detail: "", times: 1, ...changes };
}

export function explanationOf(changes: Partial<Explanation> = {}): Explanation {
  return {
    namespace: "shop",
    name: "web-0",
    uid: "u1",
    node: "node1",
    state: "Running",
    since: at(1_200),
    now: at(90_000),
    ready: 1,
    restarts: 0,
    phase: "Running",
    message: "",
    containers: [{ name: "app", kind: "regular", state: "running", ready: true, restarts: 0 }],
    waitsFor: [],
    timeline: [
      entryOf(0, "seen"),
      entryOf(1, "admitted"),
      entryOf(2, "volume", { subject: "config", tookMs: 3 }),
      entryOf(2, "sandbox", { tookMs: 182 }),
      entryOf(3, "image", { subject: "app", tookMs: 840, detail: "pulled registry.example/app:1, 5242880 bytes" }),
      entryOf(860, "create", { subject: "app", tookMs: 31 }),
      entryOf(891, "start", { subject: "app", tookMs: 55 }),
      entryOf(1_200, "ready"),
      entryOf(1_200, "status", { tookMs: 6, detail: "Running" }),
    ],
    omitted: 0,
    ...changes,
  };
}

export function lineOf(changes: Partial<PodLine> = {}): PodLine {
  return {
    namespace: "shop",
    name: "web-0",
    uid: "u1",
    state: "Running",
    since: at(1_200),
    ready: 1,
    containers: 1,
    restarts: 0,
    waitsFor: "",
    ...changes,
  };
}
