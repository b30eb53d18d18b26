import { addAbortListener } from "node:events";
import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants, type Settings } from "node:http2";
import type { Socket } from "node:net";
import type { Clock, Timer } from "../lib/clock.ts";
import { AgentError } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import {
  type Connection,
  type HttpRequest,
  type HttpResponse,
  type TransportLimits,
  type TransportStage,
  transportError,
} from "./connection.ts";

// Until the server's SETTINGS say otherwise; kube-apiserver's own default.
const streamsMaxDefault = 100;
// How much one watch, and all of them, may have on the way to us: large lists would crawl with HTTP/2's 64 KiB.
const streamWindowBytes = 1 << 20;
const connectionWindowBytes = 4 << 20;
// Node refuses new streams when a session holds more than this (MB); its 10 MB is little for a hundred watches.
const sessionMemoryMB = 64;

interface Http2Options {
  key: string;
  url: URL;
  socket: Socket;
  clock: Clock;
  log: Logger;
  limits: TransportLimits;
  /** Called once, when the session has ended. */
  onClose(): void;
}

/**
 * One HTTP/2 session. It ends by GOAWAY (running streams finish), by an error, or when a ping stays unanswered:
 *
 *     open ── GOAWAY, retire() ──▶ draining ── last stream ends ──▶ closed
 *       └──── error, no pong, destroy() ─────────────────────────────▲
 */
export class Http2Connection implements Connection {
  readonly key: string;
  readonly #options: Http2Options;
  readonly #session: ClientHttp2Session;
  #isDraining = false;
  #streamsMax = streamsMaxDefault;
  #active = 0;
  #heardAtMs: number;
  #idleTimer: Timer | undefined;
  #pongTimer: Timer | undefined;

  constructor(options: Http2Options) {
    const { key, url, socket, clock, log, limits } = options;
    this.key = key;
    this.#options = options;
    this.#heardAtMs = clock.monotonic();
    this.#session = connect(url.origin, {
      createConnection: () => socket,
      settings: { enablePush: false, initialWindowSize: streamWindowBytes },
      maxSessionMemory: sessionMemoryMB,
    });
    this.#session.on("connect", () => this.#session.setLocalWindowSize(connectionWindowBytes));
    this.#session.on("remoteSettings", (settings: Settings) => {
      this.#streamsMax = settings.maxConcurrentStreams ?? streamsMaxDefault;
    });
    // "close" follows and does the work; the streams carry the error to whoever waits.
    this.#session.on("error", (err: Error) => log.debug({ err: err.message }, "API server connection failed"));
    this.#session.on("goaway", () => {
      this.#isDraining = true; // Node closes the session once the streams that the server still serves have ended
    });
    this.#session.on("close", () => {
      this.#isDraining = true;
      this.#idleTimer?.cancel();
      this.#pongTimer?.cancel();
      options.onClose();
    });
    this.#idleTimer = clock.after(limits.pingIdleMs, () => this.#onIdle());
  }

  /**
   * Resolves when the server has said what it takes, which is the first thing it sends: before that, a hundred watches
   * could be queued behind a limit that we do not know. Rejects with TransportError.
   */
  async ready(): Promise<void> {
    const { url, clock, limits } = this.#options;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const fail = (what: string) => reject(transportError(url, "HTTP/2 settings", what, "connect"));
    this.#session.once("remoteSettings", () => resolve());
    this.#session.once("close", () => fail("the server closed the connection"));
    const timer = clock.after(limits.handshakeMs, () => {
      fail(`nothing heard within ${limits.handshakeMs} ms`);
      this.destroy(new Error("no HTTP/2 settings"));
    });
    await promise.finally(() => timer.cancel());
  }

  get isUsable(): boolean {
    return !this.#isDraining && !this.#session.closed && !this.#session.destroyed;
  }

  get free(): number {
    return Math.max(0, this.#streamsMax - this.#active);
  }

  async send(request: HttpRequest, path: string, headers: Record<string, string | string[]>): Promise<HttpResponse> {
    const { url, clock, limits } = this.#options;
    let stream: ClientHttp2Stream;
    try {
      const pseudo = { ":method": request.method, ":path": path };
      stream = this.#session.request({ ...pseudo, ...headers }, { endStream: request.body === undefined });
    } catch (err) {
      this.#isDraining = true;
      throw transportError(url, "request", err, "refused");
    }
    this.#active += 1;
    const suspect = request.isWatch === true ? undefined : clock.after(limits.suspectMs, () => this.#ping());
    const { promise, resolve, reject } = Promise.withResolvers<HttpResponse>();
    const abort = addAbortListener(request.signal, () => {
      reject(new AgentError("Canceled", "the call was canceled"));
      stream.close(constants.NGHTTP2_CANCEL);
    });
    stream.on("response", (answer) => {
      suspect?.cancel();
      this.#heard();
      const body = this.#body(stream, request.signal);
      resolve({
        status: answer[":status"] ?? 0,
        headers: answer,
        body,
        close: () => stream.close(constants.NGHTTP2_CANCEL),
      });
    });
    stream.on("error", (err) => reject(transportError(url, "request", err, stageOf(stream))));
    stream.on("close", () => {
      this.#active -= 1;
      suspect?.cancel();
      abort[Symbol.dispose]();
      reject(transportError(url, "request", "the connection ended before the answer", stageOf(stream)));
    });
    if (request.body !== undefined) stream.end(request.body);
    return promise;
  }

  retire(): void {
    this.#isDraining = true;
    this.#session.close();
  }

  destroy(err: Error): void {
    this.#isDraining = true;
    if (!this.#session.destroyed) this.#session.destroy(err);
  }

  async *#body(stream: ClientHttp2Stream, signal: AbortSignal): AsyncGenerator<Buffer, void, void> {
    const { url } = this.#options;
    try {
      for await (const chunk of stream) {
        this.#heard();
        yield chunk as Buffer; // a stream without an encoding yields buffers
      }
    } catch (err) {
      if (signal.aborted) throw new AgentError("Canceled", "the call was canceled", { cause: err });
      throw transportError(url, "answer", err, "broken");
    }
    if (signal.aborted) throw new AgentError("Canceled", "the call was canceled");
    // A reset with code CANCEL or NO_ERROR looks like a regular end to readers.
    if (stream.aborted) throw transportError(url, "answer", "the server broke off the stream", "broken");
  }

  #heard(): void {
    this.#heardAtMs = this.#options.clock.monotonic();
  }

  #onIdle(): void {
    const { clock, limits } = this.#options;
    const quietMs = clock.monotonic() - this.#heardAtMs;
    if (quietMs >= limits.pingIdleMs) this.#ping();
    const restMs = quietMs >= limits.pingIdleMs ? limits.pingIdleMs : limits.pingIdleMs - quietMs;
    if (!this.#session.destroyed) this.#idleTimer = clock.after(restMs, () => this.#onIdle());
  }

  #ping(): void {
    const { clock, limits, log, url } = this.#options;
    if (this.#pongTimer !== undefined || this.#session.destroyed) return;
    this.#pongTimer = clock.after(limits.pingTimeoutMs, () => {
      log.warn({ server: url.origin }, "API server does not answer pings, connecting anew");
      this.destroy(new Error(`no answer to a ping within ${limits.pingTimeoutMs} ms`));
    });
    this.#session.ping((err) => {
      this.#pongTimer?.cancel();
      this.#pongTimer = undefined;
      if (err === null) this.#heard();
    });
  }
}

function stageOf(stream: ClientHttp2Stream): TransportStage {
  return stream.rstCode === constants.NGHTTP2_REFUSED_STREAM ? "refused" : "broken";
}
