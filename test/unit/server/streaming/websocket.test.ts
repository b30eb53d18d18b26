import { createHash, randomBytes } from "node:crypto";
import { PassThrough } from "node:stream";
import { describe, expect, test } from "vitest";
import { renderMetrics } from "../../../../agent/lib/metrics-text.ts";
import { runtimePingIntervalMs, sessionIdleMs } from "../../../../agent/server/streaming/remote-command.ts";
import { closeTimeoutMs, messageBytesMax, pongIntervalMs } from "../../../../agent/lib/websocket/connection.ts";
import { rawRequest, readAll, tunnelClient, webSocketUpgrade, wsClient } from "../../../support/streaming/clients.ts";
import { type FakeRuntimeOptions, written } from "../../../support/streaming/fake-runtime.ts";
import { FakeClock } from "../../kube/fake-clock.ts";
import { heapBytes } from "../../../support/heap.ts";
import { useServed } from "./served.ts";
import { until } from "./until.ts";

const { start } = useServed();

const [stdin, stdout, stderr, error, resize, close] = [0, 1, 2, 3, 4, 255];

describe("remote command over WebSocket v5", () => {
  test("input, its end, output, errors and the exit code", async () => {
    const { agent, exec, fake, isQuiet } = await start({
      serve: async (session) => {
        const input = (await readAll(await session.stream("stdin"))).toString();
        (await session.stream("stdout")).end(`got ${input}`);
        (await session.stream("stderr")).end("complaint");
        await session.exit(7);
      },
    });
    const client = await wsClient(exec("input=1&output=1&error=1"));
    expect(client.ws.protocol).toBe("v5.channel.k8s.io");
    client.send(stdin, "one ");
    client.send(stdin, "two");
    client.ws.send(Buffer.of(close, stdin));
    client.send(stdin, "too late");
    expect(await client.closed).toBe(1000);
    expect(client.messages[0]).toEqual(Buffer.of(stdout)); // says that it is ready
    expect(client.text(stdout)).toBe("got one two");
    expect(client.text(stderr)).toBe("complaint");
    expect(JSON.parse(client.text(error))).toMatchObject({
      status: "Failure",
      reason: "NonZeroExitCode",
      details: { causes: [{ reason: "ExitCode", message: "7" }] },
    });
    const [request] = fake.requests;
    expect(request?.method).toBe("POST");
    expect(request?.headersDistinct["x-stream-protocol-version"]?.[0]).toBe("v5.channel.k8s.io");
    await until(isQuiet);
    const metrics = [...renderMetrics(await agent.metrics.families())].join("");
    expect(metrics).toContain('kubelet_websocket_streaming_requests_total{subresource="exec"} 1');
  });

  test("streams are opened in the order error, stdin, stdout, resize; a terminal has no stderr", async () => {
    const types: (string | undefined)[] = [];
    const { exec, asked } = await start({
      serve: async (session) => {
        let text = "";
        for await (const chunk of await session.stream("resize")) {
          text += String(chunk);
          if (text.includes("50")) break;
        }
        types.push(...session.opened.map((stream) => stream.header("streamtype")));
        await written(await session.stream("stdout"), Buffer.from(text));
        await session.exit(0);
      },
    });
    const client = await wsClient(exec("input=1&output=1&error=1&tty=1"));
    client.send(resize, '{"Width":120,"Height":40}\n');
    client.send(resize, '{"Width":100,"Height":50}\n');
    await client.closed;
    expect(types).toEqual(["error", "stdin", "stdout", "resize"]);
    expect(client.text(stdout)).toBe('{"Width":120,"Height":40}\n{"Width":100,"Height":50}\n');
    expect(JSON.parse(client.text(error))).toMatchObject({ status: "Success" });
    expect(asked[0]).toMatchObject({ tty: true, stderr: false });
  });

  test("attach to a container with a terminal sends sizes, whatever the client said of it", async () => {
    const { agent } = await start({
      serve: async (session) => {
        await session.stream("resize");
        await session.exit(0);
      },
    });
    const client = await wsClient(`${agent.url}/attach/default/web/shell?input=1&output=1`);
    await client.closed;
    expect(client.text(error)).toContain("Success");
  });

  test("the first message is on the lowest channel that is open for output", async () => {
    const { exec } = await start({ serve: async (session) => await session.exit(0) });
    for (const [query, channel] of [
      ["output=1&error=1", stdout],
      ["input=1&error=1", stderr],
      ["input=1", error],
    ] as const) {
      const client = await wsClient(exec(query));
      await client.closed;
      expect(client.messages[0]).toEqual(Buffer.of(channel));
    }
  });

  const ignored: { name: string; message: Buffer }[] = [
    { name: "an unknown channel", message: Buffer.from("\x09hello") },
    { name: "an empty message", message: Buffer.alloc(0) },
    { name: "input on stdout", message: Buffer.of(stdout, 1, 2, 3) },
    { name: "sizes without a terminal", message: Buffer.of(resize, 1, 2, 3) },
    { name: "closing an output channel", message: Buffer.of(close, stderr) },
  ];
  test("these are passed over: " + ignored.map(({ name }) => name).join(", "), async () => {
    const { exec } = await start({
      serve: async (session) => {
        const input = await readAll(await session.stream("stdin"));
        await written(await session.stream("stdout"), input);
        await session.exit(0);
      },
    });
    const client = await wsClient(exec("input=1&output=1&error=1"));
    for (const { message } of ignored) client.ws.send(message);
    client.send(stdin, "kept");
    client.ws.send(Buffer.of(close, stdin));
    expect(await client.closed).toBe(1000);
    expect(client.text(stdout)).toBe("kept");
  });

  test("input that nobody asked for is discarded", async () => {
    const { exec } = await start({
      serve: async (session) => {
        await session.stream("stdout");
        await session.exit(session.opened.some((stream) => stream.header("streamtype") === "stdin") ? 1 : 0);
      },
    });
    const client = await wsClient(exec("output=1"));
    client.send(stdin, "hello");
    await client.closed;
    expect(client.text(error)).toContain("Success");
  });

  const fatal: { name: string; message: Buffer }[] = [
    { name: "closes a channel that cannot be", message: Buffer.of(close, 5) },
    { name: "closes nothing", message: Buffer.of(close) },
    { name: "closes with something behind it", message: Buffer.of(close, 0, 0) },
  ];
  for (const { name, message } of fatal) {
    test(`a message that ${name} ends the connection`, async () => {
      const { exec, isQuiet } = await start({ serve: async ({ stream }) => void (await stream("never")) });
      const client = await wsClient(exec("input=1&output=1"));
      await until(() => client.messages.length === 1);
      client.ws.send(message);
      expect(await client.closed).toBe(1006);
      await until(isQuiet);
    });
  }

  test("a message that closes a channel and goes on and on ends the connection before its own end", async () => {
    const { agent, exec, isQuiet } = await start({ serve: async ({ stream }) => void (await stream("never")) });
    const { pathname, search } = new URL(exec("input=1&output=1"));
    const { socket } = await rawRequest(agent.url, webSocketUpgrade(pathname + search, "v5.channel.k8s.io"));
    socket.on("error", () => {});
    socket.resume();
    // A binary message of one byte, to be continued by messages of one byte; the mask is 0.
    socket.write(Buffer.of(0x02, 0x81, 0, 0, 0, 0, close));
    for (let i = 0; i < 3; i += 1) socket.write(Buffer.of(0x00, 0x81, 0, 0, 0, 0, stdin));
    await until(isQuiet);
  });

  test("closing channels before the runtime's streams are there takes no memory, and keeps its place", async () => {
    const runtimeMayAnswer = Promise.withResolvers<void>();
    const { agent, exec } = await start({
      answerAfter: runtimeMayAnswer.promise,
      serve: async (session) => {
        const input = await readAll(await session.stream("stdin"));
        await written(await session.stream("stdout"), input);
        await session.exit(0);
      },
    });
    const { pathname, search } = new URL(exec("input=1&output=1"));
    const { socket } = await rawRequest(agent.url, webSocketUpgrade(pathname + search, "v5.channel.k8s.io"));
    const frame = (...payload: number[]) => Buffer.of(0x82, 0x80 | payload.length, 0, 0, 0, 0, ...payload);
    const send = async (bytes: Buffer) =>
      await new Promise<void>((resolve) => void socket.write(bytes, () => resolve()));
    const many = Buffer.alloc(400_000 * 8, frame(close, stdout));
    const before = heapBytes();
    await send(many);
    await new Promise((resolve) => void setTimeout(resolve, 300));
    expect(heapBytes() - before).toBeLessThan(4 << 20);
    await send(Buffer.concat([frame(stdin, 0x61), frame(close, stdin), frame(stdin, 0x62)]));
    await new Promise((resolve) => void setTimeout(resolve, 50));
    let said = Buffer.alloc(0);
    socket.on("data", (chunk: Buffer) => (said = Buffer.concat([said, chunk]))).resume();
    runtimeMayAnswer.resolve();
    await until(() => said.includes("Success"));
    expect(said.includes(Buffer.of(0x82, 2, stdout, 0x61))).toBe(true);
    socket.destroy();
  });

  test("4 MiB each way arrive whole", async () => {
    const data = randomBytes(4 << 20);
    const want = createHash("sha256").update(data).digest("hex");
    const { exec } = await start({
      serve: async (session) => {
        const input = await session.stream("stdin");
        const output = await session.stream("stdout");
        input.pipe(new PassThrough()).pipe(output);
        await new Promise((resolve) => void output.once("finish", resolve));
        await session.exit(0);
      },
    });
    const client = await wsClient(exec("input=1&output=1"));
    const hash = createHash("sha256");
    client.ws.on("message", (message: Buffer) => {
      if (message[0] === stdout) hash.update(message.subarray(1));
    });
    for (let at = 0; at < data.length; at += 32 * 1024) {
      await new Promise<void>((resolve) =>
        client.ws.send(Buffer.concat([Buffer.of(stdin), data.subarray(at, at + 32 * 1024)]), () => resolve()),
      );
    }
    client.ws.send(Buffer.of(close, stdin));
    await client.closed;
    expect(hash.digest("hex")).toBe(want);
    expect(client.text(error)).toContain("Success");
  });
});

describe("what goes wrong after the upgrade is told on the error channel", () => {
  const cases: { name: string; options: FakeRuntimeOptions; want: RegExp }[] = [
    {
      name: "the runtime refuses",
      options: {
        raw: (_request, socket) => void socket.end("HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nno token"),
      },
      want: /unable to upgrade connection: no token/,
    },
    {
      name: "the runtime closes without an answer",
      options: { raw: (_request, socket) => void socket.destroy() },
      want: /closed the connection/,
    },
    {
      name: "the runtime speaks something else",
      options: { raw: (_r, socket) => void socket.write("SSH-2.0\r\n\r\n") },
      want: /not HTTP/,
    },
    {
      name: "the runtime chooses an unknown protocol",
      options: { protocol: "v9.channel.k8s.io" },
      want: /unknown stream protocol "v9/,
    },
    {
      name: "the runtime breaks the protocol after the upgrade",
      options: {
        raw: (_r, socket) => void socket.write(`${switching}\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff`, "latin1"),
      },
      want: /SPDY version 32767/,
    },
    {
      name: "the runtime dies",
      options: {
        serve: async ({ stream, connection }) => {
          await stream("stdout");
          connection.destroy();
        },
      },
      want: /connection to the container runtime was lost/,
    },
    {
      name: "the session ends without an outcome",
      options: {
        serve: async ({ stream }) => {
          const output = await stream("stdout");
          (await stream("error")).destroy();
          output.end();
        },
      },
      want: /without saying how/,
    },
  ];
  for (const { name, options, want } of cases) {
    test(name, async () => {
      const { exec, isQuiet } = await start(options);
      const client = await wsClient(exec("output=1"));
      expect(await client.closed).toBe(1000);
      expect(JSON.parse(client.text(error))).toMatchObject({
        status: "Failure",
        reason: "InternalError",
        code: 500,
        message: expect.stringMatching(want),
      });
      await until(isQuiet);
    });
  }

  test("but before it, by HTTP", async () => {
    const { agent } = await start({});
    await expect(wsClient(`${agent.url}/exec/default/nobody/app?output=1`)).rejects.toThrow("404");
    await expect(wsClient(`${agent.url}/exec/default/web/app`)).rejects.toThrow("400");
  });
});

describe("who goes away, who does not read, who waits", () => {
  test("the client's death ends the runtime's connection at once", async () => {
    const { exec, fake, isQuiet } = await start({ serve: async ({ stream }) => void (await stream("never")) });
    const client = await wsClient(exec("input=1&output=1"));
    await until(() => fake.connections.size === 1);
    client.ws.terminate();
    await until(isQuiet);
  });

  test("a client that has gone is noticed while its input is held back", async () => {
    const clock = new FakeClock();
    const { exec, fake, isQuiet } = await start({ raw: (_r, socket) => void socket.write(switching) }, { clock });
    const client = await wsClient(exec("input=1&output=1"));
    await until(() => fake.connections.size === 1);
    // No stream opens, as this runtime says no more: the first message holds the client back.
    for (let i = 0; i < 100; i += 1) client.send(stdin, Buffer.alloc(100_000));
    await new Promise((resolve) => void setTimeout(resolve, 50));
    client.ws.terminate();
    for (let i = 0; i < 4 && !isQuiet(); i += 1) {
      await clock.advance(pongIntervalMs);
      await new Promise((resolve) => void setTimeout(resolve, 20));
    }
    await until(isQuiet);
    expect(clock.waiting).toBe(0);
  });

  test("pings are answered while input is held back, and pongs come without being asked for", async () => {
    const clock = new FakeClock();
    let open: (() => void) | undefined;
    const { exec } = await start(
      {
        serve: async (session) => {
          const input = await session.stream("stdin");
          await new Promise<void>((resolve) => (open = resolve));
          input.resume();
          await session.exit(0);
        },
      },
      { clock },
    );
    const client = await wsClient(exec("input=1&output=1"));
    await until(() => open !== undefined && clock.waiting === 2); // nothing but the idle timer and the runtime's pings
    const pongs: Buffer[] = [];
    client.ws.on("pong", (data) => pongs.push(data));
    client.ws.ping("hello");
    await until(() => pongs.length === 1);
    // Far more than all buffers on the way take.
    for (let i = 0; i < 400; i += 1) client.send(stdin, Buffer.alloc(64 * 1024));
    let tries = 0;
    while (pongs.length < 2) {
      if ((tries += 1) > 100) throw new Error("no pong while input is held back");
      await clock.advance(pongIntervalMs);
      await new Promise((resolve) => void setTimeout(resolve, 20));
    }
    expect(client.ws.bufferedAmount).toBeGreaterThan(0);
    open?.();
    await client.closed;
    expect(client.text(error)).toContain("Success");
  });

  test("a client that does not read holds up the runtime's output, not our memory", async () => {
    let taken = 0;
    const { agent, exec, isQuiet } = await start({
      serve: async (session) => {
        const output = await session.stream("stdout");
        for (; taken < 100 << 20 && !output.destroyed && !output.writableEnded; taken += 64 * 1024) {
          await written(output, Buffer.alloc(64 * 1024));
        }
      },
    });
    const { pathname, search } = new URL(exec("output=1"));
    const { socket, status } = await rawRequest(agent.url, webSocketUpgrade(pathname + search, "v5.channel.k8s.io"));
    expect(status).toBe(101);
    let before = -1;
    while (taken !== before) {
      before = taken;
      await new Promise((resolve) => void setTimeout(resolve, 100));
    }
    expect(taken).toBeLessThan(32 << 20);
    socket.destroy();
    await until(isQuiet);
  });

  test("a session in which nothing is said for four hours ends; the runtime is pinged meanwhile", async () => {
    const clock = new FakeClock();
    let hasBegun = false;
    const { exec, isQuiet } = await start(
      {
        serve: async ({ stream }) => {
          await stream("stdout");
          hasBegun = true;
        },
      },
      { clock },
    );
    const client = await wsClient(exec("input=1&output=1"));
    await until(() => hasBegun && clock.waiting === 2); // nothing but the idle timer and the pings
    await clock.advance(runtimePingIntervalMs);
    expect(client.ws.readyState).toBe(client.ws.OPEN);
    await clock.advance(sessionIdleMs);
    expect(await client.closed).toBe(1006);
    await until(isQuiet);
    expect(clock.waiting).toBe(0);
  });

  test("a client that does not answer our close is cut off", async () => {
    const clock = new FakeClock();
    const { agent, exec } = await start({ serve: async (session) => await session.exit(0) }, { clock });
    const { pathname, search } = new URL(exec("output=1"));
    const { socket } = await rawRequest(agent.url, webSocketUpgrade(pathname + search, "v5.channel.k8s.io"));
    let seen = Buffer.alloc(0);
    socket.on("data", (chunk: Buffer) => (seen = Buffer.concat([seen, chunk])));
    socket.resume();
    await until(() => seen.includes(Buffer.of(0x88, 2, 0x03, 0xe8))); // close, 1000
    expect(agent.running.size).toBe(1);
    await clock.advance(closeTimeoutMs);
    await until(() => agent.running.size === 0);
    expect(clock.waiting).toBe(0);
  });

  const hostile: { name: string; bytes: Buffer; code: number }[] = [
    { name: "garbage", bytes: Buffer.from("\xff\xff\xff\xff what is this"), code: 1002 },
    { name: "a frame without a mask", bytes: Buffer.of(0x82, 3, 0, 1, 2), code: 1002 },
    { name: "a message of 4 GiB", code: 1009, bytes: Buffer.of(0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4) },
    {
      name: "one byte more than 32 MiB",
      code: 1009,
      bytes: Buffer.concat([Buffer.of(0x82, 0xff), bigEndian64(messageBytesMax + 1), Buffer.alloc(4)]),
    },
    { name: "a compressed frame", bytes: Buffer.of(0xc2, 0x81, 0, 0, 0, 0, 0), code: 1002 },
  ];
  for (const { name, bytes, code } of hostile) {
    test(`a client that sends ${name} is told so, and cut off`, async () => {
      const { agent, exec, fake, isQuiet } = await start({ serve: async ({ stream }) => void (await stream("never")) });
      const { pathname, search } = new URL(exec("input=1&output=1"));
      const { socket } = await rawRequest(agent.url, webSocketUpgrade(pathname + search, "v5.channel.k8s.io"));
      let isReset = false;
      socket.on("error", () => (isReset = true));
      // Far more than one read behind it.
      socket.write(Buffer.concat([bytes, Buffer.alloc(2 << 20)]));
      const said = await readAll(socket);
      expect([...said.subarray(said.indexOf(0x88)).subarray(2, 4)]).toEqual([code >> 8, code & 0xff]);
      await until(() => fake.connections.size === 0);
      socket.end();
      await until(isQuiet);
      expect(isReset).toBe(false);
    });
  }

  test("a client that breaks the protocol and does not close is cut off after a while", async () => {
    const clock = new FakeClock();
    const { agent, exec } = await start({ serve: async ({ stream }) => void (await stream("never")) }, { clock });
    const { pathname, search } = new URL(exec("input=1&output=1"));
    const { socket } = await rawRequest(agent.url, webSocketUpgrade(pathname + search, "v5.channel.k8s.io"));
    socket.on("error", () => {});
    socket.write(Buffer.of(0x82, 3, 0, 1, 2));
    await readAll(socket);
    expect(agent.running.size).toBe(1);
    await clock.advance(closeTimeoutMs);
    await until(() => agent.running.size === 0);
    expect(clock.waiting).toBe(0);
  });

  test("half a frame and then silence holds a connection and nothing else, until the client goes", async () => {
    const { agent, exec, isQuiet } = await start({ serve: async ({ stream }) => void (await stream("never")) });
    const { pathname, search } = new URL(exec("input=1&output=1"));
    const { socket } = await rawRequest(agent.url, webSocketUpgrade(pathname + search, "v5.channel.k8s.io"));
    socket.write(Buffer.of(0x82, 0xff, 0, 0));
    await new Promise((resolve) => void setTimeout(resolve, 30));
    expect(agent.running.size).toBe(1);
    socket.destroy();
    await until(isQuiet);
  });

  const lies: { name: string; lines: (path: string) => string[] }[] = [
    {
      name: "has no key",
      lines: (path) =>
        webSocketUpgrade(path, "v5.channel.k8s.io").filter((line) => !line.startsWith("Sec-WebSocket-Key")),
    },
    {
      name: "has an old version",
      lines: (path) =>
        webSocketUpgrade(path, "v5.channel.k8s.io").map((line) => line.replace("Version: 13", "Version: 7")),
    },
    {
      name: "is a POST",
      lines: (path) => webSocketUpgrade(path, "v5.channel.k8s.io").map((line) => line.replace(/^GET/, "POST")),
    },
  ];
  for (const { name, lines } of lies) {
    test(`an upgrade that ${name} is answered, and the runtime's server is not bothered`, async () => {
      const { agent, exec, fake } = await start({});
      const { pathname, search } = new URL(exec("output=1"));
      const { status } = await rawRequest(agent.url, lines(pathname + search));
      expect(status).toBe(400);
      expect(fake.requests).toEqual([]);
      await until(() => agent.running.size === 0);
    });
  }
});

describe("without the feature gate", () => {
  test("every WebSocket request is the runtime's", async () => {
    const { agent, fake, exec } = await start(
      { raw: (_r, socket) => void socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") },
      { extendWebSockets: false },
    );
    await expect(wsClient(exec("output=1"))).rejects.toThrow("403");
    expect(fake.requests[0]?.method).toBe("GET");
    expect(fake.requests[0]?.headers["sec-websocket-protocol"]).toBe("v5.channel.k8s.io");
    await expect(tunnelClient(`${agent.url}/portForward/default/web?port=80`)).rejects.toThrow("403");
  });

  test("and legacy ones always are", async () => {
    const { fake, exec } = await start({
      raw: (_r, socket) => void socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"),
    });
    await expect(wsClient(exec("output=1"), "v4.channel.k8s.io")).rejects.toThrow("403");
    expect(fake.requests[0]?.headers["sec-websocket-protocol"]).toBe("v4.channel.k8s.io");
  });
});

const switching =
  "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";

function bigEndian64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}
