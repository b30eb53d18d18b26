import { createServer, connect, type AddressInfo, type Socket } from "node:net";
import { createHash, randomBytes } from "node:crypto";
import { constants, createDeflate } from "node:zlib";
import { afterEach, describe, expect, test } from "vitest";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { replyTimeoutMs, SpdyConnection, type SpdyOptions } from "../../../../agent/lib/spdy/connection.ts";
import { spdyDictionary } from "../../../../agent/lib/spdy/dictionary.ts";
import { controlFrame, frameType, words } from "../../../../agent/lib/spdy/frame.ts";
import type { SpdyStream } from "../../../../agent/lib/spdy/stream.ts";
import { until } from "../../server/streaming/until.ts";
import { FakeClock } from "../../kube/fake-clock.ts";
import { readAll } from "../../../support/streaming/clients.ts";

const cleanUps: (() => void)[] = [];
afterEach(() => {
  for (const cleanUp of cleanUps.splice(0)) cleanUp();
});

/** Both ends of a TCP connection on loopback. */
async function socketPair(): Promise<[Socket, Socket]> {
  const server = createServer({ allowHalfOpen: true });
  await new Promise<void>((resolve) => void server.listen(0, "127.0.0.1", resolve));
  const accepted = new Promise<Socket>((resolve) => void server.once("connection", resolve));
  const left = connect({ port: (server.address() as AddressInfo).port, host: "127.0.0.1", allowHalfOpen: true });
  const right = await accepted;
  server.close();
  for (const socket of [left, right]) socket.on("error", () => {});
  cleanUps.push(() => {
    left.destroy();
    right.destroy();
  });
  return [left, right];
}

async function connectionPair(server: Partial<SpdyOptions> = {}, client: Partial<SpdyOptions> = {}) {
  const [left, right] = await socketPair();
  const streams: SpdyStream[] = [];
  const onStream = (stream: SpdyStream) => {
    streams.push(stream);
    stream.accept().catch(() => {});
  };
  return {
    client: new SpdyConnection(left, { role: "client", clock: systemClock, ...client }),
    server: new SpdyConnection(right, { role: "server", clock: systemClock, onStream, ...server }),
    streams,
    left,
    right,
  };
}

/** A server end against a client that sends bytes by hand. */
async function rawClient(options: Partial<SpdyOptions> = {}) {
  const [left, right] = await socketPair();
  const streams: SpdyStream[] = [];
  const onStream = (stream: SpdyStream) => {
    streams.push(stream);
    stream.accept().catch(() => {});
  };
  const server = new SpdyConnection(right, { role: "server", clock: systemClock, onStream, ...options });
  return { socket: left, server, streams };
}

/** A SYN_STREAM as a client's first frame would be. */
async function synStream(streamID: number, block: Buffer, flags = 0): Promise<Buffer> {
  const deflate = createDeflate({ dictionary: spdyDictionary });
  const parts: Buffer[] = [];
  deflate.on("data", (part: Buffer) => parts.push(part));
  deflate.write(block);
  await new Promise<void>((resolve) => deflate.flush(constants.Z_SYNC_FLUSH, resolve));
  deflate.close();
  return controlFrame(frameType.synStream, flags, words(streamID, 0), Buffer.alloc(2), Buffer.concat(parts));
}

describe("two ends of a connection", () => {
  test("streams carry headers, bytes in both directions, and each half closes by itself", async () => {
    const { client, streams } = await connectionPair();
    const stream = await client.open({ StreamType: ["data"], port: ["80", "81"] });
    const [other] = streams;
    expect(other?.headers).toEqual({ streamtype: ["data"], port: ["80", "81"] });
    stream.end("request");
    expect((await readAll(other!)).toString()).toBe("request");
    other?.end("answer after the other half was closed");
    expect((await readAll(stream)).toString()).toBe("answer after the other half was closed");
    expect(stream.fault).toBeUndefined();
    await until(() => client.streamCount === 0);
  });

  test("headers of many streams share one compression, in order of sending", async () => {
    const { client, streams } = await connectionPair();
    await Promise.all(Array.from({ length: 50 }, (_, i) => client.open({ streamtype: ["data"], requestid: [`${i}`] })));
    expect(streams.map((stream) => stream.header("requestid"))).toEqual(Array.from({ length: 50 }, (_, i) => `${i}`));
    expect(streams.map(({ streamID }) => streamID)).toEqual(Array.from({ length: 50 }, (_, i) => 2 * i + 1));
  });

  test("8 MiB arrive whole, through a reader that is slower than the writer", async () => {
    const { client, streams } = await connectionPair();
    const stream = await client.open({});
    const data = randomBytes(8 << 20);
    stream.end(data);
    const hash = createHash("sha256");
    for await (const chunk of streams[0]!) {
      hash.update(chunk as Buffer);
      expect(streams[0]!.readableLength).toBeLessThan(512 * 1024);
      if (Math.random() < 0.1) await new Promise((resolve) => void setImmediate(resolve));
    }
    expect(hash.digest("hex")).toBe(createHash("sha256").update(data).digest("hex"));
  });

  test("a stream that is not read stops its writer, and others' bytes wait with it", async () => {
    const { client, streams, left } = await connectionPair();
    const stream = await client.open({});
    let taken = 0;
    const write = () =>
      stream.write(Buffer.alloc(64 * 1024), (err) => {
        if (err) return;
        taken += 64 * 1024;
        write();
      });
    write();
    let before = -1;
    while (taken !== before) {
      before = taken;
      await new Promise((resolve) => void setTimeout(resolve, 50));
    }
    // Kernel buffers of loopback take some MB; after that nothing moves.
    expect(taken).toBeLessThan(32 << 20);
    expect(left.writableLength).toBeLessThan(1 << 20);
    streams[0]!.resume();
    await until(() => taken > before);
  });

  test("what was sent before a reset stays readable; what is written after it goes nowhere", async () => {
    const { client, streams } = await connectionPair();
    const stream = await client.open({});
    const [other] = streams;
    await new Promise<void>((resolve) => void other?.write("last words", () => resolve()));
    other?.destroy();
    expect((await readAll(stream)).toString()).toBe("last words");
    expect(stream.fault).toBe("reset");
    expect(stream.writableEnded).toBe(true);
    await until(() => client.streamCount === 0);
  });

  test("when the connection breaks, streams end with what they had, and say so", async () => {
    const { client, streams, right } = await connectionPair();
    const stream = await client.open({});
    await new Promise<void>((resolve) => void streams[0]?.write("half", () => resolve()));
    await new Promise<void>((resolve) => {
      stream.once("readable", resolve);
    });
    right.destroy();
    await client.closed;
    expect((await readAll(stream)).toString()).toBe("half");
    expect(stream.fault).toBe("connection lost");
    await expect(client.open({})).rejects.toThrow("connection");
  });

  test("a refused stream rejects at the opener", async () => {
    const { client } = await connectionPair({ onStream: (stream) => void stream.destroy() });
    await expect(client.open({})).rejects.toThrow("refused");
    expect(client.streamCount).toBe(0);
  });

  test("streams beyond the limit are refused, and the connection goes on", async () => {
    const { client, streams } = await connectionPair({ streamsMax: 2 });
    await client.open({});
    await client.open({});
    await expect(client.open({})).rejects.toThrow("status 3");
    streams[0]?.destroy();
    await until(() => client.streamCount === 1);
    await client.open({});
  });

  test("no answer to an opened stream is an error after 30 s", async () => {
    const clock = new FakeClock();
    const [left] = await socketPair();
    const client = new SpdyConnection(left, { role: "client", clock });
    const opening = client.open({});
    const outcome = expect(opening).rejects.toThrow("no answer within 30 s");
    await until(() => clock.waiting > 0);
    await clock.advance(replyTimeoutMs);
    await outcome;
    expect(client.streamCount).toBe(0);
  });

  test("pings are answered, either way", async () => {
    const { client, server } = await connectionPair();
    await Promise.all([client.ping(), server.ping(), client.ping()]);
    expect(client.streamCount).toBe(0);
  });

  test("an idle connection ends; any frame starts the time anew", async () => {
    const clock = new FakeClock();
    const { client, server } = await connectionPair({ clock, idleMs: 1000 });
    await clock.advance(900);
    await client.ping();
    await clock.advance(900);
    await client.ping();
    await clock.advance(1000);
    expect(String(await server.closed)).toContain("nothing came or went");
    await client.closed;
  });

  test("close lets written bytes out, destroy ends at once; both settle both ends", async () => {
    const { client, streams, server } = await connectionPair();
    const stream = await client.open({});
    stream.end(Buffer.alloc(1 << 20));
    const reading = readAll(streams[0]!);
    await new Promise<void>((resolve) => void stream.once("finish", resolve));
    client.close();
    expect((await reading).length).toBe(1 << 20);
    expect(await server.closed).toBeUndefined();
    client.destroy();
    client.destroy();
    await client.closed;
  });
});

describe("a hostile peer", () => {
  const header = (text: string) => [words(Buffer.byteLength(text)), Buffer.from(text)];
  const cases: { name: string; send: () => Promise<Buffer> | Buffer; want: RegExp }[] = [
    { name: "garbage", send: () => Buffer.from("GET / HTTP/1.1\r\n\r\n\xff\xff\xff"), want: /./ },
    {
      name: "another version",
      send: () => Buffer.concat([Buffer.of(0x80, 2, 0, 6, 0, 0, 0, 4), words(1)]),
      want: /SPDY version 2/,
    },
    {
      name: "a control frame of 16 MiB",
      send: () => Buffer.of(0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff),
      want: /control frame of 16777215 bytes/,
    },
    {
      name: "headers that inflate to 64 MiB",
      send: async () =>
        await synStream(1, Buffer.concat([words(1), ...header("a"), words(64 << 20), Buffer.alloc(64 << 20)])),
      want: /more than 1048576 bytes/,
    },
    { name: "a million headers", send: async () => await synStream(1, words(1_000_000)), want: /1000000 headers/ },
    {
      name: "headers that are cut",
      send: async () => await synStream(1, Buffer.concat([words(1), ...header("name"), words(100)])),
      want: /ends in the middle/,
    },
    {
      name: "a header twice",
      send: async () =>
        await synStream(1, Buffer.concat([words(2), ...header("a"), ...header("1"), ...header("a"), ...header("2")])),
      want: /twice/,
    },
    {
      name: "headers that are not compressed",
      send: () => controlFrame(frameType.synStream, 0, words(1, 0), Buffer.alloc(2), words(0)),
      want: /./,
    },
    { name: "a stream of the server's", send: async () => await synStream(2, words(0)), want: /may not open stream 2/ },
    {
      name: "a frame that is too short",
      send: () => controlFrame(frameType.rstStream, 0, words(1)),
      want: /too short/,
    },
    { name: "a ping without an ID", send: () => controlFrame(frameType.ping, 0), want: /too short/ },
  ];
  for (const { name, send, want } of cases) {
    test(`ends the connection and nothing else: ${name}`, async () => {
      const { socket, server } = await rawClient();
      socket.write(await send());
      socket.end();
      expect(String(await server.closed)).toMatch(want);
      await until(() => server.streamCount === 0);
    });
  }

  test("half a frame and then nothing keeps nothing but the connection; its end is noticed", async () => {
    const { socket, server } = await rawClient();
    socket.write(Buffer.of(0x80, 3, 0));
    await new Promise((resolve) => void setTimeout(resolve, 20));
    socket.end();
    expect(String(await server.closed)).toContain("in the middle of a frame");
  });

  test("frames of unknown types, for unknown streams, and settings are passed over", async () => {
    const { socket, server, streams } = await rawClient();
    socket.write(
      Buffer.concat([
        controlFrame(frameType.settings, 0, words(1, 2, 3)),
        controlFrame(frameType.windowUpdate, 0, words(1, 100)),
        controlFrame(77, 0, Buffer.from("what is this")),
        controlFrame(frameType.rstStream, 0, words(99, 5)),
        Buffer.concat([words(99), Buffer.of(0, 0, 0, 3), Buffer.from("abc")]),
        await synStream(1, words(0)),
      ]),
    );
    await until(() => streams.length === 1);
    expect(server.streamCount).toBe(1);
  });

  test("frames that come byte by byte are the same frames", async () => {
    const { socket, streams } = await rawClient();
    const all = Buffer.concat([await synStream(1, words(0)), words(1), Buffer.of(1, 0, 0, 5), Buffer.from("hello")]);
    for (const byte of all) {
      socket.write(Buffer.of(byte));
      await new Promise((resolve) => void setImmediate(resolve));
    }
    await until(() => streams.length === 1);
    expect((await readAll(streams[0]!)).toString()).toBe("hello");
    expect(streams[0]?.fault).toBeUndefined();
  });

  test("a flood of pings from a peer that never reads does not fill our memory", async () => {
    const [left, right] = await socketPair();
    const server = new SpdyConnection(right, { role: "server", clock: systemClock });
    left.pause();
    const pings = Buffer.concat(
      Array.from({ length: 5000 }, (_, i) => controlFrame(frameType.ping, 0, words(2 * i + 1))),
    );
    let sent = 0;
    for (; sent < 400 && !left.destroyed; sent += 1) {
      if (!left.write(pings) && left.writableLength > 8 << 20) break;
      await new Promise((resolve) => void setImmediate(resolve));
    }
    expect(right.writableLength).toBeLessThan(1 << 20);
    server.destroy();
  });
});
