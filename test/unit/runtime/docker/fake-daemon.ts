import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

export type Handler = (request: IncomingMessage, response: ServerResponse) => void;

/** A Docker daemon as far as a test scripts it: `/version` and `/info` are served, the rest is `handle`'s. */
export interface FakeDaemon {
  socketPath: string;
  /** "GET /v1.41/containers/json", as they came. */
  requests: string[];
  version: Record<string, unknown>;
  info: Record<string, unknown>;
  handle: Handler;
  [Symbol.asyncDispose](): Promise<void>;
}

/** Serves at a unix socket of its own. */
export async function startFakeDaemon(handle: Handler = notFound): Promise<FakeDaemon> {
  const dir = await mkdtemp(join(tmpdir(), "fake-docker-"));
  const socketPath = join(dir, "d.sock");
  const sockets = new Set<Socket>();
  const daemon: FakeDaemon = {
    socketPath,
    requests: [],
    version: { Version: "20.10.24", ApiVersion: "1.41", MinAPIVersion: "1.12" },
    info: { OSType: "linux", CgroupDriver: "cgroupfs", CgroupVersion: "1", SecurityOptions: [], DockerRootDir: "/d" },
    handle,
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
      await rm(dir, { recursive: true, force: true });
    },
  };
  const server = createServer((request, response) => {
    daemon.requests.push(`${request.method} ${request.url}`);
    const path = request.url?.replace(/^\/v[\d.]+/, "");
    if (path === "/_ping") response.setHeader("Api-Version", "1.41").end("OK");
    else if (path === "/version") answer(response, 200, daemon.version);
    else if (path === "/info") answer(response, 200, daemon.info);
    else daemon.handle(request, response);
  });
  server.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  return daemon;
}

export function answer(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body));
}

function notFound(_request: IncomingMessage, response: ServerResponse): void {
  answer(response, 404, { message: "No such container: x" });
}
