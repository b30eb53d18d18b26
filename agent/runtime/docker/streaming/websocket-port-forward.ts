import { Duplex } from "node:stream";
import type { PortForwardOptions } from "./port-forward.ts";
import { forwardError, join } from "./port-forward.ts";
import { WebSocketChannels } from "./websocket-channels.ts";

/**
 * Forwards one connection to each port for a client that speaks WebSocket, until it leaves. Port i has channel 2i for its
 * bytes and 2i+1 for what goes wrong; the first message on each is the port's number. Never rejects.
 *
 * @param socket whose handshake is complete; it belongs to the session
 */
export async function serveWebSocketPortForward(
  socket: Duplex,
  ports: readonly number[],
  isBase64: boolean,
  options: PortForwardOptions,
): Promise<void> {
  const { idleMs, clock, signal, dial, sandboxID } = options;
  const inputs = ports.map((_, i) => 2 * i);
  const channels = new WebSocketChannels(socket, { isBase64, inputs, canClose: false, idleMs, clock });
  const onStop = () => channels.destroy();
  signal.addEventListener("abort", onStop);
  if (signal.aborted) onStop();
  const forwards = ports.map(async (port, i) => {
    const number = Buffer.alloc(2);
    number.writeUInt16LE(port);
    await channels.send(2 * i, number);
    await channels.send(2 * i + 1, number);
    try {
      await join(channelDuplex(channels, 2 * i), await dial(port, channels.gone));
    } catch (err) {
      await channels.send(2 * i + 1, Buffer.from(forwardError(port, sandboxID, err)));
    }
  });
  await Promise.all(forwards);
  signal.removeEventListener("abort", onStop);
  await channels.close();
}

/** A channel as a connection. It cannot end one way only: when the pod's side has ended, so has the client's. */
function channelDuplex(channels: WebSocketChannels, number: number): Duplex {
  const input = channels.input(number);
  let hasEnded = false;
  const end = () => {
    if (!hasEnded) duplex.push(null);
    hasEnded = true;
  };
  const duplex = new Duplex({
    allowHalfOpen: true,
    read: () => void input?.resume(),
    write: (chunk: Buffer, _encoding, done) => void channels.send(number, chunk).then(() => done()),
    final: (done) => {
      end();
      done();
    },
  });
  input?.on("data", (chunk: Buffer) => {
    if (!hasEnded && !duplex.push(chunk)) input.pause();
  });
  input?.on("end", end);
  channels.gone.addEventListener("abort", () => duplex.destroy(), { once: true });
  return duplex;
}
