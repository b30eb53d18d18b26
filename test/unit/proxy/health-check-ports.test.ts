import { once } from "node:events";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { EventRecorder } from "../../../agent/kube/port.ts";
import { systemClock } from "../../../agent/lib/clock.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { HealthCheckPorts, type ServeHealthChecks } from "../../../agent/proxy/health-check-ports.ts";
import { healthCheckRoutes } from "../../../agent/proxy/routes.ts";
import { ListenerConnections } from "../../../agent/server/listener.ts";
import { runPlainServer } from "../../../agent/server/plain.ts";

let events: Parameters<EventRecorder["event"]>[];
let isProxyHealthy: boolean;
let hosts: string[] | undefined;
let stop: AbortController;
let done: Promise<void>;
let ports: HealthCheckPorts;
let opened: string[];

beforeEach(() => {
  events = [];
  isProxyHealthy = true;
  hosts = ["127.0.0.1"];
  opened = [];
  stop = new AbortController();
  ports = makePorts("IPv4");
  done = ports.run(stop.signal);
});

afterEach(async () => {
  stop.abort();
  await done;
});

function makePorts(family: "IPv4" | "IPv6"): HealthCheckPorts {
  const connections = new ListenerConnections(() => {});
  const serve: ServeHealthChecks = async (place, answer, signal, onListening) => {
    const routes = healthCheckRoutes(answer);
    const options = { name: "test", ...place, routes, connections, clock: systemClock, log: silentLogger };
    await runPlainServer(options, signal, () => {
      opened.push(`${place.host} ${place.port}`);
      onListening();
    });
  };
  return new HealthCheckPorts({
    family,
    hosts: () => hosts,
    uidOf: (key) => `uid-of-${key}`,
    isProxyHealthy: () => isProxyHealthy,
    serve,
    recorder: { event: (...event) => void events.push(event) },
    clock: systemClock,
    log: silentLogger,
  });
}

/** A port that nobody uses, and nobody will within a test. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

const web = (port: number, localReady = 1) => new Map([["ns1/web", { port, localReady }]]);

async function ask(port: number, path = "/", host = "127.0.0.1"): Promise<[status: number, weight: string | null]> {
  const response = await fetch(`http://${host}:${port}${path}`);
  await response.text();
  return [response.status, response.headers.get("X-Load-Balancing-Endpoint-Weight")];
}

const answers = (port: number) => expect.poll(() => ask(port).catch(() => "refused"));

test("a port answers at any path, with what is known at that moment", async () => {
  const port = await freePort();
  ports.update(web(port));
  await answers(port).toEqual([200, "1"]);
  ports.update(web(port, 3));
  expect(await ask(port, "/healthz/deep?x=1")).toEqual([200, "3"]);
  ports.update(web(port, 0));
  expect(await ask(port)).toEqual([503, "0"]);
  ports.update(web(port));
  isProxyHealthy = false;
  expect(await ask(port)).toEqual([503, "1"]);
  expect(opened).toHaveLength(1);
});

test("another port is opened, the old one and those of services that went are closed", async () => {
  const [first, second] = [await freePort(), await freePort()];
  ports.update(web(first));
  await answers(first).toEqual([200, "1"]);
  ports.update(web(second));
  await answers(second).toEqual([200, "1"]);
  await answers(first).toBe("refused");
  ports.update(new Map());
  await answers(second).toBe("refused");
  expect(opened).toEqual([`127.0.0.1 ${first}`, `127.0.0.1 ${second}`]);
});

test("a port that goes from one service to another is there at once", async () => {
  const port = await freePort();
  ports.update(web(port));
  await answers(port).toEqual([200, "1"]);
  ports.update(new Map([["ns1/other", { port, localReady: 7 }]]));
  await answers(port).toEqual([200, "7"]);
  expect(events).toEqual([]);
});

test("a port that is taken is told as an event of the Service, and tried again at the next sync", async () => {
  const port = await freePort();
  const other = createServer().listen(port, "127.0.0.1");
  await once(other, "listening");
  ports.update(web(port));
  await expect.poll(() => events.length).toBe(1);
  expect(events[0]).toEqual([
    // kubectl describe asks for events by the UID.
    { kind: "Service", namespace: "ns1", name: "web", uid: "uid-of-ns1/web" },
    "Warning",
    "FailedToStartServiceHealthcheck",
    expect.stringMatching(
      new RegExp(`^node port ${port} for health checks of service ns1/web cannot .* 127.0.0.1:${port}: .*EADDRINUSE`),
    ) as string,
    "Listen",
  ]);
  ports.update(web(port, 2)); // the same trouble once more is no news
  other.close();
  await once(other, "close");
  await expect
    .poll(() => {
      ports.update(web(port, 2));
      return ask(port).catch(() => "refused");
    })
    .toEqual([200, "2"]);
  expect(events).toHaveLength(1);
});

test("addresses that come and go with the machine's are followed", async () => {
  const port = await freePort();
  ports.update(web(port));
  await answers(port).toEqual([200, "1"]);
  hosts = ["127.0.0.2"];
  ports.update(web(port));
  await expect.poll(() => ask(port, "/", "127.0.0.2").catch(() => "refused")).toEqual([200, "1"]);
  await answers(port).toBe("refused");
});

test("each IP family has its own wildcard", async () => {
  const port = await freePort();
  hosts = undefined;
  const v6 = makePorts("IPv6");
  const v6Done = v6.run(stop.signal);
  ports.update(web(port, 4));
  v6.update(web(port, 6));
  await answers(port).toEqual([200, "4"]);
  await expect.poll(() => ask(port, "/", "[::1]").catch(() => "refused")).toEqual([200, "6"]);
  expect(opened.sort()).toEqual([`0.0.0.0 ${port}`, `:: ${port}`]);
  expect(events).toEqual([]);
  stop.abort();
  await v6Done;
});

test("all are closed at the end", async () => {
  const port = await freePort();
  ports.update(web(port));
  await answers(port).toEqual([200, "1"]);
  stop.abort();
  await done;
  expect(await ask(port).catch(() => "refused")).toBe("refused");
});
