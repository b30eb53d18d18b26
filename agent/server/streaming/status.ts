import type { StreamFault } from "../../lib/spdy/stream.ts";

/** The outcome of a session as the error channel tells it: a Kubernetes Status. */
interface SessionStatus {
  readonly status: "Success" | "Failure";
  readonly message?: string;
  readonly reason?: string;
  readonly code?: number;
}

/** How the runtime's error stream ended. */
export interface SessionEnd {
  /** What it said. */
  readonly text: string;
  /** The protocol chosen: from v4 on the text is a Status, before it is a bare message, and none means success. */
  readonly protocol: string;
  /** Why it ended, if not by a FIN. */
  readonly fault: StreamFault | undefined;
}

// Of what is no Status: enough to recognize it.
const textMax = 1000;

const statusProtocols = ["v4.channel.k8s.io", "v5.channel.k8s.io"];

/**
 * The Status for the client, as JSON. What the runtime said as a Status is handed on as it is: it holds the exit code.
 *
 * @param what "executing command in container" or "attaching to container"
 */
export function statusOf({ text, protocol, fault }: SessionEnd, what: string): string {
  const hasStatus = statusProtocols.includes(protocol);
  if (hasStatus && isStatus(text)) return text;
  if (fault === "connection lost") {
    return internalError(`error ${what}: the connection to the container runtime was lost`);
  }
  if (text !== "") return internalError(`error ${what}: ${text.slice(0, textMax)}`);
  if (hasStatus && fault !== undefined) {
    return internalError(`error ${what}: the container runtime ended the session without saying how`);
  }
  return JSON.stringify({ metadata: {}, status: "Success" } satisfies SessionStatus & { metadata: object });
}

/** A Status that says that this node failed, not the command. */
export function internalError(message: string): string {
  const status: SessionStatus = {
    status: "Failure",
    message: `Internal error occurred: ${message}`,
    reason: "InternalError",
    code: 500,
  };
  return JSON.stringify({ metadata: {}, ...status });
}

function isStatus(text: string): boolean {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null && "status" in value && typeof value.status === "string";
  } catch {
    return false;
  }
}
