import type { InspectCommand } from "../config/inspect.ts";
import { messageOf } from "../lib/errors.ts";
import { askPod, askPods } from "./client.ts";
import { renderPods } from "./render-pods.ts";
import { renderExplanation, renderUnknown } from "./render.ts";

/** Where the text goes. */
export interface Terminal {
  out(text: string): void;
  err(text: string): void;
  /** Undefined: not a terminal. */
  columns: number | undefined;
  isColoured: boolean;
}

// Readable in any window; longer lines are not read faster.
const columnsMin = 60;
const columnsMax = 120;
const columnsDefault = 80;

/** Asks the running agent and prints its answer. @returns the exit code: 0 found, 1 not found or nobody to ask */
export async function runInspect(command: InspectCommand, terminal: Terminal): Promise<number> {
  try {
    return command.kind === "pods" ? await showPods(command, terminal) : await showPod(command, terminal);
  } catch (err) {
    terminal.err(`nodelet: ${messageOf(err)}\n`);
    return 1;
  }
}

async function showPods(
  { rootDir, namespace, output }: Extract<InspectCommand, { kind: "pods" }>,
  { out, columns, isColoured }: Terminal,
): Promise<number> {
  const answer = await askPods(rootDir);
  const pods = answer.pods.filter((pod) => namespace === "" || pod.namespace === namespace);
  const chosen = { ...answer, pods };
  out(output === "json" ? jsonText(chosen) : renderPods(chosen, { columns, isColoured }));
  return 0;
}

async function showPod(
  { rootDir, namespace, name, output }: Extract<InspectCommand, { kind: "explain" }>,
  { out, err, columns = columnsDefault, isColoured }: Terminal,
): Promise<number> {
  const answer = await askPod(rootDir, namespace, name);
  const style = { columns: Math.min(columnsMax, Math.max(columnsMin, columns)), isColoured };
  if (answer.kind === "found") {
    out(output === "json" ? jsonText(answer.explanation) : renderExplanation(answer.explanation, style));
    return 0;
  }
  if (output === "json") out(jsonText(answer));
  else err(renderUnknown(answer, { namespace, name }, style));
  return 1;
}

function jsonText(value: object): string {
  return `${JSON.stringify(value, undefined, 2)}\n`;
}
