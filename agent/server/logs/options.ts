import { HttpError } from "../port.ts";
import { parseTime, type Instant } from "./log-time.ts";

/** Which of a container's output streams are wanted. */
export type LogStream = "All" | "Stdout" | "Stderr";

/** What is asked for of one container instance's log: PodLogOptions, decoded and valid. */
export interface LogOptions {
  readonly follow: boolean;
  readonly previous: boolean;
  readonly timestamps: boolean;
  readonly stream: LogStream;
  /** Physical lines counted from the end. */
  readonly tailLines?: number;
  /** At least 1. */
  readonly limitBytes?: number;
  /** Records before this are left out. */
  readonly since?: Instant;
}

const streams: readonly string[] = ["All", "Stdout", "Stderr"] satisfies LogStream[];
// The words of the reference: API servers and scripts look for them.
const undecodable = `{"message": "Unable to decode query."}`;
const invalid = `{"message": "Invalid request."}`;

const int64Max = 2n ** 63n - 1n;

/**
 * Decodes the query of a log request. The first value counts where a parameter is repeated.
 *
 * @param splitStreams feature gate PodLogsQuerySplitStreams
 * @param nowMs Unix ms; `sinceSeconds` counts back from it
 * Throws HttpError: 400 if a value cannot be decoded or the gate is off, 422 if values contradict each other or a limit.
 */
export function parseLogOptions(query: URLSearchParams, splitStreams: boolean, nowMs: number): LogOptions {
  const tailLines = intOf(tailText(query));
  const limitBytes = intOf(query.get("limitBytes"));
  const sinceSeconds = intOf(query.get("sinceSeconds"));
  const sinceTime = timeOf(query.get("sinceTime"));
  const stream = streamOf(query.get("stream"));
  if (
    stream === undefined ||
    (tailLines !== undefined && tailLines < 0) ||
    (limitBytes !== undefined && limitBytes < 1) ||
    (sinceSeconds !== undefined && sinceSeconds < 1) ||
    (sinceSeconds !== undefined && sinceTime !== undefined) ||
    (stream !== "All" && tailLines !== undefined)
  ) {
    throw new HttpError(422, invalid);
  }
  if (stream !== "All" && !splitStreams) {
    throw new HttpError(400, `stream ${stream} needs the feature gate PodLogsQuerySplitStreams, which is off`);
  }
  const since = sinceTime ?? (sinceSeconds === undefined ? undefined : before(nowMs, sinceSeconds));
  return {
    follow: boolOf(query.get("follow")),
    previous: boolOf(query.get("previous")),
    timestamps: boolOf(query.get("timestamps")),
    stream,
    ...(tailLines === undefined ? {} : { tailLines }),
    ...(limitBytes === undefined ? {} : { limitBytes }),
    ...(since === undefined ? {} : { since }),
  };
}

/** `tail` is what `tailLines` was called before it was in the API; it wins, and "all" takes the limit away. */
function tailText(query: URLSearchParams): string | null {
  const tail = query.get("tail") ?? "";
  if (tail === "all") return null;
  return tail === "" ? query.get("tailLines") : tail;
}

function boolOf(text: string | null): boolean {
  return text !== null && text !== "0" && text.toLowerCase() !== "false";
}

// An int64 in decimal; beyond 2^53 it loses digits, which no file is long enough to show.
function intOf(text: string | null): number | undefined {
  if (text === null) return undefined;
  if (!/^[+-]?\d{1,40}$/.test(text)) throw new HttpError(400, undecodable);
  const value = BigInt(text.replace("+", ""));
  if (value > int64Max || value < -int64Max - 1n) throw new HttpError(400, undecodable);
  return Number(value);
}

// "" and "null" are the zero time, which is before every record.
function timeOf(text: string | null): Instant | undefined {
  if (text === null) return undefined;
  if (text === "" || text === "null") return { seconds: Number.NEGATIVE_INFINITY, nanos: 0 };
  const time = parseTime(text);
  if (time === undefined) throw new HttpError(400, undecodable);
  return time;
}

function streamOf(text: string | null): LogStream | undefined {
  const name = text ?? "All";
  return streams.includes(name) ? (name as LogStream) : undefined;
}

function before(nowMs: number, seconds: number): Instant {
  const wholeSeconds = Math.floor(nowMs / 1000);
  return { seconds: wholeSeconds - seconds, nanos: (nowMs - wholeSeconds * 1000) * 1_000_000 };
}
