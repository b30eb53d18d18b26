/**
 * Moves bytes through exec sessions as a SPDY client, and prints how long that took: `main.ts JSON`, see StreamLoad. A
 * program of its own, since it has to run where a node's runtime listens: in the node's network namespace.
 */
import { connect, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { systemClock } from "../../../agent/lib/clock.ts";
import { SpdyConnection } from "../../../agent/lib/spdy/connection.ts";
import type { StreamLoad, StreamLoadResult } from "./load.ts";

const pieceBytes = 64 * 1024;
const load = JSON.parse(process.argv[2] ?? "") as StreamLoad;
const begin = performance.now();
const moved = await Promise.all(load.urls.map(session));
const result: StreamLoadResult = { bytes: moved.reduce((sum, bytes) => sum + bytes, 0), ms: performance.now() - begin };
process.stdout.write(JSON.stringify(result));

async function session(url: string): Promise<number> {
  const socket = await upgrade(new URL(url));
  const connection = new SpdyConnection(socket, { role: "client", clock: systemClock });
  const open = (type: string) => connection.open({ streamtype: [type] });
  const error = await open("error");
  error.end();
  const failure = collect(error);
  const stdin = load.direction === "in" ? await open("stdin") : undefined;
  // Its half towards the runtime stays open: the runtime closes as soon as it has written everything, and a frame that
  // comes later would make its kernel reset the connection, with what we have not read yet.
  const stdout = await open("stdout");
  let received = 0;
  const done = new Promise<void>((resolve) => {
    stdout.on("data", (chunk: Buffer) => (received += chunk.length)).on("end", resolve);
  });
  if (stdin !== undefined) {
    const piece = Buffer.alloc(pieceBytes);
    for (let sent = 0; sent < load.bytes; sent += pieceBytes) {
      if (!stdin.write(piece)) await new Promise((resolve) => void stdin.once("drain", resolve));
    }
    stdin.end();
    stdin.resume();
  }
  await done;
  const status = await failure;
  const faults = `error stream ${error.fault ?? "closed"}, stdout ${stdout.fault ?? "closed"} after ${received} bytes`;
  connection.destroy();
  if (!status.includes('"Success"')) throw new Error(`the session at ${url} failed: ${status} (${faults})`);
  if (load.direction === "out" && received !== load.bytes) throw new Error(`got ${received} of ${load.bytes} bytes`);
  return load.bytes;
}

async function upgrade(url: URL): Promise<Socket> {
  const options = { host: url.hostname, port: Number(url.port) };
  const { certificate, key } = load;
  const socket: Socket =
    url.protocol === "https:"
      ? connectTls({ ...options, cert: certificate, key, rejectUnauthorized: false })
      : connect(options);
  // A runtime resets the connection when a session is over, with our last frames unread. The status tells what counts.
  socket.on("error", () => {});
  const head = [`POST ${url.pathname}${url.search} HTTP/1.1`, `Host: ${url.host}`, "Content-Length: 0"];
  head.push("Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io");
  socket.write(`${head.join("\r\n")}\r\n\r\n`);
  let seen = "";
  for (;;) {
    const chunk = (socket.read() as Buffer | null) ?? undefined;
    if (chunk === undefined) {
      await new Promise((resolve) => void socket.once("readable", resolve));
      continue;
    }
    seen += chunk.toString("latin1");
    const end = seen.indexOf("\r\n\r\n");
    if (end < 0) continue;
    if (!seen.startsWith("HTTP/1.1 101 ")) throw new Error(`${url.href} answered ${seen}`);
    socket.unshift(Buffer.from(seen.slice(end + 4), "latin1"));
    return socket;
  }
}

async function collect(stream: NodeJS.ReadableStream): Promise<string> {
  let text = "";
  for await (const chunk of stream) text += String(chunk);
  return text;
}
