import type { Clock } from "../../lib/clock.ts";
import { messageOf } from "../../lib/errors.ts";
import { type OnMessage, type Peer, serveWebSocket } from "../../lib/websocket/connection.ts";
import { handshakeAnswer } from "../../lib/websocket/handshake.ts";
import { HttpError, type Upgrade } from "../port.ts";

/**
 * Completes a WebSocket handshake (RFC 6455, version 13) with one subprotocol and without extensions.
 *
 * The usual library is not in use: it takes no subprotocol with a slash in it, which Kubernetes' tunnels have, and it
 * holds whole messages, 32 MiB for each session.
 *
 * Throws HttpError if the request is no proper handshake.
 */
export function acceptWebSocket(
  { request, socket, head, signal }: Upgrade,
  protocol: string,
  clock: Clock,
  onMessage: OnMessage,
): Peer {
  const answer = handshake();
  if (head.length > 0) socket.unshift(head);
  socket.write(answer);
  return serveWebSocket(socket, clock, signal, onMessage);

  function handshake(): string {
    try {
      return handshakeAnswer(request, protocol);
    } catch (err) {
      const isOther = request.headers["sec-websocket-version"] !== "13"; // such a client is told which one to speak
      throw new HttpError(400, messageOf(err), isOther ? { "Sec-WebSocket-Version": "13" } : {});
    }
  }
}
