import { type ClientHttp2Session, connect, constants } from "node:http2";
import { errnoText } from "../lib/errno-text.ts";
import { hostPort } from "./address.ts";
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
  const address = hostPort(podIP, grpc.port);
  const timeoutMs = probeTimeoutMs(probe);
  const deadline = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]);
  const session = connect(`http://${address}`);
  try {
    return judge(await check(session, grpc.service ?? "", deadline), grpc.service ?? "");
  } catch (err) {
    const why = `timeout: failed to connect service "${address}" within ${timeoutMs / 1_000}s`;
    const output = deadline.aborted ? `${why}: context deadline exceeded` : `${why}: ${errnoText(err)}`;
    return { kind: "failure", output };
  } finally {
    session.destroy();
  }
};

function judge({ grpcStatus, grpcMessage, body }: HealthAnswer, service: string): ProbeOutcome {
  if (grpcStatus === grpcUnimplemented) {
    return {
      kind: "failure",
      output: "this server does not implement the grpc health protocol (grpc.health.v1.Health)",
    };
  }
  if (grpcStatus !== 0) {
    return { kind: "failure", output: `service unhealthy (rpc error: code = ${grpcStatus} desc = ${grpcMessage})` };
  }
  const status = servingStatus(body);
  if (status === undefined) {
    return { kind: "failure", output: `health answer for ${JSON.stringify(service)} is no message` };
  }
  if (status === "SERVING") return { kind: "success", output: `service healthy` };
  return { kind: "failure", output: `service unhealthy (responded with ${JSON.stringify(status)})` };
}

const grpcUnimplemented = 12;

async function check(session: ClientHttp2Session, service: string, deadline: AbortSignal): Promise<HealthAnswer> {
  return await new Promise<HealthAnswer>((resolve, reject) => {
    const onAbort = () => session.destroy(new Error("context deadline exceeded"));
    if (deadline.aborted) onAbort();
    deadline.addEventListener("abort", onAbort, { once: true });
    const fail = (err: Error) => {
      deadline.removeEventListener("abort", onAbort);
      reject(err);
    };
    session.on("error", fail);
    session.on("close", () => fail(new Error("connection closed")));
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
    stream.on("response", (got) => {
      headers = { ...got };
    });
    stream.on("trailers", (got: object) => {
      headers = { ...headers, ...got };
    });
    stream.on("data", (chunk: Buffer) => {
      length += chunk.length;
      if (length <= answerBytesMax) chunks.push(chunk);
      else stream.destroy(new Error("health answer is too long"));
    });
    stream.on("error", fail);
    stream.on("end", () => {
      deadline.removeEventListener("abort", onAbort);
      const { "grpc-status": status, "grpc-message": message, ":status": http } = headers;
      if (status === undefined) {
        fail(new Error(`unexpected HTTP status code received from server: ${String(http)}`));
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
