import { expect, test } from "vitest";
import { ApiError } from "../../../agent/kube/api-error.ts";
import { informerLimits, planRetry, type RetryPlan } from "../../../agent/kube/watch-retry.ts";
import { AgentError } from "../../../agent/lib/errors.ts";

const broken = new AgentError("Unavailable", "reset");
const gone = new ApiError("Gone", "too old", { status: 410 });
const internal = new ApiError("Internal", "oops", { status: 500 });
const busy = new ApiError("TooManyRequests", "later", { status: 429, retryAfterMs: 5_000 });

const cases: {
  name: string;
  error?: unknown;
  livedMs?: number;
  failures?: number;
  refusals?: number;
  want: Partial<RetryPlan>;
}[] = [
  {
    name: "a watch that ended well goes on at once",
    livedMs: 300_000,
    want: { relist: false, delayMs: 0, failures: 0 },
  },
  { name: "one closed at once is a failure", livedMs: 10, want: { relist: false, delayMs: 800, failures: 1 } },
  { name: "closed at once again and again backs off", livedMs: 10, failures: 3, want: { delayMs: 6_400, failures: 4 } },
  { name: "a broken one backs off", error: broken, want: { relist: false, delayMs: 800, failures: 1 } },
  { name: "backoff ends at 30 s", error: broken, failures: 20, want: { delayMs: 30_000 } },
  { name: "a long life ends the row of failures", error: broken, livedMs: 5_000, failures: 20, want: { delayMs: 800 } },
  { name: "410 lists at once", error: gone, want: { relist: true, delayMs: 0 } },
  { name: "410 again and again backs off", error: gone, failures: 1, want: { relist: true, delayMs: 1_600 } },
  { name: "Retry-After is heeded, and spread", error: busy, want: { relist: false, delayMs: 5_000, refusals: 0 } },
  { name: "Retry-After never shortens the backoff", error: busy, failures: 20, want: { delayMs: 30_000 } },
  {
    name: "a refusal goes on from the same place",
    error: internal,
    want: { relist: false, delayMs: 800, refusals: 1 },
  },
  { name: "the third refusal starts anew", error: internal, refusals: 2, want: { relist: true, refusals: 3 } },
];

for (const { name, error, livedMs = 100, failures = 0, refusals = 0, want } of cases) {
  test(`planRetry: ${name}`, () => {
    const end = error === undefined ? { livedMs } : { error, livedMs };
    expect(planRetry(end, { failures, refusals }, informerLimits, () => 0)).toMatchObject(want);
  });
}

test("planRetry: jitter takes at most half of the backoff and adds at most a fifth to Retry-After", () => {
  const state = { failures: 0, refusals: 0 };
  expect(planRetry({ error: broken, livedMs: 1 }, state, informerLimits, () => 1).delayMs).toBe(400);
  expect(planRetry({ error: busy, livedMs: 1 }, state, informerLimits, () => 1).delayMs).toBe(6_000);
});

test("the limits are client-go's", () => {
  expect(informerLimits).toMatchObject({
    backoffBaseMs: 800,
    backoffMaxMs: 30_000,
    quickCloseMs: 1_000,
    watchSecondsMin: 300,
  });
  expect(informerLimits.silentMs).toBeGreaterThan(75_000); // bookmarks come about every minute
});
