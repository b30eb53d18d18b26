import type { IncomingMessage } from "node:http";
import type { Socket } from "node:net";
import { TLSSocket } from "node:tls";
import type { Clock } from "../../lib/clock.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { MetricsRegistry } from "../../lib/metrics.ts";
import type { UserInfo } from "../port.ts";
import { createCertificateAuthenticator } from "./certificate-authenticator.ts";
import type { ClientCA } from "./client-ca.ts";
import { bearerToken, stripCredentials, webSocketToken } from "./credentials.ts";
import { createReviewer, type ReviewerOptions } from "./review.ts";
import { createTokenAuthenticator } from "./token-review.ts";

/** Finds out who sends a request. */
export interface Authenticator {
  /**
   * Resolves with the user, after the request's credentials were taken out of its headers; or with undefined, for which
   * the answer is 401. Never rejects: whatever was wrong with a credential is nobody's business but the log's.
   */
  authenticate(request: IncomingMessage, socket: TLSSocket | Socket): Promise<{ user: UserInfo } | undefined>;
}

export interface AuthenticatorOptions {
  /** `authentication.x509.clientCAFile`, read; undefined: client certificates do not count. */
  readonly clientCA: Pick<ClientCA, "roots"> | undefined;
  /** Feature gate AllowParsingUserUIDFromCertAuth. */
  readonly readsCertificateUID: boolean;
  /** `authentication.webhook`; undefined: bearer tokens do not count. `api` is the API server as the node. */
  readonly tokens: { readonly api: ReviewerOptions["api"]; readonly cacheTTLMs: number } | undefined;
  /** `authentication.anonymous.enabled` */
  readonly allowsAnonymous: boolean;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: MetricsRegistry;
  /** Ends what is under way. */
  readonly stop: AbortSignal;
  /** Between 0 and 1; for tests. */
  readonly random?: () => number;
}

const anonymous: UserInfo = {
  username: "system:anonymous",
  uid: "",
  groups: ["system:unauthenticated"],
  extra: {},
};
const authenticatedGroup = "system:authenticated";

/** Looks at one kind of credential: undefined if the request has none. Rejects if it has one that does not count. */
type Method = (request: IncomingMessage, socket: TLSSocket | Socket) => Promise<UserInfo | undefined>;

/**
 * Makes the authenticator that the configuration asks for. Throws AgentError Invalid when there is no way in at all.
 *
 * Client certificate, bearer token and WebSocket token are tried in this order until one is good. Anonymous access is for
 * requests without credentials: a bad one is refused even where none would do.
 */
export function createAuthenticator(options: AuthenticatorOptions): Authenticator {
  const { allowsAnonymous, log } = options;
  const methods = [...certificateMethods(options), ...tokenMethods(options)];
  if (methods.length === 0 && !allowsAnonymous) {
    throw new AgentError("Invalid", "no method of authentication is configured");
  }
  return {
    authenticate: async (request, socket) => {
      let isRefused = false;
      for (const method of methods) {
        try {
          const user = await method(request, socket);
          if (user === undefined) continue;
          stripCredentials(request);
          return { user: withAuthenticatedGroup(user) };
        } catch (err) {
          isRefused = true;
          log.debug({ from: socket.remoteAddress, err: messageOf(err) }, "a credential does not count");
        }
      }
      return allowsAnonymous && !isRefused ? { user: anonymous } : undefined;
    },
  };
}

function certificateMethods(options: AuthenticatorOptions): Method[] {
  const { clientCA, readsCertificateUID, clock, metrics } = options;
  if (clientCA === undefined) return [];
  const authenticate = createCertificateAuthenticator({ clientCA, readsUID: readsCertificateUID, clock, metrics });
  return [async (_, socket) => (socket instanceof TLSSocket ? authenticate(socket) : undefined)];
}

function tokenMethods(options: AuthenticatorOptions): Method[] {
  const { tokens, clock, log, metrics, stop, random } = options;
  if (tokens === undefined) return [];
  const { api, cacheTTLMs } = tokens;
  const review = createReviewer("authn", { api, clock, log, metrics, ...(random === undefined ? {} : { random }) });
  const check = createTokenAuthenticator({ review, cacheTTLMs, clock, metrics, stop });
  return [bearerToken, webSocketToken].map((tokenOf) => async (request, socket) => {
    const token = tokenOf(request);
    return token === undefined ? undefined : check(token, socket.remoteAddress ?? "");
  });
}

/** Adds the group of everybody who is known, unless what is there says already which it is. */
function withAuthenticatedGroup(user: UserInfo): UserInfo {
  const isSettled =
    user.username === anonymous.username ||
    user.groups.some((group) => group === authenticatedGroup || anonymous.groups.includes(group));
  return isSettled ? user : { ...user, groups: [...user.groups, authenticatedGroup] };
}
