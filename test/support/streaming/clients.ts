import { connect, type Socket } from "node:net";
import { Duplex, type Readable, type Writable } from "node:stream";
import { connect as connectTLS } from "node:tls";
import * as library from "ws";
import { systemClock } from "../../../agent/lib/clock.ts";
import { SpdyConnection } from "../../../agent/lib/spdy/connection.ts";
import type { SpdyStream } from "../../../agent/lib/spdy/stream.ts";

const { WebSocket } = library;

// The two halves of the library's protocol; its types leave them out.
const { Receiver, Sender } = library as unknown as {
  Receiver: new (options: { isServer: boolean }) => Writable;
  Sender: new (
    socket: Socket,
  ) => {
    send(
      data: Buffer,
      options: { fin: boolean; mask: boolean; compress: boolean; binary: boolean },
      done: () => void,
    ): void;
    close(code: number, reason: string, mask: boolean, done: () => void): void;
  };
};

export interface RawAnswer {
  readonly status: number;
  /** Start line and headers. */
  readonly head: string;
  readonly socket: Socket;
  /** What came behind the head with it. */
  readonly rest: Buffer;
}

/** Sends a request by hand and reads the head of the answer. */
export async function rawRequest(url: string, lines: readonly string[]): Promise<RawAnswer> {
  const { protocol, hostname, port } = new URL(url);
  const options = { host: hostname, port: Number(port), allowHalfOpen: true };
  const socket: Socket =
    protocol === "https:" ? connectTLS({ ...options, rejectUnauthorized: false }) : connect(options);
  socket.write(`${lines.join("\r\n")}\r\n\r\n`);
  const { promise, resolve, reject } = Promise.withResolvers<RawAnswer>();
  let seen = Buffer.alloc(0);
  const onData = (chunk: Buffer) => {
    seen = Buffer.concat([seen, chunk]);
    const end = seen.indexOf("\r\n\r\n");
    if (end < 0) return;
    socket.pause();
    socket.off("data", onData);
    const head = seen.toString("latin1", 0, end);
    resolve({ status: Number(head.split(" ")[1]), head, socket, rest: seen.subarray(end + 4) });
  };
  socket.on("data", onData);
  socket.on("error", reject);
  socket.on("close", () => reject(new Error("closed without an answer")));
  return await promise;
}

/** Everything that comes until the other side ends or breaks off. */
export async function readAll(stream: Readable): Promise<Buffer> {
  const chunks: Buffer[] = [];
  if (stream.readableEnded || stream.destroyed) return Buffer.alloc(0);
  stream.on("data", (chunk: Buffer) => chunks.push(chunk));
  await new Promise<void>((resolve) => {
    stream
      .on("end", resolve)
      .on("close", resolve)
      .on("error", () => resolve());
    stream.resume();
  });
  return Buffer.concat(chunks);
}

const spdyProtocols = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/** Request lines of an upgrade to SPDY. */
export function spdyUpgrade(path: string, protocols: readonly string[] = spdyProtocols): string[] {
  return [
    `POST ${path} HTTP/1.1`,
    "Host: node.example",
    "User-Agent: kubectl/test",
    "Authorization: Bearer secret",
    "Connection: Upgrade",
    "Upgrade: SPDY/3.1",
    "Content-Length: 0",
    ...protocols.map((protocol) => `X-Stream-Protocol-Version: ${protocol}`),
  ];
}

/** A client that speaks SPDY through the agent. */
export async function spdyClient(url: string, protocols?: readonly string[]) {
  const { pathname, search } = new URL(url);
  const answer = await rawRequest(url, spdyUpgrade(pathname + search, protocols));
  if (answer.status !== 101) {
    const body = Buffer.concat([answer.rest, await readAll(answer.socket)]);
    throw new Error(`${answer.head.split("\r\n")[0]}: ${body.toString()}`);
  }
  if (answer.rest.length > 0) answer.socket.unshift(answer.rest);
  const connection = new SpdyConnection(answer.socket, { role: "client", clock: systemClock });
  const open = async (streamtype: string, more: Record<string, string[]> = {}): Promise<SpdyStream> =>
    await connection.open({ streamtype: [streamtype], ...more });
  return { connection, open, socket: answer.socket, head: answer.head };
}

/** Request lines of an upgrade to WebSocket. */
export function webSocketUpgrade(path: string, protocol: string): string[] {
  return [
    `GET ${path} HTTP/1.1`,
    ...["Host: node", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"],
    ...["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", `Sec-WebSocket-Protocol: ${protocol}`],
  ];
}

/**
 * A client of a tunnel: its bytes travel in binary messages. By hand, since no WebSocket library takes the subprotocol's
 * name. Rejects with the answer's start line if it is no upgrade.
 */
export async function tunnelClient(url: string, protocol = "SPDY/3.1+portforward.k8s.io") {
  const { pathname, search } = new URL(url);
  const { socket, status, head, rest } = await rawRequest(url, webSocketUpgrade(pathname + search, protocol));
  if (status !== 101) {
    socket.destroy();
    throw new Error(head.split("\r\n")[0]);
  }
  const receiver = new Receiver({ isServer: false });
  const sender = new Sender(socket);
  const closed = Promise.withResolvers<number>();
  const options = { fin: true, mask: true, compress: false };
  const tunnel = new Duplex({
    read: () => {},
    write: (chunk: Buffer, _encoding, done: () => void) => {
      sender.send(chunk, { ...options, binary: true }, done);
    },
    final: (done) => {
      sender.close(1000, "", true, done);
    },
  });
  tunnel.on("error", () => {});
  receiver.on("message", (data: Buffer) => tunnel.push(data));
  receiver.on("conclude", (code: number) => {
    closed.resolve(code);
    tunnel.push(null);
    socket.end();
  });
  receiver.on("error", () => socket.destroy());
  socket.on("error", () => {});
  socket.on("close", () => {
    closed.resolve(1006);
    tunnel.destroy();
  });
  socket.on("data", (chunk: Buffer) => receiver.write(chunk));
  if (rest.length > 0) receiver.write(rest);
  socket.resume();
  const sendText = (text: string) => sender.send(Buffer.from(text), { ...options, binary: false }, () => {});
  return { tunnel, socket, head, sendText, closed: closed.promise };
}

/** A client of the WebSocket remote command protocol. */
export async function wsClient(url: string, protocol: string | string[] = "v5.channel.k8s.io") {
  const ws = new WebSocket(url.replace(/^http/, "ws"), protocol, {
    perMessageDeflate: false,
    rejectUnauthorized: false,
    autoPong: true,
  });
  const output = new Map<number, Buffer[]>();
  const messages: Buffer[] = [];
  const waiting = new Set<() => void>();
  let closeCode: number | undefined;
  ws.on("message", (data: Buffer) => {
    messages.push(data);
    const [channel = -1] = data;
    const list = output.get(channel) ?? [];
    output.set(channel, [...list, data.subarray(1)]);
    for (const wake of waiting) wake();
  });
  const { promise: closed, resolve } = Promise.withResolvers<number>();
  ws.on("close", (code) => {
    closeCode = code;
    resolve(code);
    for (const wake of waiting) wake();
  });
  const opened = Promise.withResolvers<void>();
  ws.on("open", () => opened.resolve());
  ws.on("error", (err) => opened.reject(err));
  await opened.promise;
  const text = (channel: number) => Buffer.concat(output.get(channel) ?? []).toString();
  return {
    ws,
    messages,
    closed,
    text,
    send: (channel: number, data: Buffer | string) =>
      ws.send(Buffer.concat([Buffer.of(channel), Buffer.from(data as string)])),
    /** Resolves once the channel has said that; rejects if the connection closes before. */
    until: async (channel: number, wanted: string | RegExp) => {
      for (;;) {
        const said = text(channel);
        if (typeof wanted === "string" ? said.includes(wanted) : wanted.test(said)) return said;
        if (closeCode !== undefined) throw new Error(`closed with ${closeCode}, channel ${channel} said: ${said}`);
        const { promise, resolve: wake } = Promise.withResolvers<void>();
        waiting.add(wake);
        await promise;
        waiting.delete(wake);
      }
    },
  };
}
