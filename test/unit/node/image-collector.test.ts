import { afterEach, beforeEach, expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { createImageCollector, imageCollectIntervalMs } from "../../../agent/node/image-collector.ts";
import type { ImageGarbagePolicy, ImageSpace } from "../../../agent/node/image-garbage.ts";
import { createImageGarbageMetrics } from "../../../agent/runtime/metrics.ts";
import type { ImageInfo } from "../../../agent/runtime/port.ts";
import { FakeClock } from "../kube/fake-clock.ts";
import { metricsText } from "../lib/metrics-support.ts";
import { imageOf } from "./image-support.ts";

const noMountpoint = { timestampMs: 0, mountpoint: "/images" };

/** A runtime with images on a disk of 1000 bytes, of which `others` take some. */
class World {
  readonly clock = new FakeClock();
  readonly registry = new MetricsRegistry();
  readonly events: string[] = [];
  readonly images = new Map<string, ImageInfo>();
  readonly inUse = new Set<string>();
  readonly wanted = new Set<string>();
  readonly failing = new Map<string, Error>();
  onRemove: (id: string) => void = () => {};
  capacityBytes = 1_000;
  othersBytes = 0;
  listError: Error | undefined;
  passes = 0;
  readonly #stop = new AbortController();
  #running: Promise<void> = Promise.resolve();

  add(...added: ImageInfo[]): void {
    for (const image of added) this.images.set(image.id, image);
  }

  get left(): string {
    return [...this.images.keys()].join(" ");
  }

  async start(change: Partial<ImageGarbagePolicy> = {}): Promise<void> {
    const policy = { minAgeMs: 0, maxAgeMs: 0, highPercent: 50, lowPercent: 20, ...change };
    const collector = createImageCollector({
      images: {
        listImages: async () => {
          if (this.listError !== undefined) throw this.listError;
          return [...this.images.values()];
        },
        imageStatus: async (id) => this.images.get(id),
        imagesInUse: async () => new Set(this.inUse),
        removeImage: async (id) => {
          this.onRemove(id);
          const err = this.failing.get(id);
          if (err !== undefined) throw err;
          this.images.delete(id);
        },
        fsInfo: async () => ({ imageFilesystems: [noMountpoint], containerFilesystems: [] }),
      },
      wanted: () => this.wanted,
      policy,
      spaceAt: async (path) => this.#space(path),
      event: (reason, message) => this.events.push(`${reason}: ${message}`),
      metrics: createImageGarbageMetrics(this.registry),
      onPass: async () => void (this.passes += 1),
      clock: this.clock,
      log: silentLogger,
    });
    this.#running = collector.run(this.#stop.signal);
    await this.clock.advance(0);
  }

  async next(): Promise<void> {
    await this.clock.advance(imageCollectIntervalMs);
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#running;
    if (this.clock.waiting > 0) throw new Error("the collector left timers behind");
  }

  async counts(): Promise<string[]> {
    return (await metricsText(this.registry)).split("\n").filter((line) => line.startsWith("kubelet_image_garbage"));
  }

  #space(path: string): ImageSpace {
    if (path !== "/images") throw new Error(`nothing is at ${path}`);
    const imageBytes = [...this.images.values()].reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    return { capacityBytes: this.capacityBytes, availableBytes: this.capacityBytes - this.othersBytes - imageBytes };
  }
}

let world: World;
beforeEach(() => {
  world = new World();
});
afterEach(async () => {
  await world.stop();
});

test("a disk that is too full loses images that nobody uses, one after the other, until enough is free", async () => {
  world.add(imageOf("a"), imageOf("b"), imageOf("c"), imageOf("d"), imageOf("e"));
  world.inUse.add("b");
  world.wanted.add("registry.local/c:1");
  world.othersBytes = 200;
  await world.start({ lowPercent: 50 });
  expect(world.left).toBe("b c e");
  expect(world.events).toEqual([]);
  expect(await world.counts()).toEqual([`kubelet_image_garbage_collected_total{reason="space"} 2`]);
});

test("below the threshold everything stays", async () => {
  world.add(imageOf("a"));
  world.othersBytes = 390;
  await world.start();
  expect(world.left).toBe("a");
});

test("an image goes when it is old enough, counted from when it was first seen", async () => {
  world.othersBytes = 400;
  world.add(imageOf("a"));
  await world.start({ minAgeMs: 1, lowPercent: 49 });
  expect(world.left).toBe("a");
  world.add(imageOf("b"));
  await world.next();
  expect(world.left).toBe("b");
});

test("images that nobody used for too long go from a disk with room; those in use count from their last use", async () => {
  world.add(imageOf("a"), imageOf("b"), imageOf("c", { pinned: true }));
  world.inUse.add("b");
  await world.start({ highPercent: 100, maxAgeMs: 1.5 * imageCollectIntervalMs });
  await world.next();
  world.inUse.clear();
  expect(world.left).toBe("a b c");
  await world.next();
  expect(world.left).toBe("b c");
  await world.next();
  expect(world.left).toBe("c");
  expect(await world.counts()).toEqual([`kubelet_image_garbage_collected_total{reason="age"} 2`]);
  expect(world.events).toEqual([]);
});

test("too little to free is told at once, and as a failure when it comes again", async () => {
  world.capacityBytes = 20 << 20;
  world.othersBytes = 19 << 20;
  world.add(imageOf("a"));
  await world.start();
  const insufficient = (used: number, freed: number) =>
    `Insufficient free disk space on the node's image filesystem (${used}% of 20.0 MiB used). Failed to free sufficient space by deleting unused images (freed ${freed} bytes). Find out what else takes it: images in use, logs, volumes or other files.`;
  expect(world.events).toEqual([`FreeDiskSpaceFailed: ${insufficient(96, 100)}`]);
  await world.next();
  expect(world.events.slice(1)).toEqual([
    `FreeDiskSpaceFailed: ${insufficient(95, 0)}`,
    `ImageGCFailed: ${insufficient(95, 0)}`,
  ]);
  world.othersBytes = 0;
  await world.next();
  world.othersBytes = 19 << 20;
  await world.next();
  expect(world.events.slice(3)).toEqual([`FreeDiskSpaceFailed: ${insufficient(95, 0)}`]);
});

test("a filesystem without a capacity is told", async () => {
  world.capacityBytes = 0;
  world.add(imageOf("a"));
  await world.start();
  await world.next();
  const message = "invalid capacity 0 on image filesystem";
  const told = `InvalidDiskCapacity: ${message}`;
  expect(world.events).toEqual([told, told, `ImageGCFailed: ${message}`]);
  expect(world.left).toBe("a");
});

test("an image without an ID is told, and nothing is done to it", async () => {
  world.add(imageOf("", { repoTags: ["registry.local/odd:1"] }), imageOf("a"));
  world.othersBytes = 700;
  await world.start();
  expect(world.left).toBe("");
  expect([...world.images.keys()]).toEqual([""]);
  expect(world.events[0]).toBe(
    "InvalidImageID: the container runtime lists image registry.local/odd:1 without an ID: it cannot be removed",
  );
});

test("an image that cannot be removed does not keep the others, and is told when it comes again", async () => {
  world.add(imageOf("a"), imageOf("b"));
  world.othersBytes = 300;
  world.failing.set("a", new AgentError("Internal", "remove image a: read-only file system"));
  await world.start({ lowPercent: 49 });
  expect(world.left).toBe("a");
  expect(world.events).toEqual([]);
  world.othersBytes = 400;
  await world.next();
  expect(world.events.map((event) => event.split(":")[0])).toEqual(["FreeDiskSpaceFailed", "ImageGCFailed"]);
  expect(world.events[1]).toMatch(
    /^ImageGCFailed: 10 bytes were to be freed, and 0 were: remove image a: read-only file system; Insufficient /,
  );
});

test("an image that the runtime says is in use stays, and is no failure", async () => {
  world.add(imageOf("a"), imageOf("b"));
  world.othersBytes = 300;
  world.failing.set("a", new AgentError("Conflict", "remove image a: it is in use"));
  await world.start({ lowPercent: 49 });
  await world.next();
  expect(world.left).toBe("a");
  expect(world.events).toEqual([]);
});

test("what is needed since the pass began stays: a container, a pod, another name, another pass", async () => {
  world.add(imageOf("a"), imageOf("b"), imageOf("c"), imageOf("d"), imageOf("e"), imageOf("f"));
  world.onRemove = () => {
    world.inUse.add("b");
    world.wanted.add("registry.local/c:1").add("registry.local/new:1");
    world.add(imageOf("d", { repoTags: ["registry.local/new:1"] }));
    world.images.delete("e");
  };
  await world.start({ lowPercent: 0 });
  expect(world.left).toBe("b c d");
  expect(await world.counts()).toEqual([`kubelet_image_garbage_collected_total{reason="space"} 2`]);
});

test("a runtime that does not answer is told from its second silence on, and asked again in time", async () => {
  world.listError = new AgentError("Unavailable", "list images: connection refused");
  await world.start();
  expect(world.events).toEqual([]);
  await world.next();
  expect(world.events).toEqual(["ImageGCFailed: list images: connection refused"]);
  expect(world.passes).toBe(2);
  world.listError = undefined;
  world.othersBytes = 500;
  world.add(imageOf("a"));
  await world.next();
  expect(world.left).toBe("");
});

test("the agent's end stops a pass between two images", async () => {
  world.add(imageOf("a"), imageOf("b"));
  world.othersBytes = 700;
  let stopped: Promise<void> | undefined;
  world.onRemove = () => {
    stopped = world.stop();
  };
  await world.start();
  await stopped;
  expect(world.left).toBe("b");
  expect(world.events).toEqual([]);
});
