import { once } from "node:events";
import { createServer, type RequestListener } from "node:http";
import { createServer as createTLSServer } from "node:https";
import { type AddressInfo, connect, createServer as createTCPServer, type Server, type Socket } from "node:net";
import { Worker } from "node:worker_threads";

/** A server on loopback that ends with the test: `await using server = await startTCP(…)`. */
export interface TestServer extends AsyncDisposable {
  port: number;
  /** Connections accepted so far. */
  readonly connections: number;
  /** Resolves when no connection is open any more. */
  idle(): Promise<void>;
}

/** @param onConnection what it does with each connection; by default it accepts and never answers */
export async function startTCP(
  onConnection: (socket: Socket) => void = (socket) => socket.resume(),
  host = "127.0.0.1",
): Promise<TestServer> {
  return await listen(createTCPServer(onConnection), host);
}

/** A server that answers every request with these bytes. */
export async function startText(answer: string | Buffer, then: "end" | "stay" = "end"): Promise<TestServer> {
  return await startTCP((socket) => {
    socket.once("data", () => (then === "end" ? socket.end(answer) : socket.write(answer)));
  });
}

export async function startHTTP(onRequest: RequestListener, host = "127.0.0.1"): Promise<TestServer> {
  return await listen(createServer(onRequest), host);
}

export async function startHTTPS(
  pair: { key: string; cert: string },
  onRequest: RequestListener,
): Promise<TestServer & { names: (string | false)[] }> {
  const names: (string | false)[] = [];
  const server = createTLSServer({ ...pair, ciphers: "DEFAULT@SECLEVEL=0" }, onRequest);
  server.on("secureConnection", (socket) => names.push(socket.servername ?? false));
  return Object.assign(await listen(server, "127.0.0.1"), { names });
}

/** Any other server of node's. */
export async function listen(server: Server, host = "127.0.0.1"): Promise<TestServer> {
  const sockets = new Set<Socket>();
  let connections = 0;
  server.on("connection", (socket: Socket) => {
    connections += 1;
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
  });
  await new Promise<void>((resolve, reject) => {
    server.on("error", reject);
    server.listen(0, host, resolve);
  });
  const { port } = server.address() as AddressInfo;
  return {
    port,
    get connections() {
      return connections;
    },
    idle: async () => {
      while (sockets.size > 0) await new Promise((resolve) => void setImmediate(resolve));
    },
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => void server.close(resolve));
    },
  };
}

/** A port that refuses connections. */
export async function closedPort(host = "127.0.0.1"): Promise<number> {
  const server = await startTCP(() => {}, host);
  await server[Symbol.asyncDispose]();
  return server.port;
}

/**
 * A port whose queue of connections is full: those that come are neither accepted nor refused. Its thread listens and then
 * stands still.
 */
export async function startDeaf(): Promise<AsyncDisposable & { port: number }> {
  const code = `
    const { parentPort } = require("node:worker_threads");
    const server = require("node:net").createServer();
    server.listen({ port: 0, host: "127.0.0.1", backlog: 1 }, () => {
      parentPort.postMessage(server.address().port);
      setImmediate(() => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0));
    });`;
  const worker = new Worker(code, { eval: true });
  const port = await new Promise<number>((resolve, reject) => {
    worker.once("message", resolve);
    worker.once("error", reject);
  });
  const fillers = Array.from({ length: 8 }, () => connect({ port, host: "127.0.0.1" }));
  for (const filler of fillers) filler.on("error", () => {});
  // The queue takes backlog + 1.
  await Promise.race(fillers.map(async (filler) => await once(filler, "connect")));
  return {
    port,
    [Symbol.asyncDispose]: async () => {
      for (const filler of fillers) filler.destroy();
      await worker.terminate();
    },
  };
}
