import { connect, createServer, type Server, type Socket } from "node:net";

/**
 * The TCP side of the server: listens on several addresses and splices each connection to the TLS server behind a
 * local socket. Standing in between, it can drop, silence and refuse connections without the TLS server's help.
 */
export class Front {
  readonly #backendPath: string;
  readonly #listeners: { host: string; port: number; server: Server | undefined }[] = [];
  readonly #pairs = new Set<{ outer: Socket; inner: Socket | undefined }>();
  #isHalfOpen = false;

  /** @param backendPath Unix socket of the TLS server */
  constructor(backendPath: string) {
    this.#backendPath = backendPath;
  }

  /** Adds an address and listens on it. Port 0 picks a free one, which is kept over pause and resume. */
  async listen(host: string, port: number): Promise<number> {
    const listener: { host: string; port: number; server: Server | undefined } = { host, port, server: undefined };
    await this.#open(listener);
    this.#listeners.push(listener);
    return listener.port;
  }

  /** Stops listening and resets what is open: from outside, the server is gone. */
  async close(): Promise<void> {
    const closing = this.#listeners.map(
      ({ server }) =>
        new Promise<void>((resolve) => (server === undefined ? resolve() : server.close(() => resolve()))),
    );
    for (const listener of this.#listeners) listener.server = undefined;
    this.dropConnections();
    await Promise.all(closing);
  }

  /** Listens again on all addresses after {@link close}. */
  async reopen(): Promise<void> {
    for (const listener of this.#listeners) {
      if (listener.server === undefined) await this.#open(listener);
    }
  }

  dropConnections(): void {
    for (const { outer, inner } of this.#pairs) {
      outer.resetAndDestroy();
      inner?.destroy();
    }
    this.#pairs.clear();
  }

  /** On: bytes stop in both directions and new connections lead nowhere. Off: they flow on from where they stopped. */
  setHalfOpen(isOn: boolean): void {
    if (this.#isHalfOpen === isOn) return;
    this.#isHalfOpen = isOn;
    for (const pair of this.#pairs) {
      if (isOn) {
        if (pair.inner === undefined) continue;
        pair.outer.unpipe(pair.inner).pause();
        pair.inner.unpipe(pair.outer).pause();
      } else if (pair.inner === undefined) {
        this.#connect(pair);
      } else {
        join(pair.outer, pair.inner);
      }
    }
  }

  async #open(listener: { host: string; port: number; server: Server | undefined }): Promise<void> {
    const server = createServer({ allowHalfOpen: true, noDelay: true, pauseOnConnect: true }, (outer) => {
      const pair: { outer: Socket; inner: Socket | undefined } = { outer, inner: undefined };
      this.#pairs.add(pair);
      outer.on("error", () => pair.inner?.destroy());
      outer.on("close", () => {
        pair.inner?.destroy();
        this.#pairs.delete(pair);
      });
      if (!this.#isHalfOpen) this.#connect(pair);
    });
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen({ host: listener.host, port: listener.port }, () => {
        server.off("error", reject);
        resolve();
      });
    });
    const address = server.address();
    if (typeof address === "object" && address !== null) listener.port = address.port;
    listener.server = server;
  }

  #connect(pair: { outer: Socket; inner: Socket | undefined }): void {
    const inner = connect({ path: this.#backendPath, allowHalfOpen: true });
    pair.inner = inner;
    inner.on("error", () => pair.outer.destroy());
    inner.on("close", () => pair.outer.destroySoon());
    join(pair.outer, inner);
  }
}

function join(outer: Socket, inner: Socket): void {
  outer.pipe(inner);
  inner.pipe(outer);
}
