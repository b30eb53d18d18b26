import { once } from "node:events";
import { connect } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { connect as tlsConnect } from "node:tls";
import { describe, expect, test } from "vitest";
import * as limits from "../../../../agent/server/limits.ts";
import { readBody } from "../../../../agent/server/respond.ts";
import { FakeClock } from "../../kube/fake-clock.ts";
import { ask, authority, namingHandlers, openFiles, RawClient, startServer, until } from "./support.ts";

const get = (path: string, more = "") => `GET ${path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n${more}\r\n`;

const requests: { name: string; bytes: string | Buffer; want: RegExp }[] = [
  { name: "HTTP/0.9", bytes: "GET /pods\r\n\r\n", want: /^HTTP\/1.1 400 Bad Request\r\n/ },
  { name: "no HTTP", bytes: "\x16\x03\x01\0\xa5 garbage\r\n\r\n", want: /^HTTP\/1.1 400 / },
  { name: "an unknown method", bytes: "BREW /pods HTTP/1.1\r\nHost: a\r\n\r\n", want: /^HTTP\/1.1 400 / },
  { name: "HTTP/2's preface", bytes: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", want: /^HTTP\/1.1 400 / },
  { name: "no host", bytes: "GET /pods HTTP/1.1\r\n\r\n", want: /^HTTP\/1.1 400 / },
  { name: "two lengths", bytes: get("/pods", "Content-Length: 1\r\nContent-Length: 2\r\n"), want: /^HTTP\/1.1 400 / },
  {
    name: "a length and chunks",
    bytes: get("/pods", "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"),
    want: /^HTTP\/1.1 400 /,
  },
  { name: "a NUL in a header", bytes: get("/pods", "X: a\0b\r\n"), want: /^HTTP\/1.1 400 / },
  { name: "a bare carriage return", bytes: get("/pods", "X: a\rb\r\n"), want: /^HTTP\/1.1 400 / },
  { name: "a bad escape", bytes: get("/pods%zz"), want: /^HTTP\/1.1 400 Bad Request\r\n.*Connection: close/s },
  { name: "a proxy's CONNECT", bytes: "CONNECT evil:443 HTTP/1.1\r\nHost: evil\r\n\r\n", want: /^HTTP\/1.1 404 / },
  { name: "a header bomb", bytes: get("/pods", `X: ${"x".repeat(1_100_000)}\r\n`), want: /^HTTP\/1.1 431 / },
  { name: "a bomb of many headers", bytes: get("/pods", "X: y\r\n".repeat(200_000)), want: /^HTTP\/1.1 431 / },
];

describe("bytes that are no request", () => {
  for (const { name, bytes, want } of requests) {
    test(`${name} is refused, and the connection closed`, async () => {
      await using server = await startServer();
      await using raw = await RawClient.tls(server.ports.kubelet);
      raw.socket.write(bytes);
      await raw.closed;
      expect(raw.text).toMatch(want);
      expect(await ask(server.ports.kubelet, "/pods")).toMatchObject({ status: 200 });
    });
  }

  test("a header as large as the reference takes is taken", async () => {
    await using server = await startServer();
    await using raw = await RawClient.tls(server.ports.kubelet);
    raw.socket.write(get("/pods", `X: ${"x".repeat(1_000_000)}\r\n`));
    expect(await raw.until(/GET pods/)).toMatch(/200 OK/);
  });

  test.each(["GET", "HEAD", "POST", "PUT"])("%s without TLS is told what is missing", async (method) => {
    await using server = await startServer();
    const long = "x".repeat(100_000); // nobody reads it, which must not reset the answer
    await using raw = await RawClient.plain(server.ports.kubelet);
    raw.socket.write(`${method} /healthz HTTP/1.1\r\nHost: a\r\nX: ${long}\r\n\r\n`);
    await raw.closed;
    expect(raw.text).toMatch(/^HTTP\/1.1 400 Bad Request\r\n.*\r\n\r\nClient sent an HTTP request to an HTTPS server/s);
  });

  test("no TLS, or half of it", async () => {
    await using server = await startServer();
    for (const bytes of ["\x16\x03\x01\x02\0", "\x16\x03\x03\xff\xff\x01\0\0", "\0".repeat(99)]) {
      const raw = await RawClient.plain(server.ports.kubelet);
      raw.socket.end(bytes, "latin1");
      await raw.closed;
      expect(raw.text).not.toMatch(/HTTP/);
    }
    const reset = await RawClient.plain(server.ports.kubelet);
    reset.socket.resetAndDestroy();
    expect(await ask(server.ports.kubelet, "/pods")).toMatchObject({ status: 200 });
  });

  test("an old TLS version is refused", async () => {
    await using server = await startServer();
    const old = tlsConnect({
      host: "127.0.0.1",
      port: server.ports.kubelet ?? 0,
      ca: authority.certificate,
      minVersion: "TLSv1.1",
      maxVersion: "TLSv1.1",
      ciphers: "DEFAULT@SECLEVEL=0",
    });
    await expect(once(old, "secureConnect")).rejects.toThrow(/version/);
    old.destroy();
  });
});

describe("clients that take their time", () => {
  // As short as a busy machine allows: who does nothing wrong keeps to them there, too.
  const times = { keepAliveMs: 500, headersReadMs: 600, requestReadMs: 1_000, handshakeMs: 1_000, checkMs: 20 };

  test("the limits are the reference's, but for headers and handshakes, which have to be quick", () => {
    expect(limits.connectionTimes).toEqual({
      keepAliveMs: 90_000,
      headersReadMs: 32_000,
      requestReadMs: 4 * 3_600_000,
      handshakeMs: 10_000,
      checkMs: 2_000,
    });
    expect(limits.responseWriteMs).toBe(4 * 3_600_000);
    expect(limits.headerBytesMax).toBeGreaterThan(1_048_576);
  });

  for (const [what, bytes, want] of [
    ["nothing", "", /^HTTP\/1.1 408 Request Timeout\r\n/],
    ["half a request line", "GET /po", /^HTTP\/1.1 408 /],
    ["half a header", "GET /pods HTTP/1.1\r\nHost: a\r\nX: y", /^HTTP\/1.1 408 /],
    ["half a second header", `${get("/pods")}GET /po`, /^HTTP\/1.1 200 OK\r\n.*HTTP\/1.1 408 /s],
    ["half a body", "PUT /debug/flags/v HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n4", /401/],
    ["no second request", get("/pods"), /GET pods {}$/],
  ] as const) {
    test(`one that sends ${what} is let go`, async () => {
      await using server = await startServer({ times });
      await using raw = await RawClient.tls(server.ports.kubelet);
      raw.socket.write(bytes);
      await raw.closed;
      expect(raw.text).toMatch(want);
    });
  }

  test("one that does not finish its handshake is let go", async () => {
    await using server = await startServer({ times });
    for (const bytes of ["", "\x16\x03\x01\x02\0\x01"]) {
      const raw = await RawClient.plain(server.ports.kubelet);
      raw.socket.write(bytes, "latin1");
      raw.socket.once("end", () => raw.socket.end());
      await raw.closed;
    }
    expect(await ask(server.ports.kubelet, "/pods")).toMatchObject({ status: 200 });
  });

  test("a body that trickles ends with the time for reading", async () => {
    const handlers = {
      ...namingHandlers(),
      verbosity: async ({ request }: Parameters<ReturnType<typeof namingHandlers>["verbosity"]>[0]) => {
        await readBody(request);
      },
    };
    await using server = await startServer({ times, handlers });
    await using raw = await RawClient.tls(server.ports.kubelet);
    raw.socket.write(get("/debug/flags/v", "Content-Length: 1000\r\n"));
    const trickle = setInterval(() => raw.socket.write("1"), 100);
    await raw.closed;
    clearInterval(trickle);
    expect(raw.text).not.toMatch(/200/);
  });

  test("an answer that is not read ends with the time for writing", async () => {
    const clock = new FakeClock();
    const handlers = {
      ...namingHandlers(),
      configz: async ({ response, signal }: Parameters<ReturnType<typeof namingHandlers>["configz"]>[0]) => {
        response.write("begun");
        await once(signal, "abort");
      },
    };
    await using server = await startServer({ clock, handlers });
    await using raw = await RawClient.tls(server.ports.kubelet);
    raw.socket.write(get("/configz"));
    await raw.until(/begun/);
    await clock.advance(limits.responseWriteMs - 1);
    expect(raw.socket.destroyed).toBe(false);
    await clock.advance(1);
    await raw.closed;
    expect(clock.waiting).toBe(0);
  });

  test("a stream whose last bytes are not taken is cut", async () => {
    const clock = new FakeClock();
    const { exec, ...others } = namingHandlers();
    const upgrade: typeof exec.upgrade = async ({ socket }) => {
      await Promise.resolve(void socket.write(Buffer.alloc(64 * 1_048_576)));
    };
    await using server = await startServer({ clock, handlers: { ...others, exec: { ...exec, upgrade } } });
    await using raw = await RawClient.tls(server.ports.kubelet);
    raw.socket.pause();
    raw.socket.write(get("/exec/a/b/c", "Connection: Upgrade\r\nUpgrade: X\r\n"));
    await until(() => clock.waiting === 1);
    await clock.advance(limits.flushMs);
    raw.socket.resume();
    await raw.closed;
    expect(raw.text.length).toBeLessThan(64 * 1_048_576);
  });
});

describe("clients that behave oddly", () => {
  test("a client that closes its side after the request is answered", async () => {
    await using server = await startServer();
    await using raw = await RawClient.tls(server.ports.kubelet, { allowHalfOpen: true } as object);
    raw.socket.end(get("/pods"));
    await raw.closed;
    expect(raw.text).toMatch(/200 OK.*GET pods/s);
  });

  test("requests sent ahead are served one after the other, up to a bound", async () => {
    let running = 0;
    let runningMax = 0;
    const handlers = {
      ...namingHandlers(),
      configz: async ({ response }: Parameters<ReturnType<typeof namingHandlers>["configz"]>[0]) => {
        running += 1;
        runningMax = Math.max(runningMax, running);
        await delay(1);
        running -= 1;
        response.end("done");
      },
    };
    await using server = await startServer({ handlers });
    await using polite = await RawClient.tls(server.ports.kubelet);
    polite.socket.write(get("/configz").repeat(20));
    await until(() => polite.text.split("done").length > 20);
    expect(runningMax).toBe(1);
    await using greedy = await RawClient.tls(server.ports.kubelet);
    greedy.socket.write(get("/configz").repeat(limits.pipelinedRequestsMax * 3));
    await greedy.closed;
    expect(await ask(server.ports.kubelet, "/pods")).toMatchObject({ status: 200 });
  });

  test("requests sent ahead by a client that has gone are not served, and leave no timers", async () => {
    const clock = new FakeClock();
    const asked: unknown[] = [];
    const authenticator = {
      authenticate: async () => {
        asked.push("again");
        await delay(20);
        return undefined;
      },
    };
    await using server = await startServer({ clock, authenticator });
    const before = clock.waiting;
    for (let i = 0; i < 5; i += 1) {
      const tcp = connect({ host: "127.0.0.1", port: server.ports.kubelet ?? 0 });
      const raw = await RawClient.tls(server.ports.kubelet, { socket: tcp });
      raw.socket.write(get("/pods").repeat(40));
      await until(() => asked.length > i);
      tcp.resetAndDestroy();
    }
    await delay(200);
    expect(asked.length).toBeLessThan(15);
    await until(() => clock.waiting === before);
  });

  test("headers sent ahead by strangers have one budget: who has most of it is let go", async () => {
    const gate = Promise.withResolvers<undefined>();
    await using server = await startServer({ authenticator: { authenticate: async () => await gate.promise } });
    const big = get("/pods", `X: ${"x".repeat(900_000)}\r\n`);
    await using modest = await RawClient.tls(server.ports.kubelet);
    modest.socket.write(get("/pods"));
    await using greedy = await RawClient.tls(server.ports.kubelet);
    for (let i = 0; i < 8 && greedy.socket.writable; i += 1) greedy.socket.write(big);
    await greedy.closed;
    expect(modest.socket.destroyed).toBe(false);
    gate.resolve(undefined);
    expect(await modest.until(/Unauthorized/)).toMatch(/401/);
  });

  test("a query of half a million parameters is refused before it is parsed", async () => {
    await using server = await startServer();
    const { status, body } = await ask(server.ports.kubelet, `/stats/summary?${"a&".repeat(100_000)}`);
    expect(status).toBe(400);
    expect(body).toBe(`the query has 100001 parameters, more than ${limits.queryParametersMax}`);
    expect(await ask(server.ports.kubelet, `/stats/summary?${"a&".repeat(1_000)}`)).toMatchObject({ status: 200 });
  });

  test("a body that nobody reads ends the connection instead of being read", async () => {
    await using server = await startServer();
    await using raw = await RawClient.tls(server.ports.kubelet);
    raw.socket.write("POST /run/a/b/c HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\nx");
    expect(await raw.until(/Unauthorized/)).toMatch(/401.*Connection: close/s);
    await raw.closed;
    await using endless = await RawClient.tls(server.ports.kubelet);
    endless.socket.write(`POST /stats/summary${get("", "Transfer-Encoding: chunked\r\n").slice(4)}5\r\nhello\r\n`);
    await endless.closed;
    expect(endless.text).toMatch(/200 OK.*Connection: close.*POST statsSummary/s);
  });

  test("a handler that gives up a body half-read harms nobody but its client", async () => {
    const handlers = {
      ...namingHandlers(),
      verbosity: async ({ request }: Parameters<ReturnType<typeof namingHandlers>["verbosity"]>[0]) => {
        // Leaving the loop destroys the request.
        for await (const _chunk of request) throw new Error("that is enough");
      },
    };
    await using server = await startServer({ handlers });
    await using raw = await RawClient.tls(server.ports.kubelet);
    raw.socket.write(get("/debug/flags/v", "Transfer-Encoding: chunked\r\n"));
    for (let i = 0; i < 20 && raw.socket.writable; i++) raw.socket.write(`10000\r\n${"x".repeat(65_536)}\r\n`);
    await raw.closed;
    expect(await ask(server.ports.kubelet, "/pods")).toMatchObject({ status: 200 });
  });

  test("aborted requests and resets at every stage leave nothing behind", async () => {
    await using server = await startServer();
    const { kubelet } = server.ports;
    await ask(kubelet, "/pods");
    const before = await openFiles();
    const whole = get("/exec/a/b/c", "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n");
    for (let length = 0; length <= whole.length; length += 16) {
      const tcp = connect({ host: "127.0.0.1", port: kubelet ?? 0 });
      const raw = await RawClient.tls(kubelet, { socket: tcp });
      raw.socket.write(whole.slice(0, length));
      if (length % 32 === 0) tcp.resetAndDestroy();
      else raw.socket.destroy();
    }
    const streams = await Promise.all(Array.from({ length: 20 }, () => RawClient.tls(kubelet)));
    for (const [i, { socket }] of streams.entries()) {
      socket.write(whole + "x".repeat(i * 1000));
      socket.on("data", () => (i % 2 === 0 ? socket.destroy() : socket.end()));
    }
    await Promise.all(streams.map(({ closed }) => closed));
    await until(async () => (await openFiles()) <= before);
    expect(await ask(kubelet, "/pods")).toMatchObject({ status: 200 });
  });
});
