import { once } from "node:events";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { streamCreationTimeoutMs } from "../../../../../agent/runtime/docker/streaming/spdy-command.ts";
import type { SpdyConnection } from "../../../../../agent/lib/spdy/connection.ts";
import { rawRequest, readAll, spdyClient, webSocketUpgrade, wsClient } from "../../../../support/streaming/clients.ts";
import { FakeClock } from "../../../kube/fake-clock.ts";
import { until } from "../../../server/streaming/until.ts";
import { fakeSessions, type FakeSessionsOptions } from "./fake-sessions.ts";

// The sandbox is this process, so that its network is ours and no helper is needed.
const cleanUps: (() => Promise<void> | void)[] = [];
const targets = new Set<Socket>();
let server: Server;
let port: number;
let serve: (socket: Socket) => void;

beforeEach(async () => {
  serve = (socket) => socket.pipe(socket);
  server = createServer({ allowHalfOpen: true }, (socket) => {
    targets.add(socket);
    socket.on("close", () => targets.delete(socket)).on("error", () => {});
    serve(socket);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  ({ port } = server.address() as AddressInfo);
  cleanUps.push(() => {
    for (const socket of targets) socket.destroy();
    server.close();
  });
});

afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function start(options: FakeSessionsOptions & { ports?: number[] } = {}) {
  const sessions = await fakeSessions(options);
  cleanUps.push(() => sessions[Symbol.asyncDispose]());
  const { streaming } = sessions;
  return streaming.url({ kind: "portforward", sandboxID: "feedbeef", ports: options.ports ?? [] });
}

async function client(options: FakeSessionsOptions = {}) {
  const { connection } = await spdyClient(await start(options), ["portforward.k8s.io"]);
  cleanUps.push(() => connection.destroy());
  return connection;
}

async function pair(connection: SpdyConnection, requestid: string | undefined, to = port) {
  const headers = { port: [String(to)], ...(requestid === undefined ? {} : { requestid: [requestid] }) };
  const error = await connection.open({ streamtype: ["error"], ...headers });
  error.end();
  return { error, data: await connection.open({ streamtype: ["data"], ...headers }) };
}

async function say(connection: SpdyConnection, requestid: string | undefined, text: string, to = port) {
  const { data, error } = await pair(connection, requestid, to);
  data.end(text);
  const [answer, failure] = await Promise.all([readAll(data), readAll(error)]);
  return { answer: answer.toString(), failure: failure.toString() };
}

/** A port on which nobody listens. */
async function freePort(): Promise<number> {
  const unused = createServer().listen(0, "127.0.0.1");
  await once(unused, "listening");
  const { port: free } = unused.address() as AddressInfo;
  unused.close();
  return free;
}

describe("by SPDY", () => {
  test("a hundred connections at a time, each with its own bytes and its own ends", async () => {
    const connection = await client();
    await Promise.all(
      Array.from({ length: 100 }, async (_, i) => {
        expect(await say(connection, String(i), `hello ${i}`)).toEqual({ answer: `hello ${i}`, failure: "" });
      }),
    );
    await until(() => targets.size === 0 && connection.streamCount === 0);
  }, 30_000);

  test("clients of old, who number no requests", async () => {
    const connection = await client();
    expect(await say(connection, undefined, "one")).toEqual({ answer: "one", failure: "" });
    expect(await say(connection, undefined, "two")).toEqual({ answer: "two", failure: "" });
  });

  test("a connection that is refused says so, and the others go on", async () => {
    const connection = await client();
    const free = await freePort();
    const { answer, failure } = await say(connection, "1", "hello?", free);
    expect(answer).toBe("");
    expect(failure).toMatch(new RegExp(`^error forwarding port ${free} to pod feedbeef, uid : .*connection refused`));
    expect(await say(connection, "2", "hello!")).toEqual({ answer: "hello!", failure: "" });
  });

  test("a server that hangs up first: the client has all that it said", async () => {
    serve = (socket) => socket.end("x".repeat(1 << 20));
    const { data, error } = await pair(await client(), "1");
    expect((await readAll(data)).length).toBe(1 << 20);
    data.end();
    expect((await readAll(error)).toString()).toBe("");
  });

  test("a server that breaks off breaks off that connection alone", async () => {
    serve = (socket) => void socket.once("data", () => socket.resetAndDestroy());
    const connection = await client();
    const { data, error } = await pair(connection, "1");
    data.write("x");
    expect((await readAll(error)).toString()).toBe("");
    await readAll(data);
    serve = (socket) => socket.pipe(socket);
    expect((await say(connection, "2", "still here")).answer).toBe("still here");
  });

  test("streams that make no sense are refused", async () => {
    const connection = await client();
    const senseless = [
      { streamtype: ["data"] },
      { streamtype: ["data"], port: ["0"] },
      { streamtype: ["data"], port: ["65536"] },
      { streamtype: ["data"], port: ["http"] },
      { streamtype: ["gossip"], port: ["80"] },
    ];
    for (const headers of senseless) await expect(connection.open(headers)).rejects.toThrow("refused");
    expect((await say(connection, "1", "sense")).answer).toBe("sense");
  });

  test("half a pair is given up after a while", async () => {
    const clock = new FakeClock();
    const connection = await client({ clock });
    const error = await connection.open({ streamtype: ["error"], port: [String(port)], requestid: ["1"] });
    const data = await connection.open({ streamtype: ["data"], port: [String(port)], requestid: ["2"] });
    await clock.advance(streamCreationTimeoutMs);
    expect((await readAll(error)).toString()).toContain("only one of its two streams");
    await readAll(data);
    expect(data.fault).toBe("reset");
  });

  test("the client's end closes what it had open", async () => {
    const connection = await client();
    const { data } = await pair(connection, "1");
    data.write("hello");
    await once(data, "data");
    expect(targets.size).toBe(1);
    connection.destroy();
    await until(() => targets.size === 0);
  });

  test("64 MiB through a server that is slow to read, within little memory", async () => {
    const go = Promise.withResolvers<void>();
    let heard = 0;
    serve = (socket) => {
      void go.promise.then(() => {
        socket.on("data", ({ length }: Buffer) => {
          heard += length;
        });
        socket.resume();
      });
      socket.on("end", () => socket.end(String(heard)));
      socket.pause();
    };
    const { data } = await pair(await client(), "1");
    const piece = Buffer.alloc(1 << 20);
    let isFull = false;
    let sent = 0;
    for (; sent < 64 && !isFull; sent += 1) {
      isFull = !data.write(piece) && !(await Promise.race([once(data, "drain"), quiet()]));
    }
    expect(sent).toBeLessThan(32);
    go.resolve();
    for (; sent < 64; sent += 1) if (!data.write(piece)) await once(data, "drain");
    data.end();
    expect((await readAll(data)).toString()).toBe(String(64 << 20));
  }, 30_000);
});

async function quiet(): Promise<undefined> {
  await new Promise((resolve) => void setTimeout(resolve, 200));
  return undefined;
}

describe("by WebSocket", () => {
  const two = (value: number) => Buffer.of(value & 0xff, value >> 8);

  test("each port has its channels, which begin with its number; a refused one does not end the other", async () => {
    const free = await freePort();
    const {
      ws,
      send,
      until: says,
      messages,
      closed,
    } = await wsClient(await start({ ports: [port, free] }), "v4.channel.k8s.io");
    expect(await says(3, "connection refused")).toContain(`error forwarding port ${free}`);
    send(0, "hello");
    await says(0, "hello");
    const firsts = [0, 1, 2, 3].map((channel) => messages.find(([first]) => first === channel)?.subarray(1));
    expect(firsts).toEqual([two(port), two(port), two(free), two(free)]);
    ws.close();
    await closed;
    await until(() => targets.size === 0);
  });

  test("the server's end is the session's, after all that it said", async () => {
    serve = (socket) => socket.end("bye");
    const { messages, closed } = await wsClient(await start({ ports: [port] }), "v4.channel.k8s.io");
    expect(await closed).toBe(1000);
    const said = messages.filter(([channel]) => channel === 0).map((message) => message.subarray(1));
    expect(Buffer.concat(said)).toEqual(Buffer.concat([two(port), Buffer.from("bye")]));
  });

  test("in base64", async () => {
    const { ws, messages } = await wsClient(await start({ ports: [port] }), "v4.base64.channel.k8s.io");
    ws.send(`0${Buffer.from("hello").toString("base64")}`);
    await until(() => messages.some((message) => String(message) === `0${Buffer.from("hello").toString("base64")}`));
    ws.terminate();
  });

  test("without ports there is nothing to forward", async () => {
    const url = new URL(await start());
    const { status, socket } = await rawRequest(url.href, webSocketUpgrade(url.pathname, "v4.channel.k8s.io"));
    socket.destroy();
    expect(status).toBe(400);
  });
});

test("a sandbox that does not run is refused before the upgrade", async () => {
  const url = await start({ container: { State: { Running: false, Pid: 0 } } });
  await expect(spdyClient(url, ["portforward.k8s.io"])).rejects.toThrow("sandbox feedbeef is not running");
});

test("a process that is not the sandbox's any more is refused like one that has ended", async () => {
  const url = await start({ cgroup: "/kubepods/another" });
  await expect(spdyClient(url, ["portforward.k8s.io"])).rejects.toThrow("sandbox feedbeef is not running");
});
