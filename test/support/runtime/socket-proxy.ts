import { chmod, rm } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";

/**
 * What becomes of requests: `pass` them on; answer each with status 500; `hang`: take them and say nothing, also to those that
 * are under way; `cut` each connection as soon as something is asked.
 */
export type ProxyMode = "pass" | "500" | "hang" | "cut";

/** A unix socket in front of another one that speaks HTTP, to make a daemon misbehave without touching it. */
export interface SocketProxy extends AsyncDisposable {
  /** How many requests were answered with 500, cut or left hanging since the last change. */
  readonly troubled: number;
  /** Ends the connections that there are, but for `hang`, which keeps them and lets nothing through. */
  turn(mode: ProxyMode): void;
}

const failure = JSON.stringify({ message: "the storage driver is on fire" });
const answer500 = [
  "HTTP/1.1 500 Internal Server Error",
  "Content-Type: application/json",
  `Content-Length: ${failure.length}`,
  "Connection: close",
  "",
  failure,
].join("\r\n");

/** Listens at `socketPath` and passes on to `upstream`, which need not be there yet. */
export async function startSocketProxy(socketPath: string, upstream: string): Promise<SocketProxy> {
  let mode: ProxyMode = "pass";
  let troubled = 0;
  const sockets = new Set<Socket>();
  const keep = (socket: Socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
  };
  const server = createServer((socket) => {
    keep(socket);
    if (mode === "pass") {
      const onward = connect(upstream);
      keep(onward);
      // An error of one side ends the other, too, which a pipe alone would not do.
      socket.on("close", () => onward.destroy());
      onward.on("close", () => socket.destroy());
      socket.pipe(onward).pipe(socket);
      return;
    }
    socket.once("data", () => {
      troubled += 1;
      if (mode === "500") socket.end(answer500);
      if (mode === "cut") socket.destroy();
    });
  });
  await rm(socketPath, { force: true });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(socketPath, resolve);
  });
  await chmod(socketPath, 0o600);
  const endAll = () => {
    for (const socket of sockets) socket.destroy();
  };
  return {
    get troubled() {
      return troubled;
    },
    turn: (next) => {
      mode = next;
      troubled = 0;
      if (next !== "hang") endAll();
      else for (const socket of sockets) socket.unpipe().pause();
    },
    [Symbol.asyncDispose]: async () => {
      endAll();
      await new Promise((resolve) => void server.close(resolve));
      await rm(socketPath, { force: true });
    },
  };
}
