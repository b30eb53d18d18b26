import { expect, test } from "vitest";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { sandboxLabels } from "../../../../agent/runtime/docker/labels.ts";
import { sandboxName } from "../../../../agent/runtime/docker/names.ts";
import type { SandboxNetwork } from "../../../../agent/runtime/docker/network.ts";
import { Sandboxes } from "../../../../agent/runtime/docker/sandboxes.ts";
import { FakeClock } from "../../kube/fake-clock.ts";
import { context, sandbox } from "./config-support.ts";
import { answered, fakeDocker, sendJSON } from "./fake-docker.ts";

const requestTimeoutMs = 120_000;

/** What of making a sandbox hangs for ever. */
type Hang = "image" | "create" | "start" | "network";

async function withSandboxes(hang?: Hang) {
  const clock = new FakeClock();
  const config = sandbox();
  const hung = Promise.withResolvers<void>();
  /** The pulls under way, to be told how far they are. */
  const pulls: ((layersDone: number) => void)[] = [];
  const forever = async (): Promise<never> => {
    hung.resolve();
    return await new Promise<never>(() => {});
  };
  const inspect = {
    Id: "abc",
    Name: `/${sandboxName(config)}`,
    State: { Running: true, Pid: process.pid },
    Config: { Labels: sandboxLabels(config, "", "node-1") },
    HostConfig: { NetworkMode: "none" },
  };
  const fake = await fakeDocker(({ method, path }, response) => {
    if (hang === "image" && path === "/containers/create") {
      sendJSON(response, 404, { message: "No such image: pause" });
      return answered;
    }
    const isHung = path === { create: "/containers/create", start: "/containers/abc/start" }[String(hang)];
    if (isHung) hung.resolve();
    if (isHung) return answered;
    if (path === "/containers/json") return [];
    return method === "GET" ? inspect : { Id: "abc" };
  });
  const network = {
    setUp: async () => (hang === "network" ? await forever() : { ips: ["10.0.0.2"] }),
    tearDown: async () => {},
  } as unknown as SandboxNetwork;
  const sandboxes = new Sandboxes({
    client: fake.client,
    context: context(),
    network,
    pauseImage: {
      name: "pause",
      ensure: async (_config, _signal, onProgress) => {
        pulls.push((layersDone) => onProgress?.({ layers: 3, layersDone, downloadedBytes: 0, totalBytes: 0 }));
        if (hang === "image") await forever();
      },
    },
    removeContainer: async () => {},
    requestTimeoutMs,
    clock,
    log: silentLogger,
  });
  return {
    sandboxes,
    config,
    clock,
    hung: hung.promise,
    pulls,
    requests: fake.requests,
    [Symbol.asyncDispose]: fake[Symbol.asyncDispose],
  };
}

test("a sandbox is made in a few calls", async () => {
  await using t = await withSandboxes();
  const steps: string[] = [];
  expect(await t.sandboxes.run(t.config, "", (step) => void steps.push(step))).toBe("abc");
  expect(steps).toEqual(["create", "start", "set up its network"]);
  await t.clock.advance(2 * requestTimeoutMs);
  expect(t.requests).toEqual(["POST /containers/create", "POST /containers/abc/start", "GET /containers/abc/json"]);
});

test("a sandbox for which the daemon makes no resolv.conf is refused, and nothing of it stays", async () => {
  await using t = await withSandboxes();
  const config = { ...t.config, dns: { servers: ["10.96.0.10"], searches: [], options: [] } };
  await expect(t.sandboxes.run(config, "")).rejects.toThrow(
    "sandbox of shop/web: the Docker daemon made no resolv.conf",
  );
  expect(t.requests.at(-1)).toBe("DELETE /containers/abc");
});

const cases: { hang: Hang; step: string; isRemoved: boolean }[] = [
  { hang: "image", step: "the pause image", isRemoved: false },
  { hang: "create", step: "create", isRemoved: false },
  { hang: "start", step: "start", isRemoved: true },
  { hang: "network", step: "set up its network", isRemoved: false },
];
test.each(cases)(
  "whatever hangs ($hang), nobody waits longer than the contract says",
  async ({ hang, step, isRemoved }) => {
    await using t = await withSandboxes(hang);
    const outcome = t.sandboxes.run(t.config, "").catch((err: unknown) => err);
    await t.hung;
    expect(t.sandboxes.isUnfinished({ podUID: t.config.uid, attempt: t.config.attempt })).toBe(true);
    await t.clock.advance(2 * requestTimeoutMs);
    expect(await outcome).toMatchObject({
      code: "DeadlineExceeded",
      message: expect.stringMatching(`240 s.*${step}$`) as unknown,
    });
    expect(t.sandboxes.isUnfinished({ podUID: t.config.uid, attempt: t.config.attempt })).toBe(false);
    if (isRemoved) await expect.poll(() => t.requests.at(-1)).toBe("DELETE /containers/abc");
  },
);

test("what still goes on when nobody waits for it any more is not told of", async () => {
  await using t = await withSandboxes("image");
  const steps: string[] = [];
  const outcome = t.sandboxes.run(t.config, "", (step) => void steps.push(step)).catch((err: unknown) => err);
  await t.hung;
  t.pulls[0]?.(1);
  expect(steps.splice(0)).toEqual(["create", "the pause image", "the pause image: 1 of 3 layers done"]);
  await t.clock.advance(2 * requestTimeoutMs);
  expect(await outcome).toMatchObject({ code: "DeadlineExceeded" });
  t.pulls[0]?.(2);
  expect(steps).toEqual([]);
});
