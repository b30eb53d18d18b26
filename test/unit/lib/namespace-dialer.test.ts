import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { describe, expect, test } from "vitest";
import { createNamespaceDialer } from "../../../agent/lib/namespace-dialer.ts";
import { dialLoopback } from "../../../agent/lib/namespace-dialer-role.ts";
import { readAll } from "../../support/streaming/clients.ts";

const never = new AbortController().signal;

async function listener(host: string) {
  const server = createServer({ allowHalfOpen: true }, (socket) => void socket.end(`hello by ${host}`));
  server.listen(0, host);
  await once(server, "listening");
  return { port: (server.address() as AddressInfo).port, [Symbol.dispose]: () => void server.close() };
}

describe("dialling loopback", () => {
  test("what is said before anybody reads is there for who does", async () => {
    using server = await listener("127.0.0.1");
    const socket = await dialLoopback(server.port);
    await new Promise((resolve) => void setTimeout(resolve, 20));
    expect(socket.bytesRead).toBe(0);
    expect((await readAll(socket)).toString()).toBe("hello by 127.0.0.1");
    socket.destroy();
  });

  test("a port on which nobody listens is told for each address family", async () => {
    const server = await listener("127.0.0.1");
    server[Symbol.dispose]();
    await expect(dialLoopback(server.port)).rejects.toThrow(
      new RegExp(
        `localhost:${server.port} .*IPv4: dial tcp 127.0.0.1:${server.port}: connect: connection refused, IPv6: `,
      ),
    );
  });
});

describe("a helper in a namespace", () => {
  test("that is not there is an error that says so", async () => {
    const dialer = createNamespaceDialer("/proc/1/ns/nothing");
    await expect(dialer.dial(80, never)).rejects.toMatchObject({
      code: "Unavailable",
      message: expect.stringMatching(/ended: nsenter: .*nothing/),
    });
    dialer.close();
  });

  test("is not asked once its session is over, or when the client has gone", async () => {
    const dialer = createNamespaceDialer("/proc/1/ns/nothing");
    await expect(dialer.dial(80, AbortSignal.abort())).rejects.toMatchObject({ code: "Canceled" });
    dialer.close();
    await expect(dialer.dial(80, never)).rejects.toMatchObject({ code: "Canceled" });
  });
});
