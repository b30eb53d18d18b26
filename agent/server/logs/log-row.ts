import { dirname, join } from "node:path";
import { type FirstLine, identify, type LogFile, openRotated, rotatedFiles } from "./log-file.ts";
import { hasCode } from "../../lib/errors.ts";
import { type Instant, LogTime, parseTime } from "./log-time.ts";
import { parseRecord } from "./json-record.ts";

/**
 * The files that came after the open one in the row of a log and were rotated away, too; oldest first.
 *
 * Names do not tell where the open file stands: Docker counts them up at every rotation, and a compressed file is another
 * one. So it is looked for by what it is, then by its first line, which no other file of the log has: its time is
 * in nanoseconds. If it is there no more, those whose first line is later came after it.
 *
 * Rejects if a file cannot be read; one that goes away meanwhile is left out.
 */
export async function filesAfter(path: string, open: LogFile): Promise<string[]> {
  const names = await rotatedFiles(path);
  if (names.length === 0) return names;
  const dir = dirname(path);
  for (const [i, name] of names.entries()) {
    const identity = await identify(join(dir, name));
    if (identity !== undefined && open.isAt(identity)) return names.slice(i + 1);
  }
  const own = await open.firstLine();
  const lines: (FirstLine | undefined)[] = [];
  for (const [i, name] of names.entries()) {
    const line = await firstLineOf(dir, name);
    if (line !== undefined && line.length > 0 && line.equals(own)) return names.slice(i + 1);
    lines.push(line);
  }
  const began = timeOf(own);
  return began === undefined ? [] : names.filter((_, i) => isLater(timeOf(lines[i]), began));
}

async function firstLineOf(dir: string, name: string): Promise<FirstLine | undefined> {
  try {
    const file = await openRotated(dir, name);
    try {
      return await file.firstLine();
    } finally {
      await file.close();
    }
  } catch (err) {
    if (hasCode(err, "NotFound")) return undefined;
    throw err;
  }
}

function timeOf(line: FirstLine | undefined): Instant | undefined {
  if (line === undefined) return undefined;
  const time = new LogTime();
  if (time.parse(line, 0, line.length) > 0) return { seconds: time.seconds, nanos: time.nanos };
  const record = parseRecord(line.toString("utf8"));
  return record === undefined ? undefined : parseTime(record.time);
}

function isLater(time: Instant | undefined, than: Instant): boolean {
  if (time === undefined) return false;
  return time.seconds === than.seconds ? time.nanos > than.nanos : time.seconds > than.seconds;
}
