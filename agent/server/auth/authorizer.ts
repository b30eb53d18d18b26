import { createHash } from "node:crypto";
import type { Clock } from "../../lib/clock.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import { isObject } from "../../lib/json.ts";
import type { Logger } from "../../lib/log.ts";
import type { UserInfo } from "../port.ts";
import { ExpiringCache, SharedLookups } from "./lookups.ts";
import { createReviewer, type ReviewerOptions } from "./review.ts";

// The reference's limits: answers kept, and the length from which on attributes are not worth keeping.
export const decisionsMax = 8192;
export const attributeBytesMax = 10_000;

const reviewPath = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

/** Says who may do what with this node. */
export interface Authorizer {
  /**
   * Whether `user` may use `verb` on any of the node's `subresources`. They are tried in order, and the first that is
   * allowed ends the search. Rejects with AuthorizationError when one could not be decided, or as `signal` makes it.
   */
  authorize(
    user: UserInfo,
    verb: string,
    subresources: readonly string[],
    signal?: AbortSignal,
  ): Promise<"allowed" | "denied">;
}

/** The question could not be answered. `subresource` is the one that was asked about. */
export class AuthorizationError extends AgentError {
  readonly subresource: string;

  constructor(subresource: string, cause: unknown) {
    super("Unavailable", `cannot find out about access to nodes/${subresource}: ${messageOf(cause)}`, { cause });
    this.subresource = subresource;
  }
}

export interface AuthorizerOptions {
  /** `authorization.mode` */
  readonly mode: "AlwaysAllow" | "Webhook";
  readonly nodeName: string;
  /** The API server as the node; Webhook needs it. */
  readonly api: ReviewerOptions["api"] | undefined;
  /** `authorization.webhook.cacheAuthorizedTTL` */
  readonly authorizedTTLMs: number;
  /** `authorization.webhook.cacheUnauthorizedTTL` */
  readonly unauthorizedTTLMs: number;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: ReviewerOptions["metrics"];
  /** Ends what is under way. */
  readonly stop: AbortSignal;
  /** Between 0 and 1; for tests. */
  readonly random?: () => number;
}

/** Makes the authorizer that the configuration asks for. Throws AgentError Invalid when it cannot work. */
export function createAuthorizer(options: AuthorizerOptions): Authorizer {
  const { mode, nodeName, api, authorizedTTLMs, unauthorizedTTLMs, clock, log, metrics, stop, random } = options;
  if (mode === "AlwaysAllow") return { authorize: async () => "allowed" };
  if (api === undefined) {
    throw new AgentError("Invalid", "authorization.mode Webhook needs an API server; set --kubeconfig, or AlwaysAllow");
  }
  const review = createReviewer("authz", { api, clock, log, metrics, ...(random === undefined ? {} : { random }) });
  const decisions = new ExpiringCache<"allowed" | "denied">(clock, decisionsMax);
  const lookups = new SharedLookups<"allowed" | "denied">({ what: "access reviews", clock, stop });

  const decide = async (user: UserInfo, verb: string, subresource: string): Promise<"allowed" | "denied"> => {
    const spec = accessReviewSpec(user, verb, nodeName, subresource);
    const key = createHash("sha256").update(JSON.stringify(spec)).digest("base64");
    const known = decisions.get(key);
    if (known !== undefined) return known;
    // By user: who is known but allowed nothing holds up only himself.
    return lookups.get(key, user.username, async (signal) => {
      const body = { apiVersion: "authorization.k8s.io/v1", kind: "SubjectAccessReview", spec };
      const decision = readAccessReview(await review(reviewPath, body, signal));
      if (isWorthKeeping(spec)) {
        decisions.set(key, decision, decision === "allowed" ? authorizedTTLMs : unauthorizedTTLMs);
      }
      return decision;
    });
  };

  return {
    authorize: async (user, verb, subresources, signal) => {
      for (const subresource of subresources) {
        let decision: "allowed" | "denied";
        try {
          decision = await unlessAborted(decide(user, verb, subresource), signal);
        } catch (err) {
          throw new AuthorizationError(subresource, err);
        }
        if (decision === "allowed") return "allowed";
      }
      return "denied";
    },
  };
}

/** The part of a SubjectAccessReview that asks. */
export interface AccessReviewSpec {
  readonly user: string;
  readonly uid?: string;
  readonly groups?: readonly string[];
  readonly extra?: Readonly<Record<string, readonly string[]>>;
  readonly resourceAttributes: Readonly<Record<"verb" | "version" | "resource" | "subresource" | "name", string>>;
}

/** The question whether `user` may use `verb` on a subresource of a node. Pure. */
export function accessReviewSpec(
  { username, uid, groups, extra }: UserInfo,
  verb: string,
  nodeName: string,
  subresource: string,
): AccessReviewSpec {
  return {
    user: username,
    ...(uid === "" ? {} : { uid }),
    ...(groups.length === 0 ? {} : { groups }),
    ...(Object.keys(extra).length === 0 ? {} : { extra }),
    resourceAttributes: { verb, version: "v1", resource: "nodes", subresource, name: nodeName },
  };
}

/** Reads a SubjectAccessReview's answer. Pure. Throws AgentError Internal for an answer that is no review. */
export function readAccessReview(answer: unknown): "allowed" | "denied" {
  const status = isObject(answer) ? answer["status"] : undefined;
  if (!isObject(status) || typeof status["allowed"] !== "boolean") {
    throw new AgentError("Internal", "the API server's access review has no status");
  }
  return status["allowed"] && status["denied"] !== true ? "allowed" : "denied";
}

function isWorthKeeping({ resourceAttributes }: AccessReviewSpec): boolean {
  return Object.values(resourceAttributes).reduce((sum, text) => sum + Buffer.byteLength(text), 0) < attributeBytesMax;
}

/** What `work` resolves with; it goes on for others when `signal` aborts and this rejects. */
async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return work;
  const aborted = Promise.withResolvers<never>();
  const onAbort = () => aborted.reject(signal.reason);
  if (signal.aborted) onAbort();
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([work, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
