import type { ApiClient } from "../kube/port.ts";
import { serviceAccounts } from "../kube/resources.ts";
import type { Pod, TokenRequest } from "../kube/types.ts";
import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { AgentError, hasCode, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { withBindingLag } from "./binding-lag.ts";
import { isServed } from "./discovery.ts";

/** What a projected source asks of a token. */
export interface TokenSpec {
  /** Empty: the API server's own. */
  audiences: readonly string[];
  expirationSeconds: number;
}

export interface Token {
  token: string;
  /** Unix ms. */
  expiresAtMs: number;
  /** Unix ms from which on `token()` asks for a new one. */
  refreshAtMs: number;
}

/** Service-account tokens bound to pods, kept in memory only. */
export interface TokenManager {
  /**
   * A token that is not due for renewal, or the old one while renewal fails and it has not expired.
   * Rejects with the API server's error if there is none to give.
   */
  token(pod: Pod, spec: TokenSpec, signal: AbortSignal): Promise<Token>;
  /** Forgets a pod's tokens. */
  forget(podUID: string): void;
  /** How many tokens are held, for introspection. */
  readonly size: number;
}

// A token is renewed when a fifth of its requested life is left, and at a day's age at the latest (kubelet's rules).
export const remainingLifeShare = 0.2;
export const tokenAgeMsMax = 24 * 3600 * 1000;
// Spreads the renewals of pods that started together, as whole seconds below this.
export const renewalJitterSeconds = 10;
// A failed renewal is not urgent: 20 % of the life is left.
export const renewalBackoff = { baseMs: 10_000, maxMs: 300_000, jitter: 0.5 };
// While the old token is good nobody waits longer than this for the new one: a server that hangs must not hold up the
// restart of a container. The answer is kept for the next caller.
export const renewalWaitMs = 1_000;
// Tokens of pods that went away unseen are dropped when they have expired; looked at no more often than this.
const sweepMs = 60_000;
// The request is small, and a pod waits for it.
const requestTimeoutMs = 10_000;

const noTokens = "the API server does not serve TokenRequests: it has no subresource serviceaccounts/token";

/** Unix ms at which a token should be renewed. `issuedAtMs` follows from what the server granted. Pure but for the jitter given. */
export function renewalTimeMs(expiresAtMs: number, lifeSeconds: number, jitterMs: number): number {
  const lifeMs = lifeSeconds * 1000;
  const issuedAtMs = expiresAtMs - lifeMs;
  return Math.min(issuedAtMs + tokenAgeMsMax, expiresAtMs - lifeMs * remainingLifeShare) - jitterMs;
}

interface Held {
  podUID: string;
  token: Token | undefined;
  failures: number;
  inFlight: Promise<Token> | undefined;
}

/** Requests tokens through `client`, one request at a time for each pod and token spec. */
export function createTokenManager(options: {
  client: ApiClient | undefined;
  clock: Clock;
  log: Logger;
  random?: () => number;
}): TokenManager {
  const { client, clock, log, random = Math.random } = options;
  const held = new Map<string, Held>();
  let sweptAtMs = clock.now();

  async function request(pod: Pod, spec: TokenSpec, signal: AbortSignal): Promise<Token> {
    const { name, namespace = "default", uid = "" } = pod.metadata;
    const account = pod.spec.serviceAccountName ?? "default";
    if (client === undefined) {
      throw new AgentError(
        "Unimplemented",
        `cannot request a token for ${namespace}/${account}: nodelet runs without an API server`,
      );
    }
    const body: TokenRequest = {
      apiVersion: "authentication.k8s.io/v1",
      kind: "TokenRequest",
      spec: {
        audiences: [...spec.audiences],
        expirationSeconds: spec.expirationSeconds,
        boundObjectRef: { apiVersion: "v1", kind: "Pod", name, uid },
      },
    };
    const key = { namespace, name: account };
    const options = { signal, timeoutMs: requestTimeoutMs };
    const ask = async () =>
      await client.createSubresource<TokenRequest, TokenRequest>(serviceAccounts, key, "token", body, options);
    try {
      const answer = await withBindingLag(ask, clock, signal);
      return readToken(answer, spec, `token for ${namespace}/${account}`);
    } catch (err) {
      if (hasCode(err, "NotFound") && !(await servesTokens(client, signal))) {
        throw new AgentError("Unimplemented", noTokens);
      }
      throw err;
    }
  }

  function readToken(answer: TokenRequest, spec: TokenSpec, what: string): Token {
    const { token, expirationTimestamp = "" } = answer.status ?? {};
    const expiresAtMs = Date.parse(expirationTimestamp);
    if (token === undefined || token === "" || Number.isNaN(expiresAtMs)) {
      throw new AgentError("Internal", `${what}: the API server answered without token or expirationTimestamp`);
    }
    const lifeSeconds = answer.spec?.expirationSeconds ?? spec.expirationSeconds;
    const jitterMs = Math.floor(random() * renewalJitterSeconds) * 1000;
    return { token, expiresAtMs, refreshAtMs: renewalTimeMs(expiresAtMs, lifeSeconds, jitterMs) };
  }

  async function renew(entry: Held, pod: Pod, spec: TokenSpec, signal: AbortSignal): Promise<Token> {
    try {
      entry.token = await request(pod, spec, signal);
      entry.failures = 0;
      return entry.token;
    } catch (err) {
      const old = entry.token;
      if (signal.aborted || old === undefined || clock.now() >= old.expiresAtMs) throw err;
      entry.failures += 1;
      const retryInMs = backoffMs(entry.failures, { ...renewalBackoff, random });
      log.warn(
        { pod: `${pod.metadata.namespace}/${pod.metadata.name}`, podUID: entry.podUID, err: messageOf(err), retryInMs },
        "service-account token was not renewed, the old one stays",
      );
      entry.token = { ...old, refreshAtMs: Math.min(clock.now() + retryInMs, old.expiresAtMs) };
      return entry.token;
    }
  }

  async function withPatience(owner: Held, renewal: Promise<Token>): Promise<Token> {
    const old = owner.token;
    if (old === undefined || clock.now() >= old.expiresAtMs) return renewal;
    const { promise: patience, resolve } = Promise.withResolvers<Token>();
    const retryAtMs = clock.now() + renewalBackoff.baseMs;
    const timer = clock.after(renewalWaitMs, () => resolve({ ...old, refreshAtMs: retryAtMs }));
    try {
      return await Promise.race([renewal, patience]);
    } finally {
      timer.cancel();
    }
  }

  function sweep(): void {
    const nowMs = clock.now();
    if (nowMs - sweptAtMs < sweepMs) return;
    sweptAtMs = nowMs;
    for (const [key, { token, inFlight }] of held) {
      if (inFlight === undefined && token !== undefined && token.expiresAtMs <= nowMs) held.delete(key);
    }
  }

  return {
    async token(pod, spec, signal) {
      sweep();
      const { uid: podUID = "", namespace } = pod.metadata;
      const key = JSON.stringify([
        podUID,
        namespace,
        pod.spec.serviceAccountName,
        spec.audiences,
        spec.expirationSeconds,
      ]);
      let entry = held.get(key);
      if (entry === undefined) {
        entry = { podUID, token: undefined, failures: 0, inFlight: undefined };
        held.set(key, entry);
      }
      const owner = entry;
      if (owner.token !== undefined && clock.now() < owner.token.refreshAtMs) return owner.token;
      owner.inFlight ??= renew(owner, pod, spec, signal).finally(() => {
        owner.inFlight = undefined;
        if (owner.token === undefined && held.get(key) === owner) held.delete(key);
      });
      return withPatience(owner, owner.inFlight);
    },
    forget(podUID) {
      for (const [key, entry] of held) if (entry.podUID === podUID) held.delete(key);
    },
    get size() {
      return held.size;
    },
  };
}

/** Tells a missing service account from a server that gives no tokens at all. In doubt it is the account. */
async function servesTokens(client: ApiClient, signal: AbortSignal): Promise<boolean> {
  return await isServed(client, "/api/v1", "serviceaccounts/token", signal).catch(() => true);
}
