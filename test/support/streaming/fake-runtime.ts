import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { systemClock } from "../../../agent/lib/clock.ts";
import { SpdyConnection } from "../../../agent/lib/spdy/connection.ts";
import type { SpdyStream } from "../../../agent/lib/spdy/stream.ts";

/** One client's session at the fake runtime, as a runtime's streaming library sees it. */
export interface FakeSession {
  readonly request: IncomingMessage;
  readonly connection: SpdyConnection;
  /** The stream of that type; resolves when the client has opened it. It is accepted already. */
  stream(type: string): Promise<SpdyStream>;
  /** Every stream in the order of opening. */
  readonly opened: SpdyStream[];
  /** Writes a Status on the error stream and ends the session as containerd does: everything is reset at once. */
  exit(code: number): Promise<void>;
}

export interface FakeRuntime {
  /** Base of session URLs. */
  readonly url: string;
  /** Requests to upgrade that came, newest last. */
  readonly requests: IncomingMessage[];
  /** Connections that are open. */
  readonly connections: Set<Socket>;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface FakeRuntimeOptions {
  /** Speaks SPDY with the client; the connection ends when it returns. */
  serve?: (session: FakeSession) => Promise<void>;
  /** Instead: gets the bare socket right after the request, to do what no runtime should. */
  raw?: (request: IncomingMessage, socket: Socket) => void;
  /** With `serve`: answers no request before that. */
  answerAfter?: Promise<void>;
  /** With `raw`: keeps its half open after the client's end. */
  isHalfOpen?: boolean;
  protocol?: string;
}

/** A container runtime's streaming server on loopback. */
export async function startFakeRuntime(options: FakeRuntimeOptions): Promise<FakeRuntime> {
  const requests: IncomingMessage[] = [];
  const connections = new Set<Socket>();
  const server = createServer((_request, response) => response.writeHead(404).end("404 page not found\n"));
  server.on("connection", (socket) => {
    connections.add(socket);
    socket.on("close", () => connections.delete(socket)).on("error", () => {});
  });
  server.on("upgrade", (request, socket: Socket) => {
    requests.push(request);
    if (options.raw === undefined) {
      void serveSession(request, socket, options);
      return;
    }
    if (options.isHalfOpen !== true) socket.on("end", () => socket.destroySoon());
    options.raw(request, socket);
    socket.resume();
  });
  await new Promise<void>((resolve) => void server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    connections,
    [Symbol.asyncDispose]: async () => {
      for (const socket of connections) socket.destroy();
      await new Promise((resolve) => void server.close(resolve));
    },
  };
}

async function serveSession(request: IncomingMessage, socket: Socket, options: FakeRuntimeOptions): Promise<void> {
  const { protocol = "v4.channel.k8s.io", serve = async () => {} } = options;
  await options.answerAfter;
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: ${protocol}\r\n\r\n`,
  );
  const opened: SpdyStream[] = [];
  const waiting = new Set<() => void>();
  const connection = new SpdyConnection(socket, {
    role: "server",
    clock: systemClock,
    onStream: (stream) => {
      const known = () => {
        opened.push(stream);
        for (const wake of waiting) wake();
      };
      stream.accept().then(known, () => {});
    },
  });
  const session: FakeSession = {
    request,
    connection,
    opened,
    stream: async (type) => {
      for (;;) {
        const found = opened.find((stream) => stream.header("streamtype") === type);
        if (found !== undefined) return found;
        await new Promise<void>((resolve) => void waiting.add(resolve));
      }
    },
    exit: async (code) => {
      const error = await session.stream("error");
      const failure = {
        metadata: {},
        status: "Failure",
        message: `command terminated with non-zero exit code: exit status ${code}`,
        reason: "NonZeroExitCode",
        details: { causes: [{ reason: "ExitCode", message: String(code) }] },
      };
      const status = code === 0 ? { metadata: {}, status: "Success" } : failure;
      await written(error, Buffer.from(JSON.stringify(status)));
      for (const stream of opened) stream.destroy();
      connection.close();
    },
  };
  try {
    await serve(session);
  } catch {
    connection.destroy();
  }
}

/** Writes to a stream and waits until its socket has taken it. */
export async function written(stream: SpdyStream, data: Buffer): Promise<void> {
  await new Promise<void>((resolve, reject) => void stream.write(data, (err) => (err ? reject(err) : resolve())));
}
