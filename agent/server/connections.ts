import type { Socket } from "node:net";
import { trustedHeaderBytesMax, untrustedConnectionsMax, untrustedHeaderBytesMax } from "./limits.ts";

/** A connection to one listener, from accept to close. */
export interface Connection {
  readonly socket: Socket;
  /** Tells the connections of one listener from those of others that share their bounds. */
  readonly listener: object | undefined;
  readonly source: string;
  isTrusted: boolean;
  /** Bytes that came since the last complete header. */
  headerBytes: number;
  /** Bytes of headers that are complete, of requests that have not been answered yet. */
  waitingBytes: number;
  /** Requests that came and have not been answered to the end. A stream that left HTTP counts until it is closed. */
  requests: number;
  leftHttp: boolean;
  /** Settles when the handlers of all requests so far have ended. */
  served: Promise<void>;
}

export interface ConnectionLimits {
  readonly connectionsMax: number;
  readonly headerBytesMax: number;
  readonly trustedHeaderBytesMax: number;
}

/**
 * The connections of one listener, or of several together. They come untrusted; one becomes trusted when somebody with a credential is allowed
 * something on it, however little. Untrusted ones are bounded in number, and both kinds in the bytes of the headers that
 * they have in memory. At the bound of connections the oldest of the address that has most is closed, so that neither a
 * flood from one machine nor one from many keeps others out; at that of bytes, the one that has most.
 */
export class Connections {
  readonly #limits: ConnectionLimits;
  readonly #onEvict: () => void;
  readonly #all = new Set<Connection>();
  readonly #byPeer = new Map<string, Connection>();
  readonly #untrusted = new Map<string, Set<Connection>>();
  #untrustedCount = 0;
  readonly #bytes = { untrusted: 0, trusted: 0 };

  /** @param onEvict called for each connection that made room */
  constructor(
    onEvict: () => void = () => {},
    limits: ConnectionLimits = {
      connectionsMax: untrustedConnectionsMax,
      headerBytesMax: untrustedHeaderBytesMax,
      trustedHeaderBytesMax,
    },
  ) {
    this.#onEvict = onEvict;
    this.#limits = limits;
  }

  /** Takes a connection in, and forgets it when it closes. */
  add(socket: Socket, listener?: object): Connection {
    const source = socket.remoteAddress ?? "";
    const connection: Connection = {
      socket,
      listener,
      source,
      isTrusted: false,
      headerBytes: 0,
      waitingBytes: 0,
      requests: 0,
      leftHttp: false,
      served: Promise.resolve(),
    };
    const peer = peerOf(socket);
    this.#all.add(connection);
    this.#byPeer.set(peer, connection);
    const siblings = this.#untrusted.get(source) ?? new Set();
    this.#untrusted.set(source, siblings.add(connection));
    this.#untrustedCount += 1;
    socket.once("close", () => {
      this.trust(connection);
      this.#charge(connection, -held(connection));
      this.#all.delete(connection);
      if (this.#byPeer.get(peer) === connection) this.#byPeer.delete(peer);
    });
    if (this.#untrustedCount > this.#limits.connectionsMax) this.#evict(this.#oldestOfCrowd());
    return connection;
  }

  /** The connection under a TLS socket: Node does not tell, but the addresses and ports of both ends do. */
  under(socket: Socket): Connection | undefined {
    return this.#byPeer.get(peerOf(socket));
  }

  /** It no longer counts against the bounds. May be called again. */
  trust(connection: Connection): void {
    if (connection.isTrusted) return;
    this.#charge(connection, -held(connection));
    connection.isTrusted = true;
    this.#charge(connection, held(connection));
    this.#untrustedCount -= 1;
    const siblings = this.#untrusted.get(connection.source);
    siblings?.delete(connection);
    if (siblings?.size === 0) this.#untrusted.delete(connection.source);
  }

  /** Bytes came that may belong to a header. */
  received(connection: Connection, bytes: number): void {
    if (!this.#all.has(connection)) return;
    connection.headerBytes += bytes;
    this.#charge(connection, bytes);
    const { headerBytesMax, trustedHeaderBytesMax: trustedMax } = this.#limits;
    if (this.#bytes.untrusted > headerBytesMax) this.#evict(this.#heaviest(false));
    if (this.#bytes.trusted > trustedMax) this.#evict(this.#heaviest(true));
  }

  /** A header is complete. @returns to be called when its request has been answered: only then its memory is free */
  headerDone(connection: Connection): () => void {
    const bytes = connection.headerBytes;
    connection.headerBytes = 0;
    connection.waitingBytes += bytes;
    return () => {
      if (!this.#all.has(connection)) return;
      connection.waitingBytes -= bytes;
      this.#charge(connection, -bytes);
    };
  }

  /** Closes those of a listener on which nobody waits for an answer. */
  destroyIdle(listener?: object): void {
    for (const one of this.#all) if (one.listener === listener && one.requests === 0) one.socket.destroy();
  }

  /** Closes those of a listener. */
  destroyAll(listener?: object): void {
    for (const one of this.#all) if (one.listener === listener) one.socket.destroy();
  }

  #charge(connection: Connection, bytes: number): void {
    this.#bytes[connection.isTrusted ? "trusted" : "untrusted"] += bytes;
  }

  #evict(connection: Connection | undefined): void {
    if (connection === undefined) return;
    // At once: the close event comes later.
    this.trust(connection);
    this.#charge(connection, -held(connection));
    connection.headerBytes = 0;
    connection.waitingBytes = 0;
    this.#all.delete(connection);
    connection.socket.destroy();
    this.#onEvict();
  }

  #oldestOfCrowd(): Connection | undefined {
    let crowd = new Set<Connection>();
    for (const siblings of this.#untrusted.values()) if (siblings.size > crowd.size) crowd = siblings;
    const [oldest] = crowd;
    return oldest;
  }

  #heaviest(isTrusted: boolean): Connection | undefined {
    let heaviest: Connection | undefined;
    for (const one of this.#all) {
      if (one.isTrusted === isTrusted && (heaviest === undefined || held(one) > held(heaviest))) heaviest = one;
    }
    return heaviest;
  }
}

function held({ headerBytes, waitingBytes }: Connection): number {
  return headerBytes + waitingBytes;
}

// A client may use one port of its own toward several addresses of the node at a time.
function peerOf({ remoteAddress, remotePort, localAddress, localPort }: Socket): string {
  return `${remoteAddress} ${remotePort} ${localAddress} ${localPort}`;
}
