/** Bytes of a file, `start` inclusive. */
export interface ByteRange {
  readonly start: number;
  readonly length: number;
}

/**
 * The part of a file that a Range header asks for.
 *
 * @returns undefined: the whole file, which is also the answer to several parts at once (RFC 9110 leaves that open);
 *   "unsatisfiable": none of it lies in the file
 */
export function parseRange(header: string | undefined, size: number): ByteRange | "unsatisfiable" | undefined {
  if (header === undefined || header === "") return undefined;
  const list = /^bytes=(.*)$/.exec(header)?.[1];
  if (list === undefined) return "unsatisfiable";
  const parts = list
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== "");
  if (parts.length !== 1) return undefined;
  const match = /^(\d{0,16})-(\d{0,16})$/.exec(parts[0] ?? "");
  const [, first = "", last = ""] = match ?? [];
  if (first === "") {
    const length = Math.min(Number(last), size);
    return last === "" || length === 0 ? "unsatisfiable" : { start: size - length, length };
  }
  const start = Number(first);
  const end = last === "" ? size : Math.min(Number(last) + 1, size);
  return start >= size || end <= start ? "unsatisfiable" : { start, length: end - start };
}

/** Headers of a request that make its answer conditional. */
export interface Conditions {
  readonly ifMatch: string | undefined;
  readonly ifUnmodifiedSince: string | undefined;
  readonly ifNoneMatch: string | undefined;
  readonly ifModifiedSince: string | undefined;
}

/** 304 or 412 where a condition says so. Times count in whole seconds; there are no entity tags. */
export function checkConditions(conditions: Conditions, modifiedAtMs: number): 304 | 412 | undefined {
  const { ifMatch, ifUnmodifiedSince, ifNoneMatch, ifModifiedSince } = conditions;
  if (ifMatch !== undefined) {
    if (ifMatch.trim() !== "*") return 412;
  } else if (isAfter(modifiedAtMs, ifUnmodifiedSince) === true) {
    return 412;
  }
  if (ifNoneMatch !== undefined) return ifNoneMatch.trim() === "*" ? 304 : undefined;
  return isAfter(modifiedAtMs, ifModifiedSince) === false ? 304 : undefined;
}

/** Whether a Range header counts: If-Range is absent or names the file as it is. */
export function isRangeCurrent(ifRange: string | undefined, modifiedAtMs: number): boolean {
  return ifRange === undefined || Date.parse(ifRange) === Math.floor(modifiedAtMs / 1000) * 1000;
}

function isAfter(modifiedAtMs: number, header: string | undefined): boolean | undefined {
  if (header === undefined) return undefined;
  const atMs = Date.parse(header);
  return Number.isNaN(atMs) ? undefined : Math.floor(modifiedAtMs / 1000) * 1000 > atMs;
}
