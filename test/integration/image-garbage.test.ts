import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { silentLogger } from "../../agent/lib/log.ts";
import { MetricsRegistry } from "../../agent/lib/metrics.ts";
import { createImageCollector, imageCollectIntervalMs } from "../../agent/node/image-collector.ts";
import type { ImageGarbagePolicy, ImageSpace } from "../../agent/node/image-garbage.ts";
import { createImageGarbageMetrics } from "../../agent/runtime/metrics.ts";
import type { Runtime } from "../../agent/runtime/port.ts";
import { filesystemOf } from "../../agent/stats/filesystem.ts";
import { type ClusterRuntime, containerdOf, dockerOf } from "../support/cluster/runtime.ts";
import { customImage, pauseImageName } from "../support/images/images.ts";
import { createTestNode, type TestNode } from "../support/node/node.ts";
import { containerConfig, sandboxConfig } from "../support/runtime/configs.ts";
import { startTestDocker, type TestDocker } from "../support/runtime/docker.ts";
import { FakeClock } from "../unit/kube/fake-clock.ts";

interface World {
  node: TestNode;
  kind: ClusterRuntime;
  runtime: Runtime;
  docker: TestDocker | undefined;
}

async function openWorld(name: "containerd" | "docker"): Promise<World> {
  const docker = name === "docker" ? await startTestDocker() : undefined;
  const node = docker?.node ?? (await createTestNode());
  try {
    const kind = docker === undefined ? containerdOf(node) : dockerOf(docker);
    return { node, kind, docker, runtime: await kind.connect() };
  } catch (err) {
    await node.destroy();
    throw err;
  }
}

const imageName = (name: string) => `registry.local/${name}:1`;
const full: ImageSpace = { capacityBytes: 1e12, availableBytes: 0 };

describe.each(["containerd", "docker"] as const)("unused images with %s", (name) => {
  let world: World;
  let runtime: Runtime;
  const events: string[] = [];
  beforeAll(async () => {
    world = await openWorld(name);
    ({ runtime } = world);
  });
  afterAll(async () => {
    await runtime?.close();
    await (world?.docker ?? world?.node)?.destroy();
  });
  beforeEach(() => void events.splice(0));

  const load = async (...names: string[]) => {
    // Each of them an image of its own, not one with many names.
    const images = names.map((one) => customImage({ name: imageName(one), labels: { made: one } }));
    await world.kind.loadImages(await Promise.all(images));
  };
  const present = async () => (await runtime.images.listImages()).flatMap(({ repoTags }) => repoTags).sort();
  const collect = async (
    { space = full, wanted = [], ...change }: Partial<ImageGarbagePolicy> & { space?: ImageSpace; wanted?: string[] },
    passes = 1,
    between: () => Promise<void> = async () => {},
  ) => {
    const clock = new FakeClock();
    const stop = new AbortController();
    let done = 0;
    // One timer: the rest until the next pass.
    const state = () => ({ done, timers: clock.waiting });
    const collector = createImageCollector({
      images: runtime.images,
      wanted: () => wanted,
      policy: { minAgeMs: 0, maxAgeMs: 0, highPercent: 85, lowPercent: 80, ...change },
      spaceAt: async (path) => {
        expect((await filesystemOf(path)).capacityBytes).toBeGreaterThan(0);
        return space;
      },
      event: (reason) => events.push(reason),
      metrics: createImageGarbageMetrics(new MetricsRegistry()),
      onPass: async () => void (done += 1),
      clock,
      log: silentLogger,
    });
    const running = collector.run(stop.signal);
    for (let pass = 1; pass <= passes; pass += 1) {
      if (pass > 1) {
        await between();
        await clock.advance(imageCollectIntervalMs);
      }
      await expect.poll(state, { timeout: 20_000 }).toEqual({ done: pass, timers: 1 });
    }
    stop.abort();
    await running;
  };

  test("a full disk: what has a container stays, in whatever state; sandboxes' image stays; the rest goes", async () => {
    await load("running", "exited", "wanted", "unused", "second");
    const sandbox = await sandboxConfig(world.node.dir, world.node.cgroupRoot);
    const sandboxID = await runtime.runPodSandbox(sandbox, "");
    const run = async (container: string, script: string) => {
      const { id: image = "" } = (await runtime.images.imageStatus(imageName(container))) ?? {};
      const config = await containerConfig(sandbox, container, image, ["sh", "-c", script]);
      const id = await runtime.createContainer(sandboxID, config, sandbox);
      await runtime.startContainer(id);
      return id;
    };
    await run("running", "sleep 1000");
    const exited = await run("exited", "true");
    await expect.poll(async () => (await runtime.containerStatus(exited)).state).toBe("exited");

    await collect({ wanted: [imageName("wanted")] });
    const kept = [imageName("exited"), imageName("running"), imageName("wanted"), pauseImageName].sort();
    expect(await present()).toEqual(kept);
    expect(events).toEqual(["FreeDiskSpaceFailed"]);

    await runtime.stopPodSandbox(sandboxID);
    await runtime.removePodSandbox(sandboxID);
    const left = (await runtime.list()).containers.filter((one) => one.sandboxID === sandboxID);
    for (const { id } of left) await runtime.removeContainer(id);
    await collect({});
    expect(await present()).toEqual([pauseImageName]);
    // What was removed can come again, and the sandbox's image still serves.
    const again = await sandboxConfig(world.node.dir, world.node.cgroupRoot);
    const id = await runtime.runPodSandbox(again, "");
    await runtime.stopPodSandbox(id);
    await runtime.removePodSandbox(id);
  });

  test("no more goes than has to, and a disk with room loses nothing", async () => {
    await load("first", "second");
    await collect({ space: { capacityBytes: 1_000, availableBytes: 160 } });
    expect(await present()).toEqual([imageName("first"), imageName("second"), pauseImageName].sort());
    await collect({ space: { capacityBytes: 1_000, availableBytes: 150 } });
    expect(await present()).toHaveLength(2);
    expect(events).toEqual([]);
    await collect({});
  });

  test("images are given time: by their age with a full disk, by their last use else", async () => {
    await load("early");
    await collect({ minAgeMs: imageCollectIntervalMs }, 2, async () => await load("late"));
    expect(await present()).toEqual([imageName("late"), pauseImageName].sort());
    expect(events).toEqual(["FreeDiskSpaceFailed", "FreeDiskSpaceFailed", "ImageGCFailed"]);
    const lasting = { highPercent: 100, maxAgeMs: 1.5 * imageCollectIntervalMs };
    await collect(lasting, 2);
    expect(await present()).toHaveLength(2);
    await collect(lasting, 3);
    expect(await present()).toEqual([pauseImageName]);
  });

  if (name !== "docker") return;
  test("other people's containers keep their images, with all their names, and what these were built upon", async () => {
    const docker = world.docker as TestDocker;
    await load("somebodys", "base", "double");
    const tag = async (from: string, to: string) =>
      await docker.api("POST", `/images/${encodeURIComponent(imageName(from))}/tag?repo=elsewhere.local/${to}&tag=2`);
    await tag("somebodys", "somebodys");
    await tag("double", "double");
    await docker.api("POST", "/containers/create?name=somebodys", { Image: "elsewhere.local/somebodys:2" });
    await docker.api("POST", "/containers/create?name=builder", { Image: imageName("base"), Cmd: ["true"] });
    await docker.api("POST", "/commit?container=builder&repo=elsewhere.local/built&tag=1");
    await docker.api("DELETE", "/containers/builder");
    await docker.api("POST", "/containers/create?name=built", { Image: "elsewhere.local/built:1" });

    await collect({});
    const kept = ["elsewhere.local/built:1", "elsewhere.local/somebodys:2", imageName("base"), imageName("somebodys")];
    expect(await present()).toEqual([...kept, pauseImageName].sort());
    for (const container of ["somebodys", "built"]) await docker.api("DELETE", `/containers/${container}`);
    // What others were built upon goes after them.
    await collect({}, 2);
    expect(await present()).toEqual([pauseImageName]);
  });
});
