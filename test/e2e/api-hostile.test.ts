import { randomBytes } from "node:crypto";
import { once } from "node:events";
import type { Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import type { TLSSocket } from "node:tls";
import { afterAll, beforeAll, beforeEach, afterEach, describe, expect, inject, test } from "vitest";
import type { KeyPair } from "../support/apiserver/pki.ts";
import { isReady } from "./support/cluster.ts";
import { type Direct, type Holdings, holdingsOf, openDirect, untilLetGo } from "./support/direct.ts";
import { type Kubectl, openKubectl } from "./support/kubectl.ts";
import { type BreakableCluster, openBreakableCluster } from "./support/local.ts";
import { sleeperOf } from "./support/pods.ts";

const MiB = 1 << 20;
// Generous for a machine that runs the attack, too; quiet ones need a second.
const podReadyMs = 20_000;

describe.skipIf(!inject("isLocal"))("under attack", () => {
  let own: BreakableCluster;
  let direct: Direct;
  let kubectl: Kubectl;
  let admin: KeyPair;
  let before: Holdings;
  let started = 0;

  beforeAll(async () => {
    own = await openBreakableCluster();
    const { local, cluster } = own;
    direct = await openDirect(local, cluster.client, cluster.namespace);
    kubectl = openKubectl(local.kubeconfig, cluster.namespace);
    admin = direct.certificate({ commonName: "admin", organizations: ["system:masters"], usage: "client" });
    await cluster.createPod(sleeperOf("target"));
    await cluster.waitForPod("target", "ready", isReady);
    // What is loaded with its first use belongs to the state before.
    await kubectl.demand(["exec", "target", "--", "true"]);
    await direct.ask("/metrics", { certificate: admin });
    await direct.ask("/stats/summary", { certificate: admin });
    await sleep(2_000);
  });
  afterAll(() => own?.[Symbol.asyncDispose]());

  beforeEach(async () => {
    before = await holdingsOf(own.local.agent.pid);
  });
  afterEach(async () => {
    await untilLetGo(own.local.agent.pid, before);
  });

  /** The node does its work and answers its API server meanwhile. */
  async function expectWork(): Promise<void> {
    started += 1;
    const name = `meanwhile-${started}`;
    await own.cluster.createPod(sleeperOf(name));
    await own.cluster.waitForPod(name, "ready", isReady, podReadyMs);
    const begin = performance.now();
    expect(await direct.ask("/healthz", { certificate: admin })).toMatchObject({ status: 200, text: "ok" });
    expect(performance.now() - begin).toBeLessThan(5_000);
    expect(await kubectl.demand(["exec", name, "--", "echo", "alive"])).toBe("alive\n");
    await own.cluster.deletePod(name, 0);
  }

  /** Dies in the middle of its work. */
  async function dieAfter(ms: number, args: readonly string[]): Promise<void> {
    const client = kubectl.start(args, { staysOpen: true });
    client.write("x".repeat(100_000));
    await sleep(ms);
    client.kill("SIGKILL");
    await client.ended;
  }

  async function cutAfter(stage: (socket: TLSSocket) => Promise<unknown>): Promise<void> {
    const socket = await direct.tls({ certificate: admin });
    socket.on("error", () => {});
    await stage(socket);
    socket.destroy();
  }

  async function connectMany(count: number): Promise<Socket[]> {
    const results = await Promise.allSettled(Array.from({ length: count }, () => direct.tcp()));
    const sockets = results.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []));
    for (const socket of sockets) socket.on("error", () => {});
    return sockets;
  }

  /** Everything that comes until the connection closes, or for so long. */
  async function replyTo(bytes: string | Buffer, ms = 10_000): Promise<string> {
    const socket = await direct.tls({ certificate: admin });
    socket.on("error", () => {});
    let text = "";
    socket.on("data", (chunk: Buffer) => (text += chunk.toString("latin1")));
    socket.write(bytes);
    await Promise.race([once(socket, "close"), sleep(ms, undefined, { ref: false })]);
    socket.destroy();
    return text;
  }

  test("no path leads out of where it belongs", async () => {
    const { namespace } = own.cluster;
    const ups = ["..", "%2e%2e", "..%2f..%2f..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "..%5c..", "%00", "%ff", "%"];
    const targets = ups.flatMap((up) => [
      `/containerLogs/${up}/target/main`,
      `/containerLogs/${namespace}/${up}/main`,
      `/containerLogs/${namespace}/target/${up}`,
      `/exec/${namespace}/target/${up}?command=cat&command=/etc/passwd&output=1`,
      `/run/${namespace}/${up}/main?cmd=id`,
      `/attach/${up}/target/main?output=1`,
      `/portForward/${namespace}/${up}`,
      `/checkpoint/${namespace}/${up}/main`,
      `/logs/${up}`,
      `/logs/${up}/${up}/${up}/etc/passwd`,
      `/logs//etc/passwd`,
      `/healthz/${up}`,
      `/debug/pprof/${up}`,
      `/metrics/${up}`,
      `/pods/${up}`,
      `/${up}/etc/passwd`,
    ]);
    for (const target of targets) {
      for (const method of ["GET", "POST"]) {
        const reply = await replyTo(`${method} ${target} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n`);
        expect([target, method, /^HTTP\/1\.1 [345]\d\d /.test(reply)]).toEqual([target, method, true]);
        expect(reply).not.toContain("root:");
      }
    }
    const node = await direct.ask(`/logs/?query=/../../etc/passwd`, { certificate: admin });
    expect(node.text).not.toContain("root:");
    await expectWork();
  });

  test("headers without end, headers without number, and lines that are no HTTP are answered or cut", async () => {
    const bombs = [
      `GET /healthz HTTP/1.1\r\nHost: n\r\nX: ${"a".repeat(3 * MiB)}\r\n\r\n`,
      `GET /healthz HTTP/1.1\r\nHost: n\r\n${Array.from({ length: 200_000 }, (_, i) => `h${i}: v\r\n`).join("")}\r\n`,
      `GET /${"a".repeat(3 * MiB)} HTTP/1.1\r\nHost: n\r\n\r\n`,
      `GET /healthz HTTP/1.1\r\nHost: n\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /pods HTTP/1.1\r\n\r\n`,
      `GET /healthz HTTP/9.9\r\n\r\n`,
      `\r\n\r\n\r\n`,
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      randomBytes(64 * 1024),
    ];
    for (const bomb of bombs) {
      const reply = await replyTo(bomb, 3_000);
      expect(reply).not.toMatch(/^HTTP\/1\.1 200/);
      expect(reply).not.toContain("PodList");
    }
    await expectWork();
  });

  test("bodies without end are not kept", async () => {
    const { namespace } = own.cluster;
    for (const target of [`/run/${namespace}/target/main`, "/stats/summary", "/debug/flags/v", "/pods"]) {
      const socket = await direct.tls({ certificate: admin });
      socket.on("error", () => {});
      const method = target === "/debug/flags/v" ? "PUT" : "POST";
      socket.write(`${method} ${target} HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n`);
      socket.write("Content-Type: application/x-www-form-urlencoded\r\n\r\n");
      const piece = Buffer.concat([Buffer.from("100000\r\n"), Buffer.alloc(MiB, "x"), Buffer.from("\r\n")]);
      for (let sent = 0; sent < 200 && !socket.destroyed; sent++) {
        if (!socket.write(piece)) await drained(socket);
      }
      const { residentMB } = await holdingsOf(own.local.agent.pid);
      expect(residentMB).toBeLessThan(before.residentMB + 100);
      socket.destroy();
    }
    await expectWork();
  });

  test("clients that send a byte now and then keep nobody waiting", async () => {
    const sockets = await Promise.all(Array.from({ length: 300 }, () => direct.tls()));
    const stop = new AbortController();
    const drip = async (socket: TLSSocket) => {
      socket.on("error", () => {});
      socket.write("GET /pods HTTP/1.1\r\nHost: n\r\nX-Slow: ");
      while (!stop.signal.aborted && !socket.destroyed) {
        socket.write("a");
        await sleep(500);
      }
    };
    const dripping = Promise.all(sockets.map(drip));
    try {
      await expectWork();
    } finally {
      stop.abort();
      await dripping;
      for (const socket of sockets) socket.destroy();
    }
  });

  test("10 000 connections that say nothing neither lock out others nor stay", async () => {
    const sockets: Socket[] = [];
    try {
      for (let round = 0; round < 100; round++) sockets.push(...(await connectMany(100)));
      expect(sockets.length).toBeGreaterThan(9_000);
      const { sockets: held, residentMB } = await holdingsOf(own.local.agent.pid);
      expect(held).toBeLessThan(2_000);
      expect(residentMB).toBeLessThan(before.residentMB + 100);
      await expectWork();
    } finally {
      for (const socket of sockets) socket.destroy();
    }
  });

  test("handshakes without end are cut", async () => {
    const sockets = await Promise.all(Array.from({ length: 200 }, () => direct.tcp()));
    for (const socket of sockets) {
      socket.on("error", () => {});
      socket.write(Buffer.from([0x16, 0x03, 0x01, 0x02, 0x00, 0x01])); // the begin of a ClientHello
    }
    const closed = Promise.all(sockets.map((socket) => once(socket, "close")));
    await expectWork();
    await Promise.race([
      closed,
      sleep(30_000, undefined, { ref: false }).then(() => {
        throw new Error("handshakes of 30 s");
      }),
    ]);
  });

  test("upgrades that lie are refused, and nothing behind them is taken for a request", async () => {
    const { namespace } = own.cluster;
    const exec = `/exec/${namespace}/target/main?command=cat&input=1&output=1`;
    const spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
    const hidden = `GET /pods HTTP/1.1\r\nHost: n\r\n\r\n`;
    const lies: [string, RegExp][] = [
      [`POST ${exec} HTTP/1.1\r\nHost: n\r\n\r\n`, /^HTTP\/1\.1 500 /],
      [`POST ${exec} HTTP/1.1\r\nHost: n\r\n${spdy}\r\n`, /^HTTP\/1\.1 [45]\d\d /],
      [`POST ${exec} HTTP/1.1\r\nHost: n\r\n${spdy}X-Stream-Protocol-Version: v99\r\n\r\n`, /^HTTP\/1\.1 403 /],
      [`GET ${exec} HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n`, /^HTTP\/1\.1 [45]\d\d /],
      [
        `GET ${exec} HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n` +
          "Sec-WebSocket-Key: short\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n",
        /^HTTP\/1\.1 [45]\d\d /,
      ],
      [`GET ${exec} HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: nothing\r\n\r\n`, /^HTTP\/1\.1 [45]\d\d /],
      [`GET /logs/nothing HTTP/1.1\r\nHost: n\r\n${spdy}\r\n`, /^HTTP\/1\.1 404 /],
      [
        `POST /exec/${namespace}/nobody/main?command=id&output=1 HTTP/1.1\r\nHost: n\r\n${spdy}\r\n`,
        /^HTTP\/1\.1 404 /,
      ],
      [`POST /exec/${namespace}/target/main?command=id HTTP/1.1\r\nHost: n\r\n${spdy}\r\n`, /^HTTP\/1\.1 400 /],
    ];
    for (const [request, want] of lies) {
      const reply = await replyTo(request, 3_000);
      expect([request, reply]).toEqual([request, expect.stringMatching(want) as string]);
    }
    for (const request of lies.slice(1, 4).map(([text]) => text + hidden)) {
      expect(await replyTo(request, 3_000)).not.toContain("PodList");
    }
    await expectWork();
  });

  test("streams that are cut at any stage leave no process and no connection", async () => {
    const { namespace } = own.cluster;
    const marker = `cut${randomBytes(6).toString("hex")}`;
    const script = `: ${marker}; exec cat`;
    const query = new URLSearchParams([
      ["command", "sh"],
      ["command", "-c"],
      ["command", script],
    ]);
    const head = [
      `POST /exec/${namespace}/target/main?${query.toString()}&input=1&output=1&error=1 HTTP/1.1`,
      "Host: n",
      "Connection: Upgrade",
      "Upgrade: SPDY/3.1",
      "X-Stream-Protocol-Version: v4.channel.k8s.io",
      "",
      "",
    ].join("\r\n");
    const stages: ((socket: TLSSocket) => Promise<unknown>)[] = [
      async () => {},
      async (socket) => void socket.write(head.slice(0, 40)),
      async (socket) => void socket.write(head),
      async (socket) => {
        socket.write(head);
        await once(socket, "data");
      },
      async (socket) => {
        socket.write(head);
        await once(socket, "data");
        socket.write(randomBytes(1_000)); // frames that are none
        await sleep(50);
      },
      async (socket) => {
        socket.write(head);
        await once(socket, "data");
        socket.end(); // half-closed, then gone
        await sleep(50);
      },
    ];
    for (let round = 0; round < 5; round++) {
      await Promise.all(stages.map(cutAfter));
    }
    // Whole clients that die in the middle of their work: exec, logs -f and port-forward.
    const clients: string[][] = [
      ["exec", "-i", "target", "--", "sh", "-c", script],
      ["logs", "-f", "target"],
      ["port-forward", "pod/target", ":8080"],
    ];
    for (const diesAfterMs of [50, 150, 300, 600, 1_200]) {
      await Promise.all(clients.map((args) => dieAfter(diesAfterMs, args)));
    }
    await expectWork();
    const left = async () => {
      const processes = await kubectl.demand(["exec", "target", "--", "ps", "-o", "args"]);
      return processes.split("\n").filter((line) => line.trim() === "cat" || line.includes(marker));
    };
    for (let tries = 0; tries < 50 && (await left()).length > 0; tries++) await sleep(200);
    expect(await left()).toEqual([]);
  });

  test("a pod that dies under its streams ends them", async () => {
    await own.cluster.createPod(sleeperOf("dying"));
    await own.cluster.waitForPod("dying", "ready", isReady);
    const clients = [
      kubectl.start(["exec", "dying", "--", "sleep", "1000"]),
      kubectl.start(["exec", "-i", "dying", "--", "cat"], { staysOpen: true }),
      kubectl.start(["logs", "-f", "dying"]),
      kubectl.start(["attach", "dying"]),
    ];
    await sleep(2_000);
    await own.cluster.deletePod("dying", 0);
    const ended = Promise.all(clients.map((client) => client.ended));
    const isOver = await Promise.race([ended.then(() => true), sleep(20_000, false, { ref: false })]);
    for (const client of clients) client.kill("SIGKILL");
    expect(isOver).toBe(true);
  });

  test("an agent that is restarted under streams ends them, and serves again", async () => {
    const follow = kubectl.start(["logs", "-f", "target"]);
    const shell = kubectl.start(["exec", "-i", "target", "--", "cat"], { staysOpen: true });
    shell.write("hello\n");
    await shell.said("hello");
    const pid = own.local.agent.pid;
    expect(await own.local.agent.stop()).toBe(0);
    await Promise.all([follow.ended, shell.ended]);
    await own.local.agent.start();
    await expect
      .poll(async () => (await kubectl.run(["exec", "target", "--", "true"])).code, { timeout: 20_000 })
      .toBe(0);
    expect(own.local.agent.pid).not.toBe(pid);
    before = { ...(await holdingsOf(own.local.agent.pid)), residentMB: before.residentMB };
  });
});

/** Until a socket takes more, or has closed; a peer that reads nothing is not waited for. */
async function drained(socket: TLSSocket): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  socket.once("drain", resolve).once("close", () => resolve());
  await Promise.race([promise, sleep(500, undefined, { ref: false })]);
}
