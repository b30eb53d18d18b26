/**
 * What went wrong, in the words that callers branch on. Adapters (API server, CRI, exec) translate
 * foreign errors to one of these once, at their border.
 */
export type ErrorCode =
  | "NotFound"
  | "AlreadyExists"
  | "Conflict"
  | "Forbidden"
  | "Unauthorized"
  | "Invalid"
  | "Gone"
  | "TooManyRequests"
  | "Unavailable"
  | "Unimplemented"
  | "DeadlineExceeded"
  | "Canceled"
  | "Internal";

/** The one error class that crosses module borders. Branch on `code`, never on `message`. */
export class AgentError extends Error {
  override readonly name = "AgentError";
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** True if `err` is an {@link AgentError} with one of `codes`. */
export function hasCode(err: unknown, ...codes: ErrorCode[]): err is AgentError {
  return err instanceof AgentError && codes.includes(err.code);
}

/** For objects that may vanish between a list and a look: undefined for NotFound. */
export async function ifThere<T>(look: Promise<T>): Promise<T | undefined> {
  try {
    return await look;
  } catch (err) {
    if (hasCode(err, "NotFound")) return undefined;
    throw err;
  }
}

/** The message of anything thrown. */
export function messageOf(err: unknown): string {
  return err instanceof Error ? err.message : String(err);
}

/** The same error with words before its message that say what was tried; its code stays, Internal for foreign errors. */
export function withContext(err: unknown, what: string): AgentError {
  const code = err instanceof AgentError ? err.code : "Internal";
  return new AgentError(code, `${what}: ${messageOf(err)}`, { cause: err });
}

/** True if `err` is what an aborted `AbortSignal` makes calls reject with. */
export function isAbort(err: unknown): boolean {
  return err instanceof Error && (err.name === "AbortError" || hasCode(err, "Canceled"));
}
