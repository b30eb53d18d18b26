import { ApiError } from "../../kube/api-error.ts";
import { TransportError } from "../../kube/connection.ts";
import type { ApiClient } from "../../kube/port.ts";
import type { Clock } from "../../lib/clock.ts";
import { hasCode, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { MetricsRegistry } from "../../lib/metrics.ts";

// The retries of every Kubernetes component's webhook calls: 5 tries, 500 ms and half more each time, up to a fifth longer.
export const reviewAttempts = 5;
export const reviewPauseMs = 500;
export const reviewPauseFactor = 1.5;
export const reviewPauseJitter = 0.2;
// A try that hangs leaves time for others within the limit of the whole lookup.
export const reviewAttemptTimeoutMs = 10_000;

// Seconds, as the reference's histograms of these calls have them.
const durationBuckets = [0.25, 0.5, 0.7, 1, 1.5, 3, 5, 10];

export interface ReviewerOptions {
  readonly api: Pick<ApiClient, "request">;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: MetricsRegistry;
  /** Between 0 and 1; for tests. */
  readonly random?: () => number;
}

/**
 * Posts a review object and resolves with the answer's JSON, which is not looked at. Rejects with the last try's error, or
 * as the signal's abort makes it.
 */
export type Reviewer = (path: string, body: object, signal: AbortSignal) => Promise<unknown>;

/** Makes a reviewer that counts its calls as `apiserver_delegated_<kind>_request_…`. */
export function createReviewer(kind: "authn" | "authz", options: ReviewerOptions): Reviewer {
  const { api, clock, log, metrics, random = Math.random } = options;
  const what = kind === "authn" ? "token reviews" : "access reviews";
  const total = metrics.counter(
    `apiserver_delegated_${kind}_request_total`,
    `Number of ${what} sent to the API server, by status code`,
    ["code"],
  );
  const durations = metrics.histogram(
    `apiserver_delegated_${kind}_request_duration_seconds`,
    `Duration of ${what} in seconds, by status code`,
    durationBuckets,
    ["code"],
  );
  let isFailing = false;

  const attempt = async (path: string, body: object, signal: AbortSignal): Promise<unknown> => {
    const startMs = clock.monotonic();
    let code = "<error>";
    try {
      const answer = await api.request<unknown>("POST", path, body, { signal, timeoutMs: reviewAttemptTimeoutMs });
      code = "201"; // what is posted is created, as the API server sees it
      return answer;
    } catch (err) {
      if (err instanceof ApiError) code = String(err.status);
      throw err;
    } finally {
      total.inc({ code });
      durations.observe({ code }, (clock.monotonic() - startMs) / 1000);
    }
  };

  return async (path, body, signal) => {
    for (let tries = 1; ; tries += 1) {
      try {
        const answer = await attempt(path, body, signal);
        if (isFailing) log.info({ path }, "the API server answers reviews again");
        isFailing = false;
        return answer;
      } catch (err) {
        if (signal.aborted || tries >= reviewAttempts || !mayRetry(err)) {
          // Everybody who asks gets the error; the log says it once.
          if (!isFailing) log.warn({ path, err: messageOf(err) }, "the API server does not answer reviews");
          isFailing = true;
          throw err;
        }
      }
      await clock.sleep(pauseMs(tries, random), signal);
    }
  };
}

/** The rest after the n-th try (n from 1), in ms. Pure but for `random`. */
export function pauseMs(tries: number, random: () => number): number {
  return reviewPauseMs * reviewPauseFactor ** (tries - 1) * (1 + reviewPauseJitter * random());
}

/**
 * True if another try may end differently: the connection broke, the server was too slow, too busy or in trouble, or said
 * when to come back. Pure.
 */
export function mayRetry(err: unknown): boolean {
  if (err instanceof TransportError) return err.stage !== "connect";
  if (hasCode(err, "DeadlineExceeded")) return true;
  return err instanceof ApiError && (err.status === 500 || err.status === 429 || err.retryAfterMs !== undefined);
}
