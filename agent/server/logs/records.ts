import { AgentError } from "../../lib/errors.ts";
import { parseRecord } from "./json-record.ts";
import { type Instant, LogTime, logTimeLengthMax } from "./log-time.ts";
import type { LogStream } from "./options.ts";

export interface RecordFilter {
  /** Put the record's time before each line. */
  readonly timestamps: boolean;
  readonly stream: LogStream;
  /** Leave out records before this. */
  readonly since?: Instant;
  /** Stop after this many records, those left out counted, malformed lines not. */
  readonly linesMax?: number;
}

const lf = 0x0a;
const space = 0x20;
const colon = 0x3a;
const letterP = 0x50;

// Up to here a loop is quicker than the call that copies.
const copyLoopMax = 24;

/**
 * Turns lines of a log file into what the container wrote. Two formats: CRI's
 *
 * ```
 *   2026-01-02T03:04:05.678901234Z stdout F text     P instead of F: the next piece belongs to the same line
 * ```
 *
 * and Docker's json-file, one object a line. The first line tells which it is. Works on buffers of many lines and makes
 * no string of a CRI line.
 */
export class RecordReader {
  /** Lines skipped because they are no records. */
  malformed = 0;
  readonly #filter: RecordFilter;
  readonly #time = new LogTime();
  #linesLeft: number;
  #format: "cri" | "json" | undefined;
  #isLineStart = true;
  #out = Buffer.allocUnsafeSlow(0);
  #length = 0;

  constructor(filter: RecordFilter) {
    this.#filter = filter;
    this.#linesLeft = filter.linesMax ?? Number.POSITIVE_INFINITY;
  }

  /** `linesMax` records were read. */
  get isDone(): boolean {
    return this.#linesLeft <= 0;
  }

  /**
   * Reads the whole lines of `buf` from `at` to `end`.
   * @returns the index behind the last line that was read
   * Throws Invalid if the first line ever is in neither format.
   */
  read(buf: Buffer, at: number, end: number): number {
    let lineAt = at;
    // Of the text at most a little less comes out than goes in: headers are cut, times only take their place.
    this.#ensure(end - at);
    while (lineAt < end && this.#linesLeft > 0) {
      const found = buf.indexOf(lf, lineAt);
      if (found < 0 || found >= end) break;
      this.#line(buf, lineAt, found + 1);
      lineAt = found + 1;
    }
    return lineAt;
  }

  /** Reads the end of a log that stops in the middle of a line. Throws as {@link read}. */
  readLast(buf: Buffer): void {
    if (buf.length > 0 && this.#linesLeft > 0) this.#line(buf, 0, buf.length);
  }

  /** What came out since the last call. It is valid until the next `read`. */
  take(): Buffer {
    const taken = this.#out.subarray(0, this.#length);
    this.#length = 0;
    return taken;
  }

  /** Gives memory beyond `bytesKept` back until it is needed again; what was taken stays valid. */
  release(bytesKept: number): void {
    if (this.#length === 0 && this.#out.length > bytesKept) this.#out = Buffer.allocUnsafeSlow(0);
  }

  #line(buf: Buffer, at: number, end: number): void {
    if (this.#format === "cri" ? this.#readCRI(buf, at, end) : this.#readOther(buf, at, end)) this.#linesLeft -= 1;
    else this.malformed += 1;
  }

  #readOther(buf: Buffer, at: number, end: number): boolean {
    if (this.#format === "json") return this.#readJSON(buf, at, end);
    if (this.#readCRI(buf, at, end)) {
      this.#format = "cri";
    } else if (this.#readJSON(buf, at, end)) {
      this.#format = "json";
    } else {
      // Without the line itself: whoever can put a link in the file's place must not get to see a file of the host.
      throw new AgentError("Invalid", "its first line is neither in CRI's log format nor in Docker's json-file format");
    }
    return true;
  }

  #readCRI(buf: Buffer, at: number, end: number): boolean {
    const timeEnd = this.#time.parse(buf, at, end);
    if (timeEnd < 0 || buf[timeEnd] !== space) return false;
    const stream = streamAt(buf, timeEnd + 1, end);
    if (stream === undefined) return false;
    const tagsAt = timeEnd + 8; // " stdout "
    let i = tagsAt;
    while (i < end && buf[i] !== space) i += 1;
    if (i >= end) return false;
    const isPartial = buf[tagsAt] === letterP && (i === tagsAt + 1 || buf[tagsAt + 1] === colon);
    this.#emit(stream, buf, i + 1, isPartial && buf[end - 1] === lf ? end - 1 : end);
    return true;
  }

  #readJSON(buf: Buffer, at: number, end: number): boolean {
    const record = parseRecord(buf.toString("utf8", at, end));
    if (record === undefined) return false;
    const time = Buffer.from(record.time, "latin1");
    if (this.#time.parse(time, 0, time.length) !== time.length) return false;
    const text = Buffer.from(record.log, "utf8");
    this.#emit(record.stream, text, 0, text.length);
    return true;
  }

  #emit(stream: LogStream, source: Buffer, at: number, end: number): void {
    const { timestamps, since, stream: wanted } = this.#filter;
    const isLineStart = this.#isLineStart;
    this.#isLineStart = end === at || source[end - 1] === lf;
    if (wanted !== "All" && wanted !== stream) return;
    if (since !== undefined && this.#time.isBefore(since)) return;
    this.#ensure(end - at + logTimeLengthMax + 1);
    const out = this.#out;
    let o = this.#length;
    if (timestamps && isLineStart) {
      o = this.#time.write(out, o);
      out[o++] = space;
    }
    if (end - at <= copyLoopMax) {
      for (let i = at; i < end; i += 1) out[o++] = source[i] as number;
      this.#length = o;
    } else {
      source.copy(out, o, at, end);
      this.#length = o + end - at;
    }
  }

  #ensure(room: number): void {
    if (this.#out.length - this.#length >= room) return;
    const grown = Buffer.allocUnsafeSlow(Math.max(this.#length + room, this.#length * 2));
    this.#out.copy(grown, 0, 0, this.#length);
    this.#out = grown;
  }
}

function streamAt(buf: Buffer, at: number, end: number): LogStream | undefined {
  // "std", then "out" or "err", then a space.
  if (at + 7 > end || buf[at] !== 0x73 || buf[at + 1] !== 0x74 || buf[at + 2] !== 0x64) return undefined;
  if (buf[at + 6] !== space) return undefined;
  if (buf[at + 3] === 0x6f && buf[at + 4] === 0x75 && buf[at + 5] === 0x74) return "Stdout";
  if (buf[at + 3] === 0x65 && buf[at + 4] === 0x72 && buf[at + 5] === 0x72) return "Stderr";
  return undefined;
}
