import type { IncomingMessage, ServerResponse } from "node:http";
import type { Http2ServerRequest, Http2ServerResponse } from "node:http2";
import { setTimeout as delay } from "node:timers/promises";
import { parse as parseYaml } from "yaml";
import { decodeKubernetes } from "./protobuf.ts";
import { ApiError, badRequest, failure, type Status } from "./status.ts";
import type { User } from "./types.ts";

export type Request = IncomingMessage | Http2ServerRequest;
export type Response = ServerResponse | Http2ServerResponse;

// --max-request-body-bytes of the API server.
const bodyBytesMax = 3 * 1024 * 1024;

/** How a fault makes a body slow or short. */
export interface BodyFault {
  chunkBytes: number;
  intervalMs: number;
  /** Break off after this many bytes. */
  cutAfterBytes?: number;
}

/** One request and its answer, over HTTP/1.1 or HTTP/2. */
export class Exchange {
  readonly method: string;
  readonly url: URL;
  readonly request: Request;
  readonly response: Response;
  /** Set after authentication. */
  user: User = { name: "system:anonymous", groups: ["system:unauthenticated"] };
  /** Status code of the answer, once there is one. */
  code = 0;
  bodyFault: BodyFault | undefined;
  readonly #gone = new AbortController();

  constructor(request: Request, response: Response) {
    this.request = request;
    this.response = response;
    this.method = request.method ?? "GET";
    this.url = new URL(request.url ?? "/", "https://test");
    response.on("close", () => this.#gone.abort());
    // A client that goes away mid-answer is its own business.
    response.on("error", () => this.#gone.abort());
    request.on("error", () => this.#gone.abort());
  }

  /** Aborts when the exchange is over, for whatever reason. */
  get gone(): AbortSignal {
    return this.#gone.signal;
  }

  header(name: string): string | undefined {
    const value = this.request.headers[name];
    return Array.isArray(value) ? value.join(",") : value;
  }

  query(name: string): string | undefined {
    return this.url.searchParams.get(name) ?? undefined;
  }

  /** The request's body; throws 413 when it is too large. */
  async readBody(): Promise<Buffer> {
    const chunks: Buffer[] = [];
    let size = 0;
    for await (const chunk of this.request) {
      const bytes = chunk as Buffer;
      size += bytes.length;
      if (size > bodyBytesMax) {
        throw new ApiError(413, "RequestEntityTooLarge", `Request entity too large: limit is ${bodyBytesMax}`);
      }
      chunks.push(bytes);
    }
    return Buffer.concat(chunks);
  }

  /** The body as JSON or YAML; undefined when it is empty. Throws 400 and 415. */
  async readObject(): Promise<unknown> {
    const bytes = await this.readBody();
    if (bytes.length === 0) return undefined;
    const type = (this.header("content-type") ?? "application/json").split(";")[0]?.trim() ?? "";
    if (type.includes("protobuf") || type.includes("cbor")) return readBinary(bytes, type);
    const body = bytes.toString("utf8");
    if (body.trim() === "") return undefined;
    try {
      return type.endsWith("yaml") ? parseYaml(body) : JSON.parse(body);
    } catch (err) {
      throw badRequest(`the object provided is unrecognized: ${err instanceof Error ? err.message : String(err)}`);
    }
  }

  /** Answers with a JSON text or value. */
  async send(code: number, body: unknown, headers: Record<string, string> = {}): Promise<void> {
    const text = typeof body === "string" ? body : JSON.stringify(body);
    await this.sendText(code, text, { "content-type": "application/json", ...headers });
  }

  async sendText(code: number, text: string | Buffer, headers: Record<string, string> = {}): Promise<void> {
    const bytes = typeof text === "string" ? Buffer.from(text) : text;
    // HTTP/2 and HTTP/1.1 responses have the same calls, but TypeScript sees two unrelated overload sets.
    const response = this.response as ServerResponse;
    if (response.destroyed || response.writableEnded) return;
    if (response.headersSent) {
      // Too late to say anything else: a proxied stream has begun.
      this.cut();
      return;
    }
    this.code = code;
    response.writeHead(code, { ...headers, "content-length": String(bytes.length) });
    if (this.bodyFault !== undefined) return this.#sendSlowly(bytes, this.bodyFault);
    response.end(this.method === "HEAD" ? undefined : bytes);
  }

  async sendStatus(status: Status): Promise<void> {
    const seconds = status.details?.retryAfterSeconds;
    await this.send(status.code, status, seconds === undefined ? {} : { "retry-after": String(seconds) });
  }

  /** Answers with what was thrown; anything but an ApiError is our own fault and says so. */
  async sendError(err: unknown): Promise<void> {
    if (err instanceof ApiError) return this.sendStatus(err.status);
    const message = err instanceof Error ? (err.stack ?? err.message) : String(err);
    await this.sendStatus(failure(500, "InternalError", `Internal error occurred: ${message}`));
  }

  /** Ends the exchange without an answer, or in the middle of one. */
  cut(): void {
    const { response } = this;
    if ("stream" in response) {
      response.stream?.close(8);
    } // CANCEL
    else {
      response.socket?.destroy();
    }
  }

  async #sendSlowly(bytes: Buffer, fault: BodyFault): Promise<void> {
    const response = this.response as ServerResponse;
    const end = Math.min(bytes.length, fault.cutAfterBytes ?? bytes.length);
    for (let at = 0; at < end && !this.gone.aborted; at += fault.chunkBytes) {
      response.write(bytes.subarray(at, Math.min(at + fault.chunkBytes, end)));
      await delay(fault.intervalMs, undefined, { signal: this.gone }).catch(() => {});
    }
    if (end < bytes.length) {
      this.cut();
    } else {
      response.end();
    }
  }
}

function readBinary(bytes: Buffer, type: string): unknown {
  const decoded = type.includes("protobuf") ? decodeKubernetes(bytes) : undefined;
  if (decoded !== undefined) return decoded;
  throw new ApiError(
    415,
    "UnsupportedMediaType",
    "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml",
  );
}
