import { AgentError, type ErrorCode } from "../lib/errors.ts";

/** The API server's own refusal, as opposed to not having been reached. */
export class ApiError extends AgentError {
  readonly status: number;
  /** What the server asked us to wait before trying again, in ms. */
  readonly retryAfterMs: number | undefined;
  /** Reasons that the server gave beside the main one, such as NamespaceTerminating. */
  readonly causes: readonly string[];

  constructor(
    code: ErrorCode,
    message: string,
    details: { status: number; retryAfterMs?: number | undefined; causes?: readonly string[] },
  ) {
    super(code, message);
    this.status = details.status;
    this.retryAfterMs = details.retryAfterMs;
    this.causes = details.causes ?? [];
  }
}

/** The parts of metav1.Status that say what went wrong. */
interface Status {
  code?: number;
  reason?: string;
  message?: string;
  details?: { retryAfterSeconds?: number; causes: string[] };
}

// metav1.StatusReason values; what is not listed is decided by the HTTP code.
const codeOfReason: Record<string, ErrorCode> = {
  NotFound: "NotFound",
  AlreadyExists: "AlreadyExists",
  Conflict: "Conflict",
  Forbidden: "Forbidden",
  Unauthorized: "Unauthorized",
  Invalid: "Invalid",
  BadRequest: "Invalid",
  RequestEntityTooLarge: "Invalid",
  Gone: "Gone",
  Expired: "Gone",
  TooManyRequests: "TooManyRequests",
  ServerTimeout: "Unavailable",
  ServiceUnavailable: "Unavailable",
  StorageReadError: "Unavailable",
  Timeout: "DeadlineExceeded",
  MethodNotAllowed: "Unimplemented",
  NotAcceptable: "Unimplemented",
  UnsupportedMediaType: "Unimplemented",
  InternalError: "Internal",
};

const codeOfStatus: Record<number, ErrorCode> = {
  400: "Invalid",
  401: "Unauthorized",
  403: "Forbidden",
  404: "NotFound",
  405: "Unimplemented",
  406: "Unimplemented",
  409: "Conflict",
  410: "Gone",
  413: "Invalid",
  415: "Unimplemented",
  422: "Invalid",
  429: "TooManyRequests",
  502: "Unavailable",
  503: "Unavailable",
  504: "DeadlineExceeded",
};

// What is quoted of an answer that is not a Status, such as a proxy's HTML page.
const quotedCharactersMax = 200;

/**
 * The error for an answer that is not a success. Pure.
 * @param what    the call, for messages: `GET /api/v1/…`
 * @param status  HTTP status, or the `code` of a Status object that came as a watch event
 * @param body    the answer's text
 * @param retryAfter the Retry-After header
 */
export function apiError(what: string, status: number, body: string, retryAfter: string | undefined): ApiError {
  const parsed = parseStatus(body);
  const code = codeOfReason[parsed?.reason ?? ""] ?? codeOfStatus[status] ?? "Internal";
  const text = parsed?.message ?? body.slice(0, quotedCharactersMax).replaceAll(/\s+/g, " ").trim();
  const message = text === "" ? `${what}: the API server answered ${status}` : text;
  const seconds = retryAfterSeconds(retryAfter) ?? parsed?.details?.retryAfterSeconds;
  const retryAfterMs = seconds === undefined ? undefined : seconds * 1000;
  return new ApiError(code, message, { status, retryAfterMs, causes: parsed?.details?.causes ?? [] });
}

/** The error in a watch's ERROR event. Pure. */
export function watchError(what: string, object: unknown): ApiError {
  const status = asStatus(object);
  return apiError(what, status?.code ?? 500, JSON.stringify(status ?? {}), undefined);
}

function parseStatus(body: string): Status | undefined {
  try {
    return asStatus(JSON.parse(body));
  } catch {
    return undefined;
  }
}

function asStatus(value: unknown): Status | undefined {
  if (typeof value !== "object" || value === null) return undefined;
  const { kind, code, reason, message, details } = value as Record<string, unknown>;
  if (kind !== undefined && kind !== "Status") return undefined;
  return {
    ...(typeof code === "number" ? { code } : {}),
    ...(typeof reason === "string" ? { reason } : {}),
    ...(typeof message === "string" && message !== "" ? { message } : {}),
    ...(typeof details === "object" && details !== null ? { details: asDetails({ ...details }) } : {}),
  };
}

function asDetails({ retryAfterSeconds: wait, causes }: Record<string, unknown>): NonNullable<Status["details"]> {
  const reasons = (Array.isArray(causes) ? causes : []).map((cause: { reason?: unknown } | null) => cause?.reason);
  return {
    ...(typeof wait === "number" && wait > 0 ? { retryAfterSeconds: wait } : {}),
    causes: reasons.filter((reason) => typeof reason === "string"),
  };
}

/** Kubernetes sends whole seconds only; the HTTP-date form is ignored. */
function retryAfterSeconds(header: string | undefined): number | undefined {
  return header !== undefined && /^\d{1,6}$/.test(header.trim()) ? Number(header) : undefined;
}
