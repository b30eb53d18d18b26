/** An instant as the Kubernetes API writes it: UTC in whole seconds. */
export function rfc3339(ms: number): string {
  return new Date(Math.floor(ms / 1_000) * 1_000).toISOString().replace(".000Z", "Z");
}

/** As {@link rfc3339}; 0, "not yet", is null. */
export function rfc3339OrNull(ms: number | undefined): string | null {
  return ms === undefined || ms <= 0 ? null : rfc3339(ms);
}
