import type { Duplex } from "node:stream";
import { forEachChunk } from "../../lib/chunks.ts";
import type { Clock } from "../../lib/clock.ts";
import type { Peer } from "../../lib/websocket/connection.ts";
import { HttpError, type Upgrade } from "../port.ts";
import { headerOf, requestHead } from "./http-head.ts";
import { relayRefusal } from "./refusal.ts";
import { offeredTunnels, tunnelOf } from "./request.ts";
import { askForClient } from "./splice.ts";
import { acceptWebSocket } from "./websocket.ts";

// The WebSocket handshake is ours, that with the runtime is SPDY's.
const webSocketHeaders = [
  "connection",
  "upgrade",
  "origin",
  "sec-websocket-key",
  "sec-websocket-version",
  "sec-websocket-protocol",
  "sec-websocket-extensions",
  "x-stream-protocol-version",
];

/**
 * Carries a port-forward's SPDY connection, which the client packs into WebSocket messages, to the runtime.
 *
 * Rejects with HttpError before anything was written to the client.
 */
export async function serveTunnel(upgrade: Upgrade, url: string, clock: Clock): Promise<void> {
  const { request, socket: client } = upgrade;
  const offered = offeredTunnels(request);
  const { rawHeaders } = request;
  const ask = [
    ...["Connection", "Upgrade", "Upgrade", "SPDY/3.1"],
    ...offered.flatMap((protocol) => ["X-Stream-Protocol-Version", protocol]),
  ];
  const answer = await askForClient(upgrade, url, clock, (path) =>
    requestHead({ method: "POST", path, rawHeaders }, request.socket.remoteAddress, webSocketHeaders, ask),
  );
  if (answer.head.status !== 101) {
    await relayRefusal(answer, client, clock);
    return;
  }
  const runtime = answer.socket;
  try {
    const chosen = headerOf(answer.head.rawHeaders, "x-stream-protocol-version") ?? "";
    if (!offered.includes(chosen)) {
      throw new HttpError(
        400,
        `the container runtime chose the stream protocol "${chosen}", offered was ${offered.join(", ")}`,
      );
    }
    const peer = acceptWebSocket(upgrade, tunnelOf(chosen), clock, ({ payload, isBinary }, from, done) => {
      if (!isBinary) void from.close(1003, "want binary messages");
      if (!isBinary || runtime.destroyed) done();
      else if (!runtime.write(payload, done)) from.pause();
    });
    await carry(peer, runtime);
  } finally {
    runtime.destroy();
  }
}

/** Until either side ends; the client gets everything that the runtime sent before. */
async function carry(peer: Peer, runtime: Duplex): Promise<void> {
  runtime.on("drain", () => peer.resume());
  const lost = peer.lost.then(() => runtime.destroy());
  try {
    await forEachChunk(runtime, async (chunk) => await peer.send(chunk));
    await peer.close();
  } catch {
    await peer.close(1011, "the connection to the container runtime was lost");
  }
  await Promise.all([lost, peer.closed]);
}
