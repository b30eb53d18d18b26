import { createHash } from "node:crypto";
import { cancelable } from "../lib/abortable.ts";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { type ImageCredential, stripSource } from "./images-auth.ts";
import { PullRate, Turns } from "./images-limits.ts";
import type { PullOutcome, PullRecords } from "./images-records.ts";
import type { ImageInfo, ImageService, PodSandboxConfig, PullProgress } from "./port.ts";

export interface PullerOptions {
  images: Pick<ImageService, "imageStatus" | "pullImage">;
  clock: Clock;
  log: Logger;
  serializeImagePulls: boolean;
  /** With parallel pulls: how many at once; undefined: any number. */
  maxParallelImagePulls?: number;
  /** 0: no limit. */
  registryPullQPS: number;
  registryBurst: number;
  /** Who may use which pulled image; absent: an image that is present is anyone's. */
  records?: PullRecords;
}

export interface PullRequest {
  image: string;
  annotations: Record<string, string>;
  sandboxConfig: PodSandboxConfig;
  /** Tried in order, equal ones once and {@link attemptsMax} at most; none: anonymous. */
  credentials: readonly ImageCredential[];
}

export interface Pulled {
  /** By which the runtime knows the image from now on. */
  imageRef: string;
  /** undefined if the runtime lost it at once. */
  image: ImageInfo | undefined;
  /** Time of the pull itself, without waiting for a turn. */
  durationMs: number;
}

/** Makes pulls within the limits, and keeps their records. */
export interface Puller {
  /**
   * Joins a running pull of the same image with the same credentials, or begins one when it is its turn. Rejects with
   * the runtime's errors, or with Canceled once `signal` aborts; the pull itself ends with the last who wants it.
   * Whoever joins hears at once how far it is, where the runtime tells.
   */
  pull(request: PullRequest, signal: AbortSignal, onProgress?: (progress: PullProgress) => void): Promise<Pulled>;
}

// A pull that takes longer than this is worth a line in the log, and another one this often.
export const slowPullMs = 30_000;
export const slowPullRepeatMs = 120_000;

// Credentials tried for one pull. Whoever writes a pod names its secrets, and others wait for their turn meanwhile.
export const attemptsMax = 32;

/** One pull that several pods may wait for. */
interface SharedPull {
  done: Promise<Pulled>;
  waiters: number;
  stop: AbortController;
  /** Undefined until the runtime has told. */
  progress: PullProgress | undefined;
  listeners: Set<(progress: PullProgress) => void>;
}

export function createPuller(options: PullerOptions): Puller {
  const { images, clock, log, records, serializeImagePulls, maxParallelImagePulls } = options;
  const rate = new PullRate(options.registryPullQPS, options.registryBurst);
  const turns = new Turns(serializeImagePulls ? 1 : (maxParallelImagePulls ?? Number.POSITIVE_INFINITY));
  const pulls = new Map<string, SharedPull>();

  function begin(key: string, request: PullRequest): SharedPull {
    const stop = new AbortController();
    const onProgress = (now: PullProgress) => {
      shared.progress = now;
      for (const listener of shared.listeners) listener(now);
    };
    const done = turns.run(async () => await pullNow(request, stop.signal, onProgress), stop.signal);
    const shared: SharedPull = { done, waiters: 0, stop, progress: undefined, listeners: new Set() };
    pulls.set(key, shared);
    const forget = () => {
      if (pulls.get(key) === shared) pulls.delete(key);
    };
    done.then(forget, forget);
    return shared;
  }

  async function pullNow(
    request: PullRequest,
    signal: AbortSignal,
    tell: (progress: PullProgress) => void,
  ): Promise<Pulled> {
    const { image } = request;
    if (!rate.tryTake(clock.monotonic())) throw new Error("pull QPS exceeded");
    const startedAt = clock.monotonic();
    let info: ImageInfo | undefined;
    const work = async (): Promise<PullOutcome> => {
      const nextTurn = async () => {
        const waitMs = rate.reserve(clock.monotonic());
        if (waitMs > 0) await clock.sleep(waitMs, signal);
      };
      const onProgress = (now: PullProgress) => {
        progress = now;
        tell(now);
      };
      const outcome = await pullWithAny(images, request, { nextTurn, signal, onProgress });
      info = await images.imageStatus(outcome.imageRef).catch((err: unknown) => {
        log.debug({ err: messageOf(err), image }, "looking at a pulled image failed");
        return undefined;
      });
      // Runtimes may answer a pull with another name than that by which they know the image later.
      return { ...outcome, imageRef: info?.id ?? outcome.imageRef };
    };
    let progress: PullProgress | undefined;
    using _told = tellWhileSlow(image, startedAt, { clock, log, progress: () => progress });
    const { imageRef } = await (records?.recordPull(image, work) ?? work());
    return { imageRef, image: info, durationMs: clock.monotonic() - startedAt };
  }

  return {
    pull: async (request, signal, onProgress = () => {}) => {
      const key = `${request.image} ${digestOf(request.credentials)}`;
      const shared = pulls.get(key) ?? begin(key, request);
      shared.waiters += 1;
      // A function of its own: two who wait may pass the same one.
      const listener = (progress: PullProgress) => onProgress(progress);
      shared.listeners.add(listener);
      if (shared.progress !== undefined) listener(shared.progress);
      try {
        return await cancelable(shared.done, signal);
      } finally {
        shared.waiters -= 1;
        shared.listeners.delete(listener);
        // The last one who wanted it is gone: end it, and let a later one begin afresh.
        if (shared.waiters === 0 && signal.aborted) {
          if (pulls.get(key) === shared) pulls.delete(key);
          shared.stop.abort();
        }
      }
    },
  };
}

/** A pull that seems to hang is told in the log while it does, and once more when it ends. */
function tellWhileSlow(
  image: string,
  startedAt: number,
  { clock, log, progress }: { clock: Clock; log: Logger; progress: () => PullProgress | undefined },
): Disposable {
  const seconds = () => Math.round((clock.monotonic() - startedAt) / 1_000);
  let isTold = false;
  const tell = () => {
    isTold = true;
    log.info({ image, seconds: seconds(), ...progress() }, "image pull is still under way");
    timer = clock.after(slowPullRepeatMs, tell);
  };
  let timer = clock.after(slowPullMs, tell);
  return {
    [Symbol.dispose]: () => {
      timer.cancel();
      if (isTold) log.info({ image, seconds: seconds() }, "slow image pull has ended");
    },
  };
}

/** Equal for equal credentials in equal order, wherever they come from; tells nothing of them. */
export function digestOf(credentials: readonly ImageCredential[]): string {
  return createHash("sha256")
    .update(JSON.stringify(credentials.map(stripSource)))
    .digest("hex");
}

/**
 * Tries each credential until one works; without any, anonymously. The error names every distinct failure.
 *
 * @param nextTurn resolves when the registry may be asked once more
 */
async function pullWithAny(
  images: Pick<ImageService, "pullImage">,
  { image, annotations, sandboxConfig, credentials }: PullRequest,
  pull: { nextTurn: () => Promise<void>; signal: AbortSignal; onProgress(progress: PullProgress): void },
): Promise<PullOutcome> {
  const { nextTurn, signal, onProgress } = pull;
  const request = { annotations, sandboxConfig, signal, onProgress };
  if (credentials.length === 0) return { imageRef: await images.pullImage(image, request), credential: undefined };
  const different = withoutRepeats(credentials);
  const failures = new Set<string>();
  for (const [i, credential] of different.slice(0, attemptsMax).entries()) {
    if (i > 0) await nextTurn();
    try {
      const imageRef = await images.pullImage(image, { ...request, auth: stripSource(credential) });
      return { imageRef, credential };
    } catch (err) {
      if (signal.aborted) throw err;
      failures.add(messageOf(err));
    }
  }
  const messages = [...failures];
  const rest = `only the first ${attemptsMax} of ${different.length} matching credentials were tried, name fewer secrets`;
  const why = messages.length === 1 ? messages[0] : `[${messages.join(", ")}]`;
  throw new Error(different.length > attemptsMax ? `${why} (${rest})` : why);
}

/** Of equal credentials the first, wherever they come from. */
function withoutRepeats(credentials: readonly ImageCredential[]): ImageCredential[] {
  const byContent = new Map<string, ImageCredential>();
  for (const credential of credentials) {
    const content = JSON.stringify(stripSource(credential));
    if (!byContent.has(content)) byContent.set(content, credential);
  }
  return [...byContent.values()];
}
