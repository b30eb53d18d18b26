/** Whether a version is this one or later. Parts that it lacks count as 0. Pure. */
export function isAtLeast(version: readonly number[], wanted: readonly number[]): boolean {
  for (const [at, part] of wanted.entries()) {
    const have = version[at] ?? 0;
    if (have !== part) return have > part;
  }
  return true;
}
