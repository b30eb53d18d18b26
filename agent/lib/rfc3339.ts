/** An instant as the Kubernetes API writes it: RFC 3339, UTC, in whole seconds. @param ms Unix ms */
export function rfc3339(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`;
}

/** As {@link rfc3339}; no time, and 0 ("not yet"), is null. */
export function rfc3339OrNull(ms: number | undefined): string | null {
  return ms === undefined || ms <= 0 ? null : rfc3339(ms);
}
