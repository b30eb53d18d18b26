import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import type { ImageInfo, ImageService } from "../runtime/port.ts";
import type { NodeStatus } from "../kube/types.ts";

// How old the list of images in the node status may be: kubelet's image cache.
const refreshMs = 30_000;
// More names per image are not reported: kubelet's maxNamesPerImageInNodeStatus.
const namesPerImageMax = 5;

/**
 * The `images` of a node status: largest first (they matter most to the scheduler), digests before tags.
 * @param imagesMax nodeStatusMaxImages; negative means all
 */
export function buildNodeImages(images: readonly ImageInfo[], imagesMax: number): NonNullable<NodeStatus["images"]> {
  const sorted = [...images].sort((a, b) => b.sizeBytes - a.sizeBytes || (a.id < b.id ? -1 : 1));
  return sorted.slice(0, imagesMax < 0 ? sorted.length : imagesMax).map(({ repoDigests, repoTags, sizeBytes }) => ({
    names: [...repoDigests, ...repoTags].slice(0, namesPerImageMax),
    sizeBytes,
  }));
}

/** The runtime's images, listed every 30 s and on wake. */
export interface ImageCache {
  readonly images: readonly ImageInfo[];
  /** Lists again now: an image was pulled or removed. */
  wake(): void;
  run(signal: AbortSignal): Promise<void>;
}

/** Makes the cache; it is empty until `run`. */
export function createImageCache(deps: {
  service: Pick<ImageService, "listImages">;
  clock: Clock;
  log: Logger;
}): ImageCache {
  let images: readonly ImageInfo[] = [];
  const loop = new Loop({
    clock: deps.clock,
    resyncMs: refreshMs,
    retryMs: (failures) => backoffMs(failures, { baseMs: 1_000, maxMs: refreshMs }),
    onError: (err) => deps.log.debug({ err: messageOf(err) }, "cannot list images for the node status"),
    pass: async () => {
      images = await deps.service.listImages();
      return undefined;
    },
  });
  return {
    get images() {
      return images;
    },
    wake: () => loop.wake(),
    run: (signal) => loop.run(signal),
  };
}
