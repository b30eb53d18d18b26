import type { Duplex } from "node:stream";
import type { Clock } from "../../lib/clock.ts";
import type { RuntimeAnswer } from "./dial.ts";
import { headerOf } from "./http-head.ts";

// The reference's deadline for handing on a refused upgrade.
export const refusalTimeoutMs = 10_000;
// Bodies are one line of text. What is longer is cut.
export const refusalBytesMax = 1 << 20;

// About one connection, not about the answer; the length is said anew.
const connectionHeaders = ["connection", "keep-alive", "content-length", "transfer-encoding", "trailer", "upgrade"];

/** Hands the runtime's answer on when it refused the upgrade, and closes both sides. Never rejects. */
export async function relayRefusal(
  { socket, head }: Pick<RuntimeAnswer, "socket" | "head">,
  client: Duplex,
  clock: Clock,
): Promise<void> {
  const body = await readBody({ socket, head }, clock);
  const lines: string[] = [`HTTP/1.1 ${head.status} ${head.statusText}`];
  for (let i = 0; i + 1 < head.rawHeaders.length; i += 2) {
    const name = head.rawHeaders[i] ?? "";
    if (!connectionHeaders.includes(name.toLowerCase())) lines.push(`${name}: ${head.rawHeaders[i + 1]}`);
  }
  lines.push(`Content-Length: ${body.length}`, "Connection: close", "", "");
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = clock.after(refusalTimeoutMs, resolve);
  client.on("error", () => resolve()).on("close", () => resolve());
  if (client.destroyed) resolve();
  client.write(lines.join("\r\n"), "latin1");
  client.end(body, () => resolve());
  await promise;
  timer.cancel();
  client.destroy();
}

/** The answer's body as far as it comes in time; closes the connection. Never rejects. */
export async function readBody(
  { socket, head: { rawHeaders } }: Pick<RuntimeAnswer, "socket" | "head">,
  clock: Clock,
): Promise<Buffer> {
  const isChunked = headerOf(rawHeaders, "transfer-encoding")?.toLowerCase() === "chunked";
  const length = Number(headerOf(rawHeaders, "content-length") ?? Number.POSITIVE_INFINITY);
  const wanted = isChunked || Number.isNaN(length) ? Number.POSITIVE_INFINITY : length;
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = clock.after(refusalTimeoutMs, resolve);
  const chunks: Buffer[] = [];
  let bytes = 0;
  socket.on("data", (chunk: Buffer) => {
    chunks.push(chunk);
    bytes += chunk.length;
    const isDone = bytes >= Math.min(wanted, refusalBytesMax);
    if (isDone || (isChunked && chunk.subarray(-7).toString("latin1").endsWith("0\r\n\r\n"))) resolve();
  });
  socket
    .on("end", resolve)
    .on("close", resolve)
    .on("error", () => resolve());
  if (wanted === 0 || socket.readableEnded) resolve();
  await promise;
  timer.cancel();
  socket.destroy();
  const all = Buffer.concat(chunks);
  return (isChunked ? unchunk(all) : all).subarray(0, Math.min(wanted, refusalBytesMax));
}

/** The content of a chunked body; what is malformed ends it. */
function unchunk(body: Buffer): Buffer {
  const parts: Buffer[] = [];
  for (let at = 0; ; ) {
    const lineEnd = body.indexOf("\r\n", at);
    if (lineEnd < 0) break;
    const bytes = Number.parseInt(body.toString("latin1", at, lineEnd), 16);
    if (!(bytes > 0)) break;
    parts.push(body.subarray(lineEnd + 2, lineEnd + 2 + bytes));
    at = lineEnd + 2 + bytes + 2;
  }
  return Buffer.concat(parts);
}
