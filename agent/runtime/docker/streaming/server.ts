import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { Duplex } from "node:stream";
import { AgentError, messageOf } from "../../../lib/errors.ts";
import { handshakeAnswer } from "../../../lib/websocket/handshake.ts";
import type { StreamingRequest } from "../../port.ts";
import type { CommandChannels } from "./channels.ts";
import { serveAttach, serveExec, type SessionDeps } from "./command.ts";
import type { SandboxDialer, SandboxDialers } from "./dialers.ts";
import { servePortForward } from "./port-forward.ts";
import { type Choice, chooseProtocol } from "./protocols.ts";
import { acceptSpdyCommand } from "./spdy-command.ts";
import { OneTimeTokens } from "./tokens.ts";
import { acceptWebSocketCommand } from "./websocket-command.ts";
import { serveWebSocketPortForward } from "./websocket-port-forward.ts";

// CRI's streaming server ends a session in which nothing was said for so long.
export const sessionIdleMsDefault = 4 * 60 * 60 * 1000;

export interface DockerStreamingOptions extends SessionDeps {
  readonly dialers: SandboxDialers;
  /** streamingConnectionIdleTimeout in ms; {@link sessionIdleMsDefault} unless given. */
  readonly idleMs?: number;
}

/** Serves exec, attach and port-forward as a CRI runtime's streaming server does, with Docker behind it. */
export interface DockerStreaming {
  /**
   * The URL of one session, good for one use within a minute. Throws AgentError: Invalid for a request that no session can
   * have, TooManyRequests if too many wait.
   */
  url(request: StreamingRequest): string;
  /** Ends every session. Resolves once they are over. Idempotent. */
  close(): Promise<void>;
}

/** Listens on a port of loopback that the system chooses. Rejects if there is none. */
export async function startDockerStreaming(options: DockerStreamingOptions): Promise<DockerStreaming> {
  const { idleMs = sessionIdleMsDefault, dialers, ...deps } = options;
  const tokens = new OneTimeTokens<StreamingRequest>(deps.clock);
  const stop = new AbortController();
  const sessions = new Set<Promise<void>>();
  const sockets = new Set<Duplex>();
  const context: Context = { deps, dialers, idleMs, stop: stop.signal };

  const server = createServer((request, response) => {
    answerPlain(request, response, tokens);
  });
  server.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket)).on("error", () => {});
  });
  server.on("upgrade", (request, socket, head) => {
    if (head.length > 0) socket.unshift(head);
    const session = serveUpgrade(request, socket, takeRequest(request, tokens), context)
      .catch(() => {})
      .finally(() => {
        sessions.delete(session);
        socket.destroy();
      });
    sessions.add(session);
  });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject).listen(0, "127.0.0.1", resolve);
  await promise;
  server.unref(); // it serves as long as the agent runs and holds nobody up
  const { port } = server.address() as AddressInfo;
  return {
    url: (request) => {
      validate(request);
      if (stop.signal.aborted) throw new AgentError("Canceled", "the streaming server has ended");
      return `http://127.0.0.1:${port}/${request.kind}/${tokens.issue(request)}`;
    },
    close: async () => {
      stop.abort();
      tokens.clear();
      for (const socket of sockets) socket.destroy();
      await Promise.all([new Promise((done) => void server.close(done)), ...sessions]);
    },
  };
}

interface Context {
  readonly deps: SessionDeps;
  readonly dialers: SandboxDialers;
  readonly idleMs: number;
  /** Aborts when the server stops. */
  readonly stop: AbortSignal;
}

function validate(request: StreamingRequest): void {
  if (request.kind === "portforward") return;
  const { stdin, stdout, stderr, tty } = request;
  if (tty && stderr) throw new AgentError("Invalid", "tty and stderr cannot both be true");
  if (!stdin && !stdout && !stderr) throw new AgentError("Invalid", "one of stdin, stdout, or stderr must be set");
}

function takeRequest(
  { url = "", method = "" }: IncomingMessage,
  tokens: OneTimeTokens<StreamingRequest>,
): StreamingRequest | undefined {
  const [, kind, token = ""] = /^\/(exec|attach|portforward)\/([\w-]+)(?:\?.*)?$/.exec(url) ?? [];
  if (kind === undefined || (method !== "GET" && method !== "POST")) return undefined;
  const request = tokens.take(token);
  return request?.kind === kind ? request : undefined;
}

/** For requests that do not ask for an upgrade. */
function answerPlain(
  request: IncomingMessage,
  response: ServerResponse,
  tokens: OneTimeTokens<StreamingRequest>,
): void {
  request.resume();
  const isKnown = takeRequest(request, tokens) !== undefined;
  response.writeHead(isKnown ? 400 : 404, { "Content-Type": "text/plain; charset=utf-8", Connection: "close" });
  response.end(isKnown ? "unable to upgrade: missing upgrade headers in request\n" : "404 page not found\n");
}

async function serveUpgrade(
  request: IncomingMessage,
  socket: Duplex,
  asked: StreamingRequest | undefined,
  context: Context,
): Promise<void> {
  if (asked === undefined) {
    await refuse(socket, { status: 404, message: "404 page not found" });
    return;
  }
  const choice = chooseProtocol(asked.kind, request);
  if (choice.kind === "refused") await refuse(socket, choice);
  else if (asked.kind === "portforward") await forward(request, socket, asked, choice, context);
  else await command(request, socket, asked, choice, context);
}

async function command(
  request: IncomingMessage,
  socket: Duplex,
  asked: Extract<StreamingRequest, { kind: "exec" | "attach" }>,
  choice: Exclude<Choice, { kind: "refused" }>,
  { deps, idleMs, stop }: Context,
): Promise<void> {
  if (!(await upgrade(request, socket, choice))) return;
  const { clock } = deps;
  const onStop = () => socket.destroy();
  stop.addEventListener("abort", onStop);
  if (stop.aborted) onStop();
  try {
    const options = { wanted: asked, version: choice.version, idleMs, clock };
    const channels: CommandChannels =
      choice.kind === "spdy"
        ? await acceptSpdyCommand(socket, options)
        : await acceptWebSocketCommand(socket, { ...options, isBase64: choice.isBase64 });
    await (asked.kind === "exec" ? serveExec(asked, channels, deps) : serveAttach(asked, channels, deps));
  } finally {
    stop.removeEventListener("abort", onStop);
  }
}

async function forward(
  request: IncomingMessage,
  socket: Duplex,
  { sandboxID, ports }: Extract<StreamingRequest, { kind: "portforward" }>,
  choice: Exclude<Choice, { kind: "refused" }>,
  { deps, dialers, idleMs, stop }: Context,
): Promise<void> {
  let dialer: SandboxDialer;
  try {
    dialer = await dialers.open(sandboxID, stop);
  } catch (err) {
    await refuse(socket, { status: 500, message: `error forwarding ports to sandbox ${sandboxID}: ${messageOf(err)}` });
    return;
  }
  try {
    if (choice.kind === "websocket" && ports.length === 0) {
      await refuse(socket, { status: 400, message: 'query parameter "port" is required' });
      return;
    }
    if (!(await upgrade(request, socket, choice))) return;
    const options = { dial: dialer.dial, sandboxID, idleMs, clock: deps.clock, signal: stop };
    if (choice.kind === "spdy") await servePortForward(socket, options);
    else await serveWebSocketPortForward(socket, ports, choice.isBase64, options);
  } finally {
    dialer.release();
  }
}

/** Completes the upgrade. Resolves with false if the client was refused after all */
async function upgrade(
  request: IncomingMessage,
  socket: Duplex,
  choice: Exclude<Choice, { kind: "refused" }>,
): Promise<boolean> {
  try {
    socket.write(choice.kind === "websocket" ? handshakeAnswer(request, choice.protocol) : spdyAnswer(choice.protocol));
    return true;
  } catch (err) {
    await refuse(socket, { status: 400, message: messageOf(err) });
    return false;
  }
}

function spdyAnswer(protocol: string): string {
  const lines = ["Connection: Upgrade", "Upgrade: SPDY/3.1", `X-Stream-Protocol-Version: ${protocol}`];
  return `HTTP/1.1 101 Switching Protocols\r\n${lines.join("\r\n")}\r\n\r\n`;
}

const reasons: Readonly<Record<number, string>> = {
  400: "Bad Request",
  403: "Forbidden",
  404: "Not Found",
  500: "Internal Server Error",
};

/** Resolves once the answer has left. */
async function refuse(
  socket: Duplex,
  { status, message, accepted = [] }: { status: number; message: string; accepted?: readonly string[] },
): Promise<void> {
  const body = Buffer.from(`${message}\n`);
  const headers = ["Content-Type: text/plain; charset=utf-8", `Content-Length: ${body.length}`, "Connection: close"];
  headers.push(...accepted.map((protocol) => `X-Accepted-Stream-Protocol-Versions: ${protocol}`));
  socket.write(`HTTP/1.1 ${status} ${reasons[status]}\r\n${headers.join("\r\n")}\r\n\r\n`, "latin1");
  socket.resume(); // closing with bytes unread would reset the connection under the answer
  await new Promise<void>((resolve) => void socket.once("close", resolve).end(body, resolve));
}
