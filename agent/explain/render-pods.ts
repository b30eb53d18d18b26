import type { PodLine } from "../pods/explain.ts";
import type { PodsAnswer } from "./protocol.ts";
import { startText } from "./render.ts";
import { durationText, harmless, painted, type TextStyle } from "./text.ts";

// What is left for the last column on a narrow terminal.
const lastColumnsMin = 20;

/** `nodelet pods`, for people: a line a pod. Pure. @param columns undefined: lines are as long as they are */
export function renderPods(
  { node, now, isStarting, agentWaitsFor, pods }: PodsAnswer,
  { isColoured, columns }: Omit<TextStyle, "columns"> & { columns: number | undefined },
): string {
  const isIncomplete = isStarting || agentWaitsFor !== "";
  const note = isIncomplete ? startText({ agentWaitsFor }, columns ?? Number.POSITIVE_INFINITY) : "";
  if (isIncomplete && pods.length === 0) return note;
  if (pods.length === 0) return `No pods on this node (${harmless(node)}).\n`;
  const style = { isColoured, columns: columns ?? Number.POSITIVE_INFINITY };
  const rows = [["POD", "STATE", "FOR", "READY", "WAITS FOR"], ...pods.map((pod) => cells(pod, now))];
  const widths = [0, 1, 2, 3].map((at) => Math.max(...rows.map((row) => row[at]?.length ?? 0)));
  const used = widths.reduce((sum, width) => sum + width + 2, 0);
  const rest = Math.max(lastColumnsMin, style.columns - used);
  const lines = rows.map((row, i) => {
    const padded = widths.map((width, at) => (row[at] ?? "").padEnd(width));
    const waitsFor = shortened(row[4] ?? "", rest);
    const state = painted(padded[1] ?? "", i === 0 ? "bold" : waitsFor === "" ? "green" : "yellow", style);
    return [padded[0], state, padded[2], padded[3], waitsFor].join("  ").trimEnd();
  });
  return `${lines.join("\n")}\n${note}`;
}

function cells({ namespace, name, state, since, ready, containers, waitsFor }: PodLine, now: string): string[] {
  const forMs = Date.parse(now) - Date.parse(since);
  return [
    harmless(`${namespace}/${name}`),
    harmless(state),
    durationText(forMs),
    `${ready}/${containers}`,
    harmless(waitsFor),
  ];
}

function shortened(text: string, columns: number): string {
  return text.length <= columns ? text : `${text.slice(0, columns - 3)}...`;
}
