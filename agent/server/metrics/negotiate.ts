import { metricsProtobufType } from "../../lib/metrics-protobuf.ts";
import { metricsContentType } from "../../lib/metrics-text.ts";

/** How an exposition is written. */
export interface Exposition {
  format: "text" | "protobuf";
  contentType: string;
  gzip: boolean;
}

// How names outside the old alphabet may be written. Ours are all inside it, so that it makes no difference.
const escapings = ["allow-utf-8", "underscores", "dots", "values"];

/**
 * Chooses the format as Prometheus' own handler does: the best-liked of delimited protobuf and text 0.0.4, text if the
 * client wants neither. Pure; odd headers get text.
 */
export function negotiate(accept: string | undefined, acceptEncoding: string | undefined): Exposition {
  const gzip = parseWeighted(acceptEncoding).some(({ value }) => value === "gzip" || value === "*");
  let escaping = "underscores";
  for (const { value, parameters } of parseWeighted(accept)) {
    const wanted = parameters["escaping"] ?? "";
    if (escapings.includes(wanted)) escaping = wanted;
    const isProtobuf =
      value === "application/vnd.google.protobuf" &&
      parameters["proto"] === "io.prometheus.client.MetricFamily" &&
      parameters["encoding"] === "delimited";
    if (isProtobuf) {
      return { format: "protobuf", contentType: `${metricsProtobufType}; escaping=${escaping}`, gzip };
    }
    if (value === "text/plain" && ["", "0.0.4"].includes(parameters["version"] ?? "")) break;
  }
  return { format: "text", contentType: `${metricsContentType}; escaping=${escaping}`, gzip };
}

interface Weighted {
  /** In lower case. */
  value: string;
  parameters: Readonly<Record<string, string>>;
}

// More clauses are nobody's honest wish; the header's size is limited by the server already.
const clausesMax = 64;

/** A header's clauses, best-liked first, equal ones in their order; those with weight 0 are left out. */
function parseWeighted(header = ""): Weighted[] {
  return header
    .split(",", clausesMax)
    .map((clause) => {
      const [value = "", ...rest] = clause.split(";").map((part) => part.trim());
      const pairs = rest.map((part) => {
        const at = part.indexOf("=");
        return [part.slice(0, Math.max(0, at)).trim().toLowerCase(), unquoted(part.slice(at + 1).trim())] as const;
      });
      const parameters: Record<string, string> = Object.fromEntries(pairs);
      const weight = Number(parameters["q"] ?? 1);
      return { value: value.toLowerCase(), parameters, weight: Number.isNaN(weight) ? 1 : weight };
    })
    .filter(({ value, weight }) => value !== "" && weight > 0)
    .sort((a, b) => b.weight - a.weight);
}

function unquoted(text: string): string {
  return text.length >= 2 && text.startsWith('"') && text.endsWith('"') ? text.slice(1, -1) : text;
}
