import type { WebSocket } from "ws";
import type { Clock, Timer } from "../../lib/clock.ts";
import { HttpError, type Upgrade } from "../port.ts";

// One message; the reference's limit.
export const messageBytesMax = 32 << 20;
// How long the peer may take to answer our close, and to take what was written before.
export const closeTimeoutMs = 10_000;
// kubectl gives up when no pong came for 61 s. While we do not read, because the runtime takes nothing, its pings stay
// unread, too; a pong that nobody asked for (RFC 6455, section 5.5.3) tells it that we are here, and us if it is not.
export const pongIntervalMs = 5_000;

/** A WebSocket connection to a client. */
export interface Peer {
  /** Resolves when the socket has taken the message; rejects when the connection is over. */
  send(message: Buffer): Promise<void>;
  /** Says close and waits for the peer's, {@link closeTimeoutMs} at most. Never rejects. */
  close(code?: number, reason?: string): Promise<void>;
  /** Stops reading messages for a while; pongs go on. Messages that came already may still be told. */
  pause(): void;
  resume(): void;
  /** Ends at once. */
  terminate(): void;
  /** Settles once the connection is over, whoever ended it. Never rejects. */
  readonly closed: Promise<void>;
}

/**
 * Completes a WebSocket handshake with one subprotocol. Compression is off. Pings are answered by themselves.
 *
 * Rejects with HttpError if the request is no proper handshake.
 *
 * @param onMessage gets every message, whole and in order; it may be called before this resolves
 */
export async function acceptWebSocket(
  { request, socket, head, signal }: Upgrade,
  protocol: string,
  clock: Clock,
  onMessage: (message: Buffer, peer: Peer, isBinary: boolean) => void,
): Promise<Peer> {
  const { WebSocketServer } = await import("ws"); // loaded by those who use it
  const server = new WebSocketServer({
    noServer: true,
    clientTracking: false,
    perMessageDeflate: false,
    maxPayload: messageBytesMax,
  });
  // The library takes no subprotocol with a slash in it, as RFC 6455 does not; Kubernetes' tunnels have one. It gets to see
  // none, and the answer names ours.
  const { "sec-websocket-protocol": _offered, ...headers } = request.headers;
  const bare = Object.create(request, { headers: { value: headers } }) as typeof request;
  server.on("headers", (lines) => lines.push(`Sec-WebSocket-Protocol: ${protocol}`));
  const { promise, resolve, reject } = Promise.withResolvers<Peer>();
  server.on("wsClientError", (err) => reject(new HttpError(400, err.message)));
  socket.on("close", () => reject(new HttpError(400, "the client has gone")));
  server.handleUpgrade(bare, socket, head, (ws) => {
    const peer = peerOf(ws, clock, signal);
    ws.on("message", (data, isBinary) => onMessage(bytesOf(data), peer, isBinary));
    resolve(peer);
  });
  return await promise;
}

function peerOf(ws: WebSocket, clock: Clock, signal: AbortSignal): Peer {
  let timer: Timer | undefined;
  const terminate = () => ws.terminate();
  const { promise: closed, resolve } = Promise.withResolvers<void>();
  ws.on("error", terminate); // a malformed frame, or the socket: both end it
  ws.on("close", () => {
    timer?.cancel();
    signal.removeEventListener("abort", terminate);
    resolve();
  });
  signal.addEventListener("abort", terminate);
  if (signal.aborted) terminate();
  const pongs = () => {
    timer = clock.after(pongIntervalMs, () => {
      if (ws.readyState === ws.OPEN) ws.pong();
      pongs();
    });
  };
  return {
    closed,
    terminate,
    send: async (message) => {
      const sent = Promise.withResolvers<void>();
      ws.send(message, { binary: true }, (err) => (err ? sent.reject(err) : sent.resolve()));
      await sent.promise;
    },
    close: async (code = 1000, reason = "") => {
      ws.resume(); // to see the peer's close
      timer?.cancel();
      ws.close(code, reason);
      timer = clock.after(closeTimeoutMs, terminate);
      await closed;
    },
    pause: () => {
      if (ws.isPaused || ws.readyState !== ws.OPEN) return;
      ws.pause();
      pongs();
    },
    resume: () => {
      if (!ws.isPaused) return;
      timer?.cancel();
      ws.resume();
    },
  };
}

function bytesOf(data: Buffer | ArrayBuffer | Buffer[]): Buffer {
  if (Buffer.isBuffer(data)) return data;
  return Array.isArray(data) ? Buffer.concat(data) : Buffer.from(data);
}
