import { once } from "node:events";
import { createServer as createPlainServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import {
  constants,
  createSecureServer,
  type Http2ServerRequest,
  type Http2ServerResponse,
  type ServerHttp2Session,
} from "node:http2";
import { createServer as createHttpsServer } from "node:https";
import { type AddressInfo, connect, createServer as createTcpServer, type Socket } from "node:net";
import type { TLSSocket } from "node:tls";
import { CertificateAuthority, type KeyPair } from "./apiserver/pki.ts";

type Answer = ServerResponse | Http2ServerResponse;

/** One request that a {@link FakeHttp} has received. */
export interface Received {
  method: string;
  path: string;
  query: URLSearchParams;
  headers: Record<string, string | string[] | undefined>;
  body: string;
  httpVersion: string;
  /** Common name of the client's certificate. */
  clientName: string | undefined;
}

/** Answers one request in any way it likes, also not at all. */
export type Handler = (request: Received, answer: Reply) => void | Promise<void>;

/** An answer in the making. */
export interface Reply {
  json(status: number, body: unknown, headers?: Record<string, string>): void;
  /** A Kubernetes Status. */
  status(code: number, reason: string, message?: string, headers?: Record<string, string>): void;
  /** Begins a 200 answer, or goes on with it: raw text. */
  write(text: string): void;
  /** One line of a watch. */
  event(type: string, object: unknown): void;
  end(): void;
  /** Breaks the stream (HTTP/2) or the connection (HTTP/1.1). */
  cut(): void;
  /** HTTP/2: tells the client that the request was not looked at, so that it may be sent again. */
  refuse(): void;
  /** The client has gone away. */
  readonly closed: Promise<void>;
  /** The HTTP/2 session, for GOAWAY. */
  readonly session: ServerHttp2Session | undefined;
}

export interface FakeHttpOptions {
  protocol?: "h2" | "https" | "http";
  /** Streams that a session takes at once. */
  maxConcurrentStreams?: number;
  /** Ask clients for a certificate of this authority. */
  askClientCertificate?: boolean;
}

const authority = CertificateAuthority.create("fake-ca");
const serverPair = authority.issue({ commonName: "fake", usage: "server", names: ["127.0.0.1", "localhost"] });

/** PEM of the authority behind every {@link FakeHttp}. */
export const fakeCA = authority.certificate;

/** A client certificate that every {@link FakeHttp} trusts. */
export function clientPair(commonName: string): KeyPair {
  return authority.issue({ commonName, usage: "client" });
}

/** A scripted HTTP server on loopback: HTTP/2 over TLS, HTTPS with HTTP/1.1 only, or plain HTTP. */
export class FakeHttp implements AsyncDisposable {
  readonly received: Received[] = [];
  readonly sessions = new Set<ServerHttp2Session>();
  /** Connections accepted so far. */
  connections = 0;
  handler: Handler;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #isTls: boolean;

  private constructor(handler: Handler, options: FakeHttpOptions) {
    this.handler = handler;
    const { protocol = "h2", maxConcurrentStreams, askClientCertificate = false } = options;
    const tls = {
      cert: serverPair.certificate,
      key: serverPair.key,
      ca: fakeCA,
      requestCert: askClientCertificate,
      rejectUnauthorized: false,
    };
    this.#isTls = protocol !== "http";
    const serve = (req: IncomingMessage | Http2ServerRequest, res: Answer) => void this.#serve(req, res);
    if (protocol === "h2") {
      const settings = maxConcurrentStreams === undefined ? {} : { settings: { maxConcurrentStreams } };
      const server = createSecureServer({ ...tls, ...settings }, serve);
      server.on("session", (session) => {
        this.sessions.add(session);
        session.on("error", () => {});
        session.on("close", () => this.sessions.delete(session));
      });
      this.#server = server as unknown as Server; // the two share what is used here
    } else {
      this.#server = protocol === "https" ? createHttpsServer(tls, serve) : createPlainServer(serve);
    }
    this.#server.on("connection", (socket: Socket) => {
      this.connections += 1;
      this.#sockets.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => this.#sockets.delete(socket));
    });
    this.#server.on("tlsClientError", () => {});
  }

  static async start(handler: Handler, options: FakeHttpOptions = {}): Promise<FakeHttp> {
    const fake = new FakeHttp(handler, options);
    fake.#server.listen(0, "127.0.0.1");
    await once(fake.#server, "listening");
    return fake;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get url(): string {
    return `${this.#isTls ? "https" : "http"}://127.0.0.1:${this.port}`;
  }

  /** Breaks every connection. */
  dropConnections(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const session of this.sessions) session.destroy();
    this.dropConnections();
    this.#server.close();
    if (this.#server.listening) await once(this.#server, "close");
  }

  async #serve(req: IncomingMessage | Http2ServerRequest, res: Answer): Promise<void> {
    const chunks: Buffer[] = [];
    const closed = new Promise<void>((resolve) => void res.on("close", () => resolve()));
    res.on("error", () => {});
    req.on("error", () => {});
    for await (const chunk of req) chunks.push(chunk as Buffer);
    const url = new URL(req.url ?? "/", "http://fake");
    const socket = "stream" in req ? req.stream.session?.socket : req.socket;
    const peer = this.#isTls ? (socket as TLSSocket).getPeerCertificate() : undefined;
    const request: Received = {
      method: req.method ?? "",
      path: url.pathname,
      query: url.searchParams,
      headers: req.headers,
      body: Buffer.concat(chunks).toString(),
      httpVersion: req.httpVersion,
      clientName: [peer?.subject?.CN].flat()[0],
    };
    this.received.push(request);
    await this.handler(request, reply(res, closed));
  }
}

function reply(res: Answer, closed: Promise<void>): Reply {
  const raw = res as ServerResponse; // HTTP/2's compatibility layer has the same methods
  const session = "stream" in res ? res.stream?.session : undefined;
  const json: Reply["json"] = (status, body, headers = {}) => {
    raw.writeHead(status, { "content-type": "application/json", ...headers });
    raw.end(JSON.stringify(body));
  };
  return {
    json,
    status: (code, reason, message = reason, headers) =>
      json(code, { kind: "Status", apiVersion: "v1", status: "Failure", code, reason, message }, headers),
    write: (text) => void raw.write(text),
    event: (type, object) => void raw.write(`${JSON.stringify({ type, object })}\n`),
    end: () => void raw.end(),
    cut: () => {
      if ("stream" in res) res.stream.close(constants.NGHTTP2_INTERNAL_ERROR);
      else raw.destroy();
    },
    refuse: () => {
      if ("stream" in res) res.stream.close(constants.NGHTTP2_REFUSED_STREAM);
    },
    closed,
    session: session as ServerHttp2Session | undefined, // we are the server
  };
}

/** A TCP relay in front of a server, which can go dead without closing anything: a half-open connection. */
export class Relay implements AsyncDisposable {
  readonly #server = createTcpServer((client) => this.#onClient(client));
  readonly #pairs = new Set<[Socket, Socket]>();
  readonly #targetPort: number;
  connections = 0;
  /** New connections are accepted, and nothing else. */
  isDeaf = false;

  private constructor(targetPort: number) {
    this.#targetPort = targetPort;
  }

  static async start(targetPort: number): Promise<Relay> {
    const relay = new Relay(targetPort);
    relay.#server.listen(0, "127.0.0.1");
    await once(relay.#server, "listening");
    return relay;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** From now on nothing passes on the present connections; new ones work. */
  freeze(): void {
    for (const [client, server] of this.#pairs) {
      client.unpipe();
      server.unpipe();
      client.pause();
      server.pause();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const pair of this.#pairs) for (const socket of pair) socket.destroy();
    this.#server.close();
    await once(this.#server, "close");
  }

  #onClient(client: Socket): void {
    this.connections += 1;
    const server = connect(this.#targetPort, "127.0.0.1");
    const pair: [Socket, Socket] = [client, server];
    this.#pairs.add(pair);
    if (this.isDeaf) client.pause();
    else {
      client.pipe(server);
      server.pipe(client);
    }
    for (const socket of pair) {
      socket.on("error", () => {});
      socket.on("close", () => {
        this.#pairs.delete(pair);
        for (const other of pair) other.destroy();
      });
    }
  }
}
