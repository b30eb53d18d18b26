/**
 * Servers that are always well, on loopback, in a process of their own, so that what they cost is not taken for the cost of
 * probing. Prints their ports as a line of JSON and ends when its standard input does.
 */
import { createServer as createHTTPServer } from "node:http";
import { createServer as createHTTP2Server } from "node:http2";
import { type AddressInfo, createServer as createTCPServer, type Server } from "node:net";

const http = createHTTPServer((_request, response) => response.end("ok"));
const tcp = createTCPServer((socket) => {
  socket.on("error", () => {});
  socket.resume();
});
const grpc = createHTTP2Server();
grpc.on("stream", (stream) => {
  stream.on("error", () => {});
  stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
  stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
  // HealthCheckResponse { SERVING }, in gRPC's frame.
  stream.end(Buffer.from([0, 0, 0, 0, 2, 8, 1]));
});

const ports = await Promise.all([http, tcp, grpc].map(listen));
console.log(JSON.stringify({ http: ports[0], tcp: ports[1], grpc: ports[2] }));
process.stdin.on("end", () => process.exit()).resume();

async function listen(server: Server): Promise<number> {
  await new Promise<void>((resolve) => void server.listen({ host: "127.0.0.1", port: 0, backlog: 4096 }, resolve));
  return (server.address() as AddressInfo).port;
}
