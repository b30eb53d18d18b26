/** What to do with the rotated files of one log, in this order, before the active one is renamed. */
export interface RotationPlan {
  /** Leftovers and what is too old. */
  remove: string[];
  /** Each becomes `<name>.gz`. */
  compress: string[];
  /** Name that the active file gets; undefined if a file has it already. */
  rotateTo: string | undefined;
}

const temporarySuffix = ".tmp";
const compressedSuffix = ".gz";

// The active file, and the newest rotated one, which the coming rotation makes and leaves uncompressed for its readers.
const filesNotCounted = 2;

/**
 * Plans a rotation of the log `base` in a directory with the files `names`. Pure.
 *
 * @param filesMax of one log, the active one included; at least 2
 * @param nowMs Unix ms; file names carry it in local time
 */
export function planRotation(names: readonly string[], base: string, filesMax: number, nowMs: number): RotationPlan {
  const own = names.filter((name) => name.startsWith(base) && rotatedForm.test(name.slice(base.length)));
  const isLeftover = (name: string) => name.endsWith(temporarySuffix) || own.includes(`${name}${compressedSuffix}`); // killed before the end, or just before
  const kept = own.filter((name) => !isLeftover(name)).sort(byTime);
  const surplus = Math.max(0, kept.length - Math.max(0, filesMax - filesNotCounted));
  const rotateTo = `${base}.${localStamp(nowMs)}`;
  const isTaken = own.some((name) => name.startsWith(rotateTo));
  return {
    remove: [...own.filter(isLeftover), ...kept.slice(0, surplus)],
    compress: kept.slice(surplus).filter((name) => !name.endsWith(compressedSuffix)),
    rotateTo: isTaken ? undefined : rotateTo,
  };
}

/** The name under which `name` is compressed before it is complete. */
export function temporaryName(name: string): string {
  return `${name}${temporarySuffix}`;
}

/** The name of `name` once it is compressed. */
export function compressedName(name: string): string {
  return `${name}${compressedSuffix}`;
}

// What follows the active file's name. Files of other forms are somebody else's.
const rotatedForm = /^\.\d{8}-\d{6}(?:\.gz)?(?:\.tmp)?$/;

// Names of one base sort by their time stamp, whatever follows it.
function byTime(a: string, b: string): number {
  return a < b ? -1 : 1;
}

// `20060102-150405`, as the reference has it.
function localStamp(nowMs: number): string {
  const now = new Date(nowMs);
  const two = (n: number) => String(n).padStart(2, "0");
  const day = `${now.getFullYear()}${two(now.getMonth() + 1)}${two(now.getDate())}`;
  return `${day}-${two(now.getHours())}${two(now.getMinutes())}${two(now.getSeconds())}`;
}
