import { describe, expect, test } from "vitest";
import { TransportError } from "../../../../agent/kube/connection.ts";
import { AgentError } from "../../../../agent/lib/errors.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../../agent/lib/metrics.ts";
import { createReviewer, mayRetry, pauseMs, reviewAttempts } from "../../../../agent/server/auth/review.ts";
import { FakeClock, settle } from "../../kube/fake-clock.ts";
import { FakeReviews, refusal } from "./fake-reviews.ts";
import { valueOf } from "./metrics.ts";

const broken = new TransportError("https://api: connection reset", "broken", undefined);

describe("mayRetry", () => {
  const cases: { name: string; err: unknown; want: boolean }[] = [
    { name: "500", err: refusal(500), want: true },
    { name: "429", err: refusal(429), want: true },
    { name: "503 with Retry-After", err: refusal(503, 1000), want: true },
    { name: "503 without", err: refusal(503), want: false },
    { name: "403", err: refusal(403), want: false },
    { name: "400", err: refusal(400), want: false },
    { name: "a connection that broke", err: broken, want: true },
    { name: "a stream that was refused", err: new TransportError("x", "refused", undefined), want: true },
    { name: "no connection at all", err: new TransportError("x", "connect", undefined), want: false },
    { name: "no answer in time", err: new AgentError("DeadlineExceeded", "x"), want: true },
    { name: "an answer that is no JSON", err: new AgentError("Internal", "x"), want: false },
    { name: "an abort", err: new AgentError("Canceled", "x"), want: false },
  ];
  for (const { name, err, want } of cases) test(`${name}: ${want}`, () => expect(mayRetry(err)).toBe(want));
});

test("pauses grow by half, and by up to a fifth at random", () => {
  const pauses = (random: number) => [1, 2, 3, 4].map((tries) => pauseMs(tries, () => random));
  expect(pauses(0)).toEqual([500, 750, 1125, 1687.5]);
  expect(pauses(1)).toEqual([600, 900, 1350, 2025]);
});

describe("a reviewer", () => {
  const setUp = () => {
    const clock = new FakeClock();
    const api = new FakeReviews(() => ({ allowed: true }));
    const metrics = new MetricsRegistry();
    const review = createReviewer("authz", { api, clock, log: silentLogger, metrics, random: () => 0 });
    return { clock, api, metrics, review };
  };
  const never = new AbortController().signal;

  test("tries again until an answer comes, and counts each try by its code", async () => {
    const { clock, api, metrics, review } = setUp();
    api.errors.push(refusal(500), broken, refusal(429));
    const answer = review("/x", { spec: {} }, never);
    await settle();
    await clock.advance(500 + 750 + 1124);
    expect(api.asked).toHaveLength(3);
    await clock.advance(1);
    expect(await answer).toEqual({ status: { allowed: true } });
    const count = async (code: string) => valueOf(metrics, "apiserver_delegated_authz_request_total", { code });
    expect(await Promise.all(["500", "429", "<error>", "201"].map(count))).toEqual([1, 1, 1, 1]);
    expect(await valueOf(metrics, "apiserver_delegated_authz_request_duration_seconds", { code: "201" })).toBe(1);
  });

  test("gives up after five tries with the last error", async () => {
    const { clock, api, review } = setUp();
    api.errors.push(...Array.from({ length: 9 }, () => refusal(500)));
    const failed = expect(review("/x", { spec: {} }, never)).rejects.toThrow("answered 500");
    await settle();
    await clock.advance(60_000);
    await failed;
    expect(api.asked).toHaveLength(reviewAttempts);
    expect(clock.waiting).toBe(0);
  });

  test("does not try again what would end the same", async () => {
    const { api, review } = setUp();
    api.errors.push(refusal(403));
    await expect(review("/x", { spec: {} }, never)).rejects.toThrow("answered 403");
    expect(api.asked).toHaveLength(1);
  });

  test("ends while it waits when it is told to", async () => {
    const { clock, api, review } = setUp();
    api.errors.push(refusal(500));
    const stop = new AbortController();
    const failed = expect(review("/x", { spec: {} }, stop.signal)).rejects.toMatchObject({ name: "AbortError" });
    await settle();
    await clock.advance(100);
    stop.abort();
    await failed;
    expect(api.asked).toHaveLength(1);
    expect(clock.waiting).toBe(0);
  });
});
