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
  test("slow-loris connections do not keep others out, and the oldest make room", { timeout: 120_000 }, async () => {
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
  const bounds = { connectionsMax: 10, headerBytesMax: 100, trustedHeaderBytesMax: 2_000 };
  let port = 1;
  const socketFrom = (remoteAddress: string) => {
    port += 1;
    const at = { remoteAddress, remotePort: port, localAddress: "10.0.0.250", localPort: 10250 };
    const socket = Object.assign(new PassThrough(), at);
    return socket as unknown as Socket;
  };

  test("at the bound, the oldest of the address with most makes room; who authenticated stays", () => {
    let evicted = 0;
    const connections = new Connections(() => void (evicted += 1), { ...bounds, connectionsMax: 4 });
    const apiServer = connections.add(socketFrom("10.0.0.1"));
    connections.trust(apiServer);
    const honest = connections.add(socketFrom("10.0.0.2"));
    const flood = Array.from({ length: 20 }, () => connections.add(socketFrom("10.6.6.6")));
    expect(flood.map(({ socket }) => socket.destroyed)).toEqual([...new Array(17).fill(true), false, false, false]);
    expect(evicted).toBe(17);
    expect([apiServer.socket.destroyed, honest.socket.destroyed]).toEqual([false, false]);
  });

  test("headers share a budget; who has most of it goes", () => {
    const connections = new Connections(() => {}, { ...bounds, connectionsMax: 10 });
    const [small, large, trusted] = ["a", "b", "c"].map((address) => connections.add(socketFrom(address)));
    connections.trust(trusted!);
    connections.received(trusted!, 1000);
    connections.received(small!, 40);
    connections.headerDone(small!)();
    connections.received(small!, 20);
    connections.received(large!, 80);
    expect([small, large, trusted].map((one) => one!.socket.destroyed)).toEqual([false, false, false]);
    connections.received(small!, 1);
    expect([small, large, trusted].map((one) => one!.socket.destroyed)).toEqual([false, true, false]);
    connections.received(small!, 79);
    expect(small!.socket.destroyed).toBe(false);
  });

  test("a header counts until its request is answered", () => {
    const connections = new Connections(() => {}, bounds);
    const [ahead, other] = ["a", "b"].map((address) => connections.add(socketFrom(address)));
    const answers = [1, 2, 3].map(() => {
      connections.received(ahead!, 30);
      return connections.headerDone(ahead!);
    });
    answers[0]?.();
    connections.received(other!, 30);
    expect(ahead!.socket.destroyed).toBe(false);
    connections.received(other!, 11);
    expect([ahead, other].map((one) => one!.socket.destroyed)).toEqual([true, false]);
    for (const answered of answers) answered(); // late, and of no account
    connections.received(other!, 59);
    expect(other!.socket.destroyed).toBe(false);
  });

  test("who may do something has a budget, too", () => {
    const connections = new Connections(() => {}, bounds);
    const [scraper, apiServer] = ["a", "b"].map((address) => connections.add(socketFrom(address)));
    for (const connection of [scraper, apiServer]) connections.trust(connection!);
    connections.received(apiServer!, 500);
    connections.received(scraper!, 1_501);
    expect([scraper, apiServer].map((one) => one!.socket.destroyed)).toEqual([true, false]);
  });

  test("one port of a client toward two addresses of the node is two connections", () => {
    const connections = new Connections(() => {}, bounds);
    const first = socketFrom("a");
    const second = Object.assign(socketFrom("a"), { remotePort: first.remotePort, localAddress: "10.0.0.251" });
    const [one, two] = [connections.add(first), connections.add(second)];
    expect(connections.under(first)).toBe(one);
    expect(connections.under(second)).toBe(two);
  });

  test("closed connections are forgotten", async () => {
    const connections = new Connections(() => {}, { ...bounds, connectionsMax: 2 });
    const gone = Array.from({ length: 2 }, () => connections.add(socketFrom("a")));
    for (const { socket } of gone) socket.destroy();
    await Promise.all(gone.map(({ socket }) => once(socket, "close")));
    expect(connections.under(gone[0]!.socket)).toBeUndefined();
    const kept = Array.from({ length: 2 }, () => connections.add(socketFrom("a")));
    expect(kept.map(({ socket }) => socket.destroyed)).toEqual([false, false]);
  });
});
