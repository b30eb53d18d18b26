import type { Duplex } from "node:stream";

/**
 * Makes a connection that was taken over from HTTP readable to its end, whatever happens to its other half.
 *
 * The daemon closes it when the command has ended, often with input unread: writing fails then, and reading ends with
 * ECONNRESET. Node.js would throw away what the command said last in either case. From here on what cannot be written is
 * dropped, and an error only ends the reading, behind everything that came; how the command ended is asked for elsewhere.
 * Whoever holds the connection destroys it.
 */
export function readToEnd(socket: Duplex): Duplex {
  // These are what a stream's class implements: an error that does not get out of them does not end the stream.
  const write = socket._write.bind(socket);
  const writev = socket._writev?.bind(socket);
  const final = socket._final.bind(socket);
  socket._write = (chunk, encoding, done) => write(chunk, encoding, () => done());
  if (writev !== undefined) socket._writev = (chunks, done) => writev(chunks, () => done());
  socket._final = (done) => final(() => done());

  const destroy = socket.destroy.bind(socket);
  socket.destroy = (err) => {
    if (err === undefined) return destroy();
    socket.push(null);
    return socket;
  };
  socket.on("error", () => {});
  return socket;
}
