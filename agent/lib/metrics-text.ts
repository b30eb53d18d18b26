import type { MetricFamily, Sample } from "./metrics.ts";

/** The content type of {@link renderMetrics}: Prometheus' text format. */
export const metricsContentType = "text/plain; version=0.0.4; charset=utf-8";

/**
 * Families in Prometheus' text format, in pieces of some kilobytes, so that a scrape with tens of thousands of lines does
 * not hold up the event loop: the caller yields between pieces.
 */
export function* renderMetrics(families: Iterable<MetricFamily>): Generator<string, void, void> {
  let text = "";
  for (const { name, help, type, samples } of families) {
    let isFirst = true;
    for (const sample of samples) {
      if (isFirst) text += `# HELP ${name} ${escapeHelp(help)}\n# TYPE ${name} ${type}\n`;
      isFirst = false;
      text += line(name, sample);
      if (text.length >= pieceChars) {
        yield text;
        text = "";
      }
    }
  }
  if (text !== "") yield text;
}

// About 100 lines: well under a millisecond to make.
const pieceChars = 16_384;

function line(family: string, { suffix, labels, value, timestampMs }: Sample): string {
  const name = suffix === undefined ? family : family + suffix;
  let pairs = "";
  for (const label in labels) {
    pairs += `${pairs === "" ? "" : ","}${label}="${escapeValue(labels[label] ?? "")}"`;
  }
  const series = pairs === "" ? name : `${name}{${pairs}}`;
  const at = timestampMs === undefined ? "" : ` ${Math.round(timestampMs)}`;
  return `${series} ${numberText(value)}${at}\n`;
}

function numberText(value: number): string {
  if (value === Number.POSITIVE_INFINITY) return "+Inf";
  if (value === Number.NEGATIVE_INFINITY) return "-Inf";
  return String(value);
}

function escapeHelp(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
}

function escapeValue(text: string): string {
  return /[\\\n"]/.test(text) ? text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll('"', '\\"') : text;
}
