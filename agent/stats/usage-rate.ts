/** Cumulative CPU time at one moment. */
export interface UsagePoint {
  atMs: number;
  usageNs: number;
}

// The reference's housekeeping takes a sample each 10 to 15 s. Nearer ones would show the scheduler's grain: a quota's
// period is 100 ms, so that 5 s are right within 2 %.
export const rateWindowMsMin = 5_000;
// What the reference keeps of the past. An average over more is not the present.
export const rateWindowMsMax = 120_000;

/**
 * The earlier of two points that a rate is taken from: kept while it is recent, moved on when the window is long enough.
 *
 * @param base the one used so far; undefined: none
 * @param last the newest point known before `next`
 */
export function moveBase(
  base: UsagePoint | undefined,
  last: UsagePoint | undefined,
  next: UsagePoint,
): UsagePoint | undefined {
  const isUsable = (point: UsagePoint | undefined): point is UsagePoint =>
    point !== undefined && next.atMs - point.atMs <= rateWindowMsMax && point.usageNs <= next.usageNs;
  if (isUsable(last) && next.atMs - last.atMs >= rateWindowMsMin) return last;
  if (isUsable(base)) return base;
  return isUsable(last) ? last : undefined;
}

/** Nano-cores between two points; undefined if they are not two. */
export function usageNanoCores(base: UsagePoint | undefined, next: UsagePoint): number | undefined {
  if (base === undefined || next.atMs <= base.atMs) return undefined;
  const nsPerMs = (next.usageNs - base.usageNs) / (next.atMs - base.atMs);
  return Math.round(nsPerMs * 1_000);
}
