import { createServer } from "node:net";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { describe, expect, test } from "vitest";
import { AgentError } from "../../../../agent/lib/errors.ts";
import { openDocker } from "../../../../agent/runtime/docker/client.ts";
import { negotiateVersion } from "../../../../agent/runtime/docker/daemon.ts";
import { answer, type FakeDaemon, type Handler, startFakeDaemon } from "./fake-daemon.ts";

async function connect(daemon: FakeDaemon, requestTimeoutMs = 5_000) {
  return await openDocker({ socketPath: daemon.socketPath, requestTimeoutMs });
}

async function inspectAnsweredBy(handle: Handler, requestTimeoutMs?: number): Promise<unknown> {
  await using daemon = await startFakeDaemon(handle);
  const client = await connect(daemon, requestTimeoutMs);
  const outcome = await client
    .call(
      "status of container x",
      async (abortSignal) => await client.docker.getContainer("x").inspect({ abortSignal }),
    )
    .catch((err: unknown) => err);
  client.close();
  return outcome;
}

describe("opening a client", () => {
  test("learns what the daemon is, and speaks the API version that both know", async () => {
    await using daemon = await startFakeDaemon((_request, response) => answer(response, 200, []));
    const client = await connect(daemon);
    expect(client.daemon).toMatchObject({ version: "20.10.24", apiVersion: "1.41", cgroupDriver: "cgroupfs" });
    await client.call("list", async (abortSignal) => await client.docker.listContainers({ abortSignal }));
    expect(daemon.requests.at(-1)).toMatch(/^GET \/v1\.41\/containers\/json/);
    client.close();
  });

  const versions: { name: string; version: object; want: string | RegExp }[] = [
    { name: "20.10", version: { Version: "20.10.24", ApiVersion: "1.41", MinAPIVersion: "1.12" }, want: "1.41" },
    { name: "28", version: { Version: "28.3.0", ApiVersion: "1.51", MinAPIVersion: "1.24" }, want: "1.51" },
    { name: "29", version: { Version: "29.1.0", ApiVersion: "1.52", MinAPIVersion: "1.44" }, want: "1.51" },
    { name: "one from later", version: { Version: "31", ApiVersion: "1.60", MinAPIVersion: "1.44" }, want: "1.51" },
    {
      name: "19.03",
      version: { Version: "19.03", ApiVersion: "1.40", MinAPIVersion: "1.12" },
      want: /19\.03.* too old/,
    },
    {
      name: "one from much later",
      version: { Version: "40", ApiVersion: "1.99", MinAPIVersion: "1.52" },
      want: /1\.52/,
    },
    { name: "something else", version: { name: "x" }, want: /no Docker daemon/ },
  ];
  for (const { name, version, want } of versions) {
    test(`API version with ${name}`, () => {
      if (typeof want === "string") expect(negotiateVersion(version)).toBe(want);
      else expect(() => negotiateVersion(version)).toThrow(want);
    });
  }

  test("a daemon that was replaced by another version is spoken to in that one's", async () => {
    await using daemon = await startFakeDaemon((_request, response) => answer(response, 200, []));
    daemon.version = { Version: "28.3.0", ApiVersion: "1.51", MinAPIVersion: "1.24" };
    const client = await connect(daemon);
    const list = async () => {
      await client.call("list", async (abortSignal) => await client.docker.listContainers({ abortSignal }));
      return daemon.requests.at(-1);
    };
    expect(await list()).toMatch(/^GET \/v1\.51\//);
    daemon.version = { Version: "20.10.24", ApiVersion: "1.41", MinAPIVersion: "1.12" };
    await client.refresh();
    expect(await list()).toMatch(/^GET \/v1\.41\//);
    expect(client.daemon.version).toBe("20.10.24");
    expect(daemon.requests.filter((one) => one.endsWith("/version"))).toEqual(["GET /version", "GET /version"]);
    client.close();
  });

  const daemons: { name: string; info: object; want: RegExp }[] = [
    { name: "Windows", info: { OSType: "windows" }, want: /windows containers/ },
    {
      name: "user namespaces for all",
      info: { OSType: "linux", SecurityOptions: ["name=seccomp,profile=default", "name=userns"] },
      want: /userns-remap/,
    },
    {
      name: "rootless",
      info: { OSType: "linux", SecurityOptions: ["name=seccomp", "name=rootless"] },
      want: /rootless/,
    },
  ];
  for (const { name, info, want } of daemons) {
    test(`a daemon that cannot run pods is refused: ${name}`, async () => {
      await using daemon = await startFakeDaemon();
      Object.assign(daemon.info, info);
      const outcome: unknown = await connect(daemon).catch((err: unknown) => err);
      expect(outcome).toMatchObject({ code: "Invalid", message: expect.stringMatching(want) as unknown });
    });
  }

  test("nobody there is Unavailable", async () => {
    const outcome: unknown = await openDocker({ socketPath: "/no/such.sock", requestTimeoutMs: 1_000 }).catch(
      (err: unknown) => err,
    );
    expect(outcome).toMatchObject({ code: "Unavailable" });
  });

  test("a server of another protocol is Unavailable or Invalid, and soon", async () => {
    await using daemon = await startFakeDaemon();
    const socketPath = join(daemon.socketPath, "..", "other.sock");
    const server = createServer((socket) =>
      socket
        .on("error", () => {})
        .resume()
        .end("\0\0\0\x04not HTTP"),
    );
    await new Promise<void>((resolve) => server.listen(socketPath, resolve));
    const outcome: unknown = await openDocker({ socketPath, requestTimeoutMs: 2_000 }).catch((err: unknown) => err);
    expect(outcome).toMatchObject({ code: "Unavailable" });
    await new Promise((resolve) => server.close(resolve));
  });
});

describe("a call's errors", () => {
  const cases: { name: string; status: number; message: string; code: string }[] = [
    { name: "not there", status: 404, message: "No such container: x", code: "NotFound" },
    { name: "name taken", status: 409, message: 'The container name "/x" is already in use by', code: "AlreadyExists" },
    { name: "other conflict", status: 409, message: "container is marked for removal", code: "Conflict" },
    { name: "bad request", status: 400, message: "invalid reference", code: "Invalid" },
    { name: "server error", status: 500, message: "layer does not exist", code: "Internal" },
    { name: "not now", status: 503, message: "starting", code: "Unavailable" },
    { name: "not made", status: 501, message: "no", code: "Unimplemented" },
  ];
  for (const { name, status, message, code } of cases) {
    test(`${name}: ${status} is ${code}, in the daemon's words`, async () => {
      const err = await inspectAnsweredBy((_request, response) => answer(response, status, { message }));
      expect(err).toBeInstanceOf(AgentError);
      expect(err).toMatchObject({ code, message: `status of container x: ${message}` });
    });
  }

  test("an answer that is no JSON keeps its text", async () => {
    const err = await inspectAnsweredBy((_request, response) => response.writeHead(502).end("<bad gateway>"));
    expect(err).toMatchObject({ code: "Internal", message: "status of container x: <bad gateway>" });
  });

  test("a connection that closes before the answer is Unavailable", async () => {
    const err = await inspectAnsweredBy((request) => request.socket.destroy());
    expect(err).toMatchObject({ code: "Unavailable" });
  });

  test("a connection that closes in the middle of the answer is Unavailable, at once", async () => {
    const err = await inspectAnsweredBy((_request, response) => {
      response.writeHead(200, { "Content-Length": "1000" }).write('{"Id":');
      setImmediate(() => response.destroy());
    }, 60_000);
    expect(err).toMatchObject({ code: "Unavailable" });
  });

  test("a daemon that never answers is DeadlineExceeded", async () => {
    const err = await inspectAnsweredBy(() => {}, 50);
    expect(err).toMatchObject({
      code: "DeadlineExceeded",
      message: expect.stringContaining("within 0.05 s") as unknown,
    });
  });

  test("a daemon that stops in the middle of its answer is DeadlineExceeded", async () => {
    const err = await inspectAnsweredBy((_request, response) => response.writeHead(200).write("{"), 50);
    expect(err).toMatchObject({ code: "DeadlineExceeded" });
  });

  test("the caller's signal ends a call, and closing the client ends all", async () => {
    await using daemon = await startFakeDaemon(() => {});
    const client = await connect(daemon);
    const stop = new AbortController();
    const inspect = async (signal?: AbortSignal) =>
      await client.call(
        "inspect",
        async (abortSignal) => await client.docker.getContainer("x").inspect({ abortSignal }),
        {
          ...(signal === undefined ? {} : { signal }),
        },
      );
    const first = inspect(stop.signal).catch((err: unknown) => err);
    const second = inspect().catch((err: unknown) => err);
    stop.abort();
    expect(await first).toMatchObject({ code: "Canceled" });
    client.close();
    expect(await second).toMatchObject({ code: "Canceled" });
  });
});

test("a stream outlives its call's deadline, and ends with the caller's signal", async () => {
  let send: ((piece: string | undefined) => void) | undefined;
  await using daemon = await startFakeDaemon((_request, response) => {
    response.writeHead(200).write("{}\n");
    send = (piece) => (piece === undefined ? response.end() : response.write(piece));
  });
  const client = await connect(daemon);
  const open = async (signal: AbortSignal) =>
    await client.call("events", async (abortSignal) => await client.docker.getEvents({ abortSignal }), {
      timeoutMs: 500,
      signal,
    });
  const whole = await open(new AbortController().signal);
  send?.("more\n");
  send?.(undefined);
  expect(await text(whole)).toBe("{}\nmore\n");

  const stop = new AbortController();
  const broken = await open(stop.signal);
  stop.abort();
  await expect(text(broken)).rejects.toThrow();
  client.close();
});
