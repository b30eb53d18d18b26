import { describe, expect, test } from "vitest";
import { createLogger, type Logger, silentLogger } from "../../../../agent/lib/log.ts";
import { type ContainerLogs, Containers } from "../../../../agent/runtime/docker/containers.ts";
import type { WireInspect } from "../../../../agent/runtime/docker/wire.ts";
import type { ImageService } from "../../../../agent/runtime/port.ts";
import { FakeClock } from "../../kube/fake-clock.ts";
import { type Answer, answered, fakeDocker, sendJSON } from "./fake-docker.ts";

// One that ended as soon as it was started.
const ended: WireInspect = {
  Id: "c1",
  Name: "/k8s_app_web_shop_u1_0",
  Created: "2026-01-01T00:00:00Z",
  State: { ExitCode: 1, StartedAt: "2026-01-01T00:00:01Z", FinishedAt: "2026-01-01T00:00:02Z" },
  Config: {
    Labels: {
      "io.kubernetes.docker.type": "container",
      "io.kubernetes.container.name": "app",
      "io.kubernetes.pod.name": "web",
      "io.kubernetes.pod.namespace": "shop",
      "io.kubernetes.pod.uid": "u1",
      "io.nodelet.keys": "[]",
    },
  },
};

interface Setting {
  link?: ContainerLogs["link"];
  log?: Logger;
  inspect?: WireInspect;
  imageStatus?: ImageService["imageStatus"];
  /** What the daemon says to all but a look. */
  answer?: Answer;
}

async function withContainer({ link = async () => {}, inspect = ended, ...setting }: Setting) {
  const { imageStatus = async () => undefined, answer = () => ({}), log = silentLogger } = setting;
  const fake = await fakeDocker((...call) => (call[0].path.endsWith("/json") ? inspect : answer(...call)));
  const clock = new FakeClock();
  const containers = new Containers({
    client: fake.client,
    context: { daemon: fake.client.daemon, nodeName: "node-1", oomScoreAdjMin: -1000, hasIPv6: true },
    images: { imageStatus },
    logs: { config: { Type: "json-file", Config: {} }, giveWay: () => false, link, unlink: async () => {} },
    requestTimeoutMs: 5_000,
    clock,
    log,
  });
  return { containers, clock, requests: fake.requests, [Symbol.asyncDispose]: () => fake[Symbol.asyncDispose]() };
}

test("nobody hears of a container's end before its log can be found, which is linked once", async () => {
  const linked = Promise.withResolvers<void>();
  let links = 0;
  await using t = await withContainer({
    link: async () => {
      links += 1;
      await linked.promise;
    },
  });
  const starting = t.containers.start("c1");
  let isTold = false;
  const told = t.containers.status("c1").then((status) => {
    isTold = true;
    return status;
  });
  await expect.poll(() => t.requests.length).toBe(4); // start, a look before and after it, and one for the status
  await expect.poll(() => links).toBe(1);
  expect(isTold).toBe(false);
  linked.resolve();
  await starting;
  expect(await told).toMatchObject({ state: "exited", exitCode: 1 });
  await t.containers.status("c1");
  expect(links).toBe(1);
});

test("a log that cannot be linked keeps no container from running, and is linked once it can be", async () => {
  let isFull = true;
  let links = 0;
  const lines: string[] = [];
  const log = createLogger({ level: "warn", stream: { write: (line) => void lines.push(line) } });
  const link = async () => {
    if (isFull) throw new Error("no space left on device");
    links += 1;
    await Promise.resolve();
  };
  await using t = await withContainer({ link, log });
  await t.containers.start("c1");
  expect(await t.containers.status("c1")).toMatchObject({ id: "c1" });
  expect(lines.map((line) => (JSON.parse(line) as { err: string }).err)).toEqual(["no space left on device"]);
  isFull = false;
  await t.containers.status("c1");
  await t.containers.status("c1");
  expect(links).toBe(1);
  expect(lines).toHaveLength(1);
});

const running: WireInspect = {
  ...ended,
  State: { Running: true, Pid: process.pid, StartedAt: "2026-01-01T00:00:01Z" },
};

test("what is no pod's container is not touched", async () => {
  await using t = await withContainer({ inspect: { ...running, Config: { Labels: { name: "database" } } } });
  const { containers } = t;
  const notFound = { code: "NotFound" };
  await expect(containers.start("c1")).rejects.toMatchObject(notFound);
  await expect(containers.update("c1", { cpuShares: 2, oomScoreAdj: 0 })).rejects.toMatchObject(notFound);
  await expect(containers.reopenLog("c1")).rejects.toMatchObject(notFound);
  await containers.stop("c1", 0);
  await containers.remove("c1");
  expect(new Set(t.requests)).toEqual(new Set(["GET /containers/c1/json"]));
});

describe("a container that was started and whose limits nobody set", () => {
  // No kernel has this file: that somebody tried to set it is all there is to see.
  const writes = [{ controller: "memory", file: "memory.none", content: "1", isOptional: false }];
  const labels = { ...ended.Config?.Labels, "io.nodelet.cgroup-files": JSON.stringify(writes) };
  const inspect = { ...running, Config: { Labels: labels } };

  test.each(["start", "status"] as const)("gets them by the next agent's %s, or must not run", async (verb) => {
    await using t = await withContainer({ inspect });
    await expect(t.containers[verb]("c1")).rejects.toThrow("memory.none cannot be set to 1");
    expect(t.requests).toContain("POST /containers/c1/kill");
  });
});

describe("stop", () => {
  /** What the daemon was asked for; its `wait` never ends before a signal of `deadly` was sent. */
  async function stopping(graceSeconds: number, { deadly, refuses = "" }: { deadly: string; refuses?: string }) {
    const seen: string[] = [];
    const dead = Promise.withResolvers<void>();
    await using t = await withContainer({
      inspect: { ...running, Config: { ...running.Config, StopSignal: "SIGQUIT" } },
      answer: async ({ path, query }, response) => {
        const signal = query.get("signal");
        seen.push(signal ?? path.replace(/.*\//, ""));
        if (signal === refuses) {
          sendJSON(response, 500, { message: "cannot signal" });
          return answered;
        }
        if (signal === deadly) dead.resolve();
        if (signal === null) await dead.promise;
        return { StatusCode: 0 };
      },
    });
    await t.containers.stop("c1", graceSeconds);
    return seen;
  }

  test("gives the container its own stop signal and the time to end", async () => {
    expect(await stopping(60, { deadly: "SIGQUIT" })).toEqual(["SIGQUIT", "wait"]);
  });

  test("kills what has not ended within the grace", async () => {
    expect(await stopping(0.05, { deadly: "SIGKILL" })).toEqual(["SIGQUIT", "wait", "SIGKILL", "wait"]);
  });

  test("kills at once without a grace, and what cannot be told to end", async () => {
    expect(await stopping(0, { deadly: "SIGKILL" })).toEqual(["SIGKILL", "wait"]);
    expect(await stopping(60, { deadly: "SIGKILL", refuses: "SIGQUIT" })).toEqual(["SIGQUIT", "SIGKILL", "wait"]);
  });

  test("a container that does not run is stopped", async () => {
    await using t = await withContainer({});
    await t.containers.stop("c1", 60);
    expect(t.requests).toEqual(["GET /containers/c1/json"]);
  });
});

test("an image without a digest is asked for now and then, and a failed look takes no digest away", async () => {
  let looks = 0;
  let repoDigests: string[] = [];
  let isBroken = false;
  await using t = await withContainer({
    inspect: { ...ended, Image: "sha256:i" },
    imageStatus: async () => {
      looks += 1;
      if (isBroken) throw new Error("the daemon is busy");
      return { repoDigests } as unknown as Awaited<ReturnType<ImageService["imageStatus"]>>;
    },
  });
  const imageRef = async () => (await t.containers.status("c1")).imageRef;
  expect([await imageRef(), await imageRef(), looks]).toEqual(["sha256:i", "sha256:i", 1]);
  await t.clock.advance(10_000);
  repoDigests = ["registry/app@sha256:d"];
  expect([await imageRef(), looks]).toEqual(["registry/app@sha256:d", 2]);
  isBroken = true;
  await t.clock.advance(3_600_000);
  expect([await imageRef(), looks]).toEqual(["registry/app@sha256:d", 2]);
});

test("a container that the kernel killed says so, although the daemon heard of its end first", async () => {
  const killed = { ...ended, State: { ...ended.State, ExitCode: 137, FinishedAt: "2025-12-31T23:00:00Z" } };
  await using t = await withContainer({ inspect: killed });
  expect(await t.containers.status("c1")).toMatchObject({ exitCode: 137, reason: "Error" });
  t.containers.ranOutOfMemory("c1");
  expect(await t.containers.status("c1")).toMatchObject({ exitCode: 137, reason: "OOMKilled" });
});

describe("a container that was killed a moment ago", () => {
  async function killed(options: { agoMs?: number } = {}) {
    const clock = new FakeClock();
    const FinishedAt = new Date(clock.now() - (options.agoMs ?? 50)).toISOString();
    const t = await withContainer({ inspect: { ...ended, State: { ...ended.State, ExitCode: 137, FinishedAt } } });
    let told: string | undefined;
    const reading = t.containers.status("c1").then(({ reason }) => (told = reason));
    return { ...t, reading, told: () => told, [Symbol.asyncDispose]: () => t[Symbol.asyncDispose]() };
  }

  test("tells of memory, also when the daemon does so after the end", async () => {
    await using t = await killed();
    await expect.poll(() => t.clock.waiting).toBe(1);
    expect(t.told()).toBeUndefined();
    t.containers.ranOutOfMemory("c1");
    expect(await t.reading).toBe("OOMKilled");
    expect(t.clock.waiting).toBe(0);
  });

  test("waits for that half a second, once", async () => {
    await using t = await killed();
    await expect.poll(() => t.clock.waiting).toBe(1);
    await t.clock.advance(500);
    expect(await t.reading).toBe("Error");
    expect(await t.containers.status("c1")).toMatchObject({ reason: "Error" });
    expect(t.clock.waiting).toBe(0);
  });

  test("does not wait where it was killed long ago", async () => {
    await using t = await killed({ agoMs: 10_001 });
    expect(await t.reading).toBe("Error");
    expect(t.clock.waiting).toBe(0);
  });
});
