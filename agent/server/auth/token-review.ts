import { createHmac, randomBytes } from "node:crypto";
import type { Clock } from "../../lib/clock.ts";
import { AgentError } from "../../lib/errors.ts";
import { isObject } from "../../lib/json.ts";
import { defaultBuckets, type MetricsRegistry } from "../../lib/metrics.ts";
import type { UserInfo } from "../port.ts";
import { stringsOf } from "./json.ts";
import { ExpiringCache, SharedLookups } from "./lookups.ts";
import type { Reviewer } from "./review.ts";

// Good tokens of a node are few: scrapers and people. Bad ones come in any number, and must not push those out.
export const goodTokensMax = 4096;
export const badTokensMax = 1024;
// No issuer makes tokens near this size, and each that is asked about is sent on to the API server.
export const tokenBytesMax = 256 << 10;

const reviewPath = "/apis/authentication.k8s.io/v1/tokenreviews";

export interface TokenAuthenticatorOptions {
  readonly review: Reviewer;
  /** `authentication.webhook.cacheTTL`: how long an answer counts, be it yes or no. 0: asks each time. */
  readonly cacheTTLMs: number;
  readonly clock: Clock;
  readonly metrics: MetricsRegistry;
  readonly stop: AbortSignal;
}

/**
 * Resolves with the user of a bearer token. Rejects with AgentError: Unauthorized for a token that does not count, anything
 * else if the API server could not say. Messages never show the token. `source` is the address that it came from.
 */
export type TokenAuthenticator = (token: string, source: string) => Promise<UserInfo>;

/** Makes a token authenticator that asks the API server, remembers its answers, and shares calls. */
export function createTokenAuthenticator(options: TokenAuthenticatorOptions): TokenAuthenticator {
  const { review, cacheTTLMs, clock, stop } = options;
  // The cache knows tokens only by a digest that nobody outside of this process can compute.
  const secret = randomBytes(32);
  const good = new ExpiringCache<UserInfo>(clock, goodTokensMax);
  const bad = new ExpiringCache<true>(clock, badTokensMax);
  const lookups = new SharedLookups<UserInfo | undefined>({ what: "token reviews", clock, stop });
  const metrics = tokenMetrics(options.metrics);

  const look = async (token: string, key: string, signal: AbortSignal): Promise<UserInfo | undefined> => {
    metrics.active.add({ status: "in_flight" });
    let status: "ok" | "error" = "error";
    try {
      const body = { apiVersion: "authentication.k8s.io/v1", kind: "TokenReview", spec: { token } };
      const user = readTokenReview(await review(reviewPath, body, signal), token);
      status = "ok";
      if (user === undefined) bad.set(key, true, cacheTTLMs);
      else good.set(key, user, cacheTTLMs);
      return user;
    } finally {
      metrics.active.add({ status: "in_flight" }, -1);
      metrics.fetches.inc({ status });
    }
  };

  return async (token, source) => {
    if (token.length > tokenBytesMax) throw new AgentError("Unauthorized", "the bearer token is too long");
    const startMs = clock.monotonic();
    const key = createHmac("sha256", secret).update(token).digest("base64");
    let user = good.get(key);
    const status = user !== undefined || bad.get(key) === true ? "hit" : "miss";
    try {
      if (status === "miss") {
        metrics.active.add({ status: "blocked" });
        user = await lookups
          .get(key, source, async (signal) => look(token, key, signal))
          .finally(() => metrics.active.add({ status: "blocked" }, -1));
      }
    } finally {
      metrics.requests.inc({ status });
      metrics.durations.observe({ status }, (clock.monotonic() - startMs) / 1000);
    }
    if (user === undefined) throw new AgentError("Unauthorized", "the API server does not know the bearer token");
    return user;
  };
}

/**
 * Reads a TokenReview's answer: the user, or undefined for a token that does not count. Pure. Throws AgentError
 * Unauthorized for a token that could not be checked, for which the same token may be good later, and Internal for an
 * answer that is no review.
 */
export function readTokenReview(answer: unknown, token: string): UserInfo | undefined {
  const status = isObject(answer) ? answer["status"] : undefined;
  if (!isObject(status)) throw new AgentError("Internal", "the API server's token review has no status");
  if (status["authenticated"] !== true) {
    const error = status["error"];
    if (typeof error !== "string" || error === "") return undefined;
    // A webhook behind the API server may quote what it was given.
    throw new AgentError("Unauthorized", `the API server refuses the bearer token: ${error.replaceAll(token, "***")}`);
  }
  const user = isObject(status["user"]) ? status["user"] : {};
  const { username, uid, groups, extra } = user;
  if (typeof username !== "string" || username === "") {
    throw new AgentError("Internal", "the API server's token review names no user");
  }
  const entries = isObject(extra) ? Object.entries(extra).map(([key, value]) => [key, stringsOf(value)] as const) : [];
  return {
    username,
    uid: typeof uid === "string" ? uid : "",
    groups: stringsOf(groups),
    extra: Object.fromEntries(entries),
  };
}

function tokenMetrics(registry: MetricsRegistry) {
  const name = (rest: string) => `authentication_token_cache_${rest}`;
  return {
    requests: registry.counter(name("request_total"), "Tokens that were to be checked, by cache hit or miss", [
      "status",
    ]),
    fetches: registry.counter(name("fetch_total"), "Tokens that the API server was asked about, by outcome", [
      "status",
    ]),
    active: registry.gauge(name("active_fetch_count"), "Lookups under way, and requests that wait for one", ["status"]),
    durations: registry.histogram(
      name("request_duration_seconds"),
      "Time that checking a token took in seconds, by cache hit or miss",
      defaultBuckets,
      ["status"],
    ),
  };
}
