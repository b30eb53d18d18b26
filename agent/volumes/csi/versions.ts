import { AgentError } from "../../lib/errors.ts";

/** A version of CSI as numbers, most significant first. */
export type CSIVersion = readonly number[];

// The major version that this agent speaks; drivers of 0.x claimed to be forward compatible.
const majorMax = 1;

/**
 * The highest version that a driver and this agent both speak. Pure.
 * @throws AgentError Invalid with what the driver said
 */
export function highestVersion(driver: string, versions: readonly string[]): CSIVersion {
  if (versions.length === 0) throw new AgentError("Invalid", `CSI driver ${driver} names no version of CSI`);
  const spoken = versions
    .map(parseVersion)
    .filter((version): version is CSIVersion => version !== undefined && (version[0] ?? 0) <= majorMax)
    .toSorted(compareVersions);
  const highest = spoken.at(-1);
  if (highest !== undefined) return highest;
  throw new AgentError("Invalid", `CSI driver ${driver} speaks versions ${versions.join(", ")} of CSI, none is 1.x`);
}

/** Negative if `a` is lower. */
export function compareVersions(a: CSIVersion, b: CSIVersion): number {
  for (let at = 0; at < Math.max(a.length, b.length); at += 1) {
    const difference = (a[at] ?? 0) - (b[at] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

/** `1.2.3`, with `v` before and more behind it or not. */
function parseVersion(text: string): CSIVersion | undefined {
  const numbers = /^\s*v?(\d{1,9}(?:\.\d{1,9}){1,3})(?![\d.])/.exec(text)?.[1];
  return numbers?.split(".").map(Number);
}
