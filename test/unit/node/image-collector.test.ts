import { afterEach, beforeEach, expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import {
  createImageCollector,
  type ImageCollectorDeps,
  imageCollectIntervalMs,
  inUseAgeMsMax,
} from "../../../agent/node/image-collector.ts";
import type { ImageGarbagePolicy, ImageSpace } from "../../../agent/node/image-garbage.ts";
import { createImageGarbageMetrics } from "../../../agent/runtime/metrics.ts";
import type { ImageInfo } from "../../../agent/runtime/port.ts";
import { FakeClock } from "../kube/fake-clock.ts";
import { metricsText } from "../lib/metrics-support.ts";
import { imageOf } from "./image-support.ts";

type Call = keyof ImageCollectorDeps["images"] | "spaceAt" | "onPass";

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
  /** May reject or hang in place of a call; told of the image, where there is one. */
  fault: (call: Call, id: string) => Promise<void> | undefined = () => undefined;
  /** What was asked, in order. */
  readonly calls: Call[] = [];
  /** Time that a removal takes. */
  removalMs = 0;
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
          await this.#called("listImages");
          if (this.listError !== undefined) throw this.listError;
          return [...this.images.values()];
        },
        imageStatus: async (id) => {
          await this.#called("imageStatus", id);
          return this.images.get(id);
        },
        imagesInUse: async () => {
          await this.#called("imagesInUse");
          return new Set(this.inUse);
        },
        removeImage: async (id) => {
          await this.#called("removeImage", id);
          this.onRemove(id);
          const err = this.failing.get(id);
          if (err !== undefined) throw err;
          this.images.delete(id);
          if (this.removalMs > 0) await this.clock.advance(this.removalMs);
        },
        fsInfo: async () => {
          await this.#called("fsInfo");
          return { imageFilesystems: [noMountpoint], containerFilesystems: [] };
        },
      },
      wanted: () => this.wanted,
      policy,
      spaceAt: async (path) => {
        await this.#called("spaceAt");
        return this.#space(path);
      },
      event: (reason, message) => this.events.push(`${reason}: ${message}`),
      metrics: createImageGarbageMetrics(this.registry),
      onPass: async (signal) => {
        this.passes += 1;
        // As it must, it ends with the signal.
        const { promise: aborted, resolve } = Promise.withResolvers<void>();
        signal.addEventListener("abort", () => resolve(), { once: true });
        await Promise.race([this.#called("onPass"), aborted]);
      },
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

  async #called(call: Call, id = ""): Promise<void> {
    this.calls.push(call);
    await this.fault(call, id);
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

test("what is needed since the pass began stays: a pod, another name, a pin, another pass", async () => {
  world.add(imageOf("a"), imageOf("c"), imageOf("d"), imageOf("e"), imageOf("f"), imageOf("g"));
  world.onRemove = () => {
    world.wanted.add("registry.local/c:1").add("registry.local/new:1");
    world.add(imageOf("d", { repoTags: ["registry.local/new:1"] }), imageOf("g", { pinned: true }));
    world.images.delete("e");
  };
  await world.start({ lowPercent: 0 });
  expect(world.left).toBe("c d g");
  expect(await world.counts()).toEqual([`kubelet_image_garbage_collected_total{reason="space"} 2`]);
});

test("what others made of an image since the pass began is seen in time, and not asked for at each image", async () => {
  const ids = Array.from({ length: 40 }, (_, i) => `image-${i}`);
  world.add(...ids.map((id) => imageOf(id, { sizeBytes: 10 })));
  world.othersBytes = 600;
  world.removalMs = inUseAgeMsMax / 10;
  world.onRemove = (id) => {
    if (id === "image-5") world.inUse.add("image-20");
  };
  await world.start({ lowPercent: 0 });
  await expect.poll(() => world.passes, { interval: 5 }).toBe(1);
  expect(world.left).toBe("image-20");
  expect(world.calls.filter((call) => call === "imagesInUse")).toHaveLength(4);
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

const calls: Call[] = ["listImages", "imagesInUse", "fsInfo", "spaceAt", "imageStatus", "removeImage"];

test.each([...calls, "onPass" as const])("the agent's end waits for no answer: %s", async (hanging) => {
  world.add(imageOf("a"), imageOf("b"));
  world.othersBytes = 700;
  const answer = Promise.withResolvers<void>();
  world.fault = (call) => (call === hanging ? answer.promise : undefined);
  await world.start();
  const asked = [...world.calls];
  const told = [...world.events];
  expect(asked.at(-1)).toBe(hanging);
  await world.stop();
  // The runtime may answer all the same: nothing follows from it.
  answer.resolve();
  await world.clock.advance(imageCollectIntervalMs);
  expect(world.calls).toEqual(asked);
  expect(world.events).toEqual(told);
});

const silences = (["Unavailable", "DeadlineExceeded"] as const).flatMap((code) =>
  (["imageStatus", "imagesInUse", "removeImage"] as const).map((call) => ({ code, call })),
);

test.each(silences)("a runtime that stops answering ends the pass: $call, $code", async ({ code, call: silent }) => {
  world.add(imageOf("a"), imageOf("b"), imageOf("c"), imageOf("d"));
  world.othersBytes = 600;
  world.removalMs = 2 * inUseAgeMsMax;
  const isGone = () => !world.images.has("a");
  world.fault = async (call) => {
    if (call === silent && isGone()) throw new AgentError(code, `${call}: no answer`);
  };
  await world.start({ lowPercent: 0 });
  await expect.poll(() => world.passes, { interval: 5 }).toBe(1);
  const later = world.calls.slice(world.calls.indexOf("removeImage") + 1);
  expect(later.filter((call) => call === silent)).toHaveLength(1);
  expect(world.left).toBe("b c d");
  expect(await world.counts()).toEqual([`kubelet_image_garbage_collected_total{reason="space"} 1`]);
  // Nobody knows yet whether there is enough that could go.
  expect(world.events).toEqual([]);
});

test("an image whose removal gets no answer is tried last from then on, and told", async () => {
  world.add(imageOf("a"), imageOf("b"), imageOf("c"));
  world.othersBytes = 600;
  world.failing.set("a", new AgentError("DeadlineExceeded", "remove image a: no answer within 120 s"));
  await world.start({ lowPercent: 0 });
  expect(world.left).toBe("a b c");
  await world.next();
  expect(world.left).toBe("a");
  expect(world.events).toEqual([
    "ImageGCFailed: 900 bytes were to be freed, and 200 were: remove image a: no answer within 120 s; the rest waits for the next pass",
  ]);
  world.add(imageOf("d"));
  world.failing.clear();
  await world.next();
  expect(world.left).toBe("");
});

test("images too old wait for an answer, too, and no others are tried meanwhile", async () => {
  world.add(imageOf("a"), imageOf("b"));
  await world.start({ highPercent: 90, maxAgeMs: 1.5 * imageCollectIntervalMs });
  await world.next();
  world.failing.set("a", new AgentError("Unavailable", "remove image a: connection refused"));
  world.calls.splice(0);
  await world.next();
  expect(world.calls).toEqual(["listImages", "imagesInUse", "imageStatus", "removeImage", "onPass"]);
  await world.next();
  expect(world.left).toBe("a");
  expect(world.events).toEqual([
    "ImageGCFailed: images unused for too long stay: remove image a: connection refused; the rest waits for the next pass",
  ]);
});

test("an image that is too old and gets no answer does not keep the disk full", async () => {
  world.add(imageOf("a"));
  await world.start({ maxAgeMs: 1.5 * imageCollectIntervalMs, lowPercent: 39 });
  await world.next();
  world.failing.set("a", new AgentError("DeadlineExceeded", "remove image a: no answer within 120 s"));
  world.add(imageOf("b"));
  world.othersBytes = 400;
  await world.next();
  expect(world.left).toBe("a b");
  await world.next();
  expect(world.left).toBe("a");
  // With room again it is still tried, after all else.
  world.othersBytes = 0;
  world.failing.clear();
  await world.next();
  expect(world.left).toBe("");
  expect(await world.counts()).toEqual([
    `kubelet_image_garbage_collected_total{reason="space"} 1`,
    `kubelet_image_garbage_collected_total{reason="age"} 1`,
  ]);
});

test("of many failures a few are told, and how many more there are", async () => {
  const ids = Array.from({ length: 300 }, (_, i) => `image-${i}`);
  for (const id of ids) {
    world.add(imageOf(id, { sizeBytes: 1 }));
    world.failing.set(id, new AgentError("Internal", `remove image ${id}: read-only file system`));
  }
  await world.start({ highPercent: 20 });
  await world.next();
  const told = world.events.find((event) => event.startsWith("ImageGCFailed"));
  expect(told).toContain("image-2: read-only file system; and 297 more; Insufficient");
  expect(told).not.toContain("image-3:");
});
