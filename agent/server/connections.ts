import type { Socket } from "node:net";
import { untrustedConnectionsMax, untrustedHeaderBytesMax } from "./limits.ts";

/** A connection to one listener, from accept to close. */
export interface Connection {
  readonly socket: Socket;
  readonly source: string;
  isTrusted: boolean;
  /** Bytes that came since the last complete header. */
  headerBytes: number;
  /** Requests that came and have not been answered to the end. A stream that left HTTP counts until it is closed. */
  requests: number;
  leftHttp: boolean;
  /** Settles when the handlers of all requests so far have ended. */
  served: Promise<void>;
}

export interface ConnectionLimits {
  readonly connectionsMax: number;
  readonly headerBytesMax: number;
}

/**
 * The connections of one listener. They come untrusted; one becomes trusted when somebody with a credential is allowed
 * something on it. Untrusted ones are bounded in number and in the bytes of their unfinished headers. At a bound one is
 * closed: the oldest of the address that has most, so that neither a flood from one machine nor one from many keeps
 * others out.
 */
export class Connections {
  readonly #limits: ConnectionLimits;
  readonly #onEvict: () => void;
  readonly #all = new Set<Connection>();
  readonly #byPeer = new Map<string, Connection>();
  readonly #untrusted = new Map<string, Set<Connection>>();
  #untrustedCount = 0;
  #headerBytes = 0;

  /** @param onEvict called for each connection that made room */
  constructor(
    onEvict: () => void = () => {},
    limits: ConnectionLimits = { connectionsMax: untrustedConnectionsMax, headerBytesMax: untrustedHeaderBytesMax },
  ) {
    this.#onEvict = onEvict;
    this.#limits = limits;
  }

  /** Takes a connection in, and forgets it when it closes. */
  add(socket: Socket): Connection {
    const source = socket.remoteAddress ?? "";
    const connection: Connection = {
      socket,
      source,
      isTrusted: false,
      headerBytes: 0,
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
      this.#all.delete(connection);
      if (this.#byPeer.get(peer) === connection) this.#byPeer.delete(peer);
    });
    if (this.#untrustedCount > this.#limits.connectionsMax) this.#evict(this.#oldestOfCrowd());
    return connection;
  }

  /** The connection under a TLS socket: Node does not tell, but the peer's address and port do. */
  under(socket: Socket): Connection | undefined {
    return this.#byPeer.get(peerOf(socket));
  }

  /** It no longer counts against the bounds. May be called again. */
  trust(connection: Connection): void {
    if (connection.isTrusted) return;
    connection.isTrusted = true;
    this.#untrustedCount -= 1;
    this.#headerBytes -= connection.headerBytes;
    const siblings = this.#untrusted.get(connection.source);
    siblings?.delete(connection);
    if (siblings?.size === 0) this.#untrusted.delete(connection.source);
  }

  /** Bytes came that may belong to a header. */
  received(connection: Connection, bytes: number): void {
    if (connection.isTrusted) return;
    connection.headerBytes += bytes;
    this.#headerBytes += bytes;
    if (this.#headerBytes > this.#limits.headerBytesMax) this.#evict(this.#heaviest());
  }

  /** A header is complete. */
  headerDone(connection: Connection): void {
    if (!connection.isTrusted) this.#headerBytes -= connection.headerBytes;
    connection.headerBytes = 0;
  }

  /** Closes those on which nobody waits for an answer. */
  destroyIdle(): void {
    for (const { socket, requests } of this.#all) if (requests === 0) socket.destroy();
  }

  destroyAll(): void {
    for (const { socket } of this.#all) socket.destroy();
  }

  #evict(connection: Connection | undefined): void {
    if (connection === undefined) return;
    this.trust(connection); // at once: the close event comes later
    connection.socket.destroy();
    this.#onEvict();
  }

  #oldestOfCrowd(): Connection | undefined {
    let crowd = new Set<Connection>();
    for (const siblings of this.#untrusted.values()) if (siblings.size > crowd.size) crowd = siblings;
    const [oldest] = crowd;
    return oldest;
  }

  #heaviest(): Connection | undefined {
    let heaviest: Connection | undefined;
    for (const siblings of this.#untrusted.values()) {
      for (const one of siblings) if (one.headerBytes > (heaviest?.headerBytes ?? -1)) heaviest = one;
    }
    return heaviest;
  }
}

function peerOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress} ${remotePort}`;
}
