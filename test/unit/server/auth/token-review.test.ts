import { describe, expect, test } from "vitest";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../../agent/lib/metrics.ts";
import { createReviewer } from "../../../../agent/server/auth/review.ts";
import {
  badTokensMax,
  createTokenAuthenticator,
  readTokenReview,
  tokenBytesMax,
} from "../../../../agent/server/auth/token-review.ts";
import { FakeClock, settle } from "../../kube/fake-clock.ts";
import { FakeReviews, refusal } from "./fake-reviews.ts";
import { valueOf } from "./metrics.ts";

const alice = { username: "alice", uid: "1", groups: ["dev"], extra: { scope: ["a", "b"] } };

function setUp(cacheTTLMs = 120_000) {
  const clock = new FakeClock();
  const stop = new AbortController();
  const metrics = new MetricsRegistry();
  const api = new FakeReviews(({ token }) =>
    token === "good" ? { authenticated: true, user: alice } : { authenticated: false },
  );
  const review = createReviewer("authn", { api, clock, log: silentLogger, metrics, random: () => 0 });
  const authenticate = createTokenAuthenticator({ review, cacheTTLMs, clock, metrics, stop: stop.signal });
  const check = async (token: string) => await authenticate(token, "10.0.0.1");
  const cache = async (rest: string, status: string) =>
    valueOf(metrics, `authentication_token_cache_${rest}`, { status });
  return { clock, stop, api, check, cache };
}

describe("readTokenReview", () => {
  const cases: { name: string; status: unknown; want: unknown }[] = [
    { name: "a user", status: { authenticated: true, user: alice }, want: alice },
    {
      name: "a user with a name alone",
      status: { authenticated: true, user: { username: "a" } },
      want: { username: "a", uid: "", groups: [], extra: {} },
    },
    {
      name: "only what is of the right type",
      status: {
        authenticated: true,
        user: { username: "a", uid: 7, groups: ["g", 1, null], extra: { x: "y", z: [2] } },
      },
      want: { username: "a", uid: "", groups: ["g"], extra: { x: [], z: [] } },
    },
    { name: "nobody", status: { authenticated: false }, want: undefined },
    { name: "nobody, although a user is named", status: { user: alice }, want: undefined },
    { name: "nobody, as only true is true", status: { authenticated: "true", user: alice }, want: undefined },
  ];
  for (const { name, status, want } of cases) {
    test(name, () => expect(readTokenReview({ status }, "t")).toEqual(want));
  }

  const refused: { name: string; answer: unknown; message: string }[] = [
    { name: "no object", answer: "x", message: "has no status" },
    { name: "no status", answer: {}, message: "has no status" },
    { name: "a nameless user", answer: { status: { authenticated: true, user: {} } }, message: "names no user" },
    { name: "an empty name", answer: { status: { authenticated: true, user: { username: "" } } }, message: "no user" },
    {
      name: "an error",
      answer: { status: { error: "issuer away" } },
      message: "refuses the bearer token: issuer away",
    },
  ];
  for (const { name, answer, message } of refused) {
    test(`refuses ${name}`, () => expect(() => readTokenReview(answer, "t")).toThrow(message));
  }

  test("does not repeat the token", () => {
    expect(() => readTokenReview({ status: { error: 'invalid token "s3cret"' } }, "s3cret")).toThrow('token "***"');
  });
});

describe("a token", () => {
  test("is asked about once, and then known", async () => {
    const { api, check, cache, clock } = setUp();
    expect(await check("good")).toEqual(alice);
    await clock.advance(119_999);
    expect(await check("good")).toEqual(alice);
    expect(api.asked).toEqual([{ path: "/apis/authentication.k8s.io/v1/tokenreviews", spec: { token: "good" } }]);
    expect(await cache("request_total", "hit")).toBe(1);
    expect(await cache("request_total", "miss")).toBe(1);
    expect(await cache("fetch_total", "ok")).toBe(1);
    expect(await cache("request_duration_seconds", "hit")).toBe(1);
    await clock.advance(1);
    await check("good");
    expect(api.asked).toHaveLength(2);
  });

  test("that does not count is remembered as long", async () => {
    const { api, check, clock } = setUp();
    const refuse = async () => expect(check("bad")).rejects.toMatchObject({ code: "Unauthorized" });
    await refuse();
    await refuse();
    expect(api.asked).toHaveLength(1);
    await clock.advance(120_000);
    await refuse();
    expect(api.asked).toHaveLength(2);
  });

  test("is asked about each time without a cache", async () => {
    const { api, check } = setUp(0);
    await check("good");
    await check("good");
    expect(api.asked).toHaveLength(2);
  });

  test("that could not be checked may be good the next time", async () => {
    const { api, check, cache } = setUp();
    api.errors.push(refusal(403));
    await expect(check("good")).rejects.toThrow("answered 403");
    api.answerWith(() => ({ error: "issuer away" }));
    await expect(check("good")).rejects.toThrow("issuer away");
    api.answerWith(() => ({ authenticated: true, user: alice }));
    expect(await check("good")).toEqual(alice);
    expect(await cache("fetch_total", "error")).toBe(2);
  });

  test("that many present at the same time is one call", async () => {
    const { api, check, cache } = setUp();
    api.isHanging = true;
    const all = Array.from({ length: 50 }, () => check("good"));
    await settle();
    expect(await cache("active_fetch_count", "in_flight")).toBe(1);
    expect(await cache("active_fetch_count", "blocked")).toBe(50);
    api.release();
    expect(await Promise.all(all)).toHaveLength(50);
    expect(api.asked).toHaveLength(1);
    expect(await cache("active_fetch_count", "in_flight")).toBe(0);
    expect(await cache("active_fetch_count", "blocked")).toBe(0);
  });

  test("of any length is sent, but none beyond all measure", async () => {
    const { api, check } = setUp();
    await expect(check("x".repeat(tokenBytesMax))).rejects.toMatchObject({ code: "Unauthorized" });
    expect(api.asked).toHaveLength(1);
    await expect(check("x".repeat(tokenBytesMax + 1))).rejects.toThrow("too long");
    expect(api.asked).toHaveLength(1);
  });

  test("that is good is not pushed out by bad ones", async () => {
    const { api, check } = setUp();
    await check("good");
    const bad = Array.from({ length: 2 * badTokensMax }, (_, i) => `bad${i}`);
    for (const token of bad) await expect(check(token)).rejects.toThrow();
    const asked = api.asked.length;
    await check("good");
    expect(api.asked).toHaveLength(asked);
    await expect(check("bad0")).rejects.toThrow();
    expect(api.asked).toHaveLength(asked + 1);
  });

  test("waits no longer than the agent runs", async () => {
    const { api, check, stop, clock } = setUp();
    api.isHanging = true;
    const failed = expect(check("good")).rejects.toThrow("canceled");
    await settle();
    stop.abort();
    await failed;
    expect(clock.waiting).toBe(0);
  });
});
