import { type ClientHttp2Session, connect, constants } from "node:http2";
import { errnoText } from "../lib/errno-text.ts";
import { messageOf } from "../lib/errors.ts";
import { handlerHost, hostPort } from "./address.ts";
import { withDeadline } from "./deadline.ts";
import { probeUserAgent } from "./http.ts";
import type { ProbeOutcome, Prober } from "./port.ts";
import { probeTimeoutMs } from "./spec.ts";

// An answer of the health service is 2 bytes behind a 5 byte prefix; nobody needs more.
const answerBytesMax = 4 * 1024;
// grpc.health.v1.HealthCheckResponse.ServingStatus
const statuses = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

interface HealthAnswer {
  grpcStatus: number;
  grpcMessage: string;
  body: Buffer;
}

/** A server whose health service says SERVING is good. Plain text, one connection for each run. */
export const probeGRPC: Prober = async ({ grpc, ...probe }, { podIP }, signal) => {
  if (grpc === undefined) return { kind: "error", output: "missing GRPC handler" };
  let address: string;
  try {
    address = hostPort(handlerHost(undefined, podIP), grpc.port);
  } catch (err) {
    return { kind: "error", output: messageOf(err) };
  }
  const timeoutMs = probeTimeoutMs(probe);
  const { service = "" } = grpc;
  return await withDeadline({ timeoutMs, signal }, async (deadline) => {
    const session = connect(`http://${address}`);
    const onAbort = () => session.destroy();
    deadline.addEventListener("abort", onAbort, { once: true });
    if (deadline.aborted) onAbort();
    try {
      return judge(await check(session, service), service);
    } catch (err) {
      const output = deadline.aborted
        ? `timeout: no answer from health service at "${address}" within ${timeoutMs / 1_000}s`
        : `error: failed to connect service at "${address}": ${errnoText(err)}`;
      return { kind: "failure", output };
    } finally {
      deadline.removeEventListener("abort", onAbort);
      session.destroy();
    }
  });
};

// google.rpc.Code
const unimplemented = 12;

function judge({ grpcStatus, grpcMessage, body }: HealthAnswer, service: string): ProbeOutcome {
  if (grpcStatus === unimplemented) {
    const output = `error: this server does not implement the grpc health protocol (grpc.health.v1.Health): ${grpcMessage}`;
    return { kind: "failure", output };
  }
  if (grpcStatus !== 0) {
    const output = `error: health rpc probe failed: rpc error: code = ${grpcStatus} desc = ${grpcMessage}`;
    return { kind: "failure", output };
  }
  const status = servingStatus(body);
  if (status === undefined) {
    return { kind: "failure", output: `error: health answer for service ${JSON.stringify(service)} is no message` };
  }
  if (status === "SERVING") return { kind: "success", output: "service healthy" };
  return { kind: "failure", output: `service unhealthy (responded with ${JSON.stringify(status)})` };
}

async function check(session: ClientHttp2Session, service: string): Promise<HealthAnswer> {
  return await new Promise<HealthAnswer>((resolve, reject) => {
    const closed = () => reject(new Error("connection closed"));
    session.on("error", reject);
    session.on("close", closed);
    const stream = session.request({
      [constants.HTTP2_HEADER_METHOD]: "POST",
      [constants.HTTP2_HEADER_PATH]: "/grpc.health.v1.Health/Check",
      "content-type": "application/grpc",
      "user-agent": probeUserAgent,
      te: "trailers",
    });
    const chunks: Buffer[] = [];
    let length = 0;
    let headers: Record<string, unknown> = {};
    const add = (got: object) => {
      headers = { ...headers, ...got };
    };
    stream.on("response", add);
    stream.on("trailers", add);
    stream.on("data", (chunk: Buffer) => {
      length += chunk.length;
      if (length <= answerBytesMax) chunks.push(chunk);
      else stream.destroy(new Error("health answer is too long"));
    });
    // A stream whose connection could not be made tells why in its cause.
    stream.on("error", (err: Error) => reject(err.cause instanceof Error ? err.cause : err));
    stream.on("close", closed);
    stream.on("end", () => {
      const { "grpc-status": status, "grpc-message": message, ":status": http } = headers;
      if (status === undefined) {
        reject(new Error(`unexpected HTTP status code received from server: ${String(http)}`));
        return;
      }
      resolve({
        grpcStatus: Number(status),
        grpcMessage: typeof message === "string" ? decodeMessage(message) : "",
        body: Buffer.concat(chunks),
      });
    });
    stream.end(frame(request(service)));
  });
}

// HealthCheckRequest { string service = 1; }
function request(service: string): Buffer {
  const text = Buffer.from(service, "utf8");
  if (text.length === 0) return text;
  return Buffer.concat([Buffer.from([0x0a, ...varint(text.length)]), text]);
}

function varint(value: number): number[] {
  return value < 0x80 ? [value] : [(value & 0x7f) | 0x80, ...varint(value >>> 7)];
}

function frame(message: Buffer): Buffer {
  const prefix = Buffer.alloc(5); // not compressed, then the length
  prefix.writeUInt32BE(message.length, 1);
  return Buffer.concat([prefix, message]);
}

// HealthCheckResponse { ServingStatus status = 1; }, where 0 is left out.
function servingStatus(body: Buffer): string | undefined {
  if (body.length < 5 || body[0] !== 0) return undefined;
  const message = body.subarray(5, 5 + body.readUInt32BE(1));
  if (message.length === 0) return statuses[0];
  return message[0] === 0x08 ? (statuses[message[1] ?? 0] ?? String(message[1])) : undefined;
}

// grpc-message is percent-encoded; a broken one is shown as it came.
function decodeMessage(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
