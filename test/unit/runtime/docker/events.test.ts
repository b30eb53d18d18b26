import { once } from "node:events";
import type { ServerResponse } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { createLogger, silentLogger } from "../../../../agent/lib/log.ts";
import { openDocker } from "../../../../agent/runtime/docker/client.ts";
import { followDockerEvents, readEvent } from "../../../../agent/runtime/docker/events.ts";
import type { RuntimeEvent } from "../../../../agent/runtime/port.ts";
import { answer, type FakeDaemon, startFakeDaemon } from "./fake-daemon.ts";
import { ownLabels } from "./own-labels.ts";

const attributes = { ...ownLabels, name: "k8s_app_web_shop_u_0" };
const nodeName = "node-1";
const event = (Action: string, Attributes: object = attributes) =>
  `${JSON.stringify({ Type: "container", Action, timeNano: 1_500_250_000, Actor: { ID: "c", Attributes } })}\n`;

describe("one event", () => {
  const cases: { action: string; kind: RuntimeEvent["kind"] | undefined }[] = [
    { action: "create", kind: "created" },
    { action: "start", kind: "started" },
    { action: "die", kind: "exited" },
    { action: "oom", kind: "unknown" },
    { action: "destroy", kind: "deleted" },
    { action: "exec_die", kind: undefined },
    { action: "health_status: healthy", kind: undefined },
  ];
  for (const { action, kind } of cases) {
    test(`${action} is ${kind ?? "no wake"}`, () => {
      const wake = kind === undefined ? undefined : { kind, podUID: "u", containerID: "c", createdAtMs: 1_500.25 };
      expect(readEvent(event(action), nodeName)?.wake).toEqual(wake);
    });
  }

  test("other people's containers wake nobody", () => {
    expect(readEvent(event("die", { name: "db" }), nodeName)).toBeUndefined();
    expect(readEvent(event("die", { ...attributes, name: "db" }), nodeName)).toBeUndefined();
    expect(readEvent(event("die", { ...attributes, "io.nodelet.node": "node-2" }), nodeName)).toBeUndefined();
  });

  test("the end of a sandbox is told apart", () => {
    const sandbox = { ...attributes, "io.kubernetes.docker.type": "podsandbox", name: "k8s_POD_web_shop_u_0" };
    expect(readEvent(event("destroy", sandbox), nodeName)).toMatchObject({ isSandboxGone: true });
    expect(readEvent(event("die", sandbox), nodeName)).toMatchObject({ isSandboxGone: false, isOutOfMemory: false });
    expect(readEvent(event("oom", sandbox), nodeName)).toMatchObject({ isOutOfMemory: true });
  });

  test("what is no event is passed over", () => {
    for (const line of ["", "{", "null", "[]", '{"Action":"die"}']) expect(readEvent(line, nodeName)).toBeUndefined();
  });
});

async function follow(daemon: FakeDaemon, log = silentLogger) {
  const client = await openDocker({ socketPath: daemon.socketPath, requestTimeoutMs: 5_000 });
  const stop = new AbortController();
  const seen: string[] = [];
  const options = {
    client,
    nodeName,
    clock: systemClock,
    log,
    onSandboxGone: (id: string) => void seen.push(`gone ${id}`),
    onOutOfMemory: (id: string) => void seen.push(`out of memory ${id}`),
    refresh: async () => await client.refresh(),
  };
  const done = followDockerEvents(options, ({ kind, podUID }) => seen.push(`${kind} ${podUID}`), stop.signal);
  return {
    seen,
    until: async (count: number) => {
      while (seen.length < count) await sleep(5);
      return [...seen];
    },
    end: async () => {
      stop.abort();
      await done;
      client.close();
    },
  };
}

test("the daemon sorts out other people's containers, and each connection begins with a wake for all", async () => {
  const streams: ServerResponse[] = [];
  await using daemon = await startFakeDaemon((_request, response) => {
    response.writeHead(200).flushHeaders();
    streams.push(response);
  });
  const follower = await follow(daemon);
  await follower.until(1);
  const whole = event("die");
  streams[0]?.write(whole.slice(0, 20));
  await sleep(10);
  streams[0]?.write(whole.slice(20) + event("exec_create: ls") + event("start"));
  expect(await follower.until(3)).toEqual(["unknown undefined", "exited u", "started u"]);
  const [request] = daemon.requests.filter((one) => one.includes("/events"));
  const query = decodeURIComponent(request ?? "");
  expect(query).toContain('"label":["io.nodelet.keys","io.kubernetes.docker.type","io.kubernetes.pod.uid"]');
  expect(query).toContain('"event":["create","start","die","oom","destroy"]');

  // The daemon closes the stream, then breaks the next one off.
  streams[0]?.end();
  expect((await follower.until(4))[3]).toBe("unknown undefined");
  streams[1]?.destroy();
  expect((await follower.until(5))[4]).toBe("unknown undefined");
  await follower.end();
});

test("a daemon that answers 500 is asked again, and a stop ends the wait", async () => {
  let asked = 0;
  await using daemon = await startFakeDaemon((_request, response) => {
    asked += 1;
    if (asked < 3) answer(response, 500, { message: "no" });
    else response.writeHead(200).flushHeaders();
  });
  const follower = await follow(daemon);
  expect(await follower.until(1)).toEqual(["unknown undefined"]);
  expect(asked).toBe(3);
  await follower.end();
});

test("a stop ends an open stream", async () => {
  const closed = Promise.withResolvers<void>();
  await using daemon = await startFakeDaemon((_request, response) => {
    response.writeHead(200).flushHeaders();
    void once(response, "close").then(() => closed.resolve());
  });
  const follower = await follow(daemon);
  await follower.until(1);
  await follower.end();
  await closed.promise;
  expect(follower.seen).toEqual(["unknown undefined"]);
});

test("an event that is too long to be kept wakes all pods, and the stream goes on", async () => {
  const streams: ServerResponse[] = [];
  await using daemon = await startFakeDaemon((_request, response) => {
    response.writeHead(200).flushHeaders();
    streams.push(response);
  });
  const follower = await follow(daemon);
  await follower.until(1);
  // As the daemon writes a pod's 256 KiB of markup in annotations.
  const markup = "\\u003c".repeat(256 << 10);
  streams[0]?.write(event("die", { ...attributes, "annotation.a": "ANNOTATION" }).replace("ANNOTATION", markup));
  expect(await follower.until(2)).toEqual(["unknown undefined", "exited u"]);
  streams[0]?.write(`{"Action":"${"x".repeat(5 << 20)}"}\n${event("start")}`);
  expect((await follower.until(4)).slice(2)).toEqual(["unknown undefined", "started u"]);
  await follower.end();
  expect(streams).toHaveLength(1);
});

test("why events do not come is told once for each reason, and that they come again", async () => {
  const streams: ServerResponse[] = [];
  await using daemon = await startFakeDaemon((_request, response) => {
    response.writeHead(200).flushHeaders();
    streams.push(response);
  });
  const lines: string[] = [];
  const log = createLogger({ level: "info", stream: { write: (line) => void lines.push(line) } });
  const follower = await follow(daemon, log);
  await follower.until(1);
  daemon.version = { Version: "18.09", ApiVersion: "1.39" };
  streams[0]?.end();
  await expect.poll(() => lines.length).toBe(2);
  const asked = daemon.requests.length;
  await expect.poll(() => daemon.requests.length).toBeGreaterThan(asked + 1);
  daemon.version = { Version: "20.10.24", ApiVersion: "1.41" };
  await follower.until(2);
  await follower.end();
  expect(lines).toEqual([
    expect.stringContaining("closed by the daemon"),
    expect.stringContaining("Docker Engine 18.09 (API 1.39) is too old"),
    expect.stringContaining("events again"),
  ]);
});

test("a stream that breaks off is told in words about the daemon", async () => {
  const streams: ServerResponse[] = [];
  await using daemon = await startFakeDaemon((_request, response) => {
    response.writeHead(200).flushHeaders();
    streams.push(response);
  });
  const lines: string[] = [];
  const log = createLogger({ level: "warn", stream: { write: (line) => void lines.push(line) } });
  const follower = await follow(daemon, log);
  await follower.until(1);
  streams[0]?.destroy();
  await follower.until(2);
  await follower.end();
  const why = "follow the Docker daemon's events: the Docker daemon cannot be reached (it broke off its answer)";
  expect(lines.map((line) => JSON.parse(line) as unknown)).toEqual([expect.objectContaining({ why })]);
});
