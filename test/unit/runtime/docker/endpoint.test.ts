import { createServer } from "node:net";
import { join } from "node:path";
import { expect, test } from "vitest";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { dockerSocket, isDockerSocket } from "../../../../agent/runtime/docker/endpoint.ts";
import { startFakeDaemon } from "./fake-daemon.ts";
import { FakeClock } from "../../kube/fake-clock.ts";

const endpoints: [endpoint: string, socket: string | undefined][] = [
  ["docker://", "/var/run/docker.sock"],
  ["docker:", "/var/run/docker.sock"],
  ["docker:///run/d.sock", "/run/d.sock"],
  ["unix:///var/run/docker.sock", undefined],
  ["/var/run/docker.sock", undefined],
  ["unix:///run/containerd/containerd.sock", undefined],
];
for (const [endpoint, socket] of endpoints) {
  test(`"${endpoint}" names ${socket ?? "no Docker by itself"}`, () => expect(dockerSocket(endpoint)).toBe(socket));
}

test("a Docker endpoint elsewhere is refused with what to use", () => {
  expect(() => dockerSocket("docker://host:2375")).toThrow("use docker:// or docker:///path/to/socket");
});

test("a daemon's ping is known", async () => {
  await using daemon = await startFakeDaemon();
  expect(await isDockerSocket(daemon.socketPath, systemClock)).toBe(true);
});

const others: { name: string; answer: string }[] = [
  { name: "gRPC, that begins with its own settings", answer: "\0\0\u0006\u0004\0\0\0\0\0" },
  { name: "a server that closes", answer: "" },
  { name: "HTTP that knows no such path", answer: "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n" },
  { name: "HTTP that answers everything", answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi" },
];
for (const { name, answer } of others) {
  test(`no Docker daemon: ${name}`, async () => {
    await using daemon = await startFakeDaemon();
    const path = join(daemon.socketPath, "..", "other.sock");
    const server = createServer((socket) => {
      socket.on("error", () => {}).resume();
      socket.once("data", () => socket.end(answer));
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    expect(await isDockerSocket(path, systemClock)).toBe(false);
    await new Promise((resolve) => server.close(resolve));
  });
}

test("nobody there, and nobody who answers, are told apart from both", async () => {
  const missing: unknown = await isDockerSocket("/no/such.sock", systemClock).catch((err: unknown) => err);
  expect(missing).toMatchObject({ code: "Unavailable" });

  await using daemon = await startFakeDaemon();
  const path = join(daemon.socketPath, "..", "silent.sock");
  const connected = Promise.withResolvers<void>();
  const server = createServer((socket) => {
    socket.on("error", () => {}).resume();
    connected.resolve();
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const clock = new FakeClock();
  const silent = isDockerSocket(path, clock).catch((err: unknown) => err);
  await connected.promise;
  await clock.advance(10_000);
  expect(await silent).toMatchObject({
    code: "DeadlineExceeded",
    message: expect.stringContaining("starting") as unknown,
  });
  await new Promise((resolve) => server.close(resolve));
});
