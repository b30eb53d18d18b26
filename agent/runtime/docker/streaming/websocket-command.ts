import type { Duplex, Readable } from "node:stream";
import type { Clock } from "../../../lib/clock.ts";
import { type CommandChannels, outcomeText, type SessionOutcome, type WantedStreams } from "./channels.ts";
import { closeTimeoutMs } from "./spdy-command.ts";
import { WebSocketChannels } from "./websocket-channels.ts";

const channel = { stdin: 0, stdout: 1, stderr: 2, error: 3, resize: 4 } as const;

// From this version on a client can end its input.
const closeVersionMin = 5;

export interface WebSocketCommandOptions {
  readonly wanted: WantedStreams;
  readonly version: number;
  readonly isBase64: boolean;
  readonly idleMs: number;
  readonly clock: Clock;
}

/** The channels of exec or attach on a connection whose handshake is complete. The socket belongs to the session. */
export async function acceptWebSocketCommand(
  socket: Duplex,
  options: WebSocketCommandOptions,
): Promise<CommandChannels> {
  const { wanted, version, isBase64, idleMs, clock } = options;
  const inputs = [...(wanted.stdin ? [channel.stdin] : []), ...(wanted.tty ? [channel.resize] : [])];
  const canClose = version >= closeVersionMin;
  const channels = new WebSocketChannels(socket, { isBase64, inputs, canClose, idleMs, clock });
  const hasStderr = wanted.stderr && !wanted.tty;
  const lowest = wanted.stdout ? channel.stdout : hasStderr ? channel.stderr : channel.error;
  await channels.send(lowest, Buffer.alloc(0)); // says that we are ready
  return new WebSocketCommand(channels, { ...options, wanted: { ...wanted, stderr: hasStderr } });
}

class WebSocketCommand implements CommandChannels {
  readonly stdin: Readable | undefined;
  readonly sizes: Readable | undefined;
  readonly gone: AbortSignal;
  readonly #channels: WebSocketChannels;
  readonly #options: WebSocketCommandOptions;

  constructor(channels: WebSocketChannels, options: WebSocketCommandOptions) {
    this.#channels = channels;
    this.#options = options;
    this.gone = channels.gone;
    this.stdin = channels.input(channel.stdin);
    this.sizes = channels.input(channel.resize);
  }

  async write(stream: "stdout" | "stderr", chunk: Buffer): Promise<void> {
    if (this.#options.wanted[stream]) await this.#channels.send(channel[stream], chunk);
  }

  probe(): void {
    // A connection that is not read sends pongs by itself.
  }

  async finish(outcome: SessionOutcome): Promise<void> {
    const late = this.#options.clock.after(closeTimeoutMs, () => this.#channels.destroy());
    const text = outcomeText(outcome, this.#options.version);
    if (text !== "") await this.#channels.send(channel.error, Buffer.from(text));
    late.cancel(); // closing has its own
    await this.#channels.close();
  }
}
