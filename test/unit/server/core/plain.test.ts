import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { expect, test } from "vitest";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { untrustedConnectionsMax } from "../../../../agent/server/limits.ts";
import { ListenerConnections } from "../../../../agent/server/listener.ts";
import { bindFailure, type PlainServerOptions, runPlainServer, runRetrying } from "../../../../agent/server/plain.ts";
import { sendText } from "../../../../agent/server/respond.ts";
import type { Route } from "../../../../agent/server/router.ts";
import { FakeClock, settle } from "../../kube/fake-clock.ts";
import { ask, RawClient } from "./support.ts";

const hello: Route = {
  kind: "exact",
  path: "/",
  handler: async ({ response }) => {
    sendText(response, 200, "hello");
  },
};

async function serve(options: Partial<PlainServerOptions> = {}) {
  const stop = new AbortController();
  const listening = Promise.withResolvers<AddressInfo>();
  const whole = { name: "test", host: "127.0.0.1", port: 0, routes: [hello], clock: systemClock, log: silentLogger };
  const done = runPlainServer({ ...whole, ...options }, stop.signal, listening.resolve);
  const { port } = await Promise.race([listening.promise, done.then(() => Promise.reject(new Error("ended")))]);
  const end = async () => {
    stop.abort();
    await done;
  };
  return { port, stop: end, [Symbol.asyncDispose]: end };
}

const get = (port: number, host?: string) => ask(port, "/", { tls: false, as: null, ...(host && { host }) });

test("a wildcard of IPv6 leaves IPv4 to another listener, if told to", async () => {
  await using v6 = await serve({ host: "::", ipv6Only: true });
  await using v4 = await serve({ host: "0.0.0.0", port: v6.port });
  expect(v4.port).toBe(v6.port);
  expect(await get(v6.port, "::1")).toMatchObject({ status: 200, body: "hello" });
  await v6.stop();
  expect(await get(v4.port)).toMatchObject({ status: 200 });
  await expect(get(v6.port, "::1")).rejects.toThrow("ECONNREFUSED");
});

test("listeners that share their bounds share them over all connections, and nothing else", async () => {
  const evicted: number[] = [];
  const connections = new ListenerConnections(() => void evicted.push(1));
  await using first = await serve({ connections });
  await using second = await serve({ connections });
  const clients: RawClient[] = [];
  for (let n = 0; n < untrustedConnectionsMax; n++) {
    clients.push(await RawClient.plain((n % 2 === 0 ? first : second).port));
  }
  await settle();
  expect(evicted).toEqual([]);
  expect(await get(second.port)).toMatchObject({ status: 200 });
  await expect.poll(() => clients[0]?.socket.readableEnded).toBe(true); // it was the oldest
  expect(evicted).toHaveLength(1);

  await first.stop();
  const last = clients[1] ?? expect.fail("no client");
  last.socket.write("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  expect(await last.until(/hello$/)).toMatch(/^HTTP\/1\.1 200 OK/);
  for (const client of clients) await client[Symbol.asyncDispose]();
});

test("a client that is slow with its header is let go, here as there", async () => {
  await using server = await serve({ times: { headersReadMs: 50, checkMs: 10 } });
  const client = await RawClient.plain(server.port);
  client.socket.write("GET / HTTP/1.1\r\nX-Slow:");
  expect(await client.until(/close\r\n/)).toMatch(/^HTTP\/1\.1 408 /);
  await client[Symbol.asyncDispose]();
});

test("an address that cannot be had is tried again after the time given, until the end", async () => {
  const clock = new FakeClock();
  const stop = new AbortController();
  const failures: unknown[] = [];
  let tries = 0;
  const run = async (signal: AbortSignal) => {
    tries += 1;
    if (tries < 3) throw new Error("taken");
    await once(signal, "abort");
  };
  const onFailure = (err: unknown) => void failures.push(err);
  const done = runRetrying(run, { retryMs: 5_000, onFailure, clock }, stop.signal);
  await settle();
  expect([tries, failures.length]).toEqual([1, 1]);
  await clock.advance(4_999);
  expect(tries).toBe(1);
  await clock.advance(5_001);
  expect([tries, failures.length, clock.waiting]).toEqual([3, 2, 0]);
  stop.abort();
  await done;
});

test("a place is named as people write it", () => {
  expect(bindFailure("x", { host: "::", port: 1 }, new Error("taken"))).toBe("failed to start x on [::]:1: taken");
  expect(bindFailure("x", { host: "10.0.0.1", port: 1 }, "gone")).toBe("failed to start x on 10.0.0.1:1: gone");
});
