import { createServer, type IncomingHttpHeaders, type ServerHttp2Stream } from "node:http2";
import { describe, expect, test } from "vitest";
import type { Container, Probe } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { execOutputBytesMax } from "../../../agent/probes/exec.ts";
import { probeGRPC } from "../../../agent/probes/grpc.ts";
import type { ProbeOutcome } from "../../../agent/probes/port.ts";
import { attemptsMax, createProber } from "../../../agent/probes/run.ts";
import { probeTCP } from "../../../agent/probes/tcp.ts";
import type { ExecSyncResult } from "../../../agent/runtime/port.ts";
import { closedPort, listen, startDeaf, startHTTP, startTCP, startText } from "./servers.ts";
import { forever, targetOf } from "./support.ts";

describe("a TCP probe", () => {
  const ports = [{ name: "db", containerPort: 1 }];
  const probe = async (
    tcpSocket: Probe["tcpSocket"],
    { podIP = "127.0.0.1", timeoutSeconds = 5, signal = forever } = {},
  ) =>
    await probeTCP(
      { timeoutSeconds, ...(tcpSocket === undefined ? {} : { tcpSocket }) },
      targetOf(podIP, { ports }),
      signal,
    );

  test("needs a port that accepts, and ends its connection in good order", async () => {
    const ends: string[] = [];
    await using server = await startTCP((socket) => {
      socket.on("error", (err) => ends.push(err.message));
      socket.on("end", () => ends.push("end"));
      socket.resume();
    });
    expect(await probe({ port: server.port })).toEqual({ kind: "success", output: "" });
    expect(await probe({ port: String(server.port) })).toMatchObject({ kind: "success" });
    expect(await probe({ port: server.port, host: "localhost" }, { podIP: "" })).toMatchObject({ kind: "success" });
    await server.idle();
    expect(ends).toEqual(["end", "end", "end"]);
  });

  test("over IPv6", async () => {
    await using server = await startTCP(undefined, "::1");
    expect(await probe({ port: server.port }, { podIP: "::1" })).toMatchObject({ kind: "success" });
    const port = await closedPort("::1");
    expect(await probe({ port }, { podIP: "::1" })).toEqual({
      kind: "failure",
      output: `dial tcp [::1]:${port}: connect: connection refused`,
    });
  });

  test("of a closed port fails", async () => {
    const port = await closedPort();
    expect(await probe({ port })).toEqual({
      kind: "failure",
      output: `dial tcp 127.0.0.1:${port}: connect: connection refused`,
    });
  });

  // A listener whose queue is full drops what comes, as a host does that is gone.
  test("that gets no answer ends with its timeout", async () => {
    await using server = await startDeaf();
    const { port } = server;
    expect(await probe({ port }, { timeoutSeconds: 0.05 })).toEqual({
      kind: "failure",
      output: `dial tcp 127.0.0.1:${port}: i/o timeout`,
    });
  });

  test("that is no longer wanted ends at once", async () => {
    const stop = new AbortController();
    stop.abort();
    expect(await probe({ port: 1 }, { signal: stop.signal })).toMatchObject({ kind: "failure" });
  });

  test.each([
    { tcpSocket: { port: "db" }, podIP: "", output: "the pod has no IP address yet" },
    { tcpSocket: { port: "nope" }, podIP: "127.0.0.1", output: `couldn't find port: "nope" in container` },
    { tcpSocket: undefined, podIP: "127.0.0.1", output: "missing TCP handler" },
  ])("cannot be carried out: $output", async ({ tcpSocket, podIP, output }) => {
    expect(await probe(tcpSocket, { podIP })).toEqual({ kind: "error", output });
  });
});

describe("a gRPC probe", () => {
  interface Asked {
    headers: IncomingHttpHeaders;
    body: Buffer;
  }
  /** A server that reads the request and then does what `answer` does. */
  const start = async (answer: (stream: ServerHttp2Stream, asked: Asked) => void, host = "127.0.0.1") => {
    const server = createServer();
    server.on("stream", (stream, headers) => {
      const chunks: Buffer[] = [];
      stream.on("error", () => {});
      stream.on("data", (chunk: Buffer) => chunks.push(chunk));
      stream.on("end", () => answer(stream, { headers, body: Buffer.concat(chunks) }));
    });
    return await listen(server, host);
  };
  const respond = (stream: ServerHttp2Stream, message: number[], trailers: Record<string, string> = {}) => {
    stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
    stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0", ...trailers }));
    stream.end(message.length === 0 ? undefined : Buffer.from(message));
  };
  const probe = async (port: number, more: { service?: string; timeoutSeconds?: number; podIP?: string } = {}) => {
    const { service, timeoutSeconds = 5, podIP = "127.0.0.1" } = more;
    const grpc = { port, ...(service === undefined ? {} : { service }) };
    return await probeGRPC({ grpc, timeoutSeconds }, targetOf(podIP), forever);
  };
  const serving = [0, 0, 0, 0, 2, 8, 1];

  test("asks for the service by name and takes SERVING", async () => {
    const asked: Asked[] = [];
    await using server = await start((stream, request) => {
      asked.push(request);
      respond(stream, serving);
    });
    expect(await probe(server.port, { service: "db" })).toEqual({ kind: "success", output: "service healthy" });
    expect(asked[0]?.headers).toMatchObject({
      ":method": "POST",
      ":path": "/grpc.health.v1.Health/Check",
      ":authority": `127.0.0.1:${server.port}`,
      "content-type": "application/grpc",
      "user-agent": "kube-probe/1.36",
      te: "trailers",
    });
    expect(asked[0]?.body).toEqual(Buffer.from([0, 0, 0, 0, 4, 10, 2, ...Buffer.from("db")]));
    await server.idle();
  });

  test("asks for no service in particular, over IPv6", async () => {
    const asked: Asked[] = [];
    await using server = await start((stream, request) => {
      asked.push(request);
      respond(stream, serving);
    }, "::1");
    expect(await probe(server.port, { podIP: "::1" })).toMatchObject({ kind: "success" });
    expect(asked[0]?.body).toEqual(Buffer.from([0, 0, 0, 0, 0]));
  });

  test("names of services may be long", async () => {
    let body: Buffer = Buffer.alloc(0);
    await using server = await start((stream, request) => {
      body = request.body;
      respond(stream, serving);
    });
    await probe(server.port, { service: "x".repeat(200) });
    expect(body.subarray(0, 8)).toEqual(Buffer.from([0, 0, 0, 0, 203, 10, 0xc8, 1]));
  });

  const cases: { name: string; message?: number[]; trailers?: Record<string, string>; output: string }[] = [
    { name: "NOT_SERVING", message: [0, 0, 0, 0, 2, 8, 2], output: `service unhealthy (responded with "NOT_SERVING")` },
    { name: "UNKNOWN, which is 0", message: [0, 0, 0, 0, 0], output: `service unhealthy (responded with "UNKNOWN")` },
    {
      name: "SERVICE_UNKNOWN",
      message: [0, 0, 0, 0, 2, 8, 3],
      output: `service unhealthy (responded with "SERVICE_UNKNOWN")`,
    },
    { name: "a status to come", message: [0, 0, 0, 0, 2, 8, 9], output: `service unhealthy (responded with "9")` },
    { name: "no message", output: `error: health answer for service "" is no message` },
    { name: "garbage", message: [0, 0, 0, 0, 2, 99, 9], output: `error: health answer for service "" is no message` },
    {
      name: "a compressed message, which nobody asked for",
      message: [1, 0, 0, 0, 2, 8, 1],
      output: `error: health answer for service "" is no message`,
    },
    {
      name: "an unknown service",
      trailers: { "grpc-status": "5", "grpc-message": "unknown%20service" },
      output: "error: health rpc probe failed: rpc error: code = 5 desc = unknown service",
    },
    {
      name: "a message that is badly escaped",
      trailers: { "grpc-status": "13", "grpc-message": "100%" },
      output: "error: health rpc probe failed: rpc error: code = 13 desc = 100%",
    },
    {
      name: "a server without the health service",
      trailers: { "grpc-status": "12", "grpc-message": "nope" },
      output: "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): nope",
    },
  ];
  test.each(cases)("$name is a failure", async ({ message = [], trailers = {}, output }) => {
    await using server = await start((stream) => respond(stream, message, trailers));
    expect(await probe(server.port)).toEqual({ kind: "failure", output });
  });

  test("a refusal in the header alone is a failure", async () => {
    await using server = await start((stream) => {
      stream.respond({ ":status": 200, "content-type": "application/grpc", "grpc-status": "12" }, { endStream: true });
    });
    expect(await probe(server.port)).toMatchObject({ kind: "failure" });
  });

  test("a server that speaks HTTP/2 but not gRPC is a failure", async () => {
    await using server = await start((stream) => {
      stream.respond({ ":status": 404 });
      stream.end("not found");
    });
    const outcome = await probe(server.port);
    expect(outcome.kind).toBe("failure");
    expect(outcome.output).toContain("unexpected HTTP status code received from server: 404");
  });

  test("an answer without end is cut", async () => {
    await using server = await start((stream) => {
      stream.respond({ ":status": 200, "content-type": "application/grpc" });
      stream.write(Buffer.alloc(100_000));
    });
    const outcome = await probe(server.port);
    expect(outcome).toMatchObject({ kind: "failure", output: expect.stringContaining("too long") as string });
    await server.idle();
  });

  test.each([
    { name: "resets the stream", act: (stream: ServerHttp2Stream) => stream.close(8) },
    { name: "closes the connection", act: (stream: ServerHttp2Stream) => stream.session?.destroy() },
    { name: "goes away", act: (stream: ServerHttp2Stream) => stream.session?.goaway(0) },
  ])("a server that $name is a failure", async ({ act }) => {
    await using server = await start(act);
    expect(await probe(server.port, { timeoutSeconds: 0.2 })).toMatchObject({ kind: "failure" });
    await server.idle();
  });

  test.each([
    { name: "HTTP/1", begin: async () => await startHTTP((_request, response) => response.end("hello")) },
    { name: "garbage", begin: async () => await startText("garbage\r\n\r\n", "stay") },
  ])("a server that speaks $name is a failure", async ({ begin }) => {
    await using server = await begin();
    expect(await probe(server.port)).toMatchObject({ kind: "failure" });
    await server.idle();
  });

  test("a server that accepts and never answers is a failure in time", async () => {
    await using server = await startTCP();
    expect(await probe(server.port, { timeoutSeconds: 0.05 })).toEqual({
      kind: "failure",
      output: `timeout: no answer from health service at "127.0.0.1:${server.port}" within 0.05s`,
    });
    await server.idle();
  });

  test("a closed port is a failure, a pod without address an error", async () => {
    const port = await closedPort();
    expect(await probe(port)).toEqual({
      kind: "failure",
      output: `error: failed to connect service at "127.0.0.1:${port}": dial tcp 127.0.0.1:${port}: connect: connection refused`,
    });
    expect(await probe(port, { podIP: "" })).toEqual({ kind: "error", output: "the pod has no IP address yet" });
  });
});

describe("an exec probe", () => {
  type Script = () => Promise<Partial<ExecSyncResult>>;
  const ended = (exitCode: number, stdout = "", stderr = ""): Script => {
    return async () => ({ exitCode, stdout: Buffer.from(stdout), stderr: Buffer.from(stderr) });
  };
  const fails = (err: Error): Script => {
    return async () => {
      throw err;
    };
  };
  /** A runtime that answers by the script; its last line is repeated. */
  const probe = async (
    script: Script[],
    {
      probe: more = {},
      env = [],
      signal = forever,
    }: { probe?: Probe; env?: Container["env"]; signal?: AbortSignal } = {},
  ) => {
    const calls: unknown[] = [];
    const prober = createProber({
      execSync: async (id, command, timeoutSeconds) => {
        calls.push([id, command, timeoutSeconds]);
        const line = script[Math.min(calls.length, script.length) - 1];
        const result = (await line?.()) ?? {};
        return { stdout: Buffer.alloc(0), stderr: Buffer.alloc(0), exitCode: 0, ...result };
      },
    });
    const outcome = await prober(
      { exec: { command: ["check", "$(A)$(B)$(C)$$(A)"] }, ...more },
      targetOf("", { env }),
      signal,
    );
    return { outcome, calls };
  };

  const cases: { name: string; script: Script[]; want: ProbeOutcome; calls?: number }[] = [
    { name: "exit code 0", script: [ended(0, "fine")], want: { kind: "success", output: "fine" } },
    { name: "another exit code", script: [ended(3, "out,", "err")], want: { kind: "failure", output: "out,err" } },
    {
      name: "a command that outlives its timeout",
      script: [fails(new AgentError("DeadlineExceeded", "deadline"))],
      want: { kind: "failure", output: `command timed out: "check $(A)$(B)$(C)$(A)" timed out after 1s` },
    },
    {
      name: "a runtime that fails once",
      script: [fails(new AgentError("Unavailable", "gone")), ended(0)],
      want: { kind: "success", output: "" },
      calls: 2,
    },
    {
      name: "a runtime that fails and fails",
      script: [fails(new AgentError("Internal", "no such container"))],
      want: { kind: "error", output: "no such container" },
      calls: attemptsMax,
    },
    {
      name: "more output than is of use",
      script: [ended(1, "o".repeat(execOutputBytesMax - 1), "err")],
      want: { kind: "failure", output: `${"o".repeat(execOutputBytesMax - 1)}e` },
    },
  ];
  test.each(cases)("$name: $want.kind", async ({ script, want, calls = 1 }) => {
    const result = await probe(script);
    expect(result.outcome).toEqual(want);
    expect(result.calls).toHaveLength(calls);
  });

  test("is run with its literal variables and its timeout", async () => {
    const env = [
      { name: "A", value: "a" },
      { name: "B", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } },
    ];
    const { calls } = await probe([ended(0)], { env, probe: { timeoutSeconds: 7 } });
    expect(calls).toEqual([["app-0", ["check", "a$(C)$(A)"], 7]]);
  });

  test("is waited for no longer once nobody wants to know, and not tried again", async () => {
    const stop = new AbortController();
    const never = async () => await new Promise<never>(() => {});
    const running = probe([never], { signal: stop.signal });
    stop.abort();
    const { outcome, calls } = await running;
    expect(outcome.kind).toBe("error");
    expect(calls).toHaveLength(1);
    expect((await probe([ended(0)], { signal: stop.signal })).calls).toEqual([]);
  });
});

test("a probe without handler cannot be carried out", async () => {
  const prober = createProber({ execSync: async () => await Promise.reject(new Error("not asked")) });
  expect(await prober({}, targetOf("127.0.0.1"), forever)).toEqual({ kind: "error", output: "missing probe handler" });
});

test("a kind for each handler", async () => {
  await using server = await startHTTP((_request, response) => response.end("hello"));
  const prober = createProber({ execSync: async () => await Promise.reject(new Error("not asked")) });
  const { port } = server;
  const kinds: Probe[] = [{ httpGet: { port } }, { tcpSocket: { port } }, { grpc: { port } }];
  const outcomes = await Promise.all(kinds.map(async (probe) => await prober(probe, targetOf("127.0.0.1"), forever)));
  expect(outcomes.map(({ kind }) => kind)).toEqual(["success", "success", "failure"]);
});
