import { backoffMs } from "../lib/backoff.ts";

// A kernel module may be loaded, or an object mended; the first is seldom, and the second is a change that is tried at once.
const retryBaseMs = 30_000;
const retryMaxMs = 3_600_000;

/** What a service whose rules the kernel refuses has instead: those it had, a refusal of its clients, or nothing. */
export type StandIn = "last" | "refusal" | "nothing";

const texts: Readonly<Record<StandIn, string>> = {
  last: "it keeps those that it had",
  refusal: "its clients are refused",
  nothing: "it has none",
};

/**
 * Old rules that work serve most clients; without any, a client should hear so at once and not wait. Pure.
 *
 * @param hasLast its last rules are known, and fit what leads to them
 * @param takesRefusal the kernel takes a refusal in the place of the rules
 */
export function decideStandIn({ hasLast, takesRefusal }: { hasLast: boolean; takesRefusal: boolean }): StandIn {
  if (!takesRefusal) return "nothing";
  return hasLast ? "last" : "refusal";
}

/** How long a service that was refused so often in a row waits until it is tried again, unless it changes. */
export function refusalRetryMs(failures: number): number {
  return backoffMs(failures, { baseMs: retryBaseMs, maxMs: retryMaxMs });
}

/** What the log says of it. */
export function refusalText(standIn: StandIn): string {
  return `the kernel refuses the rules of this service; ${texts[standIn]} until it changes or is tried again`;
}
