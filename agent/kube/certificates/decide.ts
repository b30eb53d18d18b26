import { backoffMs } from "../../lib/backoff.ts";

/** The pair in use, as far as decisions go. Instants are Unix ms. */
export interface CertificateFacts {
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  /** What it lacks of the wanted template; absent if it fits. */
  readonly mismatch?: string;
  /** When it is to be replaced. */
  readonly rotateAtMs: number;
}

export interface RotationInput {
  /** False while it is not known what to ask for. */
  readonly hasTemplate: boolean;
  readonly current: CertificateFacts | undefined;
  /** The pair in use was given for the start only. */
  readonly isForced: boolean;
}

/** What to do about a certificate. `why` is for people. */
export type RotationPlan = { kind: "request"; why: string } | { kind: "wait" } | { kind: "rest"; restMs: number };

// Replaced when 70 to 90 % of its life are over, so that nodes that joined together do not come back together.
const rotateShareMin = 0.7;
const rotateShareMax = 0.9;

/**
 * When a certificate is to be replaced, Unix ms. Pure.
 * @param share        0..1, drawn once for each certificate
 * @param obtainedAtMs when it was issued to us, if just now: signers that backdate by more than the certificate's life
 *                     would otherwise be asked again at once, and for ever
 */
export function rotationTimeMs(
  { notBeforeMs, notAfterMs }: Pick<CertificateFacts, "notBeforeMs" | "notAfterMs">,
  share: number,
  obtainedAtMs?: number,
): number {
  const part = rotateShareMin + (rotateShareMax - rotateShareMin) * share;
  const at = Math.round(notBeforeMs + (notAfterMs - notBeforeMs) * part);
  if (obtainedAtMs === undefined || at > obtainedAtMs) return at;
  return Math.round(obtainedAtMs + (notAfterMs - obtainedAtMs) * part);
}

/** Pure. */
export function decideRotation({ hasTemplate, current, isForced }: RotationInput, nowMs: number): RotationPlan {
  if (!hasTemplate) return { kind: "wait" };
  if (current === undefined) return { kind: "request", why: "there is none" };
  const { notAfterMs, mismatch, rotateAtMs } = current;
  if (nowMs >= notAfterMs) return { kind: "request", why: "it has expired" };
  if (mismatch !== undefined) return { kind: "request", why: mismatch };
  if (isForced) return { kind: "request", why: "it was given for the start only" };
  if (nowMs >= rotateAtMs) return { kind: "request", why: "it will expire" };
  return { kind: "rest", restMs: rotateAtMs - nowMs };
}

// The reference's: five attempts from 2 s on, doubling, then one every 32 s.
const retryBaseMs = 2_000;
const retryMaxMs = 32_000;
const retryJitter = 0.1;

/** Rest after the n-th attempt in a row that failed, n from 1. Pure but for `random`. */
export function attemptRetryMs(failures: number, random: () => number): number {
  return backoffMs(failures, { baseMs: retryBaseMs, maxMs: retryMaxMs }) * (1 + retryJitter * random());
}

export interface ExpiryInput {
  /** There is a certificate in use, and it is valid. */
  readonly isValid: boolean;
  /** There was one in use in this process, and it has expired. */
  readonly hasExpired: boolean;
  /** ms since there was a valid one, or since the start. */
  readonly withoutMs: number;
  /** The API server's last answer about certificates shows that it works, be it a refusal. */
  readonly isServerResponsive: boolean;
}

/** Whether an agent can go on without a client certificate. `why` is for people. */
export type ExpiryPlan = { kind: "fine" } | { kind: "warn"; why: string } | { kind: "exit"; why: string };

// The reference's: long enough for an approver, short enough for whoever lays down new credentials and restarts us.
export const exitWithoutMs = 5 * 60_000;

/** A new start may find new credentials; one that the server's absence makes necessary would find nothing. Pure. */
export function decideExpiry({ isValid, hasExpired, withoutMs, isServerResponsive }: ExpiryInput): ExpiryPlan {
  if (isValid) return { kind: "fine" };
  const why = hasExpired
    ? "the client certificate has expired"
    : `there has been no client certificate for ${Math.round(withoutMs / 60_000)} min`;
  if (!hasExpired && withoutMs < exitWithoutMs) return { kind: "fine" };
  return isServerResponsive ? { kind: "exit", why } : { kind: "warn", why };
}
