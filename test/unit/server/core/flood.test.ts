import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { PassThrough } from "node:stream";
import { expect, describe, test } from "vitest";
import { Connections } from "../../../../agent/server/connections.ts";
import * as limits from "../../../../agent/server/limits.ts";
import { Turns } from "../../../../agent/server/turns.ts";
import { ask, openFiles, RawClient, startServer, until } from "./support.ts";

const get = (path: string, more = "") => `GET ${path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n${more}\r\n`;

describe("floods", () => {
  test("slow-loris connections do not keep others out, and the oldest make room", { timeout: 30_000 }, async () => {
    await using server = await startServer();
    const { kubelet } = server.ports;
    await using known = await RawClient.tls(kubelet);
    known.socket.write(get("/pods"));
    await known.until(/GET pods/);
    const before = await openFiles();
    const sockets: Socket[] = [];
    const dial = async () => {
      const socket = connect({ host: "127.0.0.1", port: kubelet ?? 0 }).on("error", () => {});
      await once(socket, "connect");
      sockets.push(socket);
    };
    for (let i = 0; i < 2000; i += 100) await Promise.all(Array.from({ length: 100 }, dial));
    await until(() => sockets.filter(({ destroyed }) => !destroyed).length <= limits.untrustedConnectionsMax);
    expect(await ask(kubelet, "/pods")).toMatchObject({ status: 200 });
    known.socket.write(get("/configz"));
    await known.until(/GET configz/);
    for (const socket of sockets) socket.destroy();
    await until(async () => (await openFiles()) <= before);
  });

  test("many large headers at once do not keep others out; those of who is known get through", async () => {
    await using server = await startServer();
    const { kubelet } = server.ports;
    await using known = await RawClient.tls(kubelet);
    known.socket.write(get("/pods"));
    await known.until(/GET pods/);
    const bombs = await Promise.all(Array.from({ length: 40 }, () => RawClient.tls(kubelet)));
    for (const { socket } of bombs) socket.write(get("/pods", `X: ${"x".repeat(1_000_000)}`).slice(0, -4));
    known.socket.write(get("/configz", `X: ${"x".repeat(1_000_000)}\r\n`));
    await known.until(/GET configz/);
    expect(await ask(kubelet, "/pods")).toMatchObject({ status: 200 });
    const held = () => bombs.filter(({ socket }) => !socket.destroyed).length;
    await until(() => held() <= limits.untrustedHeaderBytesMax / 1_000_000);
    for (const { socket } of bombs) socket.destroy();
  });
});

test("turns are taken in order, one in a turn of the event loop", async () => {
  const turns = new Turns();
  const seen: string[] = [];
  const nextTurn = () => new Promise<void>((resolve) => void setImmediate(resolve));
  for (const name of ["a", "b"]) turns.next(() => void seen.push(name));
  expect(seen).toEqual([]);
  await nextTurn();
  expect(seen).toEqual(["a"]);
  await nextTurn();
  expect(seen).toEqual(["a", "b"]);
  turns.next(() => void seen.push("c"));
  await nextTurn();
  expect(seen).toEqual(["a", "b", "c"]);
});

describe("Connections", () => {
  let port = 1;
  const socketFrom = (remoteAddress: string) => {
    port += 1;
    const socket = Object.assign(new PassThrough(), { remoteAddress, remotePort: port });
    return socket as unknown as Socket;
  };

  test("at the bound, the oldest of the address with most makes room; who authenticated stays", () => {
    let evicted = 0;
    const connections = new Connections(() => void (evicted += 1), { connectionsMax: 4, headerBytesMax: 100 });
    const apiServer = connections.add(socketFrom("10.0.0.1"));
    connections.trust(apiServer);
    const honest = connections.add(socketFrom("10.0.0.2"));
    const flood = Array.from({ length: 20 }, () => connections.add(socketFrom("10.6.6.6")));
    expect(flood.map(({ socket }) => socket.destroyed)).toEqual([...new Array(17).fill(true), false, false, false]);
    expect(evicted).toBe(17);
    expect([apiServer.socket.destroyed, honest.socket.destroyed]).toEqual([false, false]);
  });

  test("unfinished headers share a budget; the largest goes", () => {
    const connections = new Connections(() => {}, { connectionsMax: 10, headerBytesMax: 100 });
    const [small, large, trusted] = ["a", "b", "c"].map((address) => connections.add(socketFrom(address)));
    connections.trust(trusted!);
    connections.received(trusted!, 1000);
    connections.received(small!, 40);
    connections.headerDone(small!);
    connections.received(small!, 20);
    connections.received(large!, 80);
    expect([small, large, trusted].map((one) => one!.socket.destroyed)).toEqual([false, false, false]);
    connections.received(small!, 1);
    expect([small, large, trusted].map((one) => one!.socket.destroyed)).toEqual([false, true, false]);
    connections.received(small!, 79);
    expect(small!.socket.destroyed).toBe(false);
  });

  test("closed connections are forgotten", async () => {
    const connections = new Connections(() => {}, { connectionsMax: 2, headerBytesMax: 100 });
    const gone = Array.from({ length: 2 }, () => connections.add(socketFrom("a")));
    for (const { socket } of gone) socket.destroy();
    await Promise.all(gone.map(({ socket }) => once(socket, "close")));
    expect(connections.under(gone[0]!.socket)).toBeUndefined();
    const kept = Array.from({ length: 2 }, () => connections.add(socketFrom("a")));
    expect(kept.map(({ socket }) => socket.destroyed)).toEqual([false, false]);
  });
});
