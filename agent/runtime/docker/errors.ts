import { AgentError, type ErrorCode, hasCode, messageOf } from "../../lib/errors.ts";
import { DockerHTTPError } from "./transport.ts";

/**
 * The daemon's error in our words: `what` (what was tried, with the object's name), then what the daemon said.
 * An {@link AgentError} stays as it is.
 */
export function translateDockerError(err: unknown, what: string): AgentError {
  if (err instanceof AgentError) return err;
  const message = messageOf(err).trim();
  if (err instanceof DockerHTTPError) {
    return new AgentError(codeOfStatus(err.statusCode, message), `${what}: ${message}`, { cause: err });
  }
  if (isConnectionError(err)) {
    // "aborted" is Node.js's word for an answer that has no end, and reads as if we had wanted it so.
    const why = message === "aborted" ? "it broke off its answer" : message;
    return new AgentError("Unavailable", `${what}: the Docker daemon cannot be reached (${why})`, { cause: err });
  }
  return new AgentError("Internal", `${what}: ${message}`, { cause: err });
}

function codeOfStatus(status: number, message: string): ErrorCode {
  // Docker uses one status for "the name is taken" and for "not in this state".
  if (status === 409) return /is already in use/.test(message) ? "AlreadyExists" : "Conflict";
  if (status >= 500 && status !== 501 && status !== 503) return "Internal";
  return codes[status] ?? "Internal";
}

const codes: Readonly<Record<number, ErrorCode>> = {
  304: "Conflict", // already started, already stopped
  400: "Invalid",
  401: "Unauthorized",
  403: "Forbidden",
  404: "NotFound",
  429: "TooManyRequests",
  501: "Unimplemented",
  503: "Unavailable",
};

const connectionErrnos = new Set([
  "ECONNREFUSED",
  "ENOENT",
  "ECONNRESET",
  "EPIPE",
  "EACCES",
  "ENOTSOCK",
  "EAGAIN",
  "ERR_STREAM_PREMATURE_CLOSE",
  "ERR_STREAM_DESTROYED",
]);

function isConnectionError(err: unknown): boolean {
  if (!(err instanceof Error)) return false;
  const code = "code" in err ? String(err.code) : "";
  // What answers in no HTTP is no Docker daemon (any more): HPE_INVALID_CONSTANT and its like.
  return connectionErrnos.has(code) || code.startsWith("HPE_") || err.message === "socket hang up";
}

/** Stopping or removing what is not there is success, and so is starting or stopping what already is. */
export async function alreadyIsFine(call: Promise<unknown>): Promise<void> {
  try {
    await call;
  } catch (err) {
    if (hasCode(err, "NotFound")) return;
    if (hasCode(err, "Conflict") && isUnchanged(err)) return;
    throw err;
  }
}

/** The daemon answered 304: the object is in that state already. */
export function isUnchanged(err: unknown): boolean {
  return err instanceof AgentError && err.cause instanceof DockerHTTPError && err.cause.statusCode === 304;
}
