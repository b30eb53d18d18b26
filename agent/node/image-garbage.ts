import { fullNameOf } from "../runtime/images-name.ts";
import type { ImageInfo } from "../runtime/port.ts";

/** Which images may go, and in which order. Pure; instants are milliseconds of one clock. */

export interface ImageGarbagePolicy {
  /** Images that were detected less long ago do not go for want of space; ms. */
  minAgeMs: number;
  /** Images that were not used for longer go in any case; ms, 0: none do. */
  maxAgeMs: number;
  /** Usage of the images' filesystem, in percent, from which on images go; 100: usage does not matter. */
  highPercent: number;
  /** Usage down to which they go then. */
  lowPercent: number;
}

/** What this process has seen of an image. */
export interface ImageHistory {
  firstDetectedMs: number;
  /** Undefined: never in use when somebody looked. */
  lastUsedMs: number | undefined;
}

export interface UnusedImage extends ImageHistory {
  image: ImageInfo;
}

/** Bytes of a filesystem. */
export interface ImageSpace {
  capacityBytes: number;
  availableBytes: number;
}

/** False if images never go, whatever happens. */
export function collectsImages({ highPercent, maxAgeMs }: ImageGarbagePolicy): boolean {
  return highPercent < 100 || maxAgeMs > 0;
}

/**
 * The IDs of those images that somebody stands on.
 *
 * @param references IDs, digests and names, short names included
 */
export function idsInUse(images: readonly ImageInfo[], references: Iterable<string>): Set<string> {
  const wanted = new Set<string>();
  for (const reference of references) {
    wanted.add(bareID(reference));
    wanted.add(fullNameOf(reference));
  }
  const isWanted = ({ id, repoTags, repoDigests }: ImageInfo) =>
    wanted.has(bareID(id)) || [...repoTags, ...repoDigests].some((name) => wanted.has(fullNameOf(name)));
  return new Set(images.filter(isWanted).map(({ id }) => id));
}

/** Some runtimes tell an ID with its algorithm in front, some without. */
function bareID(id: string): string {
  return id.replace(/^sha256:/, "");
}

/** What is known after a look at the images that are there; of others, nothing is kept. */
export function noteImages(
  known: ReadonlyMap<string, ImageHistory>,
  images: readonly ImageInfo[],
  used: ReadonlySet<string>,
  nowMs: number,
): Map<string, ImageHistory> {
  return new Map(
    images.map(({ id }) => {
      const { firstDetectedMs, lastUsedMs } = known.get(id) ?? { firstDetectedMs: nowMs, lastUsedMs: undefined };
      return [id, { firstDetectedMs, lastUsedMs: used.has(id) ? nowMs : lastUsedMs }];
    }),
  );
}

/** What may go at all, in the order in which it goes: longest unused first, then what was detected first. */
export function unusedImages(
  images: readonly ImageInfo[],
  histories: ReadonlyMap<string, ImageHistory>,
  used: ReadonlySet<string>,
): UnusedImage[] {
  const found = images.flatMap((image): UnusedImage[] => {
    const history = histories.get(image.id);
    return image.pinned || used.has(image.id) || history === undefined ? [] : [{ image, ...history }];
  });
  const rank = ({ lastUsedMs = Number.NEGATIVE_INFINITY }: UnusedImage) => lastUsedMs;
  return found.sort((a, b) => (rank(a) === rank(b) ? a.firstDetectedMs - b.firstDetectedMs : rank(a) - rank(b)));
}

/**
 * Those that were not used for too long. One that was never used counts from when it was detected: it may have come for a
 * container that is about to be made.
 *
 * @param beganMs when this process began to look: before it has looked for so long, it cannot know
 */
export function outlivedImages(
  unused: readonly UnusedImage[],
  { maxAgeMs }: ImageGarbagePolicy,
  { nowMs, beganMs }: { nowMs: number; beganMs: number },
): UnusedImage[] {
  if (maxAgeMs === 0 || nowMs - beganMs <= maxAgeMs) return [];
  return unused.filter(({ firstDetectedMs, lastUsedMs }) => nowMs - (lastUsedMs ?? firstDetectedMs) > maxAgeMs);
}

/** Those that may go for want of space. */
export function spareImages(
  unused: readonly UnusedImage[],
  { minAgeMs }: ImageGarbagePolicy,
  nowMs: number,
): UnusedImage[] {
  return unused.filter(({ firstDetectedMs }) => nowMs - firstDetectedMs >= minAgeMs);
}

/**
 * How much has to go, and how full the filesystem is; undefined if it is not too full, as one is that tells more available
 * than it has.
 *
 * @param space of a filesystem whose capacity is not 0
 */
export function spaceToFree(
  { capacityBytes, availableBytes }: ImageSpace,
  { highPercent, lowPercent }: ImageGarbagePolicy,
): { usedPercent: number; bytesToFree: number } | undefined {
  const usedPercent = 100 - Math.floor((availableBytes * 100) / capacityBytes);
  if (highPercent >= 100 || usedPercent < highPercent) return undefined;
  return { usedPercent, bytesToFree: Math.floor((capacityBytes * (100 - lowPercent)) / 100) - availableBytes };
}
