import { beforeEach, describe, expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import {
  createTokenManager,
  renewalWaitMs,
  renewalTimeMs,
  type TokenManager,
  tokenAgeMsMax,
} from "../../../agent/volumes/tokens.ts";
import { bindingLagTriesMax } from "../../../agent/volumes/binding-lag.ts";
import { FakeClock, FakeTokenServer, makePod } from "./support.ts";

const hourMs = 3600_000;
const pod = makePod({ serviceAccountName: "builder" });
const spec = { audiences: ["vault"], expirationSeconds: 3600 };
const never = new AbortController().signal;

let clock: FakeClock;
let server: FakeTokenServer;
let tokens: TokenManager;

beforeEach(() => {
  clock = new FakeClock();
  server = new FakeTokenServer(clock);
  tokens = createTokenManager({ client: server.client, clock, log: silentLogger, random: () => 0 });
});

describe("renewalTimeMs", () => {
  test.each([
    { name: "an hour: when 12 minutes are left", lifeSeconds: 3600, jitterMs: 0, want: 48 * 60_000 },
    { name: "jitter only brings it forward", lifeSeconds: 3600, jitterMs: 9000, want: 48 * 60_000 - 9000 },
    { name: "a year: at a day's age", lifeSeconds: 365 * 24 * 3600, jitterMs: 0, want: tokenAgeMsMax },
  ])("$name", ({ lifeSeconds, jitterMs, want }) => {
    expect(renewalTimeMs(lifeSeconds * 1000, lifeSeconds, jitterMs)).toBe(want);
  });
});

describe("token", () => {
  test("asks for a token bound to the pod, once", async () => {
    const first = await tokens.token(pod, spec, never);
    expect((await tokens.token(pod, spec, never)).token).toBe(first.token);
    expect(server.requests).toEqual([
      {
        namespace: "shop",
        account: "builder",
        spec: {
          audiences: ["vault"],
          expirationSeconds: 3600,
          boundObjectRef: { apiVersion: "v1", kind: "Pod", name: "web", uid: pod.metadata.uid },
        },
      },
    ]);
  });

  test("several sources asking at once share a request, different audiences do not", async () => {
    await Promise.all([
      tokens.token(pod, spec, never),
      tokens.token(pod, spec, never),
      tokens.token(pod, { ...spec, audiences: [] }, never),
    ]);
    expect(server.requests).toHaveLength(2);
  });

  test("a pod of the same name but another UID gets its own", async () => {
    await tokens.token(pod, spec, never);
    await tokens.token(makePod({ serviceAccountName: "builder" }, { uid: "another" }), spec, never);
    expect(server.requests).toHaveLength(2);
  });

  test("renews at 80 % of the life", async () => {
    await tokens.token(pod, spec, never);
    await clock.advance(0.8 * hourMs - 1);
    expect((await tokens.token(pod, spec, never)).token).toBe("token-1");
    await clock.advance(1);
    expect((await tokens.token(pod, spec, never)).token).toBe("token-2");
  });

  test("keeps the old token while renewal fails, and tries again later, not at once", async () => {
    await tokens.token(pod, spec, never);
    await clock.advance(0.8 * hourMs);
    server.failures = [new AgentError("Unavailable", "away")];
    const kept = await tokens.token(pod, spec, never);
    expect(kept.token).toBe("token-1");
    expect(kept.refreshAtMs - clock.now()).toBe(10_000);
    await clock.advance(9_999);
    await tokens.token(pod, spec, never);
    expect(server.requests).toHaveLength(2);
    await clock.advance(1);
    expect((await tokens.token(pod, spec, never)).token).toBe("token-2");
  });

  test("a server that hangs holds nobody up while the old token is good", async () => {
    await tokens.token(pod, spec, never);
    await clock.advance(0.8 * hourMs);
    const { promise: hang, resolve: answer } = Promise.withResolvers<void>();
    server.beforeAnswer = () => hang;
    const kept = tokens.token(pod, spec, never);
    await clock.advance(renewalWaitMs);
    expect((await kept).token).toBe("token-1");
    expect((await kept).refreshAtMs).toBeGreaterThan(clock.now());
    answer();
    await clock.advance(1);
    expect((await tokens.token(pod, spec, never)).token).toBe("token-2");
    expect(server.requests).toHaveLength(2);
    expect(clock.pendingTimers).toBe(0);
  });

  test("an expired token is never given", async () => {
    await tokens.token(pod, spec, never);
    await clock.advance(hourMs);
    server.failures = [new AgentError("Unavailable", "away")];
    await expect(tokens.token(pod, spec, never)).rejects.toThrow("away");
  });

  test("bridges the moment in which the API server does not know of the binding yet", async () => {
    server.failures = Array.from(
      { length: bindingLagTriesMax - 1 },
      () => new AgentError("Forbidden", "no relationship"),
    );
    const token = tokens.token(pod, spec, never);
    await clock.advance(500);
    expect((await token).token).toBe("token-1");
  });

  test("gives up when it stays forbidden", async () => {
    server.failures = Array.from({ length: bindingLagTriesMax }, () => new AgentError("Forbidden", "no relationship"));
    const token = tokens.token(pod, spec, never);
    token.catch(() => {});
    await clock.advance(5000);
    await expect(token).rejects.toThrow("no relationship");
    expect(tokens.size).toBe(0);
  });

  test("forgets tokens with their pod, and those that expired unseen", async () => {
    await tokens.token(pod, spec, never);
    tokens.forget(pod.metadata.uid ?? "");
    expect(tokens.size).toBe(0);

    await tokens.token(pod, spec, never);
    await clock.advance(2 * hourMs);
    await tokens.token(makePod({}, { uid: "another" }), spec, never);
    expect(tokens.size).toBe(1);
  });

  test("an answer without a token is an error, not an empty file", async () => {
    const client = { ...server.client, createSubresource: () => Promise.resolve({ spec: {} }) } as typeof server.client;
    const broken = createTokenManager({ client, clock, log: silentLogger });
    await expect(broken.token(pod, spec, never)).rejects.toThrow("without token or expirationTimestamp");
  });

  test.each([
    {
      name: "a server without tokens is told from",
      resources: ["serviceaccounts"],
      code: "Unimplemented",
      why: "does not serve TokenRequests",
    },
    {
      name: "a missing account",
      resources: ["serviceaccounts/token"],
      code: "NotFound",
      why: 'serviceaccount "builder" not found',
    },
  ])("$name", async ({ resources, code, why }) => {
    server.resources = resources;
    server.failures = [new AgentError("NotFound", 'serviceaccount "builder" not found')];
    await expect(tokens.token(pod, spec, never)).rejects.toMatchObject({
      code,
      message: expect.stringContaining(why) as string,
    });
  });

  test("the jitter is whole seconds below 10", async () => {
    let drawn = 0;
    const random = () => {
      drawn += 1;
      return 0.999;
    };
    const jittered = createTokenManager({ client: server.client, clock, log: silentLogger, random });
    const { refreshAtMs } = await jittered.token(pod, spec, never);
    expect(drawn).toBe(1);
    expect(refreshAtMs - clock.now()).toBe(0.8 * hourMs - 9000);
  });

  test("a lifetime that the server shortened counts, not the one that was asked for", async () => {
    const client = {
      ...server.client,
      createSubresource: () =>
        Promise.resolve({
          spec: { expirationSeconds: 600 },
          status: { token: "t", expirationTimestamp: new Date(clock.now() + 600_000).toISOString() },
        }),
    } as typeof server.client;
    const short = createTokenManager({ client, clock, log: silentLogger, random: () => 0 });
    const { refreshAtMs } = await short.token(pod, spec, never);
    expect(refreshAtMs - clock.now()).toBe(480_000);
  });

  test("without an API server it says so", async () => {
    const standalone = createTokenManager({ client: undefined, clock, log: silentLogger });
    await expect(standalone.token(pod, spec, never)).rejects.toThrow("runs without an API server");
  });
});
