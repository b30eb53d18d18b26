import type { Clock } from "../lib/clock.ts";
import { AgentError, hasCode, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import type { ImageInfo, ImageService } from "../runtime/port.ts";
import type { ImageGarbageMetrics, ImageGarbageReason } from "../runtime/metrics.ts";
import {
  type ImageGarbagePolicy,
  type ImageHistory,
  type ImageSpace,
  idsInUse,
  noteImages,
  outlivedImages,
  spaceToFree,
  spareImages,
  type UnusedImage,
  unusedImages,
} from "./image-garbage.ts";

/** How often images are looked at; kubelet's ImageGCPeriod. */
export const imageCollectIntervalMs = 300_000;

/** Why images, or their filesystem, are not as they should be: reasons of events about the node. */
export type ImageGarbageEvent = "FreeDiskSpaceFailed" | "InvalidDiskCapacity" | "ImageGCFailed" | "InvalidImageID";

export interface ImageCollectorDeps {
  images: Pick<ImageService, "listImages" | "imageStatus" | "removeImage" | "fsInfo" | "imagesInUse">;
  /** Images of which pods that are to run say that they need them, as they write them. */
  wanted(): Iterable<string>;
  policy: ImageGarbagePolicy;
  /** The filesystem on which this path lies. */
  spaceAt(path: string): Promise<ImageSpace>;
  /** Records a warning about the node. */
  event(reason: ImageGarbageEvent, message: string): void;
  metrics: ImageGarbageMetrics;
  /** After a pass: images may have gone, here or otherwise. */
  onPass?(): Promise<void>;
  clock: Clock;
  log: Logger;
}

export interface ImageCollector {
  /** Looks at the images now and then, and removes those that nobody needs, until `signal` aborts. */
  run(signal: AbortSignal): Promise<void>;
}

/** Makes the part that keeps images from filling the disk. What it knows of their use counts from now on. */
export function createImageCollector(deps: ImageCollectorDeps): ImageCollector {
  const { clock, log } = deps;
  const passes = new Passes(deps);
  let failures = 0;
  const loop = new Loop({
    clock,
    resyncMs: imageCollectIntervalMs,
    retryMs: () => imageCollectIntervalMs,
    pass: async (signal) => {
      try {
        await passes.pass(signal);
        failures = 0;
      } finally {
        await deps.onPass?.();
      }
      return undefined;
    },
    onError: (err) => {
      failures += 1;
      log.warn({ err: messageOf(err), failures, retryMs: imageCollectIntervalMs }, "image garbage collection failed");
      // Once is no reason to tell people: an agent that has just begun may ask too early.
      if (failures > 1) deps.event("ImageGCFailed", messageOf(err));
    },
  });
  return { run: async (signal) => await loop.run(signal) };
}

class Passes {
  readonly #deps: ImageCollectorDeps;
  readonly #beganMs: number;
  #histories: ReadonlyMap<string, ImageHistory> = new Map();

  constructor(deps: ImageCollectorDeps) {
    this.#deps = deps;
    this.#beganMs = deps.clock.monotonic();
  }

  /** Rejects, saying all that did not go well, when the pass has done what it could. */
  async pass(signal: AbortSignal): Promise<void> {
    const { clock, policy } = this.#deps;
    const nowMs = clock.monotonic();
    const images = await this.#list();
    const used = await this.#used(images);
    this.#histories = noteImages(this.#histories, images, used, nowMs);
    const unused = unusedImages(images, this.#histories, used);
    const problems: string[] = [];

    const outlived = outlivedImages(unused, policy, { nowMs, beganMs: this.#beganMs });
    const ofAge = await this.#remove(outlived, "age", signal);
    if (ofAge.failures.length > 0) problems.push(`images unused for too long stay: ${ofAge.failures.join("; ")}`);
    if (signal.aborted) return;

    const left = unused.filter((one) => !outlived.includes(one));
    if (policy.highPercent < 100) problems.push(...(await this.#makeSpace(left, nowMs, signal)));
    if (problems.length > 0 && !signal.aborted) throw new AgentError("Internal", problems.join("; "));
  }

  async #list(): Promise<ImageInfo[]> {
    const { images, event } = this.#deps;
    const listed = await images.listImages();
    const known = listed.filter(({ id }) => id !== "");
    for (const { repoTags, repoDigests } of listed.filter(({ id }) => id === "")) {
      const [name = "without a name"] = [...repoTags, ...repoDigests];
      event("InvalidImageID", `the container runtime lists image ${name} without an ID: it cannot be removed`);
    }
    return known;
  }

  async #used(images: readonly ImageInfo[]): Promise<Set<string>> {
    const inUse = await this.#deps.images.imagesInUse();
    return idsInUse(images, [...inUse, ...this.#deps.wanted()]);
  }

  /** @returns what did not go well */
  async #makeSpace(unused: readonly UnusedImage[], nowMs: number, signal: AbortSignal): Promise<string[]> {
    const { policy, event } = this.#deps;
    const space = await this.#space();
    if (space.capacityBytes === 0) {
      const message = "invalid capacity 0 on image filesystem";
      event("InvalidDiskCapacity", message);
      return [message];
    }
    const wanted = spaceToFree(space, policy);
    if (wanted === undefined) return [];
    const { usedPercent, bytesToFree } = wanted;
    const spare = spareImages(unused, policy, nowMs);
    const { freedBytes, failures } = await this.#remove(spare, "space", signal, bytesToFree);
    if (signal.aborted) return [];
    const problems =
      failures.length === 0
        ? []
        : [`${bytesToFree} bytes were to be freed, and ${freedBytes} were: ${failures.join("; ")}`];
    if (freedBytes >= bytesToFree) return problems;
    const message =
      `Insufficient free disk space on the node's image filesystem (${usedPercent}% of ${sizeText(space.capacityBytes)} used). ` +
      `Failed to free sufficient space by deleting unused images (freed ${freedBytes} bytes). ` +
      "Find out what else takes it: images in use, logs, volumes or other files.";
    event("FreeDiskSpaceFailed", message);
    return [...problems, message];
  }

  async #space(): Promise<ImageSpace> {
    const [first] = (await this.#deps.images.fsInfo()).imageFilesystems;
    if (first === undefined) throw new AgentError("Internal", "the runtime names no filesystem for images");
    return await this.#deps.spaceAt(first.mountpoint);
  }

  /** Removes images in this order until enough is free. An image that cannot be removed does not keep the next ones. */
  async #remove(
    candidates: readonly UnusedImage[],
    reason: ImageGarbageReason,
    signal: AbortSignal,
    enoughBytes = Number.POSITIVE_INFINITY,
  ): Promise<{ freedBytes: number; failures: string[] }> {
    const { images, metrics, log } = this.#deps;
    let freedBytes = 0;
    const failures: string[] = [];
    for (const { image } of candidates) {
      if (signal.aborted || freedBytes >= enoughBytes) break;
      try {
        if (!(await this.#isStillUnused(image.id))) continue;
        await images.removeImage(image.id);
      } catch (err) {
        // A runtime knows best what somebody stands on.
        if (hasCode(err, "Conflict")) log.debug({ image: image.id, err: messageOf(err) }, "image stays: it is in use");
        else failures.push(messageOf(err));
        continue;
      }
      freedBytes += image.sizeBytes;
      metrics.collected.inc({ reason });
      const names = [...image.repoTags, ...image.repoDigests];
      log.info({ image: image.id, names, bytes: image.sizeBytes, reason }, "unused image removed");
    }
    return { freedBytes, failures };
  }

  // Earlier removals took their time: meanwhile a container may have been made of it, or a pull may have given it another name.
  async #isStillUnused(id: string): Promise<boolean> {
    const image = await this.#deps.images.imageStatus(id);
    return image !== undefined && !image.pinned && !(await this.#used([image])).has(image.id);
  }
}

const sizeUnits = ["KiB", "MiB", "GiB", "TiB", "PiB"];

/** "512 B", "19.5 GiB" */
function sizeText(bytes: number): string {
  if (bytes < 1_024) return `${bytes} B`;
  const power = Math.min(sizeUnits.length, Math.floor(Math.log2(bytes) / 10));
  return `${(bytes / 1_024 ** power).toFixed(1)} ${sizeUnits[power - 1]}`;
}
