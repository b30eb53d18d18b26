import { AgentError, type ErrorCode } from "../../lib/errors.ts";
import {
  detailsOf,
  type GRPCChannel,
  type GRPCStatus,
  openChannel as openGRPCChannel,
  statusNames,
  translateError as translateStatus,
} from "../../lib/grpc/channel.ts";

/** One channel to one socket, for the life of the process. */
export type CRIChannel = GRPCChannel;

/** `unix:///path`, `unix:/path` and a bare absolute path name a socket. Rejects everything else with Invalid. */
export function socketTarget(endpoint: string): string {
  const path = /^(?:unix:(?:\/\/)?)?(\/[^/].*)$/.exec(endpoint)?.[1];
  if (path === undefined) {
    throw new AgentError(
      "Invalid",
      `container runtime endpoint "${endpoint}" is not a unix socket: use unix:///path/to/socket`,
    );
  }
  return `unix://${path}`;
}

/** Makes the channel without connecting: the first call does that. */
export async function openChannel(endpoint: string): Promise<CRIChannel> {
  return await openGRPCChannel(socketTarget(endpoint), { translate: translateError });
}

/**
 * gRPC's error in our words. Some runtimes report a missing object or a passed exec time limit with the code Unknown
 * and a telling text, so that is read too.
 */
export function translateError(err: GRPCStatus, what: string): AgentError {
  const translated = translateStatus(err, what);
  const code = err.code === 2 ? codeOfText(detailsOf(err)) : undefined;
  return code === undefined ? translated : new AgentError(code, translated.message, { cause: err });
}

function codeOfText(details: string): ErrorCode | undefined {
  if (/: not found$|does not exist$/.test(details)) return "NotFound";
  if (/context deadline exceeded|timeout .*exceeded|timed out/.test(details)) return "DeadlineExceeded";
  return undefined;
}

/**
 * The text that people know for a gRPC error: only the description when the status says nothing (Unknown), else
 * `rpc error: code = NotFound desc = …`.
 */
export function statusText(err: GRPCStatus): string {
  return err.code === 2 ? err.details : `rpc error: code = ${statusNames[err.code] ?? err.code} desc = ${err.details}`;
}
