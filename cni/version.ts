/** The versions of the CNI specification that are spoken here, oldest first. */
export const specVersions = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] as const;

export type SpecVersion = (typeof specVersions)[number];

/** True if `text` is a version that is spoken here. */
export function isSpecVersion(text: string): text is SpecVersion {
  return (specVersions as readonly string[]).includes(text);
}

/** True if `version` is `least` or a later one. */
export function isAtLeast(version: SpecVersion, least: SpecVersion): boolean {
  return specVersions.indexOf(version) >= specVersions.indexOf(least);
}

/** What a plugin answered to VERSION; `undefined`: it gave no answer, and what the configuration was written for is worth a try. */
export interface PluginVersions {
  type: string;
  supported: readonly string[] | undefined;
}

/**
 * The newest of a configuration's versions that all its plugins speak; or, in words, which plugin is in the way. Pure.
 *
 * @param wanted the configuration's versions, never empty; the first is the one it was written for, and none above it is taken
 *   while a plugin has not told its own
 */
export function negotiate(
  wanted: readonly SpecVersion[],
  plugins: readonly PluginVersions[],
): { version: SpecVersion } | { problem: string } {
  const first = wanted[0] ?? "0.1.0";
  const isUnsure = plugins.some(({ supported }) => supported === undefined);
  const possible = isUnsure ? wanted.filter((version) => isAtLeast(first, version)) : wanted;
  const newestFirst = [...possible].sort((a, b) => specVersions.indexOf(b) - specVersions.indexOf(a));
  for (const version of newestFirst) {
    if (plugins.every(({ supported }) => supported === undefined || supported.includes(version))) return { version };
  }
  const newest = newestFirst[0] ?? "0.1.0";
  const inTheWay = plugins.find(({ supported }) => supported !== undefined && !supported.includes(newest));
  const versions = newestFirst.map((version) => `"${version}"`).join(", ");
  return {
    problem:
      `plugin type="${inTheWay?.type}" does not support config version ${versions}` +
      ` (it supports ${inTheWay?.supported?.join(", ") ?? "none"}): set cniVersion to one that all plugins of the network support`,
  };
}
