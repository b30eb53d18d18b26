import { connect, createServer, type AddressInfo } from "node:net";
import { expect, test } from "vitest";
import { forEachChunk } from "../../../agent/lib/chunks.ts";

/** A connection on which that was said and which has ended. */
async function saidAndEnded(text: string) {
  const server = createServer((socket) => {
    server.close();
    socket.end(text);
  });
  await new Promise<void>((resolve) => void server.listen(0, "127.0.0.1", resolve));
  const socket = connect({ port: (server.address() as AddressInfo).port, host: "127.0.0.1", allowHalfOpen: true });
  return socket;
}

test("the end of a socket waits for whoever handles its last chunk", async () => {
  const socket = await saidAndEnded("last words");
  const done = Promise.withResolvers<void>();
  socket.once("end", () => setImmediate(done.resolve)); // a paused socket tells its end all the same
  let heard = "";
  await forEachChunk(socket, async (chunk) => {
    const text = chunk.toString();
    await done.promise;
    heard += text;
  });
  expect(heard).toBe("last words");
  socket.destroy();
});

test("what the handler of the last chunk rejects with is told", async () => {
  const socket = await saidAndEnded("last words");
  const done = Promise.withResolvers<void>();
  socket.once("end", () => setImmediate(done.resolve));
  const handled = forEachChunk(socket, async () => {
    await done.promise;
    throw new Error("no use for it");
  });
  await expect(handled).rejects.toThrow("no use for it");
  socket.destroy();
});
