import { generateKeyPairSync } from "node:crypto";
import { describe, expect, test } from "vitest";
import { buildCertificate } from "../../../agent/kube/certificates/x509.ts";
import type { Container, HTTPGetAction } from "../../../agent/kube/types.ts";
import { probeHTTP } from "../../../agent/probes/http.ts";
import { bodyBytesMax, headerBytesMax, httpTarget, requestsMax } from "../../../agent/probes/http-get.ts";
import type { ProbeOutcome } from "../../../agent/probes/port.ts";
import { closedPort, startHTTP, startHTTPS, startTCP, startText } from "./servers.ts";
import { forever, targetOf } from "./support.ts";

const container = (ports: Container["ports"] = []): Container => ({ name: "app", image: "image:1", ports });

async function probe(
  httpGet: HTTPGetAction,
  { timeoutSeconds = 5, podIP = "127.0.0.1", signal = forever, ports = [] as Container["ports"] } = {},
): Promise<ProbeOutcome> {
  return await probeHTTP({ httpGet, timeoutSeconds }, targetOf(podIP, container(ports)), signal);
}

describe("the answer's status", () => {
  const cases: { status: number; location?: string; kind: ProbeOutcome["kind"]; output: string }[] = [
    { status: 200, kind: "success", output: "hello" },
    { status: 204, kind: "success", output: "" },
    { status: 299, kind: "success", output: "hello" },
    { status: 300, kind: "warning", output: "Probe terminated redirects, Response body: hello" },
    { status: 304, kind: "warning", output: "Probe terminated redirects, Response body: " },
    { status: 302, kind: "warning", output: "Probe terminated redirects, Response body: hello" },
    {
      status: 301,
      location: "http://elsewhere.example/",
      kind: "warning",
      output: "Probe terminated redirects, Response body: hello",
    },
    { status: 400, kind: "failure", output: "HTTP probe failed with statuscode: 400" },
    { status: 404, kind: "failure", output: "HTTP probe failed with statuscode: 404" },
    { status: 500, kind: "failure", output: "HTTP probe failed with statuscode: 500" },
    { status: 599, kind: "failure", output: "HTTP probe failed with statuscode: 599" },
  ];
  test.each(cases)("$status $location: $kind", async ({ status, location, kind, output }) => {
    await using server = await startHTTP((_request, response) => {
      response.writeHead(status, location === undefined ? {} : { location }).end("hello");
    });
    expect(await probe({ port: server.port })).toEqual({ kind, output });
  });

  test("101 for a protocol that nobody asked for is a failure", async () => {
    await using server = await startText("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "stay");
    expect(await probe({ port: server.port })).toEqual({
      kind: "failure",
      output: "HTTP probe failed with statuscode: 101",
    });
  });
});

describe("where it leads", () => {
  const ports = [{ name: "web", containerPort: 8080 }];
  const cases: { name: string; action: Partial<HTTPGetAction>; podIP?: string; want: string }[] = [
    { name: "number", action: { port: 81 }, want: "http://10.0.0.2:81/" },
    { name: "number as text", action: { port: "81" }, want: "http://10.0.0.2:81/" },
    { name: "name", action: { port: "web" }, want: "http://10.0.0.2:8080/" },
    { name: "own host", action: { host: "db.example" }, want: "http://db.example:8080/" },
    { name: "empty host", action: { host: "" }, want: "http://10.0.0.2:8080/" },
    { name: "IPv6", action: {}, podIP: "fd00::2", want: "http://[fd00::2]:8080/" },
    { name: "IPv6 as host", action: { host: "::1" }, want: "http://[::1]:8080/" },
    { name: "HTTPS", action: { scheme: "HTTPS" }, want: "https://10.0.0.2:8080/" },
    { name: "path and query", action: { path: "/a/b?c=d&e" }, want: "http://10.0.0.2:8080/a/b?c=d&e" },
    { name: "path without slash", action: { path: "healthz" }, want: "http://10.0.0.2:8080/healthz" },
    { name: "path with what has to be escaped", action: { path: "/a b/ü" }, want: "http://10.0.0.2:8080/a%20b/%C3%BC" },
    { name: "fragment", action: { path: "/a#b" }, want: "http://10.0.0.2:8080/a" },
  ];
  test.each(cases)("$name", ({ action, podIP = "10.0.0.2", want }) => {
    expect(httpTarget({ port: "web", ...action }, container(ports), podIP, "ua").url.href).toBe(want);
  });

  const bad: { name: string; action: HTTPGetAction; podIP?: string; output: string | RegExp }[] = [
    { name: "unknown name", action: { port: "nope" }, output: `couldn't find port: "nope" in container` },
    { name: "too big a port", action: { port: 65_536 }, output: "invalid port number: 65536" },
    { name: "port 0", action: { port: 0 }, output: "invalid port number: 0" },
    { name: "no address", action: { port: 80 }, podIP: "", output: "the pod has no IP address yet" },
    { name: "no host name", action: { port: 80, host: "a b" }, output: /Invalid URL/ },
  ];
  test.each(bad)("$name cannot be carried out", async ({ action, podIP = "127.0.0.1", output }) => {
    const want: unknown = output instanceof RegExp ? expect.stringMatching(output) : output;
    expect(await probe(action, { podIP })).toEqual({ kind: "error", output: want });
  });

  test("over IPv6", async () => {
    await using server = await startHTTP((request, response) => response.end(request.headers.host), "::1");
    expect(await probe({ port: server.port }, { podIP: "::1" })).toEqual({
      kind: "success",
      output: `[::1]:${server.port}`,
    });
  });
});

describe("headers", () => {
  const get = async (httpHeaders: HTTPGetAction["httpHeaders"] = []) => {
    let raw: string[] = [];
    await using server = await startHTTP((request, response) => {
      raw = request.rawHeaders;
      response.end();
    });
    expect(await probe({ port: server.port, path: "/x?y", httpHeaders })).toMatchObject({ kind: "success" });
    const pairs = raw.flatMap((name, i) => (i % 2 === 0 ? [`${name}: ${raw[i + 1]}`] : []));
    return pairs.map((text) => text.replace(String(server.port), "PORT"));
  };
  const host = "Host: 127.0.0.1:PORT";
  const close = "Connection: close";
  const agent = "User-Agent: kube-probe/1.36";
  const accept = "Accept: */*";
  const cases: { name: string; given: [string, string][]; want: string[] }[] = [
    { name: "by default", given: [], want: [host, close, agent, accept] },
    {
      name: "own ones, as they are written and in order",
      given: [
        ["x-a", "1"],
        ["X-B", ""],
        ["x-a", "2"],
      ],
      want: [host, close, "x-a: 1", "X-B: ", "x-a: 2", agent, accept],
    },
    { name: "Host", given: [["host", "my.example"]], want: ["Host: my.example", close, agent, accept] },
    {
      name: "the first of two Hosts",
      given: [
        ["Host", "first.example"],
        ["Host", "second.example"],
      ],
      want: ["Host: first.example", close, agent, accept],
    },
    { name: "empty Host", given: [["Host", ""]], want: [host, close, agent, accept] },
    {
      name: "own User-Agent and Accept",
      given: [
        ["user-agent", "me"],
        ["accept", "text/plain"],
      ],
      want: [host, close, "user-agent: me", "accept: text/plain"],
    },
    {
      name: "empty ones take the defaults away",
      given: [
        ["User-Agent", ""],
        ["Accept", ""],
      ],
      want: [host, close],
    },
    {
      name: "what belongs to the message itself is left out",
      given: [
        ["Content-Length", "5"],
        ["Transfer-Encoding", "chunked"],
      ],
      want: [host, close, agent, accept],
    },
  ];
  test.each(cases)("$name", async ({ given, want }) => {
    expect(await get(given.map(([name, value]) => ({ name, value })))).toEqual(want);
  });

  test("other than ASCII go out as UTF-8", async () => {
    const headers = await get([{ name: "X-Name", value: "Grüße" }]);
    const value = headers.find((line) => line.startsWith("X-Name: "))?.slice("X-Name: ".length) ?? "";
    expect(Buffer.from(value, "latin1").toString("utf8")).toBe("Grüße");
  });

  test("that HTTP cannot carry are a failure", async () => {
    const outcome = await probe({ port: 1, httpHeaders: [{ name: "X", value: "a\r\nHost: b" }] });
    expect(outcome).toMatchObject({ kind: "failure", output: expect.stringContaining("Invalid character") as string });
  });
});

describe("redirects", () => {
  /** A server that answers by the path; the first `hops` paths lead on. */
  const chain = async (hops: number, location: (n: number, port: number) => string, status = 302) =>
    await startHTTP((request, response) => {
      const n = Number(request.url?.slice(1));
      const port = (request.socket.address() as { port: number }).port;
      if (n < hops) response.writeHead(status, { location: location(n + 1, port) }).end("moved");
      else response.end(`arrived for ${request.headers.host?.replace(String(port), "PORT")}`);
    });

  test.each([301, 302, 303, 307, 308])("%d on the same host is followed", async (status) => {
    await using server = await chain(2, (n) => `/${n}`, status);
    expect(await probe({ port: server.port, path: "/0" })).toEqual({
      kind: "success",
      output: "arrived for 127.0.0.1:PORT",
    });
  });

  test("to a full URL and another port of the same host", async () => {
    await using target = await startHTTP((request, response) => response.end(`for ${request.headers.host}`));
    await using server = await startHTTP((_request, response) =>
      response.writeHead(302, { location: `http://127.0.0.1:${target.port}/` }).end(),
    );
    const httpHeaders = [{ name: "Host", value: "my.example" }];
    expect(await probe({ port: server.port, httpHeaders })).toEqual({
      kind: "success",
      output: `for 127.0.0.1:${target.port}`,
    });
  });

  test("a relative one keeps the Host asked for", async () => {
    await using server = await chain(1, (n) => `/${n}`);
    const httpHeaders = [{ name: "Host", value: "my.example" }];
    expect(await probe({ port: server.port, path: "/0", httpHeaders })).toEqual({
      kind: "success",
      output: "arrived for my.example",
    });
  });

  test("to another host is not followed, also after one that was", async () => {
    await using server = await chain(2, (n, port) => (n === 2 ? `http://localhost:${port}/2` : `/${n}`));
    expect(await probe({ port: server.port, path: "/0" })).toEqual({
      kind: "warning",
      output: "Probe terminated redirects, Response body: moved",
    });
    expect(server.connections).toBe(2);
  });

  test("a loop ends", async () => {
    await using server = await chain(Number.POSITIVE_INFINITY, (n) => `/${n}`);
    expect(await probe({ port: server.port, path: "/0" })).toEqual({
      kind: "failure",
      output: `Get "http://127.0.0.1:${server.port}/${requestsMax}": stopped after ${requestsMax} redirects`,
    });
    expect(server.connections).toBe(requestsMax);
  });

  test.each([
    { location: "http://[", output: 'failed to parse Location header "http://["' },
    { location: "ftp://127.0.0.1/", output: 'unsupported protocol scheme "ftp"' },
  ])("to $location is a failure", async ({ location, output }) => {
    await using server = await startHTTP((_request, response) => response.writeHead(302, { location }).end());
    const outcome = await probe({ port: server.port });
    expect(outcome).toMatchObject({ kind: "failure", output: expect.stringContaining(output) as string });
  });

  test("one with an endless body is followed at once", async () => {
    await using server = await startHTTP((request, response) => {
      if (request.url === "/end") response.end("there");
      else response.writeHead(302, { location: "/end" }).write("for ever");
    });
    expect(await probe({ port: server.port })).toEqual({ kind: "success", output: "there" });
  });
});

describe("HTTPS", () => {
  // Nobody trusts it, it has expired, and its key is too short for a client that looks.
  const { privateKey, publicKey } = generateKeyPairSync("rsa", { modulusLength: 1_024 });
  const issuer = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const cert = buildCertificate({
    template: { commonName: "elsewhere", organizations: [], dnsNames: ["elsewhere.example"], ips: [] },
    publicKey,
    issuer: { name: { commonName: "nobody", organizations: [] }, key: issuer.privateKey },
    isAuthority: false,
    notBeforeMs: Date.UTC(2020, 0, 1),
    notAfterMs: Date.UTC(2020, 0, 2),
  });
  const pair = { key: privateKey.export({ type: "pkcs8", format: "pem" }).toString(), cert };

  test("is not verified in any way", async () => {
    await using server = await startHTTPS(pair, (_request, response) => response.end("secret"));
    const httpHeaders = [{ name: "Host", value: "my.example" }];
    expect(await probe({ port: server.port, scheme: "HTTPS", httpHeaders })).toEqual({
      kind: "success",
      output: "secret",
    });
    expect(server.names).toEqual([false]); // an address is no server name, and Host is for HTTP only
  });

  test("tells the server its name if the action has one", async () => {
    await using server = await startHTTPS(pair, (_request, response) => response.end("secret"));
    expect(await probe({ host: "localhost", port: server.port, scheme: "HTTPS" })).toMatchObject({ kind: "success" });
    expect(server.names).toEqual(["localhost"]);
  });

  test("of a server that speaks plain HTTP is a failure", async () => {
    await using server = await startHTTP((_request, response) => response.end());
    expect(await probe({ port: server.port, scheme: "HTTPS" })).toEqual({
      kind: "failure",
      output: `Get "https://127.0.0.1:${server.port}/": http: server gave HTTP response to HTTPS client`,
    });
  });

  test("of a server that breaks off the handshake is a failure, in words", async () => {
    await using server = await startText(Buffer.from([0x15, 3, 3, 0, 2, 2, 40]));
    const outcome = await probe({ port: server.port, scheme: "HTTPS" });
    expect(outcome.kind).toBe("failure");
    expect(outcome.output).toMatch(/: tls: .*handshake failure$/);
  });
});

describe("a server that", () => {
  test("is not there", async () => {
    const port = await closedPort();
    expect(await probe({ port })).toEqual({
      kind: "failure",
      output: `Get "http://127.0.0.1:${port}/": dial tcp 127.0.0.1:${port}: connect: connection refused`,
    });
  });

  test("accepts and never answers", async () => {
    await using server = await startTCP();
    expect(await probe({ port: server.port }, { timeoutSeconds: 0.05 })).toEqual({
      kind: "failure",
      output: `Get "http://127.0.0.1:${server.port}/": context deadline exceeded (Client.Timeout exceeded while awaiting headers)`,
    });
    await server.idle();
  });

  test("redirects slowly: all requests share one timeout", async () => {
    await using server = await startHTTP((_request, response) => {
      setTimeout(() => response.writeHead(302, { location: "/" }).end(), 40);
    });
    const beganMs = performance.now();
    expect(await probe({ port: server.port }, { timeoutSeconds: 0.1 })).toMatchObject({ kind: "failure" });
    expect(performance.now() - beganMs).toBeLessThan(400);
    expect(server.connections).toBeLessThan(requestsMax);
  });

  test("sends a header and then nothing", async () => {
    await using server = await startText("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhel", "stay");
    expect(await probe({ port: server.port }, { timeoutSeconds: 0.05 })).toEqual({
      kind: "failure",
      output: "context deadline exceeded (Client.Timeout or context cancellation while reading body)",
    });
    await server.idle();
  });

  test("sends half a header for ever", async () => {
    await using server = await startText("HTTP/1.1 200 OK\r\nX-A: ", "stay");
    expect(await probe({ port: server.port }, { timeoutSeconds: 0.05 })).toMatchObject({ kind: "failure" });
    await server.idle();
  });

  test("streams for ever is read up to the limit", async () => {
    await using server = await startHTTP((_request, response) => {
      const write = () => {
        while (!response.destroyed && response.write("x".repeat(1_000)));
      };
      response.on("drain", write);
      write();
    });
    const outcome = await probe({ port: server.port });
    expect(outcome).toEqual({ kind: "success", output: "x".repeat(bodyBytesMax) });
    await server.idle();
  });

  test("breaks off in its body", async () => {
    await using server = await startText("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhel");
    const outcome = await probe({ port: server.port });
    expect(outcome).toMatchObject({ kind: "failure", output: expect.stringMatching(/^unexpected EOF/) as string });
  });

  test("closes without an answer", async () => {
    await using server = await startTCP((socket) => socket.once("data", () => socket.destroy()));
    expect(await probe({ port: server.port })).toMatchObject({ kind: "failure" });
  });

  test("sends garbage", async () => {
    await using server = await startText(Buffer.from("\u0000\u0001SSH-2.0-garbage\r\n\r\n"));
    const outcome = await probe({ port: server.port });
    expect(outcome).toMatchObject({ kind: "failure", output: expect.stringMatching(/Parse Error/) as string });
  });

  test("is made of shell and netcat, and ends lines with LF alone", async () => {
    await using server = await startText("HTTP/1.1 200 OK\nContent-Length: 2\n\nok");
    expect(await probe({ port: server.port })).toEqual({ kind: "success", output: "ok" });
  });

  test("ends its body by closing", async () => {
    await using server = await startText("HTTP/1.0 200 OK\r\n\r\nok");
    expect(await probe({ port: server.port })).toEqual({ kind: "success", output: "ok" });
  });

  test("sends a long header", async () => {
    await using server = await startText(`HTTP/1.1 200 OK\r\nX-A: ${"a".repeat(headerBytesMax / 2)}\r\n\r\n`);
    expect(await probe({ port: server.port })).toMatchObject({ kind: "success" });
  });

  test("sends a header without end", async () => {
    await using server = await startText(`HTTP/1.1 200 OK\r\nX-A: ${"a".repeat(2 * headerBytesMax)}`, "stay");
    expect(await probe({ port: server.port })).toMatchObject({ kind: "failure" });
  });

  test("sends interim answers first", async () => {
    await using server = await startText(
      "HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    expect(await probe({ port: server.port })).toEqual({ kind: "success", output: "ok" });
  });
});

test("nobody waits for a server once the probe is no longer wanted", async () => {
  await using server = await startTCP();
  const stop = new AbortController();
  const outcome = probe({ port: server.port }, { signal: stop.signal });
  while (server.connections === 0) await new Promise((resolve) => void setImmediate(resolve));
  stop.abort();
  expect(await outcome).toMatchObject({ kind: "failure" });
  expect(await probe({ port: server.port }, { signal: stop.signal })).toMatchObject({ kind: "failure" });
  await server.idle();
});
