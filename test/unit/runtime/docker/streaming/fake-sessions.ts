import { once } from "node:events";
import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Clock, systemClock } from "../../../../../agent/lib/clock.ts";
import { openDocker } from "../../../../../agent/runtime/docker/client.ts";
import { DockerExecs } from "../../../../../agent/runtime/docker/exec.ts";
import { createSandboxDialers } from "../../../../../agent/runtime/docker/streaming/dialers.ts";
import { type DockerStreaming, startDockerStreaming } from "../../../../../agent/runtime/docker/streaming/server.ts";

/** A session as the daemon has it, hijacked. */
export interface FakeSession {
  readonly socket: Socket;
  /** Body of exec's creation, or the query of an attach. */
  readonly asked: Readonly<Record<string, unknown>>;
  /** What inspect tells of it. */
  state: { Running: boolean; ExitCode: number | null; Pid: number };
  /** Output in a frame of the multiplexed format. */
  say(stream: 1 | 2 | 3, text: string | Buffer): void;
  /** Ends as a command does. */
  exit(code: number): void;
}

export interface FakeSessionsOptions {
  serve?: (session: FakeSession) => Promise<void> | void;
  /** What inspect tells of every container. */
  container?: { State?: object; Config?: object };
  requestTimeoutMs?: number;
  /** Answers this instead of creating an exec; 0: never. */
  refuse?: { status: number; message: string };
  clock?: Clock;
  /** The one that /proc tells of the sandbox's process; "feedbeef", the sandbox's, is in it unless given. */
  cgroup?: string;
}

/** A Docker daemon that knows nothing but sessions, and a streaming server in front of it. */
export async function fakeSessions(options: FakeSessionsOptions = {}) {
  const { serve = () => {}, container = {}, requestTimeoutMs = 5_000, refuse, clock = systemClock } = options;
  const dir = await mkdtemp(join(tmpdir(), "fake-sessions-"));
  const socketPath = join(dir, "d.sock");
  const sockets = new Set<Socket>();
  const execs = new Map<string, { asked: Record<string, unknown>; session?: FakeSession }>();
  const resized: string[] = [];
  const onRequest = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const json = (status: number, body: unknown) =>
      response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body));
    const url = new URL(request.url ?? "/", "http://docker");
    const path = url.pathname.replace(/^\/v[\d.]+/, "");
    let body = "";
    for await (const chunk of request) body += String(chunk);
    const [, kind, id = "", verb] = path.split("/");
    if (path === "/version") json(200, { Version: "20.10.24", ApiVersion: "1.41" });
    else if (path === "/info") json(200, { OSType: "linux" });
    else if (verb === "resize") {
      resized.push(`${url.searchParams.get("w")}x${url.searchParams.get("h")}`);
      json(200, {});
    } else if (kind === "containers" && verb === "exec") {
      if (refuse?.status === 0) return;
      if (refuse !== undefined) return void json(refuse.status, { message: refuse.message });
      const execID = `exec${execs.size}`;
      execs.set(execID, { asked: JSON.parse(body) as Record<string, unknown> });
      json(201, { Id: execID });
    } else if (kind === "containers" && verb === "json") {
      const { State = { Running: true, Pid: process.pid }, Config = { Tty: false, OpenStdin: true } } = container;
      json(200, { Id: id, State, Config });
    } else if (kind === "exec" && verb === "json") json(200, execs.get(id)?.session?.state ?? {});
    else json(404, { message: `no such thing: ${path}` });
  };
  const server = createServer((request, response) => void onRequest(request, response).catch(() => request.destroy()));
  server.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket)).on("error", () => {});
  });
  server.on("upgrade", (request, socket: Socket) => {
    socket.write("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n");
    const url = new URL(request.url ?? "/", "http://docker");
    const [, kind, id = ""] = url.pathname.replace(/^\/v[\d.]+/, "").split("/");
    const exec = kind === "exec" ? execs.get(id) : undefined;
    const session: FakeSession = {
      socket,
      asked: exec?.asked ?? Object.fromEntries(url.searchParams),
      state: { Running: true, ExitCode: null, Pid: 2 ** 30 },
      say: (stream, text) => {
        const head = Buffer.alloc(8);
        head[0] = stream;
        head.writeUInt32BE(Buffer.byteLength(text), 4);
        socket.write(head);
        socket.write(text);
      },
      exit: (code) => {
        session.state = { ...session.state, Running: false, ExitCode: code };
        socket.end();
      },
    };
    if (exec !== undefined) exec.session = session;
    // What is not served ends with the test.
    void (async () => await serve(session))().catch(() => socket.destroy());
  });
  server.listen(socketPath);
  await once(server, "listening");
  const client = await openDocker({ socketPath, requestTimeoutMs });
  const procDir = await fakeProc(dir, options.cgroup ?? "/kubepods/feedbeef");
  const commands = new DockerExecs(client, clock);
  const streaming: DockerStreaming = await startDockerStreaming({
    ...{ client, execs: commands, clock },
    dialers: createSandboxDialers(client, procDir),
  });
  const die = () => {
    for (const socket of sockets) socket.destroy();
    server.close();
  };
  return {
    streaming,
    commands,
    resized,
    /** The daemon is killed. */
    die,
    execURL: (
      change: { tty?: boolean; stdin?: boolean; stdout?: boolean; stderr?: boolean; command?: string[] } = {},
    ) =>
      streaming.url({
        ...{ kind: "exec", containerID: "feedbeef", command: ["sh"] },
        ...{ tty: false, stdin: true, stdout: true, stderr: true, ...change },
      }),
    attachURL: (change: { tty?: boolean } = {}) =>
      streaming.url({
        ...{ kind: "attach", containerID: "feedbeef", stdin: true, stdout: true },
        ...{ tty: change.tty ?? false, stderr: change.tty !== true },
      }),
    [Symbol.asyncDispose]: async () => {
      await streaming.close();
      client.close();
      die();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

/** A /proc with this process alone, in its own network and a cgroup that is not. */
async function fakeProc(dir: string, cgroup: string): Promise<string> {
  const own = join(dir, "proc", String(process.pid));
  await mkdir(join(own, "ns"), { recursive: true });
  await symlink("/proc/self/ns/net", join(own, "ns/net"));
  await writeFile(join(own, "cgroup"), `0::${cgroup}\n`);
  return join(dir, "proc");
}
