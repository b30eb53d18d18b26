import { plainError } from "../respond.ts";
import { type Instant, parseTime } from "./log-time.ts";

/** A query of the node's own logs, valid. */
export type NodeLogQuery =
  | { readonly kind: "services"; readonly services: readonly string[]; readonly options: NodeLogOptions }
  | { readonly kind: "file"; readonly path: string };

/** Which part of a journal is wanted. */
export interface NodeLogOptions {
  readonly sinceTime?: Instant;
  readonly untilTime?: Instant;
  readonly tailLines?: number;
  /** A regular expression in Perl's manner. */
  readonly pattern?: string;
  /** 0: the present boot, -1: the one before. */
  readonly boot?: number;
}

// The reference's limits.
const servicesMax = 4;
const serviceNameLengthMax = 256;
const nodeLogLinesMax = 100_000;
// Nobody writes longer ones by hand. The reference has no limit but that of the request's head.
export const patternLengthMax = 1_024;

/**
 * Decodes a query of node logs.
 *
 * @returns undefined if no known parameter is there: then a file or directory is asked for by its path
 * Throws HttpError: 400 if a value cannot be decoded, 406 if it can but is not allowed.
 */
export function parseNodeLogQuery(query: URLSearchParams): NodeLogQuery | undefined {
  const malformed: string[] = [];
  const queries = query.getAll("query");
  const files = queries.filter((text) => /[/\\]/.test(text));
  const services = queries.filter((text) => !/[/\\]/.test(text) && text.trim() !== "");
  if (queries.length > 0 && files.length === 0 && services.length === 0) {
    malformed.push(invalid("query", queries.join(","), "query cannot be empty"));
  }
  const decode = <T>(name: string, parse: (text: string) => T | undefined, what: string): T | undefined => {
    const text = query.get(name) ?? "";
    if (text === "") return undefined;
    const value = parse(text);
    if (value === undefined) malformed.push(invalid(name, text, what));
    return value;
  };
  const sinceTime = decode("sinceTime", parseTime, "must be a time in RFC 3339 format");
  const untilTime = decode("untilTime", parseTime, "must be a time in RFC 3339 format");
  const tailLines = decode("tailLines", parseInteger, "must be an integer");
  const pattern = query.get("pattern") ?? "";
  const boot = decode("boot", parseInteger, "must be an integer");
  refuse(400, malformed);

  const options: NodeLogOptions = {
    ...(sinceTime === undefined ? {} : { sinceTime }),
    ...(untilTime === undefined ? {} : { untilTime }),
    ...(tailLines === undefined ? {} : { tailLines }),
    ...(pattern === "" ? {} : { pattern }),
    ...(boot === undefined ? {} : { boot }),
  };
  const hasOptions = Object.keys(options).length > 0;
  if (queries.length === 0 && !hasOptions) return undefined;
  refuse(406, [...targetProblems(files, services, hasOptions), ...optionProblems(options)]);
  const [path] = files;
  return path === undefined ? { kind: "services", services, options } : { kind: "file", path };
}

/** What to run for the journal of services; all of them are units that it knows. */
export function journalArguments(services: readonly string[], options: NodeLogOptions): string[] {
  const { sinceTime, untilTime, tailLines, pattern, boot } = options;
  return [
    "--utc",
    "--no-pager",
    "--output=short-precise",
    ...(sinceTime === undefined ? [] : [`--since=${journalTime(sinceTime)}`]),
    ...(untilTime === undefined ? [] : [`--until=${journalTime(untilTime)}`]),
    ...(tailLines === undefined ? [] : ["--pager-end", `--lines=${tailLines}`]),
    ...services.map((service) => `--unit=${service}`),
    ...(pattern === undefined ? [] : [`--grep=${pattern}`]),
    ...(boot === undefined ? [] : [`--boot=${boot}`]),
  ];
}

function targetProblems(files: readonly string[], services: readonly string[], hasOptions: boolean): string[] {
  const file = files[0] ?? "";
  const problems: string[] = [];
  if (files.length === 0 && services.length === 0) problems.push("query: Required value: cannot be empty with options");
  if (files.length > 0 && services.length > 0) {
    problems.push(invalid("query", file, "cannot specify a file and service"));
  }
  if (files.length > 1) problems.push(invalid("query", files.join(","), "cannot specify more than one file"));
  if (files.length === 1 && hasOptions) problems.push(invalid("query", file, "cannot specify file with options"));
  if (services.length > servicesMax) {
    problems.push(invalid("query", services.join(","), `cannot specify more than ${servicesMax} services`));
  }
  for (const service of services) {
    if (service.length > serviceNameLengthMax) {
      problems.push(invalid("query", service, `must be at most ${serviceNameLengthMax} characters long`));
    } else if (!/^[\w\-.:@]+$/.test(service)) {
      problems.push(invalid("query", service, "may hold letters, digits, and any of - _ . : @ only"));
    }
  }
  return problems;
}

function optionProblems({ sinceTime, untilTime, tailLines, pattern, boot }: NodeLogOptions): string[] {
  const problems: string[] = [];
  if (sinceTime !== undefined && untilTime !== undefined && isBefore(untilTime, sinceTime)) {
    problems.push("untilTime: Invalid value: must be after `sinceTime`");
  }
  if (tailLines !== undefined && (tailLines < 0 || tailLines > nodeLogLinesMax)) {
    problems.push(invalid("tailLines", tailLines, `must be between 0 and ${nodeLogLinesMax}, inclusive`));
  }
  if (pattern !== undefined && pattern.length > patternLengthMax) {
    problems.push(`pattern: Too long: may not be more than ${patternLengthMax} characters`);
  } else if (pattern !== undefined && !isPattern(pattern)) {
    problems.push(invalid("pattern", pattern, "is no regular expression"));
  }
  if (boot !== undefined && boot > 0) problems.push(invalid("boot", boot, "must be less than 1"));
  return problems;
}

/**
 * Perl's expressions are close to JavaScript's; two common forms that JavaScript lacks are taken out before it is asked.
 * journalctl has the last word. The expression is a stranger's: it is parsed and never run, which could take for ever.
 */
function isPattern(pattern: string): boolean {
  if (pattern.includes("\0")) return false;
  try {
    return new RegExp(pattern.replaceAll(/\(\?[imsxU-]+\)/g, "").replaceAll("(?P<", "(?<")) instanceof RegExp;
  } catch {
    return false;
  }
}

function parseInteger(text: string): number | undefined {
  return /^[+-]?\d{1,18}$/.test(text) ? Number(text) : undefined;
}

function isBefore(a: Instant, b: Instant): boolean {
  return a.seconds === b.seconds ? a.nanos < b.nanos : a.seconds < b.seconds;
}

// journalctl would take a time without a zone as the node's local one, also with --utc.
function journalTime({ seconds }: Instant): string {
  return `${new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

function invalid(field: string, value: string | number, why: string): string {
  return `${field}: Invalid value: ${JSON.stringify(value)}: ${why}`;
}

function refuse(status: number, problems: readonly string[]): void {
  if (problems.length === 0) return;
  throw plainError(status, problems.length === 1 ? String(problems[0]) : `[${problems.join(", ")}]`);
}
