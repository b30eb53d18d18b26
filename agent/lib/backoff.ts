export interface BackoffOptions {
  baseMs: number;
  maxMs: number;
  /** Part of the delay that is random, 0..1: the result lies in delay × [1 - jitter, 1]. */
  jitter?: number;
  random?: () => number;
}

/**
 * Delay before the n-th retry (n from 1): base, 2·base, 4·base … up to max, less jitter. Pure but for `random`.
 */
export function backoffMs(failures: number, options: BackoffOptions): number {
  const { baseMs, maxMs, jitter = 0, random = Math.random } = options;
  const delay = Math.min(maxMs, baseMs * 2 ** Math.min(Math.max(failures - 1, 0), 40));
  return delay * (1 - jitter * random());
}
