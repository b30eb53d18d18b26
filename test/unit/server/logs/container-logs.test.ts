import { writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import type { Pod, PodStatus } from "../../../../agent/kube/types.ts";
import { AgentError } from "../../../../agent/lib/errors.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import type { ContainerStatus } from "../../../../agent/runtime/port.ts";
import { createContainerLogsHandler } from "../../../../agent/server/logs/container-logs.ts";
import { serve } from "./http.ts";
import { hurried, line, logDir, openIn } from "./support.ts";

const pod: Pod = {
  metadata: { name: "p", namespace: "ns", uid: "u" },
  spec: { containers: [{ name: "c" }, { name: "waits" }], initContainers: [{ name: "i" }] },
};
const base = { ready: true, restartCount: 0, image: "", imageID: "" };
const status: PodStatus = {
  containerStatuses: [
    { ...base, name: "c", containerID: "containerd://id-c", state: { running: {} } },
    { ...base, name: "waits", state: { waiting: { reason: "ContainerCreating" } } },
  ],
};

async function setup() {
  const logs = await logDir();
  const state = { runtimeError: undefined as Error | undefined, isRunning: true, calls: 0 };
  const handler = createContainerLogsHandler({
    pods: {
      list: () => [pod],
      find: (namespace, name) => (namespace === "ns" && name === "p" ? pod : undefined),
      status: () => status,
    },
    runtime: {
      containerStatus: (id) => {
        state.calls += 1;
        expect(id).toBe("id-c");
        if (state.runtimeError !== undefined) return Promise.reject(state.runtimeError);
        const answer = { logPath: logs.path, state: state.isRunning ? "running" : "exited" };
        return Promise.resolve(answer as ContainerStatus);
      },
    },
    clock: hurried(20),
    log: silentLogger,
    splitStreams: false,
  });
  const http = await serve(handler, "/containerLogs", "/containerLogs/{namespace}/{pod}/{container}");
  return {
    ...logs,
    http,
    state,
    [Symbol.asyncDispose]: async () => {
      await http[Symbol.asyncDispose]();
      await logs[Symbol.asyncDispose]();
    },
  };
}

const answers: { path: string; status: number; text: string }[] = [
  { path: "ns/p/c", status: 200, text: "a\nb\n" },
  { path: "ns/p/c?tailLines=1&timestamps=true", status: 200, text: "2026-01-02T03:04:05.678901234Z b\n" },
  { path: "ns/p/c?tailLines=x", status: 400, text: `{"message": "Unable to decode query."}` },
  { path: "ns/p/c?limitBytes=0", status: 422, text: `{"message": "Invalid request."}` },
  { path: "ns/q/c", status: 404, text: `pod "q" does not exist` },
  { path: "other/p/c", status: 404, text: `pod "p" does not exist` },
  { path: "ns/p/x", status: 404, text: `container "x" not found in pod "p"` },
  {
    path: "ns/p/waits",
    status: 400,
    text: `container "waits" in pod "p" is waiting to start: ContainerCreating`,
  },
  { path: "ns/p/i", status: 400, text: `container "i" in pod "p" is not available` },
  { path: "ns/p/c?previous=true", status: 400, text: `previous terminated container "c" in pod "p" not found` },
];
for (const { path, status: wanted, text } of answers) {
  test(`GET /containerLogs/${path}`, async () => {
    await using t = await setup();
    await t.append("a", "b");
    expect(await t.http.get(`/containerLogs/${path}`)).toMatchObject({ status: wanted, text });
  });
}

test("a missing log and a runtime that fails are told in the body, as the status is sent already", async () => {
  await using t = await setup();
  const missing = await t.http.get("/containerLogs/ns/p/c");
  expect(missing.status).toBe(200);
  expect(missing.text).toContain(`${t.path}: no such file or directory`);
  t.state.runtimeError = new AgentError("Unavailable", "no runtime");
  const noRuntime = await t.http.get("/containerLogs/ns/p/c");
  expect(noRuntime).toMatchObject({ status: 200, text: "unable to retrieve container logs for containerd://id-c" });
});

test("headers come at once, even if the container says nothing", async () => {
  await using t = await setup();
  await writeFile(t.path, "");
  const answer = await t.http.open("/containerLogs/ns/p/c?follow=true");
  expect(answer.statusCode).toBe(200);
  expect(answer.headers["transfer-encoding"]).toBe("chunked");
  answer.destroy();
});

test("a follower ends with its container, and outlives a runtime that is away", async () => {
  await using t = await setup();
  await t.append("a");
  const answer = t.http.get("/containerLogs/ns/p/c?follow=true");
  await expect.poll(() => t.state.calls).toBeGreaterThan(1);
  t.state.runtimeError = new AgentError("Unavailable", "restarting");
  await sleep(150);
  t.state.runtimeError = undefined;
  await t.append("b");
  await sleep(50);
  t.state.isRunning = false;
  expect((await answer).text).toBe("a\nb\n");
});

test("a container that was removed ends its followers", async () => {
  await using t = await setup();
  await t.append("a");
  const answer = t.http.get("/containerLogs/ns/p/c?follow=true");
  await expect.poll(() => t.state.calls).toBeGreaterThan(1);
  t.state.runtimeError = new AgentError("NotFound", "gone");
  expect((await answer).text).toBe("a\n");
});

test("followers of one container share the question whether it runs", async () => {
  await using t = await setup();
  await t.append("a");
  const all = Array.from({ length: 50 }, () => t.http.get("/containerLogs/ns/p/c?follow=true"));
  await expect.poll(() => t.state.calls).toBeGreaterThan(50);
  const before = t.state.calls;
  await sleep(300); // some six looks by each follower
  expect(t.state.calls - before).toBeLessThan(20);
  t.state.isRunning = false;
  for (const answer of await Promise.all(all)) expect(answer.text).toBe("a\n");
});

test("a client that does not read costs little memory, and nothing once it goes", async () => {
  await using t = await setup();
  await writeFile(t.path, Buffer.alloc(100 * 1024 * 1024, line("x".repeat(90))));
  const before = process.memoryUsage().arrayBuffers;
  const answer = await t.http.open("/containerLogs/ns/p/c");
  answer.pause();
  await sleep(150);
  expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(16 * 1024 * 1024);
  expect(await openIn(t.dir)).toEqual([t.path]);
  answer.destroy();
  await expect.poll(async () => await openIn(t.dir)).toEqual([]);
  await expect.poll(() => t.http.under.size).toBe(0);
  expect(t.http.failures).toEqual([]);
});

test("clients that go while they follow leave nothing open", async () => {
  await using t = await setup();
  await t.append("a");
  const followers = await Promise.all(
    Array.from({ length: 20 }, async () => await t.http.open("/containerLogs/ns/p/c?follow=true")),
  );
  await expect.poll(async () => (await openIn(t.dir)).length).toBe(20);
  for (const follower of followers) follower.destroy();
  await expect.poll(async () => await openIn(t.dir)).toEqual([]);
  expect(t.http.under.size).toBe(0);
  expect(t.http.failures).toEqual([]);
});
