import { addAbortSignal } from "node:stream";
import {
  Agent,
  type ClientRequest,
  type IncomingMessage,
  request as httpRequest,
  type RequestOptions,
} from "node:http";
import type Docker from "dockerode";
import { fieldsOf, parseJSON } from "./answers.ts";

/** What dockerode's modem hands to its `buildRequest`, as far as it is read here. */
interface DialContext {
  isStream?: boolean;
  hijack?: boolean;
  openStdin?: boolean;
  statusCodes: Readonly<Record<number, unknown>>;
}

type DialCallback = (err: Error | null, result: unknown) => void;

/** An answer of the daemon that is no success: its status and its own words. */
export class DockerHTTPError extends Error {
  override readonly name = "DockerHTTPError";
  readonly statusCode: number;

  constructor(statusCode: number, message: string) {
    super(message);
    this.statusCode = statusCode;
  }
}

// Two thousand containers list as some 4 MB. More than this is no answer of a daemon in its right mind.
const answerBytesMax = 64 << 20;

// Errors are a line or two; runc's own output is in some.
const errorBytesMax = 64 << 10;

/**
 * Replaces the way in which dockerode sends its requests. Its own never settles a call whose answer breaks off in the
 * middle, and formats each request with all that hangs on it for a debug log, also when nobody reads that.
 *
 * One connection per request: over a unix socket it costs a fraction of a millisecond, and none is left that a
 * restarted daemon has closed.
 *
 * @returns ends the connections that are open
 */
export function useOwnTransport(docker: Docker): () => void {
  const agent = new Agent({ keepAlive: false });
  Object.assign(docker.modem, {
    buildRequest: (options: RequestOptions, context: DialContext, body: unknown, done: DialCallback) =>
      send({ ...options, agent }, context, body, done),
  });
  return () => agent.destroy();
}

function send(options: RequestOptions, context: DialContext, body: unknown, done: DialCallback): void {
  let settled = false;
  const settle: DialCallback = (err, result) => {
    if (settled) return;
    settled = true;
    done(err, result);
  };
  let request: ClientRequest;
  try {
    request = httpRequest(options);
  } catch (err) {
    settle(err instanceof Error ? err : new Error(String(err)), null);
    return;
  }
  // Errors after the answer began are the answer's: its reader gets them.
  request.on("error", (err) => settle(err, null));
  if (context.hijack === true) {
    request.on("upgrade", (_response, socket, head) => {
      socket.on("error", ignore);
      if (head.length > 0) socket.unshift(head);
      if (settled) socket.destroy();
      else settle(null, socket);
    });
  }
  request.on("response", (response) => {
    if (options.signal !== undefined) addAbortSignal(options.signal, response);
    void receive(response, context).then(
      (result) => settle(null, result),
      (err: unknown) => settle(err instanceof Error ? err : new Error(String(err)), null),
    );
  });
  if (isReadable(body)) {
    body.on("error", (err: Error) => request.destroy(err));
    body.pipe(request);
  } else if (typeof body === "string" || Buffer.isBuffer(body)) {
    if (context.openStdin === true) request.write(body);
    else request.end(body);
  } else if (context.openStdin !== true) {
    request.end();
  }
}

/** The answer's stream where one was asked for, else its JSON, else its text as a Buffer. */
async function receive(response: IncomingMessage, context: DialContext): Promise<unknown> {
  const status = response.statusCode ?? 0;
  if (context.statusCodes[status] !== true) {
    throw new DockerHTTPError(status, errorText(await readAll(response, errorBytesMax, true), status));
  }
  if (context.isStream === true) {
    response.on("error", ignore);
    return response;
  }
  const bytes = await readAll(response, answerBytesMax, false);
  return parseJSON(bytes.toString("utf8")) ?? bytes;
}

/** A stream that breaks before its reader came is still no reason to end the process; the reader finds it destroyed. */
function ignore(): void {}

/** Rejects when the stream breaks off or is longer than `bytesMax`; `mayCut`: the beginning is enough. */
async function readAll(response: IncomingMessage, bytesMax: number, mayCut: boolean): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    chunks.push(chunk);
    length += chunk.length;
    if (length <= bytesMax) continue;
    if (mayCut) break;
    throw new Error(`the answer is longer than ${bytesMax} bytes`);
  }
  return Buffer.concat(chunks);
}

/** The daemon says `{"message": …}`; a proxy before it may say anything. */
function errorText(body: Buffer, status: number): string {
  const text = body.toString("utf8").trim();
  const said = fieldsOf(parseJSON(text))["message"];
  const message = typeof said === "string" ? said : text;
  return message === "" ? `HTTP status ${status}` : message;
}

function isReadable(body: unknown): body is NodeJS.ReadableStream {
  return typeof body === "object" && body !== null && "pipe" in body && !Buffer.isBuffer(body);
}
