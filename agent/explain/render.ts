import type { ExplainedBlocker, ExplainedContainer, ExplainedEntry, Explanation } from "../pods/explain.ts";
import type { PodAnswer } from "./protocol.ts";
import { durationText, harmless, painted, type TextStyle, wrapped } from "./text.ts";

// Columns of a timeline's times.
const atColumns = 9;
const tookColumns = 8;
// Names up to this long are aligned.
const nameColumnsMax = 32;

/** `nodelet explain pod`, for people. Pure. */
export function renderExplanation(explanation: Explanation, style: TextStyle): string {
  const { namespace, name, node, state, since, now, ready, containers, restarts } = explanation;
  const regular = containers.filter(({ kind }) => kind === "regular").length;
  const isGood = ["Running", "Completed"].includes(state);
  const head = `Pod ${painted(harmless(`${namespace}/${name}`), "bold", style)} on node ${harmless(node)}`;
  const word = painted(harmless(state), isGood ? "green" : "yellow", style);
  const counts = `${ready}/${regular} ready${restarts === 0 ? "" : `, ${restarts} restart${restarts === 1 ? "" : "s"}`}`;
  return [
    head,
    `${word} for ${durationText(between(since, now))}, ${counts}`,
    "",
    ...waitsForLines(explanation, style),
    "",
    painted("Containers", "bold", style),
    ...containerLines(containers, style),
    "",
    ...timelineLines(explanation, style),
    "",
  ].join("\n");
}

/** What is known of a pod that the node does not have, for people. Pure. */
export function renderUnknown(
  answer: Extract<PodAnswer, { kind: "unknown" }>,
  wanted: { namespace: string; name: string },
  style: TextStyle,
): string {
  const { node, isStarting, agentWaitsFor, similar, ended, now } = answer;
  const pod = harmless(`${wanted.namespace}/${wanted.name}`);
  if (isStarting || (agentWaitsFor !== "" && ended === undefined)) return startText(answer, style.columns);
  const lines = [`There is no pod ${painted(pod, "bold", style)} on this node (${harmless(node)}).`];
  if (similar.length > 0) lines.push(`Is one of these meant? ${similar.map(harmless).join(", ")}`);
  if (ended === undefined) {
    lines.push(
      "It may not exist, be bound to another node, or not be scheduled yet:",
      `  kubectl get pod -n ${harmless(wanted.namespace)} ${harmless(wanted.name)} -o wide`,
    );
    return `${lines.join("\n")}\n`;
  }
  lines.push("A pod of this name was here and is gone.", "");
  return `${[...lines, ...timelineLines({ now, ...ended }, style)].join("\n")}\n`;
}

/** Why the agent does not know its pods yet, for people. Pure. */
export function startText({ agentWaitsFor }: Pick<PodAnswer & { kind: "unknown" }, "agentWaitsFor">, columns: number) {
  const why = agentWaitsFor === "" ? "see its log" : `it waits for ${harmless(agentWaitsFor)} (see its log)`;
  return wrapped(`The agent does not know all of its pods yet: ${why}.`, columns).join("\n").concat("\n");
}

function waitsForLines({ waitsFor, state, phase, message, now }: Explanation, style: TextStyle): string[] {
  if (waitsFor.length > 0) {
    return [painted("Waits for", "bold", style), ...waitsFor.flatMap((blocker) => blockerLines(blocker, now, style))];
  }
  if (["Succeeded", "Failed"].includes(phase)) {
    const why = message === "" ? "" : `: ${harmless(message)}`;
    return wrapped(`Waits for nothing: it has ended${why}`, style.columns);
  }
  if (state === "Running") return ["Waits for nothing: it runs and is ready."];
  return ["Waits for nothing that the node could tell."];
}

function blockerLines(blocker: ExplainedBlocker, now: string, style: TextStyle): string[] {
  const { what, why, next, since, nextTry, tries } = blocker;
  const [first = "", ...more] = wrapped(`${harmless(what)}: ${harmless(why)}`, style.columns - 4);
  const untilMs = nextTry === undefined ? undefined : between(now, nextTry);
  const times = [
    since === undefined ? "" : `for ${durationText(between(since, now))}`,
    tries === undefined ? "" : `${tries} tries`,
    untilMs === undefined ? "" : untilMs <= 0 ? "next try now" : `next try in ${durationText(untilMs)}`,
    harmless(next),
  ].filter((text) => text !== "");
  return [
    `  ${painted(first, "yellow", style)}`,
    ...more.map((line) => `    ${painted(line, "yellow", style)}`),
    ...(times.length === 0 ? [] : wrapped(times.join("; "), style.columns - 6).map((line) => `      ${line}`)),
  ];
}

function containerLines(containers: readonly ExplainedContainer[], style: TextStyle): string[] {
  const width = Math.min(nameColumnsMax, Math.max(...containers.map(({ name }) => name.length)));
  return containers.map(({ name, kind, state, ready, restarts }) => {
    const facts = [
      harmless(state),
      ...(kind === "regular" ? [] : [kind]),
      ...(state === "running" ? [ready ? "ready" : "not ready"] : []),
      ...(restarts === 0 ? [] : [`${restarts} restart${restarts === 1 ? "" : "s"}`]),
    ];
    return `  ${harmless(name).padEnd(width)}  ${facts.join(", ")}`.slice(0, Math.max(style.columns, width + 24));
  });
}

function timelineLines(
  { timeline, omitted, now }: Pick<Explanation, "timeline" | "omitted" | "now">,
  style: TextStyle,
): string[] {
  const [begin] = timeline;
  if (begin === undefined) return ["Timeline: nothing yet"];
  const from = begin.at.slice(0, 19).replace("T", " ");
  const lines = timeline.flatMap((entry) => entryLines(entry, begin.at, now, style));
  const note = omitted === 0 ? [] : [`  (${omitted} entries between the first and the last ones are left out)`];
  return [`${painted("Timeline", "bold", style)} from ${from} UTC`, ...lines, ...note];
}

function entryLines(entry: ExplainedEntry, begin: string, now: string, style: TextStyle): string[] {
  const { at, lastAt, what, subject, state, tookMs, detail, times } = entry;
  const took = state === "running" ? "running" : tookMs === undefined ? "" : durationText(tookMs);
  const repeats = times === 1 ? "" : ` (${times} times, last ${durationText(between(lastAt, now))} ago)`;
  const title = `${harmless(what)}${subject === "" ? "" : ` ${harmless(subject)}`}`;
  const text = `${title}${detail === "" ? "" : `: ${harmless(detail)}`}${repeats}`;
  const indent = atColumns + tookColumns + 4;
  const [first = "", ...more] = wrapped(text, style.columns - indent);
  const when = `+${offsetText(between(begin, at))}`.padStart(atColumns) + took.padStart(tookColumns + 1);
  const colour = state === "failed" ? "red" : state === "running" ? "yellow" : undefined;
  const paint = (line: string) => (colour === undefined ? line : painted(line, colour, style));
  const mark = state === "failed" ? "!" : state === "running" ? ">" : " ";
  return [`${when} ${mark} ${paint(first)}`, ...more.map((line) => `${" ".repeat(indent)}${paint(line)}`)];
}

// Milliseconds count where pods start, not hours later.
function offsetText(ms: number): string {
  return ms < 60_000 ? `${(Math.max(0, ms) / 1_000).toFixed(3)}s` : durationText(ms);
}

/** Milliseconds from one instant to another. */
function between(from: string, to: string): number {
  return Date.parse(to) - Date.parse(from);
}
