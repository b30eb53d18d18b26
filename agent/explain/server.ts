import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { ignoreAbort } from "../lib/loop.ts";
import { answerPod, answerPods, type ExplainSource } from "./answers.ts";
import { socketPathOf } from "./protocol.ts";
import { listenPrivately } from "./socket.ts";

export interface ExplainServerOptions extends ExplainSource {
  rootDir: string;
  clock: Clock;
  log: Logger;
}

// People ask, one at a time; a script that forgets to hang up gets no more than this.
export const connectionsMax = 16;
// A request is one short line.
export const requestTimeoutMs = 5_000;
const headerBytesMax = 4_096;
// After which it is tried again to listen: another agent may have ended, or somebody mended the directory.
export const listenRetryMs = 30_000;
// How often it is looked whether the socket is still there: whoever cleans up the directory may take it away.
export const socketCheckMs = 30_000;

/**
 * Answers what is going on with the node's pods, on a socket that only root can open. Runs until `signal` aborts. Never
 * rejects: pods do not need it.
 */
export async function serveExplanations(options: ExplainServerOptions, signal: AbortSignal): Promise<void> {
  const { rootDir, clock, log } = options;
  const path = socketPathOf(rootDir);
  let said = "";
  while (!signal.aborted) {
    try {
      await listenUntil(options, path, signal);
      said = "";
    } catch (err) {
      if (messageOf(err) !== said) {
        log.warn({ err: messageOf(err), retryInMs: listenRetryMs }, "nodelet explain will find no answer");
      }
      said = messageOf(err);
      await clock.sleep(listenRetryMs, signal).catch(ignoreAbort);
    }
  }
}

/** Listens until `signal` aborts, or until the socket is not where people look for it. */
async function listenUntil(options: ExplainServerOptions, path: string, signal: AbortSignal): Promise<void> {
  const { clock, log } = options;
  const limits = { maxHeaderSize: headerBytesMax, requestTimeout: requestTimeoutMs, headersTimeout: requestTimeoutMs };
  const server = createServer(limits, (request, response) => {
    void answer(options, request, response).catch((err: unknown) => {
      log.warn({ err: messageOf(err), url: request.url }, "question about pods not answered");
      response.destroy();
    });
  });
  server.maxConnections = connectionsMax;
  const socket = await listenPrivately(server, path);
  log.debug({ path }, "answering nodelet explain");
  const broken = new AbortController();
  server.on("error", (err) => broken.abort(err));
  const over = AbortSignal.any([signal, broken.signal]);
  try {
    while (!over.aborted) {
      await clock.sleep(socketCheckMs, over).catch(() => {}); // why it is over is seen below
      if (over.aborted || (await socket.isInPlace())) continue;
      log.info({ path }, "the socket of nodelet explain was taken away, making it again");
      return;
    }
    if (!signal.aborted) broken.signal.throwIfAborted();
  } finally {
    const closed = new Promise<void>((resolve) => server.close(() => resolve()));
    server.closeAllConnections();
    await closed;
    await socket.remove();
  }
}

async function answer(source: ExplainSource, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const [, root, namespace, name, ...rest] = (request.url ?? "").split("/").map(decode);
  if (request.method !== "GET") return send(response, 405, { message: "only GET is answered" });
  if (root === "pods" && namespace === undefined) return send(response, 200, await answerPods(source));
  if (root !== "pods" || namespace === undefined || name === undefined || rest.length > 0) {
    return send(response, 404, { message: "there is /pods and /pods/NAMESPACE/NAME" });
  }
  send(response, 200, answerPod(source, namespace, name));
}

function send(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { "content-type": "application/json", connection: "close" });
  response.end(JSON.stringify(body));
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
