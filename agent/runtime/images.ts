import { createHash } from "node:crypto";
import type { Container, Pod } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { type ImageCredential, stripSource } from "./images-auth.ts";
import { PullBackoff, PullRate, Turns } from "./images-limits.ts";
import { defaultPullPolicy, parseImageName, withDefaultTag } from "./images-name.ts";
import type { PullOutcome, PullRecords } from "./images-records.ts";
import type { ImageMetrics } from "./metrics.ts";
import type { ImageInfo, ImageService, PodSandboxConfig } from "./port.ts";

/** The container's waiting reason while its image is not there. */
export type ImagePullReason =
  | "InvalidImageName"
  | "ErrImagePull"
  | "ImagePullBackOff"
  | "ErrImageNeverPull"
  | "ImageInspectError"
  | "RegistryUnavailable"
  | "SignatureValidationFailed";

/** Why a container cannot have its image yet. `message` is the container's waiting message. */
export class ImagePullError extends Error {
  override readonly name = "ImagePullError";
  readonly reason: ImagePullReason;
  /** Unix ms at which another attempt will be made; undefined: the ordinary retry is soon enough. */
  readonly retryAtMs: number | undefined;

  constructor(reason: ImagePullReason, message: string, retryAtMs?: number) {
    super(message);
    this.reason = reason;
    this.retryAtMs = retryAtMs;
  }
}

/** The part of a container (or an image volume) that says which image it wants. */
export type ImageUser = Pick<Container, "name" | "image" | "imagePullPolicy">;

export interface ImageManagerOptions {
  images: ImageService;
  clock: Clock;
  log: Logger;
  /** Records an event about this container of this pod. */
  onEvent(pod: Pod, container: ImageUser, type: "Normal" | "Warning", reason: string, message: string): void;
  serializeImagePulls: boolean;
  /** With parallel pulls: how many at once; undefined: any number. */
  maxParallelImagePulls?: number;
  /** 0: no limit. */
  registryPullQPS: number;
  registryBurst: number;
  /** Who may use which pulled image; absent: an image that is present is anyone's. */
  records?: PullRecords;
  metrics?: ImageMetrics;
  /** A pull for this pod begins, or has ended in either way. */
  onPull?(podUID: string, stage: "began" | "ended"): void;
}

export interface EnsuredImage {
  /** What to create the container with. */
  imageRef: string;
  /** The image's own facts (user, size); undefined if the runtime lost it between pull and look. */
  image: ImageInfo | undefined;
}

export interface ImageManager {
  /**
   * Makes the container's image present, pulling it if its policy says so. `auths` are tried in order; none: anonymous.
   * An image that another pod's credentials brought is pulled again, to see that this pod may use it.
   * Rejects with `ImagePullError`, or with Canceled once `signal` aborts (no event, no backoff then).
   */
  ensureImage(
    pod: Pod,
    container: ImageUser,
    sandboxConfig: PodSandboxConfig,
    auths: readonly ImageCredential[],
    signal: AbortSignal,
  ): Promise<EnsuredImage>;
  /** Drops what is remembered about a pod that is gone. */
  forgetPod(podUID: string): void;
}

/** One pull that several pods may wait for. */
interface SharedPull {
  done: Promise<Pulled>;
  waiters: number;
  stop: AbortController;
}

interface Pulled {
  imageRef: string;
  /** Time of the pull itself, without waiting for a turn. */
  durationMs: number;
}

export function createImageManager(options: ImageManagerOptions): ImageManager {
  const { images, clock, log, onEvent, serializeImagePulls, maxParallelImagePulls } = options;
  const rate = new PullRate(options.registryPullQPS, options.registryBurst);
  const turns = new Turns(serializeImagePulls ? 1 : (maxParallelImagePulls ?? Number.POSITIVE_INFINITY));
  const backoff = new PullBackoff();
  const pulls = new Map<string, SharedPull>();

  async function inspect(pod: Pod, container: ImageUser, image: string): Promise<ImageInfo | undefined> {
    try {
      return await images.imageStatus(image);
    } catch (err) {
      const message = `Failed to inspect image ${quote(image)}: ${messageOf(err)}`;
      onEvent(pod, container, "Warning", "InspectFailed", message);
      throw new ImagePullError("ImageInspectError", message);
    }
  }

  /** An unreadable record must not let anyone in: then the pod has to pull. */
  async function mustProve(image: string, imageRef: string, auths: readonly ImageCredential[]): Promise<boolean> {
    try {
      return (await options.records?.mustPull(image, imageRef, auths)) ?? false;
    } catch (err) {
      log.warn({ err, image }, "cannot read who may use this image, pulling it");
      return true;
    }
  }

  async function pull(
    pod: Pod,
    container: ImageUser,
    image: string,
    sandboxConfig: PodSandboxConfig,
    auths: readonly ImageCredential[],
    signal: AbortSignal,
  ): Promise<EnsuredImage> {
    const key = `${pod.metadata.uid ?? ""}_${image}`;
    const waiting = backoff.waiting(key, clock.now());
    if (waiting !== undefined) {
      const message = `Back-off pulling image ${quote(image)}`;
      onEvent(pod, container, "Normal", "BackOff", message);
      throw new ImagePullError("ImagePullBackOff", `${message}: ${waiting.message}`, waiting.untilMs);
    }
    onEvent(pod, container, "Normal", "Pulling", `Pulling image ${quote(image)}`);
    const startedAt = clock.monotonic();
    const podUID = pod.metadata.uid ?? "";
    options.onPull?.(podUID, "began");
    let pulled: Pulled;
    try {
      pulled = await sharedPull(image, pod.metadata.annotations ?? {}, sandboxConfig, auths, signal);
    } catch (err) {
      if (signal.aborted) throw new AgentError("Canceled", `pull image ${image}: canceled`);
      const { reason, message } = pullFailure(image, messageOf(err));
      onEvent(pod, container, "Warning", "Failed", `Failed to pull image ${quote(image)}: ${messageOf(err)}`);
      throw new ImagePullError(reason, message, backoff.fail(key, `${reason}: ${message}`, clock.now()));
    } finally {
      options.onPull?.(podUID, "ended");
    }
    const waitedMs = clock.monotonic() - startedAt;
    const info = await images.imageStatus(pulled.imageRef).catch((err: unknown) => {
      log.debug({ err, image }, "looking at a pulled image failed");
      return undefined;
    });
    const took = `${goDuration(pulled.durationMs)} (${goDuration(waitedMs)} including waiting)`;
    const size = info?.sizeBytes ?? 0;
    options.metrics?.pulled(pulled.durationMs / 1_000, size);
    const message = `Successfully pulled image ${quote(image)} in ${took}. Image size: ${size} bytes.`;
    onEvent(pod, container, "Normal", "Pulled", message);
    return { imageRef: pulled.imageRef, image: info };
  }

  /** Joins a running pull of the same image with the same credentials, or begins one. */
  async function sharedPull(
    image: string,
    annotations: Record<string, string>,
    sandboxConfig: PodSandboxConfig,
    auths: readonly ImageCredential[],
    signal: AbortSignal,
  ): Promise<Pulled> {
    const credentials = JSON.stringify(auths.map(stripSource));
    const key = `${image} ${createHash("sha256").update(credentials).digest("hex")}`;
    let shared = pulls.get(key);
    if (shared === undefined) {
      const stop = new AbortController();
      const done = turns.run(async () => {
        if (!rate.tryTake(clock.now())) throw new Error("pull QPS exceeded");
        const startedAt = clock.monotonic();
        const request = { annotations, sandboxConfig, signal: stop.signal };
        const work = async () => await pullWithAny(images, image, auths, request);
        const { imageRef } =
          options.records === undefined ? await work() : await options.records.recordPull(image, work);
        return { imageRef, durationMs: clock.monotonic() - startedAt };
      }, stop.signal);
      shared = { done, waiters: 0, stop };
      const mine = shared;
      pulls.set(key, mine);
      const forget = () => {
        if (pulls.get(key) === mine) pulls.delete(key);
      };
      done.then(forget, forget);
    }
    const mine = shared;
    mine.waiters += 1;
    try {
      return await untilAborted(mine.done, signal);
    } finally {
      mine.waiters -= 1;
      // The last one who wanted it is gone: end it, and let a later one begin afresh.
      if (mine.waiters === 0 && signal.aborted) {
        if (pulls.get(key) === mine) pulls.delete(key);
        mine.stop.abort();
      }
    }
  }

  return {
    forgetPod: (podUID) => backoff.forgetPod(podUID),
    ensureImage: async (pod, container, sandboxConfig, auths, signal) => {
      const written = container.image ?? "";
      const policy = container.imagePullPolicy ?? defaultPullPolicy(written);
      const note = (isPresent?: boolean, mustPull?: boolean) => {
        const [present_locally, pull_required] = [String(isPresent ?? "unknown"), String(mustPull ?? "unknown")];
        options.metrics?.ensured.inc({ pull_policy: policy.toLowerCase(), present_locally, pull_required });
      };
      const name = parseImageName(written);
      if (typeof name === "string") {
        note();
        const message = `Failed to apply default image tag ${quote(written)}: ${name}`;
        onEvent(pod, container, "Warning", "InspectFailed", message);
        throw new ImagePullError("InvalidImageName", message);
      }
      const image = withDefaultTag(written, name);
      if (policy === "Always") {
        note(undefined, true);
        return await pull(pod, container, image, sandboxConfig, auths, signal);
      }

      const present = await inspect(pod, container, image).catch((err: unknown) => {
        note();
        throw err;
      });
      const mustPull = present === undefined ? policy !== "Never" : await mustProve(image, present.id, auths);
      note(present !== undefined, mustPull);
      if (present !== undefined && !mustPull) {
        const message = `Container image ${quote(image)} already present on machine`;
        onEvent(pod, container, "Normal", "Pulled", message);
        return { imageRef: present.id, image: present };
      }
      if (policy === "Never") {
        const message = `Container image ${quote(image)} is not present with pull policy of Never`;
        onEvent(pod, container, "Warning", "ErrImageNeverPull", message);
        throw new ImagePullError("ErrImageNeverPull", message);
      }
      return await pull(pod, container, image, sandboxConfig, auths, signal);
    },
  };
}

/** Tries each credential until one works; without any, anonymously. The error names every distinct failure. */
async function pullWithAny(
  images: ImageService,
  image: string,
  auths: readonly ImageCredential[],
  request: { annotations: Record<string, string>; sandboxConfig: PodSandboxConfig; signal: AbortSignal },
): Promise<PullOutcome> {
  if (auths.length === 0) return { imageRef: await images.pullImage(image, request), credential: undefined };
  const failures = new Set<string>();
  for (const credential of auths) {
    try {
      const imageRef = await images.pullImage(image, { ...request, auth: stripSource(credential) });
      return { imageRef, credential };
    } catch (err) {
      if (request.signal.aborted) throw err;
      failures.add(messageOf(err));
    }
  }
  const messages = [...failures];
  throw new Error(messages.length === 1 ? messages[0] : `[${messages.join(", ")}]`);
}

/** Two kinds of failure are told apart by how the runtime's error begins; CRI defines these words. */
function pullFailure(image: string, error: string): { reason: ImagePullReason; message: string } {
  if (error.startsWith("RegistryUnavailable")) {
    const rest = error.slice("RegistryUnavailable".length);
    return {
      reason: "RegistryUnavailable",
      message: `image pull failed for ${image} because the registry is unavailable${rest}`,
    };
  }
  if (error.startsWith("SignatureValidationFailed")) {
    const rest = error.slice("SignatureValidationFailed".length);
    return {
      reason: "SignatureValidationFailed",
      message: `image pull failed for ${image} because the signature validation failed${rest}`,
    };
  }
  return { reason: "ErrImagePull", message: error };
}

/** Resolves with the work, or rejects as soon as `signal` aborts; the work itself goes on. */
async function untilAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return await new Promise<T>((resolve, reject) => {
    const onAbort = () => reject(new AgentError("Canceled", "canceled"));
    if (signal.aborted) onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}

/** Whole milliseconds as Go prints a duration: "0s", "12ms", "1.234s", "1m2.5s", "1h0m3s". */
export function goDuration(ms: number): string {
  const whole = Math.trunc(ms);
  if (whole === 0) return "0s";
  if (whole < 1000) return `${whole}ms`;
  const seconds = (whole % 60_000) / 1000;
  const minutes = Math.trunc(whole / 60_000) % 60;
  const hours = Math.trunc(whole / 3_600_000);
  return `${hours > 0 ? `${hours}h` : ""}${hours > 0 || minutes > 0 ? `${minutes}m` : ""}${seconds}s`;
}

function quote(text: string): string {
  return JSON.stringify(text);
}
