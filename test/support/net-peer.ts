/**
 * One end of a test network: run in a network namespace with an IPC channel, it serves and connects on command.
 * Every server answers with its name and the address it sees the client at: "web1 10.0.0.1".
 */
import { createSocket, type Socket } from "node:dgram";
import { createServer, connect, type Server, type Socket as Connection } from "node:net";
import { checkHeld, countEnded, dropHeld, hold, nextPhase, startLoad, stopLoad } from "./net-load.ts";

/** What the test asks; the answer is `{ id, text }` or `{ id, error }`. */
export type PeerRequest = { id: number } & (
  | { op: "serve"; name: string; port: number; host: string }
  | { op: "ask"; proto: "tcp" | "udp"; host: string; port: number; timeoutMs: number; from?: string }
  | { op: "unserve"; port: number; host: string }
  | { op: "echo"; port: number; host: string }
  | { op: "load"; host: string; port: number; concurrency: number }
  | { op: "phase" }
  | { op: "ended" }
  | { op: "endLoad" }
  | { op: "hold"; host: string; port: number }
  | { op: "held" }
  | { op: "dropHeld" }
  | { op: "send"; host: string; port: number; text: string; localPort: number }
  | { op: "received" }
);

const received: string[] = [];
const senders = new Map<string, Socket>();
const servers = new Map<string, Server>();
const udpServers = new Set<string>();
const connections = new Map<string, Set<Connection>>();

async function handle(request: PeerRequest): Promise<string> {
  switch (request.op) {
    case "serve":
      return serve(request.name, request.host, request.port);
    case "ask":
      return request.proto === "tcp" ? askTcp(request) : askUdp(request);
    case "send":
      return send(request);
    case "unserve":
      return unserve(request.host, request.port);
    case "echo":
      return serveEcho(request.host, request.port);
    case "load":
      startLoad(request.host, request.port, request.concurrency);
      return "";
    case "phase":
      nextPhase();
      return "";
    case "ended":
      return String(countEnded());
    case "endLoad":
      return JSON.stringify(await stopLoad());
    case "hold":
      await hold(request.host, request.port);
      return "";
    case "held":
      return JSON.stringify(await checkHeld());
    case "dropHeld":
      dropHeld();
      return "";
    case "received":
      return JSON.stringify(received.splice(0));
    default:
      throw new Error(`unknown request ${JSON.stringify(request satisfies never)}`);
  }
}

async function serve(name: string, host: string, port: number): Promise<string> {
  const tcp = createServer((socket) => {
    socket.on("error", () => {});
    socket.end(`${name} ${socket.remoteAddress}`);
  });
  await new Promise<void>((resolve, reject) => tcp.once("error", reject).listen(port, host, resolve));
  servers.set(`${host} ${port}`, tcp);
  const open = new Set<Connection>();
  connections.set(`${host} ${port}`, open);
  tcp.on("connection", (socket) => open.add(socket.on("close", () => open.delete(socket))));
  if (udpServers.has(`${host} ${port}`)) return "serving";
  const udp = createSocket(host.includes(":") ? "udp6" : "udp4");
  udp.on("message", (message, from) => {
    received.push(message.toString());
    udp.send(`${name} ${from.address}`, from.port, from.address);
  });
  await new Promise<void>((resolve, reject) => udp.once("error", reject).bind(port, host, resolve));
  udpServers.add(`${host} ${port}`);
  return "serving";
}

/** Ends a TCP server as the end of its process would. */
async function unserve(host: string, port: number): Promise<string> {
  const key = `${host} ${port}`;
  const server = servers.get(key);
  const closed = new Promise((resolve) => server?.close(resolve));
  for (const socket of connections.get(key) ?? []) socket.resetAndDestroy();
  servers.delete(key);
  if (server !== undefined) await closed;
  return "gone";
}

async function serveEcho(host: string, port: number): Promise<string> {
  const server = createServer((socket) => socket.on("error", () => {}).pipe(socket));
  await new Promise<void>((resolve, reject) => server.once("error", reject).listen(port, host, resolve));
  return "serving";
}

interface Ask {
  host: string;
  port: number;
  timeoutMs: number;
  from?: string;
}

async function askTcp({ host, port, timeoutMs, from }: Ask): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port, ...(from === undefined ? {} : { localAddress: from }) });
    let text = "";
    socket.setTimeout(timeoutMs, () => socket.destroy(new Error("ETIMEDOUT")));
    socket.on("data", (chunk: Buffer) => (text += chunk.toString()));
    socket.on("end", () => resolve(text));
    socket.on("error", (err: NodeJS.ErrnoException) => reject(new Error(err.code ?? err.message)));
  });
}

async function askUdp({ host, port, timeoutMs, from }: Ask): Promise<string> {
  const socket = createSocket(host.includes(":") ? "udp6" : "udp4");
  try {
    if (from !== undefined) await new Promise<void>((resolve) => socket.bind(0, from, resolve));
    return await new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error("ETIMEDOUT")), timeoutMs);
      socket.on("message", (message) => {
        clearTimeout(timer);
        resolve(message.toString());
      });
      socket.on("error", (err: NodeJS.ErrnoException) => {
        clearTimeout(timer);
        reject(new Error(err.code ?? err.message));
      });
      socket.connect(port, host, () => socket.send("?"));
    });
  } finally {
    socket.close();
  }
}

/** Sends one datagram and waits for nothing. Datagrams of one local port are one flow. */
async function send(request: { host: string; port: number; text: string; localPort: number }): Promise<string> {
  const type = request.host.includes(":") ? "udp6" : "udp4";
  const key = `${type} ${request.localPort}`;
  let socket = senders.get(key);
  if (socket === undefined) {
    const made = createSocket({ type, ipv6Only: type === "udp6" });
    await new Promise<void>((resolve) => made.bind(request.localPort, resolve));
    made.on("error", () => {});
    senders.set(key, (socket = made));
  }
  const from = socket;
  await new Promise<void>((resolve) => from.send(request.text, request.port, request.host, () => resolve()));
  return "sent";
}

process.on("message", (request: PeerRequest) => {
  handle(request).then(
    (text) => process.send?.({ id: request.id, text }),
    (err: unknown) => process.send?.({ id: request.id, error: err instanceof Error ? err.message : String(err) }),
  );
});
process.on("disconnect", () => process.exit(0));
process.send?.({ id: 0, text: "ready" });
