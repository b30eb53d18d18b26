import { harmless, painted, type TextStyle, wrapped } from "../../explain/text.ts";
import type { Trace, TraceEnd, TraceStep } from "./trace.ts";

// More endpoints are told in -o json.
const endsShownMax = 20;

/** `nodelet trace`, for people. Pure. */
export function renderTrace(trace: Trace, style: TextStyle): string {
  const { packet, steps, partsAt, unjudged, notes, rulesLookedAt } = trace;
  const guess = packet.isInterfaceGuessed ? ` (the way to ${packet.from})` : "";
  const how = packet.comesInBy === undefined ? "made on this node" : `comes in by ${packet.comesInBy}${guess}`;
  const lines = [
    `${packet.protocol} ${packet.from} to ${packet.to}, ${harmless(how)}`,
    "",
    ...conclusion(trace, style),
    "",
    painted("On its way", "bold", style),
  ];
  const shown = steps.map((step) => stepLines(step, style));
  if (partsAt !== undefined) shown.splice(partsAt, 0, [`  (one of ${trace.ends.length} ways)`]);
  lines.push(...(shown.length === 0 ? ["  no rule matched"] : shown.flat()));
  lines.push(`  ${rulesLookedAt} rules looked at`);
  if (unjudged.length > 0) {
    lines.push("", painted("Not judged; taken not to match", "bold", style));
    for (const { table, chain, rule, why } of unjudged) {
      lines.push(`  ${harmless(`${table} ${chain}`)}`, ...indented(harmless(rule), 6, style));
      if (why !== rule) lines.push(...indented(`unknown: ${harmless(why)}`, 6, style));
    }
  }
  if (notes.length > 0) {
    lines.push("", painted("Notes", "bold", style));
    for (const note of notes) lines.push(...indented(harmless(note), 2, style));
  }
  return `${lines.join("\n")}\n`;
}

function conclusion(trace: Trace, style: TextStyle): string[] {
  const { ends, service, packet } = trace;
  const good = (text: string) => painted(text, "green", style);
  const bad = (text: string) => painted(text, "yellow", style);
  const [first] = ends;
  const of = service === undefined ? "" : ` of ${harmless(service)}`;
  const translated = ends.filter(({ endpoint }) => endpoint !== undefined);
  if (translated.length === ends.length && ends.length > 1) {
    return [good(`It goes to one of ${ends.length} endpoints${of}:`), ...endLines(ends)];
  }
  if (ends.length > 1) return [`It has ${ends.length} ways${of}:`, ...endLines(ends)];
  if (first === undefined) return [];
  const who = first.decidedBy;
  const by = who === undefined ? "" : ` by ${harmless(`${who.table} ${who.chain}`)}`;
  const because = harmless(first.why);
  switch (first.fate) {
    case "reject":
      return [bad(`It is refused${by}: ${because}`)].flatMap((line) => wrapped(line, style.columns));
    case "drop":
      return [bad(`It is dropped${by}: ${because}`)].flatMap((line) => wrapped(line, style.columns));
    case "unreachable":
      return [bad(`There is no route to ${first.endpoint ?? packet.to}: it gets nowhere`)];
    case "local":
    case "forwarded":
      if (first.endpoint !== undefined) return [good(`It goes to one endpoint${of}:`), ...endLines(ends)];
      if (first.fate === "local") return wrapped(`It is for this node itself: ${ofNode(trace)}`, style.columns);
      return [
        `It is for no service, and leaves by ${first.leavesBy ?? "?"} as it is${masqueraded(first, packet.from)}`,
      ];
    default:
      return first.fate satisfies never;
  }
}

function ofNode({ nodePortOf, packet }: Trace): string {
  if (nodePortOf === undefined) return `no service has ${packet.to}`;
  return `the port is a node port of ${harmless(nodePortOf)}, which rules do not answer at this address`;
}

function endLines(ends: readonly TraceEnd[]): string[] {
  const columns = Math.max(...ends.slice(0, endsShownMax).map(({ endpoint }) => (endpoint ?? "").length));
  const lines = ends.slice(0, endsShownMax).map((end) => {
    const percent = `${(end.share * 100).toFixed(1)}%`.padStart(8);
    return `${percent}  ${(end.endpoint ?? "not translated").padEnd(columns)}  ${harmless(fateText(end))}`.trimEnd();
  });
  const more = ends.length - lines.length;
  return more > 0 ? [...lines, `          and ${more} more: see -o json`] : lines;
}

function fateText(end: TraceEnd): string {
  const { fate, leavesBy, why } = end;
  const source = end.source === "" ? "masqueraded" : `as ${end.source}`;
  switch (fate) {
    case "forwarded":
      return `by ${leavesBy ?? "?"}, ${source}`;
    case "local":
      return `on this node, ${source}`;
    case "unreachable":
      return "no route to it";
    case "drop":
    case "reject":
      return `${fate === "drop" ? "dropped" : "refused"}: ${why}`;
    default:
      return fate satisfies never;
  }
}

function masqueraded({ source }: TraceEnd, from: string): string {
  return source === from ? "" : source === "" ? ", masqueraded" : `, with the source ${source}`;
}

function stepLines({ table, chain, rule, comment, note }: TraceStep, style: TextStyle): string[] {
  const said = [withoutComment(rule), comment === "" ? "" : `# ${comment}`, note === "" ? "" : `→ ${note}`];
  return [`  ${harmless(`${table} ${chain}`)}`, ...indented(harmless(said.filter(Boolean).join("  ")), 6, style)];
}

/** A rule's text without its comment, which is shown apart. Pure. */
export function withoutComment(rule: string): string {
  return rule.replace(/-m comment --comment ("(?:[^"\\]|\\.)*"|\S+) ?/, "").trim();
}

function indented(text: string, by: number, { columns }: TextStyle): string[] {
  return wrapped(text, columns - by).map((line) => " ".repeat(by) + line);
}
