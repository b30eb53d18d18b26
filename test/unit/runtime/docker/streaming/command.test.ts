import { spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { afterEach, describe, expect, test } from "vitest";
import { lastWordsMs } from "../../../../../agent/runtime/docker/streaming/command.ts";
import { sessionIdleMsDefault } from "../../../../../agent/runtime/docker/streaming/server.ts";
import { streamCreationTimeoutMs } from "../../../../../agent/runtime/docker/streaming/spdy-command.ts";
import { rawRequest, readAll, spdyClient, spdyUpgrade, wsClient } from "../../../../support/streaming/clients.ts";
import { FakeClock } from "../../../kube/fake-clock.ts";
import { until } from "../../../server/streaming/until.ts";
import { type FakeSession, fakeSessions, type FakeSessionsOptions } from "./fake-sessions.ts";

const cleanUps: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function start(options: FakeSessionsOptions = {}) {
  const sessions = await fakeSessions(options);
  cleanUps.push(() => sessions[Symbol.asyncDispose]());
  return sessions;
}

/** All streams of a session by SPDY. */
async function client(url: string, types: string[] = ["error", "stdin", "stdout", "stderr"], protocols?: string[]) {
  const { open, connection, socket, head } = await spdyClient(url, protocols);
  cleanUps.push(() => connection.destroy());
  const streams = new Map<string, Awaited<ReturnType<typeof open>>>();
  for (const type of types) streams.set(type, await open(type));
  const stream = (type: string) => streams.get(type)!;
  const read = async (type: string) => (await readAll(stream(type))).toString();
  return { stream, read, connection, socket, head };
}

/** Says back on stdout what it hears, complains once, exits with 3. */
const echo = async (session: FakeSession) => {
  session.say(2, "oh\n");
  for await (const chunk of session.socket) session.say(1, chunk as Buffer);
  session.exit(3);
};

describe("exec by SPDY", () => {
  test("input with its end, both outputs and the exit code; what Docker is asked for", async () => {
    let asked: object = {};
    const { execURL } = await start({
      serve: async (session) => {
        asked = session.asked;
        await echo(session);
      },
    });
    const { stream, read, head, connection } = await client(execURL({ command: ["sh", "-c", "x"] }));
    expect(head).toContain("X-Stream-Protocol-Version: v4.channel.k8s.io");
    stream("stdin").end("hello");
    const [out, err, status] = await Promise.all([read("stdout"), read("stderr"), read("error")]);
    expect({ out, err, status: JSON.parse(status) as object }).toMatchObject({
      ...{ out: "hello", err: "oh\n" },
      status: { status: "Failure", details: { causes: [{ message: "3" }] } },
    });
    expect(asked).toMatchObject({ Cmd: ["sh", "-c", "x"], AttachStdin: true, AttachStderr: true, Tty: false });
    expect(await connection.closed).toBeUndefined();
  });

  for (const protocol of ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]) {
    test(`${protocol}: a failure is a text, success is nothing`, async () => {
      for (const code of [0, 3]) {
        const { execURL } = await start({ serve: (session) => session.exit(code) });
        const { read } = await client(execURL(), undefined, [protocol]);
        expect(await read("error")).toMatch(code === 0 ? /^$/ : /^command terminated with non-zero exit code: .* 3$/);
      }
    });
  }

  test("a terminal: one output, no frames, sizes as they come", async () => {
    const sessions = await start({
      serve: async (session) => {
        session.socket.write("prompt> ");
        await once(session.socket, "data");
        session.exit(0);
      },
    });
    const url = sessions.execURL({ tty: true, stderr: false });
    const { stream, read } = await client(url, ["error", "stdin", "stdout", "resize"]);
    stream("resize").write('{"Width":80,"Height":24}\n{"Width":100,"Height":30}\n');
    await until(() => sessions.resized.at(-1) === "100x30");
    stream("stdin").write("exit\n");
    expect(await read("stdout")).toBe("prompt> ");
    expect(await read("error")).toContain("Success");
  });

  test("the container runtime's complaint about a command is an error, not its output", async () => {
    const { execURL } = await start({
      serve: (session) => {
        session.state.Pid = 0;
        session.say(1, 'OCI runtime exec failed: exec: "x": no such file\r\n');
        session.exit(126);
      },
    });
    const { stream, read } = await client(execURL());
    stream("stdin").end();
    const [out, status] = await Promise.all([read("stdout"), read("error")]);
    expect(out).toBe("");
    expect(JSON.parse(status)).toMatchObject({
      message:
        'Internal error occurred: error executing command in container: OCI runtime exec failed: exec: "x": no such file',
    });
  });

  test("the daemon's refusal is told on the error stream", async () => {
    const { execURL } = await start({ refuse: { status: 409, message: "Container feedbeef is not running" } });
    expect(await (await client(execURL())).read("error")).toContain("Container feedbeef is not running");
  });

  test("a daemon that never answers does not keep the client waiting", async () => {
    const { execURL } = await start({ refuse: { status: 0, message: "" }, requestTimeoutMs: 50 });
    expect(await (await client(execURL())).read("error")).toContain("did not answer within");
  });

  test("a daemon that dies under a command: the output so far, then a failure", async () => {
    const sessions = await start({
      serve: async (session) => {
        session.say(1, "so far");
        await once(session.socket, "data");
        sessions.die();
      },
    });
    const { stream, read } = await client(sessions.execURL());
    const status = read("error");
    const [out] = (await once(stream("stdout"), "data")) as [Buffer];
    expect(out.toString()).toBe("so far");
    stream("stdin").write("x");
    expect(JSON.parse(await status)).toMatchObject({ status: "Failure", reason: "InternalError" });
  });

  test("a command that closes its outputs and goes on has its exit code in the end", async () => {
    const { execURL } = await start({
      serve: (session) => {
        session.socket.end();
        setTimeout(() => session.exit(9), 100);
      },
    });
    expect(await (await client(execURL())).read("error")).toContain('"9"');
  });
});

describe("exec by WebSocket", () => {
  const [stdin, stdout, stderr, error, close] = [0, 1, 2, 3, 255];
  for (const protocol of ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"]) {
    test(protocol, async () => {
      const { execURL } = await start({
        serve: async (session) => {
          session.say(2, "oh\n");
          if (protocol.startsWith("v5")) return await echo(session);
          const [chunk] = (await once(session.socket, "data")) as [Buffer];
          session.say(1, chunk);
          session.exit(3);
        },
      });
      const { ws, send, closed, text, messages } = await wsClient(execURL(), protocol);
      send(9, "nobody's");
      send(stdin, "hello");
      if (protocol.startsWith("v5")) ws.send(Buffer.of(close, stdin));
      expect(await closed).toBe(1000);
      expect(messages[0]).toEqual(Buffer.of(stdout)); // says that we are ready
      expect(text(stdout)).toBe("hello");
      expect(text(stderr)).toContain("oh\n");
      expect(text(error)).toContain(protocol.startsWith("v") ? '"3"' : "exit code 3");
    });
  }

  test("base64: any length, in one message or in several fragments", async () => {
    const body = randomBytes(100_000);
    const { execURL } = await start({
      serve: async (session) => {
        const hash = createHash("sha256");
        for (let heard = 0; heard < body.length; ) {
          const [chunk] = (await once(session.socket, "data")) as [Buffer];
          hash.update(chunk);
          heard += chunk.length;
        }
        session.say(1, hash.digest("hex"));
        session.exit(0);
      },
    });
    const { ws, closed, messages } = await wsClient(execURL(), "v4.base64.channel.k8s.io");
    ws.send(`0${body.subarray(0, 1001).toString("base64")}`);
    const rest = body.subarray(1001).toString("base64");
    ws.send("0", { fin: false });
    for (let at = 0; at < rest.length; at += 4_999) {
      ws.send(rest.slice(at, at + 4_999), { fin: at + 4_999 >= rest.length });
    }
    await closed;
    const said = messages.map(String).filter((message) => message.startsWith("1"));
    const text = said.map((message) => Buffer.from(message.slice(1), "base64").toString()).join("");
    expect(text).toBe(createHash("sha256").update(body).digest("hex"));
  });
});

describe("attach", () => {
  test("carries both ways, and its end is a success", async () => {
    let asked: object = {};
    const { attachURL } = await start({
      serve: async (session) => {
        asked = session.asked;
        await echo(session);
      },
    });
    const { stream, read } = await client(attachURL());
    stream("stdin").end("hello");
    const [out, err, status] = await Promise.all([read("stdout"), read("stderr"), read("error")]);
    expect({ out, err }).toEqual({ out: "hello", err: "oh\n" });
    expect(JSON.parse(status)).toMatchObject({ status: "Success" });
    expect(asked).toMatchObject({ stream: "true", stdin: "true" });
  });

  test("a container without input gets none", async () => {
    let asked: Record<string, unknown> = {};
    const { attachURL } = await start({
      container: { Config: { Tty: false, OpenStdin: false } },
      serve: (session) => {
        asked = session.asked;
        session.say(1, "only output");
        session.exit(0);
      },
    });
    const { stream, read } = await client(attachURL());
    stream("stdin").write("x".repeat(1 << 20)); // nobody takes it, and it holds nothing up
    expect(await read("stdout")).toBe("only output");
    expect(asked).not.toMatchObject({ stdin: "true" });
  });

  test("one that does not run is an error; one that has just ended is not waited for", async () => {
    const stopped = await start({ container: { State: { Running: false, Pid: 0 }, Config: {} } });
    expect(await (await client(stopped.attachURL())).read("error")).toContain("container feedbeef is not running");

    const clock = new FakeClock();
    const container = { State: { Running: true, Pid: 1 }, Config: { Tty: false, OpenStdin: true } };
    let hasAttached = false;
    const ended = await start({
      ...{ container, clock },
      serve: () => {
        container.State.Running = false;
        hasAttached = true;
      },
    });
    const { read } = await client(ended.attachURL());
    const status = read("error");
    await until(() => hasAttached);
    await until(() => clock.waiting > 0);
    await new Promise((resolve) => void setTimeout(resolve, 50));
    await clock.advance(lastWordsMs);
    expect(await status).toContain("Success");
  });
});

describe("clients", () => {
  test("get nothing without a token, with another's, or with one twice", async () => {
    const { execURL } = await start({ serve: (session) => session.exit(0) });
    const url = new URL(execURL());
    const ask = async (path: string) => {
      const { status, socket } = await rawRequest(url.href, spdyUpgrade(path));
      socket.destroy();
      return status;
    };
    expect(await ask("/exec/nothing")).toBe(404);
    expect(await ask("/secrets")).toBe(404);
    expect(await ask(url.pathname)).toBe(101);
    expect(await ask(url.pathname)).toBe(404);
    expect(await ask(new URL(execURL()).pathname.replace("exec", "attach"))).toBe(404);
    expect((await fetch(execURL(), { method: "POST" })).status).toBe(400);
  });

  test("who speak no known protocol are told which there are", async () => {
    const { execURL } = await start();
    const url = new URL(execURL());
    const { status, head, socket } = await rawRequest(url.href, spdyUpgrade(url.pathname, ["v9.channel.k8s.io"]));
    socket.destroy();
    expect(status).toBe(403);
    expect(head).toContain("X-Accepted-Stream-Protocol-Versions: v4.channel.k8s.io");
  });

  test("whose streams do not come are cut off; one too many is refused", async () => {
    const clock = new FakeClock();
    const { execURL } = await start({ clock });
    const { open, connection } = await spdyClient(execURL());
    await open("error");
    await expect(open("error")).rejects.toThrow("refused");
    await expect(open("gossip")).rejects.toThrow("refused");
    await clock.advance(streamCreationTimeoutMs);
    await connection.closed;
  });

  test("who say nothing for four hours are cut off", async () => {
    const clock = new FakeClock();
    const { execURL } = await start({ clock });
    const { connection } = await client(execURL());
    const ws = await wsClient(execURL(), "v4.channel.k8s.io");
    await clock.advance(sessionIdleMsDefault);
    await connection.closed;
    expect(await ws.closed).toBe(1006);
  });

  test("who go away end the command's connection; a process that is not the container's is left alone", async () => {
    const bystander = spawn("sleep", ["100"]);
    cleanUps.push(() => void bystander.kill("SIGKILL"));
    for (const go of ["SPDY", "WebSocket"]) {
      const gone = Promise.withResolvers<void>();
      const running = Promise.withResolvers<void>();
      const { execURL, streaming } = await start({
        serve: (session) => {
          session.state.Pid = bystander.pid!;
          session.socket.on("end", gone.resolve).resume();
          running.resolve();
        },
      });
      const url = execURL();
      const leave =
        go === "SPDY"
          ? (
              ({ socket }) =>
              () =>
                void socket.resetAndDestroy()
            )(await client(url))
          : (
              ({ ws }) =>
              () =>
                ws.terminate()
            )(await wsClient(url, "v4.channel.k8s.io"));
      await running.promise;
      leave();
      await gone.promise;
      await streaming.close();
    }
    expect(bystander.exitCode ?? bystander.signalCode).toBeNull();
  });

  test("a hundred at a time, each with its own bytes", async () => {
    const { execURL } = await start({ serve: echo });
    await Promise.all(
      Array.from({ length: 100 }, async (_, i) => {
        const { stream, read } = await client(execURL());
        stream("stdin").end(`hello ${i}`);
        const [out, status] = await Promise.all([read("stdout"), read("error")]);
        expect(out).toBe(`hello ${i}`);
        expect(status).toContain('"3"');
      }),
    );
  }, 30_000);

  test("the server's end is theirs", async () => {
    const { execURL, streaming } = await start();
    const { connection } = await client(execURL());
    await streaming.close();
    await connection.closed;
    expect(() => execURL()).toThrow("has ended");
  });
});

describe("backpressure", () => {
  const much = 64 << 20;
  const piece = randomBytes(64 << 10);

  test("a client that reads nothing holds up the command", async () => {
    let sent = 0;
    const { execURL } = await start({
      serve: async ({ socket, exit }) => {
        const head = Buffer.from([1, 0, 0, 0, 0, 1, 0, 0]);
        while (sent < much) {
          socket.write(head);
          if (!socket.write(piece)) await once(socket, "drain");
          sent += piece.length;
        }
        exit(0);
      },
    });
    const { stream, read } = await client(execURL());
    for (let before = -1; before !== sent; ) {
      before = sent;
      await new Promise((resolve) => void setTimeout(resolve, 100));
    }
    expect(sent).toBeLessThan(much / 2);
    let heard = 0;
    stream("stdout").on("data", ({ length }: Buffer) => {
      heard += length;
    });
    expect(await read("error")).toContain("Success");
    expect(heard).toBe(much);
  }, 30_000);

  test("a command that reads nothing holds up the client, who gets all that it says all the same", async () => {
    const go = Promise.withResolvers<void>();
    const { execURL } = await start({
      serve: async ({ socket, say, exit }) => {
        socket.pause();
        await go.promise;
        for (let i = 0; i < 64; i += 1) say(1, piece);
        exit(0);
        socket.destroySoon(); // with input unread
      },
    });
    const { stream, read } = await client(execURL());
    stream("stdin").setMaxListeners(0);
    let sent = 0;
    const writing = (async () => {
      while (sent < much && !stream("stdin").destroyed) {
        const isFull = !stream("stdin").write(piece);
        sent += piece.length;
        if (isFull) await Promise.race([once(stream("stdin"), "drain"), once(stream("stdin"), "close")]);
      }
    })();
    for (let before = -1; before !== sent; ) {
      before = sent;
      await new Promise((resolve) => void setTimeout(resolve, 100));
    }
    expect(sent).toBeLessThan(much / 2);
    go.resolve();
    await new Promise((resolve) => void setTimeout(resolve, 100)); // the output is read only when its end is there
    const [out, status] = await Promise.all([readAll(stream("stdout")), read("error")]);
    expect(out.length).toBe(64 * piece.length);
    expect(status).toContain("Success");
    stream("stdin").destroy();
    await writing;
  }, 30_000);
});
