import { describe, expect, test } from "vitest";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../../agent/lib/metrics.ts";
import {
  AuthorizationError,
  accessReviewSpec,
  attributeBytesMax,
  createAuthorizer,
  decisionsMax,
  readAccessReview,
} from "../../../../agent/server/auth/authorizer.ts";
import type { UserInfo } from "../../../../agent/server/port.ts";
import { FakeClock, settle } from "../../kube/fake-clock.ts";
import { type AskedReview, FakeReviews, refusal } from "./fake-reviews.ts";

const prometheus: UserInfo = {
  username: "system:serviceaccount:monitoring:prometheus",
  uid: "u1",
  groups: ["system:serviceaccounts", "system:authenticated"],
  extra: { "authentication.kubernetes.io/pod-name": ["prometheus-0"] },
};
const subresourceOf = (spec: AskedReview["spec"]) =>
  (spec["resourceAttributes"] as Record<string, string>)["subresource"] ?? "";

function setUp(allowed: readonly string[] = [], ttl: { yes?: number; no?: number } = {}) {
  const clock = new FakeClock();
  const stop = new AbortController();
  const api = new FakeReviews((spec) => ({ allowed: allowed.includes(subresourceOf(spec)) }));
  const authorizer = createAuthorizer({
    mode: "Webhook",
    nodeName: "n1",
    api,
    authorizedTTLMs: ttl.yes ?? 300_000,
    unauthorizedTTLMs: ttl.no ?? 30_000,
    clock,
    log: silentLogger,
    metrics: new MetricsRegistry(),
    stop: stop.signal,
    random: () => 0,
  });
  const asked = () => api.asked.map(({ spec }) => subresourceOf(spec));
  return { clock, stop, api, authorizer, asked };
}

test("the question names user, node and subresource, and leaves out what is not known", () => {
  expect(accessReviewSpec(prometheus, "get", "n1", "metrics")).toEqual({
    user: "system:serviceaccount:monitoring:prometheus",
    uid: "u1",
    groups: ["system:serviceaccounts", "system:authenticated"],
    extra: { "authentication.kubernetes.io/pod-name": ["prometheus-0"] },
    resourceAttributes: { verb: "get", version: "v1", resource: "nodes", subresource: "metrics", name: "n1" },
  });
  expect(accessReviewSpec({ username: "a", uid: "", groups: [], extra: {} }, "", "n1", "proxy")).toEqual({
    user: "a",
    resourceAttributes: { verb: "", version: "v1", resource: "nodes", subresource: "proxy", name: "n1" },
  });
});

describe("the answer", () => {
  const cases: { status: unknown; want: "allowed" | "denied" }[] = [
    { status: { allowed: true }, want: "allowed" },
    { status: { allowed: false }, want: "denied" },
    { status: { allowed: false, denied: true, reason: "no" }, want: "denied" },
    { status: { allowed: true, denied: true }, want: "denied" },
  ];
  for (const { status, want } of cases) {
    test(`${JSON.stringify(status)} is ${want}`, () => expect(readAccessReview({ status })).toBe(want));
  }
  for (const answer of [
    undefined,
    null,
    "yes",
    {},
    { status: {} },
    { status: { allowed: "true" } },
    { status: [true] },
  ]) {
    test(`${JSON.stringify(answer)} is none`, () => expect(() => readAccessReview(answer)).toThrow("has no status"));
  }
});

describe("Webhook", () => {
  test("tries subresources in order until one is allowed", async () => {
    const { authorizer, asked, api } = setUp(["proxy"]);
    expect(await authorizer.authorize(prometheus, "get", ["pods", "proxy", "never"])).toBe("allowed");
    expect(asked()).toEqual(["pods", "proxy"]);
    expect(api.asked[0]?.path).toBe("/apis/authorization.k8s.io/v1/subjectaccessreviews");
  });

  test("denies when none is allowed, or none was named", async () => {
    const { authorizer } = setUp(["proxy"]);
    expect(await authorizer.authorize(prometheus, "get", ["metrics"])).toBe("denied");
    expect(await authorizer.authorize(prometheus, "get", [])).toBe("denied");
  });

  test("remembers yes and no for their own times", async () => {
    const { authorizer, asked, clock } = setUp(["metrics"]);
    const ask = async () => [
      await authorizer.authorize(prometheus, "get", ["metrics"]),
      await authorizer.authorize(prometheus, "get", ["stats"]),
    ];
    await ask();
    await clock.advance(29_999);
    expect(await ask()).toEqual(["allowed", "denied"]);
    expect(asked()).toEqual(["metrics", "stats"]);
    await clock.advance(1);
    await ask();
    expect(asked()).toEqual(["metrics", "stats", "stats"]);
    await clock.advance(270_000);
    await ask();
    expect(asked().filter((s) => s === "metrics")).toHaveLength(2);
  });

  test("asks each time when the times are 0", async () => {
    const { authorizer, asked } = setUp(["metrics"], { yes: 0, no: 0 });
    for (let i = 0; i < 3; i += 1) await authorizer.authorize(prometheus, "get", ["metrics"]);
    expect(asked()).toHaveLength(3);
  });

  test("does not take one user's answer for another's, nor one verb's", async () => {
    const { authorizer, asked } = setUp(["metrics"]);
    const users: UserInfo[] = [
      prometheus,
      { ...prometheus, uid: "u2" },
      { ...prometheus, username: "eve" },
      { ...prometheus, groups: [] },
      { ...prometheus, groups: ["system:serviceaccounts,system:authenticated"] },
      { ...prometheus, extra: {} },
    ];
    for (const user of users) await authorizer.authorize(user, "get", ["metrics"]);
    await authorizer.authorize(prometheus, "create", ["metrics"]);
    expect(asked()).toHaveLength(users.length + 1);
  });

  test("a hundred at the same time ask once", async () => {
    const { authorizer, asked, api } = setUp(["metrics"]);
    api.isHanging = true;
    const all = Array.from({ length: 100 }, () => authorizer.authorize(prometheus, "get", ["metrics"]));
    await settle();
    api.release();
    expect(new Set(await Promise.all(all))).toEqual(new Set(["allowed"]));
    expect(asked()).toHaveLength(1);
  });

  test("says which subresource could not be decided, and remembers no failure", async () => {
    const { authorizer, api, asked } = setUp(["proxy"]);
    api.errors.push(refusal(403));
    const failure = authorizer.authorize(prometheus, "get", ["pods", "proxy"]);
    await expect(failure).rejects.toBeInstanceOf(AuthorizationError);
    await expect(failure).rejects.toMatchObject({ subresource: "pods", code: "Unavailable" });
    await authorizer.authorize(prometheus, "get", ["pods"]);
    expect(asked()).toEqual(["pods", "pods"]);
  });

  test("a nonsensical answer allows nothing", async () => {
    const { authorizer, api } = setUp();
    for (const status of [undefined, null, "allowed", { allowed: 1 }, [{ allowed: true }]]) {
      api.answerWith(() => status);
      await expect(authorizer.authorize(prometheus, "get", ["x"])).rejects.toThrow("has no status");
    }
  });

  test("a client that leaves ends its own wait, not that of others", async () => {
    const { authorizer, api } = setUp(["metrics"]);
    api.isHanging = true;
    const gone = new AbortController();
    const first = authorizer.authorize(prometheus, "get", ["metrics"], gone.signal);
    const second = authorizer.authorize(prometheus, "get", ["metrics"]);
    await settle();
    gone.abort();
    await expect(first).rejects.toBeInstanceOf(AuthorizationError);
    api.release();
    expect(await second).toBe("allowed");
  });

  test("an API server that never answers costs 30 s and then an error", async () => {
    const { authorizer, api, clock } = setUp();
    api.isHanging = true;
    const failed = expect(authorizer.authorize(prometheus, "get", ["x"])).rejects.toThrow("no answer within 30000 ms");
    await clock.advance(30_000);
    await failed;
    expect(clock.waiting).toBe(0);
  });

  test("does not keep answers about enormous attributes", async () => {
    const { authorizer, asked } = setUp(["metrics"]);
    const verb = "x".repeat(attributeBytesMax);
    await authorizer.authorize(prometheus, verb, ["metrics"]);
    await authorizer.authorize(prometheus, verb, ["metrics"]);
    expect(asked()).toHaveLength(2);
  });

  test("keeps a bounded number of answers", async () => {
    const { authorizer, asked } = setUp();
    const ask = async (i: number) => authorizer.authorize({ ...prometheus, username: `u${i}` }, "get", ["x"]);
    for (let i = 0; i <= decisionsMax; i += 1) await ask(i);
    await ask(decisionsMax);
    expect(asked()).toHaveLength(decisionsMax + 1);
    await ask(0);
    expect(asked()).toHaveLength(decisionsMax + 2);
  });
});

test("AlwaysAllow asks nobody; Webhook needs somebody to ask", async () => {
  const base = {
    nodeName: "n1",
    api: undefined,
    authorizedTTLMs: 0,
    unauthorizedTTLMs: 0,
    clock: new FakeClock(),
    log: silentLogger,
    metrics: new MetricsRegistry(),
    stop: new AbortController().signal,
  };
  const authorizer = createAuthorizer({ ...base, mode: "AlwaysAllow" });
  expect(await authorizer.authorize(prometheus, "create", ["proxy"])).toBe("allowed");
  expect(() => createAuthorizer({ ...base, mode: "Webhook" })).toThrow(
    "authorization.mode Webhook needs an API server",
  );
});
