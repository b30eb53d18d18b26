import type { ErrorCode } from "../../lib/errors.ts";
import { detailsOf, type GRPCStatus, type StatusName, statusNames, translateError } from "../../lib/grpc/channel.ts";
import type { ExpansionFailure } from "../expand-plan.ts";
import { CSIError } from "./port.ts";

// After these nobody knows what the driver did or still does (CSI specification, "Timeouts"): kubelet's list.
const uncertain: readonly StatusName[] = [
  "Canceled",
  "DeadlineExceeded",
  "Unavailable",
  "ResourceExhausted",
  "Aborted",
];

// Where CSI's meaning of a code is nearer to another word of ours than gRPC's.
const ownCodes: Partial<Record<StatusName, ErrorCode>> = {
  FailedPrecondition: "Conflict",
  OutOfRange: "Invalid",
  Aborted: "Unavailable", // an operation on the same volume is pending
  ResourceExhausted: "Unavailable",
};

/** A driver's refusal: `what: rpc error: code = NotFound desc = DETAILS`, the words that people know. Pure. */
export function csiError(err: GRPCStatus, what: string): CSIError {
  const status = statusNames[err.code];
  const code = (status === undefined ? undefined : ownCodes[status]) ?? translateError(err, what).code;
  const isFinal = status !== undefined && !uncertain.includes(status);
  const message = `${what}: rpc error: code = ${status ?? err.code} desc = ${detailsOf(err)}`;
  return new CSIError(code, message, { status, isFinal, cause: err });
}

/** What it means that a driver has not expanded a volume. Pure. */
export function expansionFailure(err: unknown): ExpansionFailure {
  if (!(err instanceof CSIError) || !err.isFinal) return "unfinished";
  switch (err.status) {
    case "FailedPrecondition":
      return "in use";
    case "InvalidArgument":
    case "OutOfRange":
    case "NotFound":
      return "infeasible";
    default:
      return "failed";
  }
}
