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
  /** The node's own credentials for a repository, tried after the pod's. Asked only where they decide something. */
  nodeCredentials?(pod: Pod, repository: string): Promise<readonly ImageCredential[]>;
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
   * Makes the container's image present, pulling it if its policy says so. `auths`, which come from the pod's secrets, are
   * tried in order, then the node's own; without any, the pull is anonymous.
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
  image: ImageInfo | undefined;
  /** Time of the pull itself, without waiting for a turn. */
  durationMs: number;
}

/** A container's wish, as the steps of ensuring its image need it. */
interface Wish {
  pod: Pod;
  container: ImageUser;
  /** As the pod has it: what people are told. */
  written: string;
  /** What the runtime is asked for. */
  image: string;
  repository: string;
  sandboxConfig: PodSandboxConfig;
  /** Of the pod's secrets. */
  auths: readonly ImageCredential[];
  signal: AbortSignal;
}

// A pull that takes longer than this is worth a line in the log, and another one this often.
export const slowPullMs = 30_000;
export const slowPullRepeatMs = 120_000;

export function createImageManager(options: ImageManagerOptions): ImageManager {
  const { images, clock, log, onEvent, serializeImagePulls, maxParallelImagePulls } = options;
  const rate = new PullRate(options.registryPullQPS, options.registryBurst);
  const turns = new Turns(serializeImagePulls ? 1 : (maxParallelImagePulls ?? Number.POSITIVE_INFINITY));
  const backoff = new PullBackoff();
  const pulls = new Map<string, SharedPull>();

  async function inspect({ pod, container, written, image }: Wish): Promise<ImageInfo | undefined> {
    try {
      return await images.imageStatus(image);
    } catch (err) {
      const message = `Failed to inspect image ${quote(written)}: ${messageOf(err)}`;
      onEvent(pod, container, "Warning", "InspectFailed", message);
      throw new ImagePullError("ImageInspectError", message);
    }
  }

  /** All credentials that the pod has for the image, its own first. */
  async function allCredentials({ pod, repository, auths, signal }: Wish): Promise<readonly ImageCredential[]> {
    if (options.nodeCredentials === undefined) return auths;
    return [...auths, ...(await untilAborted(options.nodeCredentials(pod, repository), signal))];
  }

  /** An unreadable record must not let anyone in: then the pod has to pull. */
  async function mustProve(wish: Wish, imageRef: string): Promise<boolean> {
    const { image, signal } = wish;
    try {
      return (await options.records?.mustPull(image, imageRef, async () => await allCredentials(wish))) ?? false;
    } catch (err) {
      if (signal.aborted) throw new AgentError("Canceled", `ensure image ${image}: canceled`);
      log.warn({ err: messageOf(err), image }, "cannot read who may use this image, pulling it");
      return true;
    }
  }

  async function pull(wish: Wish): Promise<EnsuredImage> {
    const { pod, container, written, image, auths, signal } = wish;
    const podUID = pod.metadata.uid ?? "";
    const key = `${podUID}_${image}`;
    const credentials = digestOf(auths);
    const waiting = backoff.waiting(key, credentials, clock.now());
    if (waiting !== undefined) {
      const message = `Back-off pulling image ${quote(written)}`;
      onEvent(pod, container, "Normal", "BackOff", message);
      throw new ImagePullError("ImagePullBackOff", `${message}: ${waiting.message}`, waiting.untilMs);
    }
    onEvent(pod, container, "Normal", "Pulling", `Pulling image ${quote(written)}`);
    const startedAt = clock.monotonic();
    options.onPull?.(podUID, "began");
    let pulled: Pulled;
    try {
      pulled = await sharedPull(wish, await allCredentials(wish));
    } catch (err) {
      if (signal.aborted) throw new AgentError("Canceled", `pull image ${image}: canceled`);
      const { reason, message } = pullFailure(written, messageOf(err));
      onEvent(pod, container, "Warning", "Failed", `Failed to pull image ${quote(written)}: ${messageOf(err)}`);
      const retryAtMs = backoff.fail(key, credentials, `${reason}: ${message}`, clock.now());
      throw new ImagePullError(reason, message, retryAtMs);
    } finally {
      options.onPull?.(podUID, "ended");
    }
    const waitedMs = clock.monotonic() - startedAt;
    const took = `${goDuration(pulled.durationMs)} (${goDuration(waitedMs)} including waiting)`;
    const size = pulled.image?.sizeBytes ?? 0;
    options.metrics?.pulled(pulled.durationMs / 1_000, size);
    const message = `Successfully pulled image ${quote(written)} in ${took}. Image size: ${size} bytes.`;
    onEvent(pod, container, "Normal", "Pulled", message);
    return { imageRef: pulled.imageRef, image: pulled.image };
  }

  /** Joins a running pull of the same image with the same credentials, or begins one. */
  async function sharedPull(wish: Wish, credentials: readonly ImageCredential[]): Promise<Pulled> {
    const { image, signal } = wish;
    const key = `${image} ${digestOf(credentials)}`;
    let shared = pulls.get(key);
    if (shared === undefined) {
      const stop = new AbortController();
      const done = turns.run(async () => await pullNow(wish, credentials, stop.signal), stop.signal);
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

  async function pullNow(
    { pod, image, sandboxConfig }: Wish,
    credentials: readonly ImageCredential[],
    signal: AbortSignal,
  ): Promise<Pulled> {
    if (!rate.tryTake(clock.now())) throw new Error("pull QPS exceeded");
    const startedAt = clock.monotonic();
    const request = { annotations: pod.metadata.annotations ?? {}, sandboxConfig, signal };
    let info: ImageInfo | undefined;
    const work = async (): Promise<PullOutcome> => {
      const pulled = await pullWithAny(images, image, credentials, request);
      info = await images.imageStatus(pulled.imageRef).catch((err: unknown) => {
        log.debug({ err: messageOf(err), image }, "looking at a pulled image failed");
        return undefined;
      });
      // Runtimes may answer a pull with another name than that by which they know the image later.
      return { ...pulled, imageRef: info?.id ?? pulled.imageRef };
    };
    const told = tellWhileSlow(image, startedAt);
    try {
      const { imageRef } = await (options.records?.recordPull(image, work) ?? work());
      return { imageRef, image: info, durationMs: clock.monotonic() - startedAt };
    } finally {
      told.end();
    }
  }

  /** A pull that seems to hang is told in the log while it does, and once more when it ends. */
  function tellWhileSlow(image: string, startedAt: number): { end(): void } {
    const seconds = () => Math.round((clock.monotonic() - startedAt) / 1_000);
    let isTold = false;
    const tell = () => {
      isTold = true;
      log.info({ image, seconds: seconds() }, "image pull is still under way");
      timer = clock.after(slowPullRepeatMs, tell);
    };
    let timer = clock.after(slowPullMs, tell);
    return {
      end: () => {
        timer.cancel();
        if (isTold) log.info({ image, seconds: seconds() }, "slow image pull has ended");
      },
    };
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
      const wish = { pod, container, written, image, repository: name.repository, sandboxConfig, auths, signal };
      if (policy === "Always") {
        note(undefined, true);
        return await pull(wish);
      }

      const present = await inspect(wish).catch((err: unknown) => {
        note();
        throw err;
      });
      const mustPull = present === undefined ? policy !== "Never" : await mustProve(wish, present.id);
      note(present !== undefined, mustPull);
      if (present !== undefined && !mustPull) {
        const access = options.records === undefined ? "" : " and can be accessed by the pod";
        const message = `Container image ${quote(written)} already present on machine${access}`;
        onEvent(pod, container, "Normal", "Pulled", message);
        return { imageRef: present.id, image: present };
      }
      if (policy === "Never") {
        const why =
          present === undefined
            ? "is not present with pull policy of Never"
            : "is present with pull policy of Never but does not have the proper credentials to access the image";
        const message = `Container image ${quote(written)} ${why}`;
        onEvent(pod, container, "Warning", "ErrImageNeverPull", message);
        throw new ImagePullError("ErrImageNeverPull", message);
      }
      return await pull(wish);
    },
  };
}

/** Equal for equal credentials in equal order, wherever they come from; tells nothing of them. */
function digestOf(credentials: readonly ImageCredential[]): string {
  return createHash("sha256")
    .update(JSON.stringify(credentials.map(stripSource)))
    .digest("hex");
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
