import type { Readable } from "node:stream";

/** The streams of a session, as its request asked for them. */
export interface WantedStreams {
  readonly stdin: boolean;
  readonly stdout: boolean;
  readonly stderr: boolean;
  readonly tty: boolean;
}

/**
 * A client's side of exec or attach, whatever protocol it speaks.
 *
 * ```
 *   client ══ SPDY streams or WebSocket messages ══ CommandChannels ══ command.ts ══ hijacked connection ══ dockerd
 * ```
 */
export interface CommandChannels {
  /** Ends when the client says so, and when it is lost. Undefined if it was not asked for. */
  readonly stdin: Readable | undefined;
  /** JSON objects with Width and Height. Undefined without a terminal. */
  readonly sizes: Readable | undefined;
  /** Aborts when the client is lost. */
  readonly gone: AbortSignal;
  /** Sends output. Resolves once it has left; what was not asked for or cannot be sent is dropped. Never rejects. */
  write(stream: "stdout" | "stderr", chunk: Buffer): Promise<void>;
  /** Says something that means nothing, so that a client that is lost is noticed while nothing is read from it. */
  probe(): void;
  /** Ends the session in order: the outputs, then the outcome, then the connection. Call once. Never rejects. */
  finish(outcome: SessionOutcome): Promise<void>;
}

/** How a session ended. */
export type SessionOutcome =
  | { kind: "success" }
  | { kind: "exited"; exitCode: number; command: readonly string[] }
  | { kind: "failed"; message: string };

// From this version on the outcome is a Status, always; before, it is a message, and none at all means success.
const statusVersionMin = 4;

/**
 * What the error stream says of an outcome.
 *
 * @param version of the remote command protocol: 1 to 5
 */
export function outcomeText(outcome: SessionOutcome, version: number): string {
  const status = statusOf(outcome);
  return version >= statusVersionMin ? JSON.stringify({ metadata: {}, ...status }) : (status.message ?? "");
}

interface Status {
  readonly status: "Success" | "Failure";
  readonly message?: string;
  readonly reason?: string;
  readonly details?: { readonly causes: readonly { readonly reason: string; readonly message: string }[] };
  readonly code?: number;
}

function statusOf(outcome: SessionOutcome): Status {
  switch (outcome.kind) {
    case "success":
      return { status: "Success" };
    case "exited": {
      const { exitCode, command } = outcome;
      if (exitCode === 0) return { status: "Success" };
      const what = `error executing command [${command.join(" ")}], exit code ${exitCode}`;
      return {
        status: "Failure",
        message: `command terminated with non-zero exit code: ${what}`,
        reason: "NonZeroExitCode",
        details: { causes: [{ reason: "ExitCode", message: String(exitCode) }] },
      };
    }
    case "failed": {
      const message = `Internal error occurred: ${outcome.message}`;
      return { status: "Failure", message, reason: "InternalError", code: 500 };
    }
    default:
      return outcome satisfies never;
  }
}
