import { expect, test } from "vitest";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { type ContainerLogs, Containers } from "../../../../agent/runtime/docker/containers.ts";
import type { WireInspect } from "../../../../agent/runtime/docker/wire.ts";
import { fakeDocker } from "./fake-docker.ts";

// One that ended as soon as it was started.
const ended: WireInspect = {
  Id: "c1",
  Created: "2026-01-01T00:00:00Z",
  State: { ExitCode: 1, StartedAt: "2026-01-01T00:00:01Z", FinishedAt: "2026-01-01T00:00:02Z" },
  Config: {
    Labels: { "io.kubernetes.docker.type": "container", "io.kubernetes.pod.uid": "u1", "io.nodelet.keys": "[]" },
  },
};

async function withContainer(link: ContainerLogs["link"]) {
  const fake = await fakeDocker(({ path }) => (path.endsWith("/json") ? ended : {}));
  const containers = new Containers({
    client: fake.client,
    context: { daemon: fake.client.daemon, oomScoreAdjMin: -1000, hasIPv6: true },
    images: { imageStatus: async () => undefined },
    logs: { config: { Type: "json-file", Config: {} }, giveWay: () => false, link, unlink: async () => {} },
    requestTimeoutMs: 5_000,
    log: silentLogger,
  });
  return { containers, requests: fake.requests, [Symbol.asyncDispose]: () => fake[Symbol.asyncDispose]() };
}

test("nobody hears of a container's end before its log can be found, which is linked once", async () => {
  const linked = Promise.withResolvers<void>();
  let links = 0;
  await using t = await withContainer(async () => {
    links += 1;
    await linked.promise;
  });
  const starting = t.containers.start("c1");
  let isTold = false;
  const told = t.containers.status("c1").then((status) => {
    isTold = true;
    return status;
  });
  await expect.poll(() => t.requests.length).toBe(3); // start, and a look by either
  await expect.poll(() => links).toBe(1);
  expect(isTold).toBe(false);
  linked.resolve();
  await starting;
  expect(await told).toMatchObject({ state: "exited", exitCode: 1 });
  await t.containers.status("c1");
  expect(links).toBe(1);
});

test("a log that cannot be linked keeps no container from running", async () => {
  await using t = await withContainer(async () => await Promise.reject(new Error("no space left on device")));
  await t.containers.start("c1");
  expect(await t.containers.status("c1")).toMatchObject({ id: "c1" });
});
