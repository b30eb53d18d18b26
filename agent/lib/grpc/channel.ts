import type { CallOptions, ChannelCredentials, Client, ClientReadableStream, ServiceError } from "@grpc/grpc-js";
import { AgentError, type ErrorCode } from "../errors.ts";
import type { ProtoPackage } from "./proto.ts";

// CRI lists carry about 1.5 KB per container: gRPC's own 4 MiB would break near 2 700 of them. Kubelet: 16 MiB.
const receiveBytesMax = 16 * 1024 * 1024;

// Kubelet's CRI dial: first reconnect after 100 ms, at most 3 s apart.
const reconnectBaseMs = 100;
const reconnectMaxMs = 3_000;

export interface CallSettings {
  /** Deadline from now; Infinity: none. */
  timeoutMs: number;
  /** What was tried and on what object, for the error message: "start container 1234". */
  what: string;
  signal?: AbortSignal;
}

/** A channel to one socket, usable until it is closed. */
export interface GRPCChannel {
  /** Calls a unary method. Rejects with an `AgentError` whose cause is gRPC's error. */
  call<Response extends object>(
    proto: ProtoPackage,
    service: string,
    method: string,
    request: object,
    settings: CallSettings,
  ): Promise<Response>;
  /** Opens a server stream; resolves with how it ended, undefined if the server closed it without an error. */
  stream<Message extends object>(
    proto: ProtoPackage,
    service: string,
    method: string,
    request: object,
    onMessage: (message: Message) => void,
    signal: AbortSignal,
  ): Promise<AgentError | undefined>;
  /** Resolves once somebody answers on the socket, which is tried again and again. Rejects with Unavailable or Canceled. */
  connect(settings: CallSettings): Promise<void>;
  /** Calls that are under way go on to their end, new ones reject. */
  close(): void;
}

export interface ChannelOptions {
  /** gRPC's error in the callers' words; {@link translateError} unless given. */
  translate?: (err: GRPCStatus, what: string) => AgentError;
}

/**
 * Makes a channel without connecting: the first call does that.
 * @param target `unix:///path/of/socket`
 */
export async function openChannel(target: string, options: ChannelOptions = {}): Promise<GRPCChannel> {
  const { translate = translateError } = options;
  const grpc = await import("@grpc/grpc-js");
  const credentials: ChannelCredentials = grpc.credentials.createInsecure();
  const client: Client = new grpc.Client(target, credentials, {
    "grpc.max_receive_message_length": receiveBytesMax,
    "grpc.initial_reconnect_backoff_ms": reconnectBaseMs,
    "grpc.max_reconnect_backoff_ms": reconnectMaxMs,
    // Retries belong to the callers, and both of these have kept memory that long streams never gave back.
    "grpc.enable_retries": 0,
    "grpc.enable_channelz": 0,
    "grpc.enable_http_proxy": 0,
    "grpc.use_local_subchannel_pool": 1,
  });

  return {
    call: async <Response extends object>(
      proto: ProtoPackage,
      service: string,
      method: string,
      request: object,
      { timeoutMs, what, signal }: CallSettings,
    ) =>
      await new Promise<Response>((resolve, reject) => {
        if (signal?.aborted === true) {
          reject(new AgentError("Canceled", `${what}: canceled`));
          return;
        }
        const { path, requestSerialize, responseDeserialize } = proto.method(service, method);
        const options: CallOptions = timeoutMs === Number.POSITIVE_INFINITY ? {} : { deadline: Date.now() + timeoutMs };
        const onAbort = () => call.cancel();
        const call = client.makeUnaryRequest<object, object>(
          path,
          requestSerialize,
          responseDeserialize,
          request,
          options,
          (err, response) => {
            signal?.removeEventListener("abort", onAbort);
            if (err !== null) reject(translate(err, what));
            else resolve(response as Response); // the deserializer of this method made it
          },
        );
        signal?.addEventListener("abort", onAbort, { once: true });
      }),

    stream: async <Message extends object>(
      proto: ProtoPackage,
      service: string,
      method: string,
      request: object,
      onMessage: (message: Message) => void,
      signal: AbortSignal,
    ) =>
      await new Promise<AgentError | undefined>((resolve) => {
        if (signal.aborted) {
          resolve(new AgentError("Canceled", `${method}: canceled`));
          return;
        }
        const { path, requestSerialize, responseDeserialize } = proto.method(service, method);
        const stream: ClientReadableStream<object> = client.makeServerStreamRequest<object, object>(
          path,
          requestSerialize,
          responseDeserialize,
          request,
        );
        const onAbort = () => stream.cancel();
        let failure: AgentError | undefined;
        stream.on("data", (message: object) => onMessage(message as Message));
        stream.on("error", (err: ServiceError) => {
          failure = translate(err, method);
        });
        // `status` comes last, after any error, and exactly once.
        stream.on("status", () => {
          signal.removeEventListener("abort", onAbort);
          resolve(failure);
        });
        signal.addEventListener("abort", onAbort, { once: true });
      }),

    connect: async ({ timeoutMs, what, signal }) =>
      await new Promise<void>((resolve, reject) => {
        const onAbort = () => reject(new AgentError("Canceled", `${what}: canceled`));
        if (signal?.aborted === true) {
          onAbort();
          return;
        }
        signal?.addEventListener("abort", onAbort, { once: true });
        client.waitForReady(Date.now() + timeoutMs, (err) => {
          signal?.removeEventListener("abort", onAbort);
          if (err === undefined) resolve();
          else reject(new AgentError("Unavailable", `${what}: nobody answers within ${timeoutMs / 1_000} s`));
        });
      }),

    close: () => client.close(),
  };
}

/** The part of gRPC's errors that is read: the code's number and the peer's words. */
export interface GRPCStatus {
  code: number;
  details: string;
}

// gRPC status codes by number; the library's enum would make it a load-time import.
const errorCodes: Readonly<Record<number, ErrorCode>> = {
  1: "Canceled",
  3: "Invalid",
  4: "DeadlineExceeded",
  5: "NotFound",
  6: "AlreadyExists",
  7: "Forbidden",
  8: "TooManyRequests",
  9: "Conflict",
  12: "Unimplemented",
  14: "Unavailable",
  16: "Unauthorized",
};

/** Names of gRPC's status codes, by number. */
export const statusNames = [
  "OK",
  "Canceled",
  "Unknown",
  "InvalidArgument",
  "DeadlineExceeded",
  "NotFound",
  "AlreadyExists",
  "PermissionDenied",
  "ResourceExhausted",
  "FailedPrecondition",
  "Aborted",
  "OutOfRange",
  "Unimplemented",
  "Internal",
  "Unavailable",
  "DataLoss",
  "Unauthenticated",
] as const;

export type StatusName = (typeof statusNames)[number];

/** gRPC's error in our words: `what: DETAILS`. What has no code of its own is Internal. */
export function translateError(err: GRPCStatus, what: string): AgentError {
  return new AgentError(errorCodes[err.code] ?? "Internal", `${what}: ${detailsOf(err)}`, { cause: err });
}

/** The peer's words, or the name of the code if it had none. */
export function detailsOf({ code, details }: GRPCStatus): string {
  return details === "" ? (statusNames[code] ?? `gRPC status ${code}`) : details;
}
