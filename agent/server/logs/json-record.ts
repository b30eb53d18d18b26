/** One line of a log that Docker's json-file driver wrote. */
interface JSONRecord {
  /** What the container wrote, its newline included. Without one it is a piece of a longer line. */
  log: string;
  stream: "Stdout" | "Stderr";
  /** RFC 3339. */
  time: string;
}

/** A line of Docker's json-file format; undefined if it is none. */
export function parseRecord(line: string): JSONRecord | undefined {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return undefined;
  }
  if (typeof value !== "object" || value === null) return undefined;
  const { log = "", stream, time } = value as Record<string, unknown>;
  if (typeof log !== "string" || typeof time !== "string") return undefined;
  if (stream === "stdout") return { log, stream: "Stdout", time };
  return stream === "stderr" ? { log, stream: "Stderr", time } : undefined;
}
