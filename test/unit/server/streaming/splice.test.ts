import { createHash, randomBytes } from "node:crypto";
import { connect, type Socket } from "node:net";
import { describe, expect, test } from "vitest";
import { parseDocument } from "yaml";
import { AgentError } from "../../../../agent/lib/errors.ts";
import { answerTimeoutMs } from "../../../../agent/server/streaming/dial.ts";
import { halfClosedIdleMs } from "../../../../agent/server/streaming/pump.ts";
import { runsMax } from "../../../../agent/server/streaming/run.ts";
import {
  type AgentServerOptions,
  fakeRuntimeCalls,
  servedPods,
  startAgentServer,
  webPod,
} from "../../../support/streaming/agent-server.ts";
import {
  type RawAnswer,
  rawRequest,
  readAll,
  spdyClient,
  spdyUpgrade,
  webSocketUpgrade,
} from "../../../support/streaming/clients.ts";
import { startFakeRuntime } from "../../../support/streaming/fake-runtime.ts";
import { CertificateAuthority } from "../../../support/apiserver/pki.ts";
import { FakeClock } from "../../kube/fake-clock.ts";
import { useServed } from "./served.ts";
import { until } from "./until.ts";

const { start, keep } = useServed();
const execURL = (agent: { url: string }) => `${agent.url}/exec/default/web/app?command=ls&command=-l&output=1&error=1`;

const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";

async function body(url: string, init?: RequestInit): Promise<string> {
  const response = await fetch(url, init);
  return `${response.status} ${(await response.text()).trim()}`;
}

/** The body of an answer in one chunk, or in none. */
async function textOf({ rest, socket }: RawAnswer): Promise<string> {
  const body = Buffer.concat([rest, await readAll(socket)]).toString();
  return body.replace(/^[0-9a-f]+\r\n/, "").replace(/\r\n0\r\n\r\n$/, "");
}

describe("requests that are answered and not upgraded", () => {
  const upgradeCases: { path: string; want: string }[] = [
    { path: "/exec/default/web/app", want: "400 you must specify at least 1 of stdin, stdout, stderr" },
    { path: "/exec/default/nobody/app", want: "400 you must specify at least 1 of stdin, stdout, stderr" },
    { path: "/exec/default/nobody/app?output=1", want: "404 pod does not exist" },
    { path: "/exec/other/web/app?output=1", want: "404 pod does not exist" },
    { path: "/exec/default/web/nosuch?output=1", want: '500 container not found ("nosuch")' },
    { path: "/exec/default/web/gone?output=1", want: '500 container not found ("gone"), it has ended' },
    { path: "/exec/default/web/app?output=1", want: "500 Upgrade request required" },
    { path: "/exec/default/web/any-uid/app?output=1", want: "500 Upgrade request required" },
    { path: "/attach/default/web/app", want: "400 you must specify at least 1 of stdin, stdout, stderr" },
    { path: "/attach/default/web/app?output=1", want: "500 Upgrade request required" },
    { path: "/portForward/default/nobody", want: "404 pod does not exist" },
    { path: "/portForward/default/web/other-uid", want: "404 pod not found" },
    { path: "/portForward/default/web/uid-web", want: "500 Upgrade request required" },
    { path: "/portForward/default/web", want: "500 Upgrade request required" },
  ];
  test("every one as the reference does", async () => {
    const { agent, asked } = await start({});
    for (const { path, want } of upgradeCases) {
      expect(`${path} ${await body(agent.url + path, { method: "POST" })}`).toBe(`${path} ${want}`);
    }
    expect(asked).toEqual([]);
  });

  test("what the runtime says to the request for a session becomes the status", async () => {
    const errors: { err: AgentError; want: string }[] = [
      { err: new AgentError("NotFound", "no such container"), want: "HTTP/1.1 404 Not Found" },
      { err: new AgentError("TooManyRequests", "too many"), want: "HTTP/1.1 429 Too Many Requests" },
      { err: new AgentError("Unavailable", "runtime is down"), want: "HTTP/1.1 500 Internal Server Error" },
    ];
    for (const { err, want } of errors) {
      const { runtime } = fakeRuntimeCalls(() => Promise.reject(err));
      const agent = keep(await startAgentServer({ pods: servedPods(webPod), runtime }));
      const answer = await rawRequest(agent.url, spdyUpgrade("/exec/default/web/app?output=1"));
      expect(answer.head.split("\r\n")[0]).toBe(want);
      expect(/^retry-after: 60$/im.test(answer.head)).toBe(want.includes("429"));
      expect(Buffer.concat([answer.rest, await readAll(answer.socket)]).toString()).toContain(err.message);
    }
  });

  test("no answer to a refused upgrade can be taken for a Status without a message", async () => {
    const err = new AgentError("Internal", "attach to container app-1: container is in CONTAINER_EXITED state");
    const ended = fakeRuntimeCalls(() => Promise.reject(err)).runtime;
    const away = fakeRuntimeCalls(() => "http://127.0.0.1:1").runtime;
    const strange = await startFakeRuntime({ raw: (_r, socket) => void socket.write("HTTP/1.1 200 OK\r\n\r\n") });
    keep(strange);
    for (const runtime of [ended, away, fakeRuntimeCalls(() => strange.url).runtime]) {
      const agent = keep(await startAgentServer({ pods: servedPods(webPod), runtime }));
      for (const path of [
        "/attach/default/web/app?output=1",
        "/exec/default/web/gone?output=1",
        "/portForward/default/web",
      ]) {
        for (const lines of [spdyUpgrade(path), webSocketUpgrade(path, "v5.channel.k8s.io")]) {
          const answer = await rawRequest(agent.url, lines);
          if (answer.status === 101) {
            answer.socket.destroy(); // what fails later is told by a Status
            continue;
          }
          const text = await textOf(answer);
          const read = parseDocument(text);
          expect(text.length).toBeGreaterThan(10);
          expect(read.errors.length > 0 || typeof read.toJS() === "string", text).toBe(true);
        }
      }
    }
  });

  test("attaching to a container that ends meanwhile says so", async () => {
    const err = new AgentError("Internal", "attach to container app-1: container is in CONTAINER_EXITED state");
    const { runtime } = fakeRuntimeCalls(() => Promise.reject(err));
    const agent = keep(await startAgentServer({ pods: servedPods(webPod), runtime }));
    expect(await textOf(await rawRequest(agent.url, spdyUpgrade("/attach/default/web/app?output=1")))).toBe(
      "error attaching to container: attach to container app-1: container is in CONTAINER_EXITED state",
    );
  });

  test("/run answers with stdout and then stderr, and with 500 if the command fails", async () => {
    const { agent } = await start({});
    const url = `${agent.url}/run/default/web/app`;
    expect(await body(`${url}?cmd=ls%20-l%20%20x`, { method: "POST" })).toBe(
      '200 ran ["ls","-l","","x"]\nand complained',
    );
    const form = { method: "POST", body: new URLSearchParams({ cmd: "echo 1" }) };
    expect(await body(url, form)).toBe('200 ran ["echo","1"]\nand complained');
    expect(await body(`${agent.url}/run/default/web/uid/app?cmd=ls`, { method: "POST" })).toContain("200 ran");
    expect(await body(`${url}?cmd=false`, { method: "POST" })).toBe(
      "500 command 'false' exited with 1: and complained",
    );
    expect(await body(`${agent.url}/run/default/web/nosuch?cmd=ls`, { method: "POST" })).toBe(
      '500 container not found ("nosuch")',
    );
    expect(await body(`${agent.url}/run/default/nobody/app?cmd=ls`, { method: "POST" })).toBe("404 pod does not exist");
  });
});

describe("commands of /run", () => {
  const commands = (count: number) => {
    const { runtime } = fakeRuntimeCalls(() => "http://127.0.0.1:1");
    const ended: string[] = [];
    const begun = Promise.withResolvers<void>();
    let left = count;
    const execSync: AgentServerOptions["runtime"]["execSync"] = async (_id, command, _timeout, signal) => {
      left -= 1;
      if (left === 0) begun.resolve();
      await new Promise<void>((resolve) => {
        signal?.addEventListener("abort", () => resolve());
      });
      ended.push(command.join(" "));
      throw new AgentError("Canceled", "canceled");
    };
    return { runtime: { ...runtime, execSync }, ended, begun: begun.promise };
  };

  test("end with their client", async () => {
    const { runtime, ended, begun } = commands(1);
    const agent = keep(await startAgentServer({ pods: servedPods(webPod), runtime }));
    const gone = new AbortController();
    const asked = body(`${agent.url}/run/default/web/app?cmd=sleep`, { method: "POST", signal: gone.signal });
    asked.catch(() => {});
    await begun;
    gone.abort();
    await until(() => ended.length === 1);
  });

  test("are few at a time", async () => {
    const { runtime, ended, begun } = commands(runsMax);
    const agent = keep(await startAgentServer({ pods: servedPods(webPod), runtime }));
    const url = `${agent.url}/run/default/web/app?cmd=sleep`;
    const gone = new AbortController();
    for (let i = 0; i < runsMax; i += 1) void body(url, { method: "POST", signal: gone.signal }).catch(() => {});
    await begun;
    expect(await body(url, { method: "POST" })).toMatch(/^429 8 commands are running/);
    gone.abort();
    await until(() => ended.length === runsMax);
    const again = body(url, { method: "POST", signal: AbortSignal.timeout(200) });
    await expect(again).rejects.toThrow(); // it runs, and has no end
    await until(() => ended.length === runsMax + 1);
  });
});

describe("what the runtime is asked for", () => {
  test("a header's bytes arrive as the client sent them", async () => {
    const { agent, fake } = await start({ raw: (_request, socket) => socket.end("HTTP/1.1 400 Bad\r\n\r\n") });
    const lines = spdyUpgrade("/exec/default/web/app?output=1").concat("X-Note: na\u00efve"); // sent as UTF-8
    const { socket } = await rawRequest(agent.url, lines);
    socket.destroy();
    expect(Buffer.from(String(fake.requests[0]?.headers["x-note"]), "latin1").toString()).toBe("na\u00efve");
  });

  test("exec, attach and port-forward", async () => {
    const { agent, asked } = await start({ raw: (_request, socket) => socket.end("HTTP/1.1 400 Bad\r\n\r\n") });
    const ask = async (path: string, lines: string[] = spdyUpgrade(path)) => {
      const { socket } = await rawRequest(agent.url, lines);
      socket.destroy();
      return asked.at(-1);
    };
    expect(await ask("/exec/default/web/app?command=sh&command=-c&command=a%20b&input=1&output=1&error=1")).toEqual({
      kind: "exec",
      containerID: "app-1",
      command: ["sh", "-c", "a b"],
      stdin: true,
      stdout: true,
      stderr: true,
      tty: false,
    });
    expect(await ask("/exec/default/web/app?command=sh&output=1&error=1&tty=1")).toMatchObject({
      stderr: false,
      tty: true,
    });
    // The terminal is the container's, whatever the client says.
    expect(await ask("/attach/default/web/app?output=1&tty=1")).toEqual({
      kind: "attach",
      containerID: "app-1",
      stdin: false,
      stdout: true,
      stderr: false,
      tty: false,
    });
    expect(await ask("/attach/default/web/shell?input=1&output=1")).toMatchObject({
      containerID: "shell-1",
      tty: true,
    });
    // The newest sandbox that is ready; ports are only for WebSocket clients of old.
    expect(await ask("/portForward/default/web?port=80")).toEqual({
      kind: "portforward",
      sandboxID: "sandbox-2",
      ports: [],
    });
    const webSocket = (path: string) => [
      `GET ${path} HTTP/1.1`,
      ...["Host: node", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"],
      ...["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol: v4.channel.k8s.io"],
    ];
    const ports = "/portForward/default/web?port=80,81";
    expect(await ask(ports, webSocket(ports))).toMatchObject({ ports: [80, 81] });
  });
});

describe("a spliced session", () => {
  test("bytes pass untouched, credentials do not", async () => {
    const { agent, fake } = await start({
      serve: async (session) => {
        (await session.stream("stdout")).end("hello");
        await session.exit(7);
      },
    });
    const { open, head, connection } = await spdyClient(execURL(agent));
    expect(head).toContain("X-Stream-Protocol-Version: v4.channel.k8s.io");
    const error = await open("error");
    const stdout = await open("stdout");
    expect((await readAll(stdout)).toString()).toBe("hello");
    expect((await readAll(error)).toString()).toContain('"ExitCode","message":"7"');
    await connection.closed;
    connection.destroy();

    const [request] = fake.requests;
    expect(request).toMatchObject({ method: "POST", url: "/exec/token?x=1" });
    expect(request?.headers).toMatchObject({
      host: "node.example",
      "x-forwarded-for": expect.stringContaining("127.0.0.1"),
    });
    expect(request?.headers.authorization).toBeUndefined();
    expect(request?.headersDistinct["x-stream-protocol-version"]).toHaveLength(4);
    await until(() => agent.running.size === 0 && fake.connections.size === 0);
  });

  const cases = [
    { name: "plain", tls: undefined },
    {
      name: "TLS",
      tls: CertificateAuthority.create().issue({ commonName: "node", usage: "server", names: ["127.0.0.1"] }),
    },
  ];
  for (const { name, tls } of cases) {
    test(`8 MiB go there and back by ${name}, and the end of one half does not cut the other`, async () => {
      const data = randomBytes(8 << 20);
      const want = createHash("sha256").update(data).digest("hex");
      const atRuntime = createHash("sha256");
      const options = tls === undefined ? {} : { tls: { cert: tls.certificate, key: tls.key } };
      const { agent } = await start(
        {
          raw: (_request, socket) => {
            socket.write(`${switching}\r\n`);
            socket.on("data", (chunk: Buffer) => atRuntime.update(chunk));
            // Only once the client has closed its half does anything flow the other way.
            socket.on("end", () => socket.end(data));
          },
          isHalfOpen: true,
        },
        options,
      );
      const { socket, rest } = await rawRequest(
        agent.url,
        spdyUpgrade(new URL(execURL(agent)).pathname + new URL(execURL(agent)).search),
      );
      expect(rest.length).toBe(0);
      const reading = readAll(socket);
      socket.end(data);
      const back = await reading;
      expect(atRuntime.digest("hex")).toBe(want);
      expect(createHash("sha256").update(back).digest("hex")).toBe(want);
      await until(() => agent.running.size === 0);
    });
  }

  test("a client that reads nothing stops the runtime, and memory stays flat", async () => {
    let runtimeSocket: Socket | undefined;
    let written = 0;
    const { agent } = await start({
      raw: (_request, socket) => {
        runtimeSocket = socket;
        socket.write(`${switching}\r\n`);
        const chunk = Buffer.alloc(64 * 1024);
        const more = () => {
          while (!socket.destroyed && written < 64 << 20) {
            written += chunk.length;
            if (!socket.write(chunk)) break;
          }
        };
        socket.on("drain", more);
        more();
      },
    });
    const { pathname, search } = new URL(execURL(agent));
    const { socket } = await rawRequest(agent.url, spdyUpgrade(pathname + search));
    let before = -1;
    while (written !== before) {
      before = written;
      await new Promise((resolve) => void setTimeout(resolve, 60));
    }
    expect(written).toBeLessThan(32 << 20);
    socket.destroy();
    await until(() => runtimeSocket?.destroyed === true && agent.running.size === 0);
  });

  test("100 sessions at a time, each with its own bytes", async () => {
    const { agent, fake } = await start({
      serve: async (session) => {
        const stdin = await session.stream("stdin");
        const stdout = await session.stream("stdout");
        stdin.pipe(stdout);
        await new Promise((resolve) => void stdin.once("end", resolve));
        await session.exit(0);
      },
    });
    await Promise.all(
      Array.from({ length: 100 }, async (_, i) => {
        const { open, connection } = await spdyClient(`${execURL(agent)}&input=1`);
        const error = await open("error");
        const stdin = await open("stdin");
        const stdout = await open("stdout");
        stdin.end(`session ${i} `.repeat(10_000));
        expect((await readAll(stdout)).toString()).toBe(`session ${i} `.repeat(10_000));
        expect((await readAll(error)).toString()).toContain("Success");
        connection.destroy();
      }),
    );
    await until(() => agent.running.size === 0 && fake.connections.size === 0);
  });
});

describe("a runtime that misbehaves", () => {
  const answerCases: { name: string; answer: string; want: RegExp }[] = [
    {
      name: "404 with a body is handed on",
      answer:
        "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 9\r\nX-Note: kept\r\n\r\nnot there",
      want: /^HTTP\/1.1 404 Not Found\r\n[^]*X-Note: kept\r\n[^]*\r\n\r\nnot there$/,
    },
    {
      name: "403 in chunks is handed on",
      answer: "HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno \r\n4\r\nway!\r\n0\r\n\r\n",
      want: /^HTTP\/1.1 403 Forbidden\r\n[^]*Content-Length: 7\r\n[^]*\r\n\r\nno way!$/,
    },
    {
      name: "200",
      answer: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
      want: /500[^]*invalid upgrade response: status code 200/,
    },
    {
      name: "a redirect",
      answer: "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n",
      want: /500[^]*status code 302/,
    },
    { name: "garbage", answer: "\x00\x01\x02 what is this\r\n\r\n", want: /500[^]*not HTTP/ },
    {
      name: "headers without an end",
      answer: `HTTP/1.1 101 X\r\nA: ${"a".repeat(1 << 20)}`,
      want: /500[^]*headers of more than/,
    },
  ];
  for (const { name, answer, want } of answerCases) {
    test(`answers ${name}`, async () => {
      const { agent, fake } = await start({ raw: (_request, socket) => void socket.write(answer, "latin1") });
      const reply = await rawRequest(agent.url, spdyUpgrade("/exec/default/web/app?output=1"));
      const text = `${reply.head}\r\n\r\n${Buffer.concat([reply.rest, await readAll(reply.socket)]).toString()}`;
      expect(text).toMatch(want);
      reply.socket.destroy();
      await until(() => agent.running.size === 0 && fake.connections.size === 0);
    });
  }

  test("closes without an answer, or is not there at all: 500", async () => {
    const { agent } = await start({ raw: (_request, socket) => void socket.destroy() });
    const closed = await rawRequest(agent.url, spdyUpgrade("/exec/default/web/app?output=1"));
    expect(closed.status).toBe(500);
    const { runtime } = fakeRuntimeCalls(() => "http://127.0.0.1:1");
    const lonely = keep(await startAgentServer({ pods: servedPods(webPod), runtime }));
    const refused = await rawRequest(lonely.url, spdyUpgrade("/exec/default/web/app?output=1"));
    expect(refused.status).toBe(500);
    expect(Buffer.concat([refused.rest, await readAll(refused.socket)]).toString()).toMatch(
      /dial .*127.0.0.1:1.*ECONNREFUSED/,
    );
  });

  test("gives a URL that is no HTTP URL: 500", async () => {
    const { runtime } = fakeRuntimeCalls(() => "file:///etc/passwd");
    const agent = keep(await startAgentServer({ pods: servedPods(webPod), runtime }));
    expect((await rawRequest(agent.url, spdyUpgrade("/exec/default/web/app?output=1"))).status).toBe(500);
  });

  test("accepts and never answers: 500 after the time limit", async () => {
    const clock = new FakeClock();
    const { agent, fake } = await start({ raw: () => {} }, { clock });
    const asking = rawRequest(agent.url, spdyUpgrade("/exec/default/web/app?output=1"));
    await until(() => fake.requests.length === 1);
    await clock.advance(answerTimeoutMs);
    expect((await asking).status).toBe(500);
    await until(() => fake.connections.size === 0 && agent.running.size === 0);
    expect(clock.waiting).toBe(0);
  });

  test("dies in the middle: the client gets what was sent, then the end", async () => {
    const { agent } = await start({
      raw: (_request, socket) => void socket.write(`${switching}\r\nlast words`, () => socket.resetAndDestroy()),
    });
    const { pathname, search } = new URL(execURL(agent));
    const { socket, rest } = await rawRequest(agent.url, spdyUpgrade(pathname + search));
    // A reset may overtake the words themselves; what matters is the end.
    const all = Buffer.concat([rest, await readAll(socket)]).toString();
    expect(["last words", ""]).toContain(all);
    socket.destroy();
    await until(() => agent.running.size === 0);
  });
});

describe("a client that misbehaves", () => {
  test("resets before the runtime has answered: the runtime's connection is closed at once", async () => {
    const { agent, fake } = await start({ raw: () => {} });
    const socket = connect({ port: agent.port, host: "127.0.0.1" });
    socket.on("error", () => {});
    socket.write(`${spdyUpgrade("/exec/default/web/app?output=1").join("\r\n")}\r\n\r\n`);
    await until(() => fake.requests.length === 1 && agent.running.size === 1);
    socket.resetAndDestroy();
    await until(() => fake.connections.size === 0 && agent.running.size === 0);
  });

  test("resets in the middle: the runtime's connection is closed at once", async () => {
    const { agent, fake } = await start({ serve: async ({ stream }) => void (await stream("never")) });
    const { open, socket } = await spdyClient(execURL(agent));
    await open("error");
    socket.resetAndDestroy();
    await until(() => fake.connections.size === 0 && agent.running.size === 0);
  });

  test("ends while the runtime says nothing more: the FIN is passed on at once, and both are closed after a while", async () => {
    const clock = new FakeClock();
    let sawEnd = false;
    const { agent } = await start(
      {
        raw: (_request, socket) => {
          socket.write(`${switching}\r\n`);
          socket.on("end", () => (sawEnd = true));
        },
        isHalfOpen: true,
      },
      { clock },
    );
    const { pathname, search } = new URL(execURL(agent));
    const { socket } = await rawRequest(agent.url, spdyUpgrade(pathname + search));
    socket.end();
    await until(() => sawEnd);
    expect(agent.running.size).toBe(1);
    await clock.advance(halfClosedIdleMs);
    await until(() => agent.running.size === 0);
    expect(clock.waiting).toBe(0);
  });

  test("does not close after the runtime's end: it is closed after a while", async () => {
    const clock = new FakeClock();
    const { agent } = await start(
      {
        raw: (_request, socket) =>
          void socket.end(Buffer.concat([Buffer.from(`${switching}\r\n`), Buffer.alloc(64 * 1024)])),
      },
      { clock },
    );
    const { pathname, search } = new URL(execURL(agent));
    const { socket, rest } = await rawRequest(agent.url, spdyUpgrade(pathname + search));
    expect(Buffer.concat([rest, await readAll(socket)]).length).toBe(64 * 1024);
    expect(agent.running.size).toBe(1);
    await until(() => clock.waiting > 0);
    await clock.advance(halfClosedIdleMs);
    await until(() => agent.running.size === 0);
    expect(clock.waiting).toBe(0);
  });

  test("the agent's end cuts every session", async () => {
    const { agent, fake } = await start({ serve: async ({ stream }) => void (await stream("never")) });
    const { connection } = await spdyClient(execURL(agent));
    agent.stop();
    await connection.closed;
    await until(() => fake.connections.size === 0 && agent.running.size === 0);
  });
});
