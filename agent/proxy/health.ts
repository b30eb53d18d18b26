import type { Node } from "../kube/types.ts";
import type { FamilyStats } from "./family.ts";
import type { Family } from "./ip.ts";

/** What one IP family's proxy says of itself, for health. */
export type FamilyProgress = Pick<FamilyStats, "family" | "startedAtMs" | "lastSyncedAtMs" | "pendingForMs">;

/** How the proxy is: what waits to be programmed is programmed in time. */
export interface ProxyHealth {
  readonly isHealthy: boolean;
  /** Unix ms of the newest sync, or start, of any family; undefined: there was none yet. */
  readonly lastUpdatedMs: number | undefined;
  readonly families: readonly {
    readonly family: Family;
    readonly lastUpdatedMs: number;
    readonly isHealthy: boolean;
  }[];
}

/** An answer over HTTP. */
export interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

/** A proxy that has not programmed something for this many sync periods is not healthy: the reference's factor. */
export const healthTimeoutPeriods = 2;
// Set by the cluster autoscaler on a node that it is about to remove: load balancers should stop sending there.
const toBeDeletedTaint = "ToBeDeletedByClusterAutoscaler";
/** Go's zero time: what the reference shows for "never". */
const never = "0001-01-01T00:00:00Z";

export const healthHeaders = { "Content-Type": "application/json", "X-Content-Type-Options": "nosniff" };

/**
 * Judges all families together. One that has not begun is not judged. Pure.
 *
 * @param hasFailed the proxy could not begin, and waits before it tries again
 */
export function judgeProxyHealth(
  stats: readonly FamilyProgress[],
  syncPeriodMs: number,
  hasFailed = false,
): ProxyHealth {
  const families = stats.map(({ family, startedAtMs, lastSyncedAtMs, pendingForMs = 0 }) => ({
    family,
    lastUpdatedMs: lastSyncedAtMs ?? startedAtMs,
    isHealthy: pendingForMs < healthTimeoutPeriods * syncPeriodMs,
  }));
  return {
    isHealthy: !hasFailed && families.every(({ isHealthy }) => isHealthy),
    lastUpdatedMs: families.length === 0 ? undefined : Math.max(...families.map((one) => one.lastUpdatedMs)),
    families,
  };
}

/** Whether load balancers should send traffic to the node at all. Pure. @param node as last seen */
export function isNodeEligible(node: Node | undefined): boolean {
  if (node === undefined || (node.metadata.deletionTimestamp ?? undefined) !== undefined) return false;
  return node.spec?.taints?.some(({ key }) => key === toBeDeletedTaint) !== true;
}

/** The answer of /livez, and of /healthz if it is told whether the node is eligible. Pure. */
export function healthAnswer(health: ProxyHealth, nowMs: number, nodeEligible?: boolean): Answer {
  const isGood = health.isHealthy && nodeEligible !== false;
  const { lastUpdatedMs } = health;
  const body = {
    // Who looks for a stalled proxy by this time must not take a quiet one for it.
    lastUpdated: isGood ? timeText(nowMs) : lastUpdatedMs === undefined ? never : timeText(lastUpdatedMs),
    currentTime: timeText(nowMs),
    ...(nodeEligible === undefined ? {} : { nodeEligible }),
    healthy: health.isHealthy,
    ...(health.families.length === 0 ? {} : { status: statusOf(health.families) }),
  };
  return { status: isGood ? 200 : 503, headers: healthHeaders, body: JSON.stringify(body) };
}

function statusOf(families: ProxyHealth["families"]): Record<string, { lastUpdated: string; healthy: boolean }> {
  return Object.fromEntries(
    families.map(({ family, lastUpdatedMs, isHealthy }) => [
      family,
      { lastUpdated: timeText(lastUpdatedMs), healthy: isHealthy },
    ]),
  );
}

function timeText(ms: number): string {
  return new Date(ms).toISOString();
}
