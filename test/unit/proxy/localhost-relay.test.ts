import { createSocket, type Socket as UdpSocket } from "node:dgram";
import { connect, createServer, type Server, type Socket } from "node:net";
import { Worker } from "node:worker_threads";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { pino } from "pino";
import type { Clock } from "../../../agent/lib/clock.ts";
import { messageOf } from "../../../agent/lib/errors.ts";
import { EndpointChoice, type RelayTarget, relayTargets } from "../../../agent/proxy/localhost-choice.ts";
import { flowIdleMs, flowsMax } from "../../../agent/proxy/localhost-datagrams.ts";
import { connectTimeoutMs, listenRetryMs, LocalhostRelay } from "../../../agent/proxy/localhost-relay.ts";
import { ServiceModel } from "../../../agent/proxy/model.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";
import { until } from "../../support/test-net.ts";
import { FakeClock } from "../volumes/support.ts";

describe("what is relayed", () => {
  const model = new ServiceModel("IPv4", { name: "n1", zone: undefined, ips: [] });
  const targets = (spec: Parameters<typeof makeService>[1], endpoints: Parameters<typeof makeSlice>[1]) => {
    model.setService("ns1/web", makeService("web", spec));
    model.setSlice("ns1/web-a", makeSlice("web", endpoints));
    return relayTargets(model.describe("ns1/web")).map((one) => [
      `${one.protocol}/${one.nodePort}`,
      one.endpoints.map(({ address }) => address),
    ]);
  };
  const nodePort = { type: "NodePort" as const, ports: [{ name: "p80", port: 80, nodePort: 30_080 }] };
  const there = { nodeName: "n2" };
  test.each([
    ["no node port", {}, ["10.244.1.5"], []],
    ["a node port", nodePort, ["10.244.1.5"], [["tcp/30080", ["10.244.1.5:8080"]]]],
    ["no endpoint: nobody listens, the client is refused", nodePort, [], []],
    [
      "a Local policy is for strangers, not for the node",
      { ...nodePort, externalTrafficPolicy: "Local" as const },
      [{ address: "10.244.2.5", ...there }],
      [["tcp/30080", ["10.244.2.5:8080"]]],
    ],
  ])("%s", (_, spec, endpoints, want) => expect(targets(spec, endpoints)).toEqual(want));
});

test("endpoints are chosen by chance; with affinity the last one again, as long as it is there and remembered", async () => {
  const clock = new FakeClock();
  const endpoints = ["a", "b", "c"].map((address) => ({ ip: address, port: 1, address }));
  const target = { name: "ns1/web", protocol: "tcp", nodePort: 30_080, endpoints, affinitySeconds: undefined } as const;
  let draw = 0;
  const choice = new EndpointChoice(target, clock, () => draw);
  const next = (random: number) => {
    draw = random;
    return choice.next()?.address;
  };
  expect([next(0), next(0.4), next(0.999)]).toEqual(["a", "b", "c"]);
  choice.target = { ...target, affinitySeconds: 60 };
  expect([next(0), next(0)]).toEqual(["c", "c"]);
  await clock.advance(60_000);
  expect(next(0)).toBe("a");
  choice.target = { ...target, affinitySeconds: 60, endpoints: endpoints.slice(1) };
  expect(next(0)).toBe("b");
  choice.target = { ...target, endpoints: [] };
  expect(next(0)).toBeUndefined();
});

describe.each(["IPv4", "IPv6"] as const)("relay, %s", (family) => {
  const host = family === "IPv4" ? "127.0.0.1" : "::1";
  const lines: string[] = [];
  const log = pino({ level: "info" }, { write: (line: string) => void lines.push(line) });
  const cleanups: (() => Promise<void> | void)[] = [];
  let clock: FakeClock;
  let relay: LocalhostRelay;
  let stop: AbortController;
  let done: Promise<void>;

  beforeEach(() => {
    lines.length = 0;
    clock = new FakeClock();
    start(clock);
  });
  afterEach(async () => {
    stop.abort();
    await done;
    for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  });

  function start(by: Clock, connectionsMax?: number): void {
    stop = new AbortController();
    relay = new LocalhostRelay({
      ...{ family, clock: by, log, random: () => 0 },
      ...(connectionsMax === undefined ? {} : { connectionsMax }),
    });
    done = relay.run(stop.signal);
  }

  async function listen(onConnection: (socket: Socket) => void): Promise<{ server: Server; port: number }> {
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      socket.on("error", () => {});
      cleanups.push(() => void socket.destroy());
      onConnection(socket);
    });
    await new Promise<void>((resolve) => server.listen(0, host, resolve));
    cleanups.push(() => void server.close());
    return { server, port: (server.address() as { port: number }).port };
  }

  async function freePort(): Promise<number> {
    const { server, port } = await listen(() => {});
    await new Promise((resolve) => server.close(resolve));
    return port;
  }

  async function bindUdp(onMessage: (text: string, reply: (text: string) => void) => void): Promise<number> {
    const socket = udpSocket();
    socket.on("message", (message, from) =>
      onMessage(message.toString(), (text) => socket.send(text, from.port, from.address)),
    );
    await new Promise<void>((resolve) => socket.bind(0, host, resolve));
    return socket.address().port;
  }

  function udpSocket(): UdpSocket {
    const socket = createSocket(family === "IPv4" ? "udp4" : "udp6");
    cleanups.push(() => void socket.close());
    return socket;
  }

  function target(protocol: "tcp" | "udp", nodePort: number, ...ports: number[]): RelayTarget {
    const endpoints = ports.map((port) => ({ ip: host, port, address: `${host}:${port}` }));
    return { name: "ns1/web:p80", protocol, nodePort, endpoints, affinitySeconds: undefined };
  }

  /** All that the server says; rejects with the error's code. */
  async function ask(port: number, text = "?"): Promise<string> {
    return await new Promise((resolve, reject) => {
      const socket = connect({ host, port, allowHalfOpen: true });
      let answer = "";
      socket.on("data", (chunk: Buffer) => (answer += chunk.toString()));
      socket.on("end", () => resolve(answer));
      socket.on("error", (err: NodeJS.ErrnoException) => reject(new Error(err.code)));
      socket.end(text);
      cleanups.push(() => void socket.destroy());
    });
  }

  /** A connection that stays; its errors are somebody else's business. */
  async function opened(port: number): Promise<Socket> {
    return await new Promise((resolve, reject) => {
      const socket = connect({ host, port }, () => resolve(socket));
      socket.on("error", reject);
      cleanups.push(() => void socket.destroy());
    });
  }

  async function askUdp(socket: UdpSocket, port: number, text: string): Promise<string> {
    const answer = new Promise<string>((resolve) => socket.once("message", (message) => resolve(message.toString())));
    socket.send(text, port, host);
    return await answer;
  }

  test("connections reach an endpoint; the server answers after the client has said all", async () => {
    const { port } = await listen((socket) => {
      let text = "";
      socket.on("data", (chunk: Buffer) => (text += chunk.toString()));
      socket.on("end", () => socket.end(`heard ${text}`));
    });
    const nodePort = await freePort();
    relay.set("ns1/web", [target("tcp", nodePort, port)]);
    await until("the port answers", async () => (await ask(nodePort, "hello")) === "heard hello");
  });

  test("much data arrives whole, at the pace of a slow reader", async () => {
    const megabytes = 8;
    const chunk = Buffer.alloc(1 << 20, "x");
    let written = 0;
    const { port } = await listen((socket) => {
      socket.resume();
      const write = (): void => {
        if (written === megabytes) return void socket.end();
        written += 1;
        socket.write(chunk, write);
      };
      write();
    });
    const nodePort = await freePort();
    relay.set("ns1/web", [target("tcp", nodePort, port)]);
    const socket = await until("the port answers", async () => {
      return await new Promise<Socket>((resolve, reject) => {
        const made = connect({ host, port: nodePort }, () => resolve(made)).on("error", reject);
      });
    });
    cleanups.push(() => void socket.destroy());
    let received = 0;
    for await (const data of socket) received += (data as Buffer).length;
    expect(received).toBe(megabytes << 20);
  });

  test("who is cut off is told so: a reset passes on", async () => {
    const { port } = await listen((socket) => void socket.once("data", () => socket.resetAndDestroy()));
    const nodePort = await freePort();
    relay.set("ns1/web", [target("tcp", nodePort, port)]);
    await until("the port answers", async () => {
      return await ask(nodePort).then(
        () => false,
        (err: unknown) => messageOf(err) === "ECONNRESET",
      );
    });
  });

  test("an endpoint that refuses is a reset; without endpoints nobody listens", async () => {
    const nodePort = await freePort();
    relay.set("ns1/web", [target("tcp", nodePort, await freePort())]);
    await until("a reset", async () => await ask(nodePort).catch((err: unknown) => messageOf(err) === "ECONNRESET"));
    relay.set("ns1/web", []);
    await until(
      "a refusal",
      async () => await ask(nodePort).catch((err: unknown) => messageOf(err) === "ECONNREFUSED"),
    );
  });

  test("connections outlast the change of endpoints, and end with the relay", async () => {
    const { port } = await listen((socket) => void socket.on("data", (chunk: Buffer) => socket.write(chunk)));
    const nodePort = await freePort();
    relay.set("ns1/web", [target("tcp", nodePort, port)]);
    const socket = await until("the port answers", async () => {
      return await new Promise<Socket>((resolve, reject) => {
        const made = connect({ host, port: nodePort }, () => resolve(made)).on("error", reject);
      });
    });
    const closed = new Promise((resolve) => socket.on("error", () => {}).on("close", resolve));
    // It has to have found its endpoint.
    socket.write("hello");
    await new Promise((resolve) => socket.once("data", resolve));
    relay.set("ns1/web", []);
    await until(
      "nobody listens",
      async () => await ask(nodePort).catch((err: unknown) => messageOf(err) === "ECONNREFUSED"),
    );
    socket.write("still there");
    const echo = await new Promise<Buffer>((resolve) => socket.once("data", resolve));
    expect(echo.toString()).toBe("still there");
    stop.abort();
    await closed;
  });

  test("an endpoint that does not answer is given up after a while, and the client is told", async () => {
    // A server that takes no connection: the kernel keeps two for it, and then ignores who else comes.
    const script = `
      const { parentPort, workerData } = require("node:worker_threads");
      const server = require("node:net").createServer();
      server.listen({ port: 0, host: workerData.host, backlog: 1 }, () => {
        parentPort.postMessage(server.address().port);
        Atomics.wait(new Int32Array(workerData.shared), 0, 0);
        process.exit();
      });`;
    const shared = new SharedArrayBuffer(4);
    const worker = new Worker(script, { eval: true, workerData: { host, shared } });
    const ended = new Promise((resolve) => worker.once("exit", resolve));
    cleanups.push(async () => {
      Atomics.store(new Int32Array(shared), 0, 1);
      Atomics.notify(new Int32Array(shared), 0);
      await ended;
    });
    const port = await new Promise<number>((resolve) => worker.once("message", resolve));
    for (let n = 0; n < 2; n += 1) await opened(port);

    const nodePort = await freePort();
    relay.set("ns1/web", [target("tcp", nodePort, port)]);
    const before = clock.pendingTimers;
    const client = await until("the port answers", async () => await opened(nodePort));
    let error: string | undefined;
    client.on("error", (err: NodeJS.ErrnoException) => (error = err.code));
    await until("the endpoint is tried", async () => clock.pendingTimers > before);
    await clock.advance(connectTimeoutMs - 1);
    expect(error).toBeUndefined();
    await clock.advance(1);
    await until("the client is told", async () => error === "ECONNRESET");
  });

  test("there are only so many connections: one more is refused, told once, and taken when there is room", async () => {
    const connectionsMax = 16;
    stop.abort();
    await done;
    start(clock, connectionsMax);
    const { port } = await listen((socket) => void socket.resume().on("end", () => socket.end()));
    const nodePort = await freePort();
    relay.set("ns1/web", [target("tcp", nodePort, port)]);
    const clients = [await until("the port answers", async () => await opened(nodePort))];
    while (clients.length < connectionsMax) clients.push(await opened(nodePort));
    const isRefused = async () =>
      await ask(nodePort).then(
        () => false,
        (err: unknown) => messageOf(err) === "ECONNRESET",
      );
    expect([await isRefused(), await isRefused()]).toEqual([true, true]);
    const told = () => lines.filter((line) => line.includes("too many connections")).length;
    expect(told()).toBe(1);
    expect(clients.every((client) => !client.destroyed)).toBe(true);
    const room = connectionsMax / 2 + 1;
    for (const client of clients.splice(0, room)) client.destroy();
    await until("there is room", async () => !(await isRefused()));
    for (let n = 0; n < room; n += 1) await opened(nodePort);
    await until("it is full again", isRefused);
    expect(told()).toBe(2);
  });

  test("a port that another program has is told of once, and answers when it is free", async () => {
    const { port } = await listen((socket) => socket.end("web"));
    const { server, port: nodePort } = await listen((socket) => socket.resume().end("other"));
    relay.set("ns1/web", [target("tcp", nodePort, port)]);
    const told = () =>
      lines.filter((line) => line.includes("cannot be listened on") && line.includes(`tcp/${nodePort}`)).length;
    await until("a warning", async () => told() === 1);
    await until("another attempt", async () => {
      await clock.advance(listenRetryMs);
      return true;
    });
    expect(await ask(nodePort)).toBe("other");
    await new Promise((resolve) => server.close(resolve));
    await until("the port is ours", async () => {
      await clock.advance(listenRetryMs);
      return (await ask(nodePort)) === "web";
    });
    expect(told()).toBe(1);
  });

  test("datagrams of a client stay with one endpoint, and answers find back", async () => {
    const heard: string[] = [];
    const port = await bindUdp((text, reply) => {
      heard.push(text);
      reply(`heard ${text}`);
    });
    const nodePort = await freePort();
    relay.set("ns1/web", [target("udp", nodePort, port)]);
    const client = udpSocket();
    client.on("error", () => {});
    await until("an answer", async () => {
      return await Promise.race([
        askUdp(client, nodePort, "1"),
        new Promise((resolve) => setTimeout(() => resolve(false), 50)),
      ]);
    });
    const other = udpSocket();
    expect(await Promise.all([askUdp(client, nodePort, "2"), askUdp(other, nodePort, "3")])).toEqual([
      "heard 2",
      "heard 3",
    ]);
  });

  test("a flow leaves an endpoint that is gone, and is forgotten after it was idle for long", async () => {
    const nameOf = async (name: string) => await bindUdp((_, reply) => reply(name));
    const [a, b] = [await nameOf("a"), await nameOf("b")];
    const nodePort = await freePort();
    relay.set("ns1/web", [target("udp", nodePort, a, b)]);
    const client = udpSocket();
    const name = async () =>
      await Promise.race([
        askUdp(client, nodePort, "?"),
        new Promise<false>((resolve) => setTimeout(() => resolve(false), 50)),
      ]);
    expect(await until("an answer", name)).toBe("a");
    relay.set("ns1/web", [target("udp", nodePort, b, a)]);
    await new Promise((resolve) => setTimeout(resolve, 20)); // a is still there: nothing changes for this client
    expect(await name()).toBe("a");
    relay.set("ns1/web", [target("udp", nodePort, b)]);
    await until("the other endpoint", async () => (await name()) === "b");
    relay.set("ns1/web", [target("udp", nodePort, a, b)]);
    await until("the flow is forgotten", async () => {
      await clock.advance(flowIdleMs);
      return (await name()) === "a";
    });
  });

  test("there are only so many flows; the one that was idle longest makes room", async () => {
    const sources = new Set<string>();
    const echo = udpSocket();
    echo.on("message", (message, from) => {
      sources.add(`${message.toString()} ${from.port}`);
      echo.send(message, from.port, from.address);
    });
    await new Promise<void>((resolve) => echo.bind(0, host, resolve));
    const nodePort = await freePort();
    relay.set("ns1/web", [target("udp", nodePort, echo.address().port)]);
    const first = udpSocket();
    const answered = async (socket: UdpSocket, text: string) =>
      await until(`an answer to ${text}`, async () => {
        return await Promise.race([
          askUdp(socket, nodePort, text),
          new Promise<false>((resolve) => setTimeout(() => resolve(false), 100)),
        ]);
      });
    await answered(first, "first");
    const ports = new Set<number>(); // the kernel may hand out one twice
    while (ports.size < flowsMax) {
      const socket = createSocket(family === "IPv4" ? "udp4" : "udp6");
      await answered(socket, "other");
      ports.add(socket.address().port);
      socket.close();
    }
    await answered(first, "first");
    expect(new Set([...sources].filter((source) => source.startsWith("first ")))).toHaveProperty("size", 2);
  });
});
