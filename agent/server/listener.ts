import { createServer, type IncomingMessage, type Server, type ServerOptions, STATUS_CODES } from "node:http";
import { createServer as createTlsServer, type Server as TlsServer } from "node:https";
import { type AddressInfo, Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { Clock } from "../lib/clock.ts";
import { errnoOf } from "../lib/errno.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { untilAborted } from "../lib/loop.ts";
import { type Connection, Connections } from "./connections.ts";
import * as limits from "./limits.ts";
import type { RequestPath } from "./request-path.ts";
import { type KubeletTls, secureContextOptions } from "./tls-context.ts";
import { Turns } from "./turns.ts";

export interface ListenerOptions {
  readonly host: string;
  readonly port: number;
  /** A wildcard of IPv6 leaves IPv4 alone. */
  readonly ipv6Only?: boolean;
  /** Undefined: plain HTTP. */
  readonly tls?: KubeletTls;
  readonly path: RequestPath;
  readonly connections: ListenerConnections;
  readonly times: limits.ConnectionTimes;
  readonly clock: Clock;
  readonly log: Logger;
}

/** The connections of one listener, or of several that share their bounds; found by the socket that HTTP speaks on. */
export class ListenerConnections {
  readonly bounded: Connections;
  readonly #bySocket = new WeakMap<Duplex, Connection>();

  /** @param onEvict called for each connection that was closed to keep within bounds */
  constructor(onEvict: () => void) {
    this.bounded = new Connections(onEvict);
  }

  set(socket: Duplex, connection: Connection): void {
    this.#bySocket.set(socket, connection);
  }

  get(socket: Duplex): Connection | undefined {
    return this.#bySocket.get(socket);
  }

  trust(socket: Duplex): void {
    const connection = this.get(socket);
    if (connection !== undefined) this.bounded.trust(connection);
  }
}

/**
 * Serves HTTP/1.1 on one address until `signal` aborts: then accepts no more, tells the handlers, and cuts what is left
 * after a short grace. Rejects when it cannot listen. Resolves when the last connection has closed.
 *
 * @param onListening gets the address that is really used
 */
export async function runListener(
  options: ListenerOptions,
  signal: AbortSignal,
  onListening: (address: AddressInfo) => void,
): Promise<void> {
  const { host, port, ipv6Only = false, tls, path, clock, log, connections } = options;
  const server = tls === undefined ? createServer(httpOptions(options)) : createSecureServer(tls, options);
  // Not in the types, but the only way to answer clients that close their side after the request, as `nc -N` does.
  Object.assign(server, { httpAllowHalfOpen: true });
  follow(server, options);
  const closed = new Promise<void>((resolve) => void server.once("close", resolve));
  const unsubscribe = tls === undefined ? () => {} : followTls(server as TlsServer, tls, log);
  try {
    onListening(await listen(server, { host, port, ipv6Only }));
    server.on("error", (err) => log.warn({ host, port, err: messageOf(err) }, "listener has trouble"));
    await untilAborted(signal);
    server.close();
    connections.bounded.destroyIdle(server);
    path.abort();
    const done = new AbortController();
    void closed.then(() => done.abort());
    await clock.sleep(limits.stopGraceMs, done.signal).catch(() => {});
    connections.bounded.destroyAll(server);
    await closed;
  } finally {
    unsubscribe();
  }
}

function httpOptions({ path, connections, times }: ListenerOptions): ServerOptions {
  return {
    maxHeaderSize: limits.headerBytesMax,
    keepAliveTimeout: times.keepAliveMs,
    headersTimeout: times.headersReadMs,
    requestTimeout: times.requestReadMs,
    connectionsCheckingInterval: times.checkMs,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: limits.tcpKeepAliveMs,
    // An Upgrade header where nothing can be upgraded is an ordinary request. So is one behind requests that have not
    // been answered yet: their answers would end up in the upgraded stream.
    shouldUpgradeCallback: (request: IncomingMessage) =>
      connections.get(request.socket)?.requests === 0 && path.wantsUpgrade(request),
  };
}

function createSecureServer({ clientCA }: KubeletTls, options: ListenerOptions): TlsServer {
  return createTlsServer({
    ...httpOptions(options),
    requestCert: clientCA !== undefined,
    rejectUnauthorized: false, // the authenticator decides, for each request
    ALPNProtocols: ["http/1.1"],
    handshakeTimeout: options.times.handshakeMs,
  });
}

/** Takes certificates and authorities into use as they change. Connections that are there keep theirs. */
function followTls(server: TlsServer, tls: KubeletTls, log: Logger): () => void {
  const apply = () => {
    try {
      server.setSecureContext(secureContextOptions(tls));
    } catch (err) {
      log.error({ err: messageOf(err) }, "serving certificate or client CA cannot be used: keeping those before");
    }
  };
  apply();
  const ends = [tls.certificate.subscribe(apply), tls.clientCA?.subscribe(apply)];
  return () => {
    for (const end of ends) end?.();
  };
}

/** Wires connections, requests, upgrades and errors. */
function follow(server: Server | TlsServer, { tls, path, connections, clock, log }: ListenerOptions): void {
  const { bounded } = connections;
  const turns = new Turns();
  const speaksHttp = (socket: Socket, connection: Connection) => {
    connections.set(socket, connection);
    socket.on("error", (err) => log.debug({ remote: connection.source, err: messageOf(err) }, "connection failed"));
    // Before Node's own parser, which may find the end of a header in the same bytes.
    socket.prependListener("data", (chunk: Buffer) => {
      bounded.received(connection, chunk.length);
      if (connection.headerBytes < limits.headerBytesEasy) return;
      socket.pause();
      turns.next(() => {
        if (!connection.leftHttp) socket.resume();
      });
    });
  };
  server.on("connection", (socket: Socket) => {
    const connection = bounded.add(socket, server);
    if (tls === undefined) speaksHttp(socket, connection);
    else socket.on("error", () => {}); // the TLS socket above tells
  });
  server.on("secureConnection", (socket: Socket) => {
    const connection = bounded.under(socket);
    if (connection === undefined) {
      socket.destroy();
      return;
    }
    // As with plain sockets, whose handlers close each direction by itself. Not before: a client that closes its side
    // during the handshake has gone.
    socket.allowHalfOpen = true;
    speaksHttp(socket, connection);
  });
  server.on("request", (request, response) => {
    const connection = connections.get(request.socket);
    if (connection === undefined || connection.requests >= limits.pipelinedRequestsMax) {
      request.socket.destroy();
      return;
    }
    const answered = bounded.headerDone(connection);
    connection.requests += 1;
    response.once("close", () => {
      connection.requests -= 1;
      answered();
    });
    // One after the other, as Go's server does: a client that sends ahead gets no more than its share.
    connection.served = connection.served.then(() => path.handle(request, response));
  });
  server.on("upgrade", (request, socket, head) => {
    const connection = connections.get(socket);
    if (connection === undefined || !(socket instanceof Socket)) {
      socket.destroy();
      return;
    }
    socket.removeAllListeners("data"); // ours: it would take the handler's bytes
    bounded.headerDone(connection)();
    connection.requests += 1;
    connection.leftHttp = true;
    connection.served = path.upgrade(request, socket, head);
  });
  server.on("connect", (_request, socket) => refuse(socket, 404, clock));
  server.on("clientError", (err, socket) => {
    if (errnoOf(err) === "ERR_SSL_HTTP_REQUEST" && socket instanceof Socket) {
      const plain = bounded.under(socket)?.socket; // TLS has given up on it, and wrote nothing
      if (plain !== undefined) refuse(plain, 400, clock, plainOnSecure);
      return;
    }
    const connection = connections.get(socket);
    if (socket.writableEnded) return; // refused already
    if (connection === undefined || connection.requests > 0 || !socket.writable) socket.destroy();
    else refuse(socket, statuses.get(errnoOf(err) ?? "") ?? 400, clock);
  });
}

const statuses = new Map([
  ["HPE_HEADER_OVERFLOW", 431],
  ["ERR_HTTP_REQUEST_TIMEOUT", 408],
]);

// What Go's server says, too: people look for it when they forgot the "s" of https.
const plainOnSecure = "Client sent an HTTP request to an HTTPS server.\n";

/** Answers what is no request, and closes: after a moment, so that bytes under way do not reset the answer. */
function refuse(socket: Duplex, status: number, clock: Clock, body = `${status} ${STATUS_CODES[status]}`): void {
  const head = `HTTP/1.1 ${status} ${STATUS_CODES[status]}`;
  socket.on("error", () => {});
  socket.end(`${head}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n${body}`);
  const timer = clock.after(refusalLingerMs, () => socket.destroy());
  socket.once("close", () => timer.cancel());
}

// Go's server waits as long, for the same reason.
const refusalLingerMs = 500;

async function listen(
  server: Server,
  { host, port, ipv6Only }: { host: string; port: number; ipv6Only: boolean },
): Promise<AddressInfo> {
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen({ host, port, ipv6Only }, () => {
      server.off("error", reject);
      resolve();
    });
  });
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error(`${host} port ${port} is no TCP address`);
  return address;
}
