import { cancelable } from "../lib/abortable.ts";
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

/**
 * How old an answer to "who stands on which image" may be when an image goes; our own. Pods of this node are known without
 * asking, and what others make meanwhile is rare, while each answer costs lists of everything.
 */
export const inUseAgeMsMax = 10_000;

// Failures that an event tells word for word: hundreds of images may fail for one reason.
const failuresToldMax = 3;

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
  /** After a pass: images may have gone, here or otherwise. Ends soon once the signal aborts. */
  onPass(signal: AbortSignal): Promise<void>;
  clock: Clock;
  log: Logger;
}

export interface ImageCollector {
  /**
   * Looks at the images now and then, and removes those that nobody needs, until `signal` aborts. Waits for no answer of the
   * runtime then: a removal that has begun is the runtime's to end.
   */
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
        if (!signal.aborted) await deps.onPass(signal);
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

/** What came of a part of a pass. */
interface Outcome {
  /** What did not go well. */
  problems: string[];
  /** The runtime did not answer: nothing after that was tried. */
  isCutOff: boolean;
}

const wentWell: Outcome = { problems: [], isCutOff: false };

/** What came of removing images; `failures` are their errors. */
interface Removal extends Pick<Outcome, "isCutOff"> {
  freedBytes: number;
  failures: string[];
}

class Passes {
  readonly #deps: ImageCollectorDeps;
  readonly #beganMs: number;
  #histories: ReadonlyMap<string, ImageHistory> = new Map();
  #inUse: { ids: ReadonlySet<string>; askedAtMs: number } | undefined;
  /** IDs of images at which the runtime fell silent: they come after all others, which one of them would keep for ever else. */
  #unanswered: ReadonlySet<string> = new Set();

  constructor(deps: ImageCollectorDeps) {
    this.#deps = deps;
    this.#beganMs = deps.clock.monotonic();
  }

  /** Rejects, saying what did not go well, when the pass has done what it could; at once when `signal` aborts. */
  async pass(signal: AbortSignal): Promise<void> {
    const { clock, policy } = this.#deps;
    const nowMs = clock.monotonic();
    const images = await this.#list(signal);
    this.#inUse = undefined;
    const used = await this.#used(images, signal);
    this.#histories = noteImages(this.#histories, images, used, nowMs);
    const unanswered = new Set([...this.#unanswered].filter((id) => this.#histories.has(id)));
    this.#unanswered = unanswered;

    const isUnanswered = ({ image }: UnusedImage) => unanswered.has(image.id);
    const found = unusedImages(images, this.#histories, used);
    const unused = [...found.filter((one) => !isUnanswered(one)), ...found.filter(isUnanswered)];
    const outlived = outlivedImages(unused, policy, { nowMs, beganMs: this.#beganMs });
    const first = outlived.filter((one) => !isUnanswered(one));
    const left = unused.filter((one) => !first.includes(one));
    const steps = [
      async () => await this.#removeOutlived(first, signal),
      async () => await this.#makeSpace(left, nowMs, signal),
      async () => await this.#removeOutlived(outlived.filter(isUnanswered), signal),
    ];
    const problems: string[] = [];
    for (const step of steps) {
      const outcome = await step();
      problems.push(...outcome.problems);
      if (outcome.isCutOff) break;
    }
    if (problems.length > 0) throw new AgentError("Internal", problems.join("; "));
  }

  async #list(signal: AbortSignal): Promise<ImageInfo[]> {
    const { images, event } = this.#deps;
    const listed = await cancelable(images.listImages(), signal);
    const known = listed.filter(({ id }) => id !== "");
    for (const { repoTags, repoDigests } of listed.filter(({ id }) => id === "")) {
      const [name = "without a name"] = [...repoTags, ...repoDigests];
      event("InvalidImageID", `the container runtime lists image ${name} without an ID: it cannot be removed`);
    }
    return known;
  }

  async #used(images: readonly ImageInfo[], signal: AbortSignal): Promise<Set<string>> {
    const { clock, images: service, wanted } = this.#deps;
    const nowMs = clock.monotonic();
    if (this.#inUse === undefined || nowMs - this.#inUse.askedAtMs >= inUseAgeMsMax) {
      this.#inUse = { ids: await cancelable(service.imagesInUse(), signal), askedAtMs: nowMs };
    }
    return idsInUse(images, [...this.#inUse.ids, ...wanted()]);
  }

  async #removeOutlived(outlived: readonly UnusedImage[], signal: AbortSignal): Promise<Outcome> {
    const { failures, isCutOff } = await this.#remove(outlived, "age", signal);
    if (failures.length === 0) return wentWell;
    return { problems: [`images unused for too long stay: ${toldFailures(failures, isCutOff)}`], isCutOff };
  }

  async #makeSpace(unused: readonly UnusedImage[], nowMs: number, signal: AbortSignal): Promise<Outcome> {
    const { policy, event } = this.#deps;
    if (policy.highPercent >= 100) return wentWell;
    const space = await this.#space(signal);
    if (space.capacityBytes === 0) {
      const message = "invalid capacity 0 on image filesystem";
      event("InvalidDiskCapacity", message);
      return { problems: [message], isCutOff: false };
    }
    const wanted = spaceToFree(space, policy);
    if (wanted === undefined) return wentWell;
    const { usedPercent, bytesToFree } = wanted;
    const spare = spareImages(unused, policy, nowMs);
    const { freedBytes, failures, isCutOff } = await this.#remove(spare, "space", signal, bytesToFree);
    const problems =
      failures.length === 0
        ? []
        : [`${bytesToFree} bytes were to be freed, and ${freedBytes} were: ${toldFailures(failures, isCutOff)}`];
    // Cut off: whether there is enough that could go, the next pass will show.
    if (freedBytes >= bytesToFree || isCutOff) return { problems, isCutOff };
    const message =
      `Insufficient free disk space on the node's image filesystem (${usedPercent}% of ${sizeText(space.capacityBytes)} used). ` +
      `Failed to free sufficient space by deleting unused images (freed ${freedBytes} bytes). ` +
      "Find out what else takes it: images in use, logs, volumes or other files.";
    event("FreeDiskSpaceFailed", message);
    return { problems: [...problems, message], isCutOff };
  }

  async #space(signal: AbortSignal): Promise<ImageSpace> {
    const { images, spaceAt } = this.#deps;
    const [first] = (await cancelable(images.fsInfo(), signal)).imageFilesystems;
    if (first === undefined) throw new AgentError("Internal", "the runtime names no filesystem for images");
    return await cancelable(spaceAt(first.mountpoint), signal);
  }

  /**
   * Removes images in this order until enough is free. An image that cannot be removed does not keep the next ones; a runtime
   * that does not answer does: each of them would wait for a deadline of its own, and what was given up may go all the same.
   */
  async #remove(
    candidates: readonly UnusedImage[],
    reason: ImageGarbageReason,
    signal: AbortSignal,
    enoughBytes = Number.POSITIVE_INFINITY,
  ): Promise<Removal> {
    const { images, metrics, log } = this.#deps;
    let freedBytes = 0;
    const failures: string[] = [];
    for (const { image } of candidates) {
      if (freedBytes >= enoughBytes) break;
      try {
        if (!(await this.#isStillUnused(image.id, signal))) continue;
        await cancelable(images.removeImage(image.id), signal);
      } catch (err) {
        if (signal.aborted) throw err;
        const told = { image: image.id, err: messageOf(err) };
        // A runtime knows best what somebody stands on.
        if (hasCode(err, "Conflict")) log.debug(told, "image stays: it is in use");
        else {
          log.debug(told, "image stays: it cannot be removed");
          failures.push(messageOf(err));
        }
        if (!hasCode(err, "Unavailable", "DeadlineExceeded")) continue;
        this.#unanswered = new Set([...this.#unanswered, image.id]);
        return { freedBytes, failures, isCutOff: true };
      }
      freedBytes += image.sizeBytes;
      metrics.collected.inc({ reason });
      const names = [...image.repoTags, ...image.repoDigests];
      log.info({ image: image.id, names, bytes: image.sizeBytes, reason }, "unused image removed");
    }
    return { freedBytes, failures, isCutOff: false };
  }

  // Earlier removals took their time: meanwhile a container may have been made of it, or a pull may have given it another name.
  async #isStillUnused(id: string, signal: AbortSignal): Promise<boolean> {
    const image = await cancelable(this.#deps.images.imageStatus(id), signal);
    return image !== undefined && !image.pinned && !(await this.#used([image], signal)).has(image.id);
  }
}

/** A few of them in full, how many more there are, and whether there was an end to it: what people can read in an event. */
function toldFailures(failures: readonly string[], isCutOff: boolean): string {
  // What cut it off is the last one.
  const told = isCutOff ? failures.slice(-failuresToldMax) : failures.slice(0, failuresToldMax);
  const more = failures.length - told.length;
  const rest = [more > 0 ? [`and ${more} more`] : [], isCutOff ? ["the rest waits for the next pass"] : []].flat();
  return [...told, ...rest].join("; ");
}

const sizeUnits = ["KiB", "MiB", "GiB", "TiB", "PiB"];

/** "512 B", "19.5 GiB" */
function sizeText(bytes: number): string {
  if (bytes < 1_024) return `${bytes} B`;
  const power = Math.min(sizeUnits.length, Math.floor(Math.log2(bytes) / 10));
  return `${(bytes / 1_024 ** power).toFixed(1)} ${sizeUnits[power - 1]}`;
}
