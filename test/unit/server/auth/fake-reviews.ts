import { ApiError } from "../../../../agent/kube/api-error.ts";
import type { ApiClient, CallOptions } from "../../../../agent/kube/port.ts";
import { AgentError } from "../../../../agent/lib/errors.ts";

/** What was asked, and where. */
export interface AskedReview {
  readonly path: string;
  readonly spec: Readonly<Record<string, unknown>>;
}

/** An API server that answers reviews: by `answer`, or with the errors put before it. */
export class FakeReviews implements Pick<ApiClient, "request"> {
  readonly asked: AskedReview[] = [];
  /** Errors of the next calls, in order. */
  readonly errors: Error[] = [];
  /** Calls hang until they are let go, or aborted. */
  isHanging = false;
  #release = Promise.withResolvers<void>();
  #answer: (spec: AskedReview["spec"]) => unknown;

  constructor(answer: (spec: AskedReview["spec"]) => unknown) {
    this.#answer = answer;
  }

  answerWith(answer: (spec: AskedReview["spec"]) => unknown): void {
    this.#answer = answer;
  }

  /** Lets calls that hang go on. */
  release(): void {
    this.isHanging = false;
    this.#release.resolve();
    this.#release = Promise.withResolvers();
  }

  request: ApiClient["request"] = async <Out>(
    _method: "GET" | "POST",
    path: string,
    body?: unknown,
    options?: CallOptions,
  ) => {
    const { spec } = body as { spec: AskedReview["spec"] };
    this.asked.push({ path, spec });
    if (this.isHanging) {
      const aborted = Promise.withResolvers<never>();
      options?.signal?.addEventListener("abort", () => aborted.reject(new AgentError("Canceled", "canceled")));
      await Promise.race([this.#release.promise, aborted.promise]);
    }
    const error = this.errors.shift();
    if (error !== undefined) throw error;
    return { status: this.#answer(spec) } as Out;
  };
}

/** A refusal of the API server. */
export function refusal(status: number, retryAfterMs?: number): ApiError {
  return new ApiError("Internal", `answered ${status}`, { status, retryAfterMs });
}
