import type { PodCertificateRequest } from "../kube/certificate-types.ts";

/**
 * Where the certificate of one podCertificate source stands, and what follows from what the API server says. Pure.
 *
 *   Initial ──ask──▶ Wait ──issued──▶ Fresh ──time──▶ ask ──▶ WaitRefresh ──issued──▶ Fresh
 *      ▲               │ gone for long                            │ gone for long: ask again
 *      └───────────────┘
 *   denied or failed while waiting: an end, the pod has to be replaced
 */
export type CertificateState =
  | { kind: "Initial" }
  | { kind: "Wait"; request: SentRequest }
  | { kind: "Fresh"; issued: Issued }
  | { kind: "WaitRefresh"; issued: Issued; request: SentRequest }
  | { kind: "Denied" | "Failed"; why: string };

/** A PodCertificateRequest of ours. */
export interface SentRequest {
  readonly name: string;
  readonly keyPem: string;
  /** Unix ms from which on it counts as lost if it is not to be seen. */
  readonly abandonAtMs: number;
}

/** A certificate that the pod has or may have. */
export interface Issued {
  readonly keyPem: string;
  readonly chainPem: string;
  /** Unix ms, as the signer wishes. */
  readonly beginRefreshAtMs: number;
  readonly notAfterMs: number;
  /** Unix ms at which we begin. */
  readonly refreshAtMs: number;
  /** What people were told of it already. */
  readonly told?: "overdue" | "expired";
}

/** A word for people, about the pod. */
export interface CertificateEvent {
  reason: "Denied" | "Failed" | "CertificateOverdueForRefresh" | "CertificateExpired";
  message: string;
}

export interface Decision {
  state: CertificateState;
  /** A new request should be sent now. */
  mustAsk: boolean;
  event?: CertificateEvent;
}

// A request that is not to be seen for this long after it was made was deleted (kubelet's, with the jitter).
export const abandonMs = 10 * 60_000;
export const abandonJitterMs = 5 * 60_000;
// Spreads the renewals of pods whose certificates were made together.
export const refreshJitterMs = 5 * 60_000;
// So long after a renewal should have begun something is wrong with the signer.
export const overdueMs = 10 * 60_000;

/**
 * What follows. The state in the answer is the one before anything is asked; see {@link asked} for the one after.
 * @param request the request of `state` as the API server has it; undefined: not to be seen, or none was sent
 * @param jitter 0..1
 */
export function decideCertificate(
  state: CertificateState,
  request: PodCertificateRequest | undefined,
  { nowMs, jitter }: { nowMs: number; jitter: number },
): Decision {
  switch (state.kind) {
    case "Initial":
      return { state, mustAsk: true };
    case "Denied":
    case "Failed":
      return { state, mustAsk: false };
    case "Fresh":
      return { ...withWord(state, nowMs), mustAsk: nowMs >= state.issued.refreshAtMs };
    case "Wait":
    case "WaitRefresh": {
      if (request === undefined) {
        const isLost = nowMs >= state.request.abandonAtMs;
        if (state.kind === "Wait") return { state: isLost ? { kind: "Initial" } : state, mustAsk: isLost };
        return { ...withWord(state, nowMs), mustAsk: isLost };
      }
      return answered(state, request, { nowMs, jitter });
    }
  }
}

/** The state once a request was sent. Pure. */
export function asked(state: CertificateState, request: SentRequest): CertificateState {
  return state.kind === "Fresh" || state.kind === "WaitRefresh"
    ? { kind: "WaitRefresh", issued: state.issued, request }
    : { kind: "Wait", request };
}

function answered(
  state: Extract<CertificateState, { request: SentRequest }>,
  { metadata, spec, status }: PodCertificateRequest,
  { nowMs, jitter }: { nowMs: number; jitter: number },
): Decision {
  const find = (type: string) =>
    status?.conditions?.find((condition) => condition.type === type && condition.status === "True");
  for (const kind of ["Denied", "Failed"] as const) {
    const condition = find(kind);
    if (condition === undefined) continue;
    const how = kind === "Denied" ? "was denied" : "failed";
    const { reason = "", message: text = "" } = condition;
    const because = [reason, text].filter((part) => part !== "").join(": ");
    const why = `PodCertificateRequest ${metadata.name} to signer ${spec.signerName} ${how}: ${because || "no reason given"}`;
    return { state: { kind, why }, mustAsk: false, event: { reason: kind, message: why } };
  }
  const { certificateChain = "", beginRefreshAt = "", notAfter = "" } = status ?? {};
  const [beginRefreshAtMs, notAfterMs] = [Date.parse(beginRefreshAt), Date.parse(notAfter)];
  if (find("Issued") === undefined || certificateChain === "") {
    return state.kind === "Wait" ? { state, mustAsk: false } : { ...withWord(state, nowMs), mustAsk: false };
  }
  if (Number.isNaN(beginRefreshAtMs) || Number.isNaN(notAfterMs)) {
    const why = `PodCertificateRequest ${metadata.name} was issued without beginRefreshAt or notAfter`;
    return { state: { kind: "Failed", why }, mustAsk: false, event: { reason: "Failed", message: why } };
  }
  const refreshAtMs = beginRefreshAtMs + Math.floor(jitter * refreshJitterMs);
  const { keyPem } = state.request;
  return {
    state: { kind: "Fresh", issued: { keyPem, chainPem: certificateChain, beginRefreshAtMs, notAfterMs, refreshAtMs } },
    mustAsk: false,
  };
}

/** People are told once that a renewal is late, and once that it is too late. */
function withWord(
  state: Extract<CertificateState, { issued: Issued }>,
  nowMs: number,
): { state: CertificateState; event?: CertificateEvent } {
  const { issued } = state;
  const say = (told: "overdue" | "expired", event: CertificateEvent) => ({
    state: { ...state, issued: { ...issued, told } },
    event,
  });
  if (nowMs >= issued.notAfterMs) {
    if (issued.told === "expired") return { state };
    const message = `the pod's certificate expired at ${new Date(issued.notAfterMs).toISOString()} and was not renewed`;
    return say("expired", { reason: "CertificateExpired", message });
  }
  if (nowMs < issued.beginRefreshAtMs + overdueMs || issued.told !== undefined) return { state };
  // A renewal of ours that has not begun because of its jitter is not late.
  if (state.kind === "Fresh" && nowMs < issued.refreshAtMs + overdueMs) return { state };
  const message = `the pod's certificate should have been renewed since ${new Date(issued.beginRefreshAtMs).toISOString()}`;
  return say("overdue", { reason: "CertificateOverdueForRefresh", message });
}
