import { describe, expect, test } from "vitest";
import type { Node } from "../../../agent/kube/types.ts";
import { type FamilyProgress, healthAnswer, isNodeEligible, judgeProxyHealth } from "../../../agent/proxy/health.ts";
import { healthCheckAnswer } from "../../../agent/proxy/health-check-ports.ts";

const periodMs = 30_000;
const startedAtMs = Date.UTC(2026, 0, 1);
const nowMs = startedAtMs + 3_600_000;
const family = (more: Partial<FamilyProgress> = {}): FamilyProgress => ({
  family: "IPv4",
  startedAtMs,
  lastSyncedAtMs: startedAtMs + 1_000,
  pendingForMs: undefined,
  ...more,
});

describe("the proxy is healthy", () => {
  const cases: { name: string; stats: FamilyProgress[]; want: boolean }[] = [
    { name: "before any family has begun", stats: [], want: true },
    { name: "when it has just begun", stats: [family({ lastSyncedAtMs: undefined, pendingForMs: 0 })], want: true },
    { name: "while nothing waits, however long ago the last sync was", stats: [family()], want: true },
    { name: "while what waits is younger than two periods", stats: [family({ pendingForMs: 59_999 })], want: true },
    { name: "no longer when it is two periods old", stats: [family({ pendingForMs: 60_000 })], want: false },
    {
      name: "not if one family of two is stuck",
      stats: [family(), family({ family: "IPv6", pendingForMs: 90_000 })],
      want: false,
    },
  ];
  test.each(cases)("$name: $want", ({ stats, want }) => expect(judgeProxyHealth(stats, periodMs).isHealthy).toBe(want));
});

describe("a node is eligible for load balancers", () => {
  const cases: { name: string; node: Node | undefined; want: boolean }[] = [
    { name: "not before it is known", node: undefined, want: false },
    { name: "when it is known", node: { metadata: { name: "n1" } }, want: true },
    {
      name: "not when it is being deleted",
      node: { metadata: { name: "n1", deletionTimestamp: "2026-01-01T00:00:00Z" } },
      want: false,
    },
    {
      name: "not when the autoscaler is about to remove it",
      node: {
        metadata: { name: "n1" },
        spec: { taints: [{ key: "ToBeDeletedByClusterAutoscaler", effect: "NoSchedule" }] },
      },
      want: false,
    },
    {
      name: "with other taints",
      node: { metadata: { name: "n1" }, spec: { taints: [{ key: "other", effect: "NoSchedule" }] } },
      want: true,
    },
  ];
  test.each(cases)("$name: $want", ({ node, want }) => expect(isNodeEligible(node)).toBe(want));
});

describe("the answer", () => {
  const at = (ms: number) => new Date(ms).toISOString();

  test("of a healthy proxy says that it is up to date now", () => {
    const { status, headers, body } = healthAnswer(judgeProxyHealth([family()], periodMs), nowMs, true);
    expect([status, headers]).toEqual([
      200,
      { "Content-Type": "application/json", "X-Content-Type-Options": "nosniff" },
    ]);
    expect(JSON.parse(body)).toEqual({
      lastUpdated: at(nowMs),
      currentTime: at(nowMs),
      nodeEligible: true,
      healthy: true,
      status: { IPv4: { lastUpdated: at(startedAtMs + 1_000), healthy: true } },
    });
  });

  test("of a stuck one says since when, and which family it is", () => {
    const stuck = family({ family: "IPv6", lastSyncedAtMs: undefined, pendingForMs: 70_000 });
    const { status, body } = healthAnswer(judgeProxyHealth([family(), stuck], periodMs), nowMs);
    expect(status).toBe(503);
    expect(JSON.parse(body)).toEqual({
      lastUpdated: at(startedAtMs + 1_000),
      currentTime: at(nowMs),
      healthy: false,
      status: {
        IPv4: { lastUpdated: at(startedAtMs + 1_000), healthy: true },
        IPv6: { lastUpdated: at(startedAtMs), healthy: false },
      },
    });
  });

  test("for a node that should get no traffic is 503, though the proxy is healthy", () => {
    const { status, body } = healthAnswer(judgeProxyHealth([], periodMs), nowMs, false);
    expect(status).toBe(503);
    expect(JSON.parse(body)).toEqual({
      lastUpdated: "0001-01-01T00:00:00Z",
      currentTime: at(nowMs),
      nodeEligible: false,
      healthy: true,
    });
  });
});

describe("the health check of a service", () => {
  const cases: [localReady: number, isProxyHealthy: boolean, status: number][] = [
    [2, true, 200],
    [0, true, 503],
    [2, false, 503],
  ];
  test.each(cases)("with %i endpoints, proxy healthy %s: %i", (localReady, isProxyHealthy, want) => {
    const { status, headers, body } = healthCheckAnswer("ns1/web", localReady, isProxyHealthy);
    expect(status).toBe(want);
    expect(headers).toEqual({
      "Content-Type": "application/json",
      "X-Content-Type-Options": "nosniff",
      "X-Load-Balancing-Endpoint-Weight": String(localReady),
    });
    expect(body).toBe(
      `{\n\t"service": {\n\t\t"namespace": "ns1",\n\t\t"name": "web"\n\t},\n\t"localEndpoints": ${localReady},\n\t"serviceProxyHealthy": ${isProxyHealthy}\n}`,
    );
  });
});
