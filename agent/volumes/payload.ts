import { posix } from "node:path";
import { AgentError } from "../lib/errors.ts";

/** One file of a config volume. */
export interface FileContent {
  data: Uint8Array;
  /** Permission bits. */
  mode: number;
  /** Owner; root when absent. */
  uid?: number;
}

/** Files by path inside the volume. */
export type Payload = ReadonlyMap<string, FileContent>;

// PATH_MAX and NAME_MAX of Linux: longer ones cannot be opened.
export const payloadPathBytesMax = 4096;
export const payloadNameBytesMax = 255;
// Deeper than anybody's files, and few enough that hundreds of paths are looked through in a moment.
export const payloadDepthMax = 64;

/**
 * The payload with its paths in their shortest form; of two that are the same then, the later one stays. Pure.
 * Rejects with code Invalid for a path that cannot be in a volume, and for one that leads through another file.
 */
export function checkPayload(payload: Payload): Payload {
  const files = new Map([...payload].map(([path, file]) => [validatePath(path), file]));
  for (const path of files.keys()) {
    const file = parentsOf(path).find((parent) => files.has(parent));
    if (file === undefined) continue;
    throw refusal(path, `leads through "${shorten(file)}", which is a file of this volume, too`);
  }
  return files;
}

/** The path in its shortest form. Rejects what is empty, absolute, too long, or could leave the volume or hide in our own names. */
export function validatePath(path: string): string {
  if (path === "") throw refusal(path, "is empty");
  if (posix.isAbsolute(path)) throw refusal(path, "is absolute, it must be relative to the volume");
  if (path.includes("\0")) throw refusal(path, "contains a NUL character");
  if (Buffer.byteLength(path) > payloadPathBytesMax) throw refusal(path, `is longer than ${payloadPathBytesMax} bytes`);
  const parts = path.split("/");
  if (parts.includes("..")) throw refusal(path, 'must not contain ".."');
  if (parts.some((part) => Buffer.byteLength(part) > payloadNameBytesMax)) {
    throw refusal(path, `has a part longer than ${payloadNameBytesMax} bytes`);
  }
  const normal = posix.normalize(path).replace(/\/$/, "");
  if (normal === ".") throw refusal(path, "names the volume itself");
  if (normal.startsWith("..")) throw refusal(path, 'must not start with ".."');
  if (normal.split("/").length > payloadDepthMax) throw refusal(path, `has more than ${payloadDepthMax} parts`);
  return normal;
}

/** The first part of a path. */
export function topOf(path: string): string {
  return path.split("/", 1)[0] ?? path;
}

/** The directories that a path in its shortest form leads through, the outermost first. */
export function parentsOf(path: string): string[] {
  const parents: string[] = [];
  for (let at = path.indexOf("/"); at !== -1; at = path.indexOf("/", at + 1)) parents.push(path.slice(0, at));
  return parents;
}

function refusal(path: string, why: string): AgentError {
  return new AgentError("Invalid", `path "${shorten(path)}" ${why}`);
}

function shorten(path: string): string {
  return path.slice(0, payloadNameBytesMax);
}
