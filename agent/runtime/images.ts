import type { Container, Pod } from "../kube/types.ts";
import { cancelable } from "../lib/abortable.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import type { ImageCredential } from "./images-auth.ts";
import { PullBackoff } from "./images-limits.ts";
import { defaultPullPolicy, parseImageName, withDefaultTag } from "./images-name.ts";
import { createPuller, digestOf, type Pulled, type PullerOptions } from "./images-pull.ts";
import type { ImageMetrics } from "./metrics.ts";
import type { ImageInfo, PodSandboxConfig, PullProgress } from "./port.ts";

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
  /** Unix ms, as the machine's clock stands, of the next attempt; undefined: the ordinary retry is soon enough. */
  readonly retryAtMs: number | undefined;

  constructor(reason: ImagePullReason, message: string, retryAtMs?: number) {
    super(message);
    this.reason = reason;
    this.retryAtMs = retryAtMs;
  }
}

/** The part of a container (or an image volume) that says which image it wants. */
export type ImageUser = Pick<Container, "name" | "image" | "imagePullPolicy">;

export interface ImageManagerOptions extends PullerOptions {
  /** Records an event about this container of this pod. */
  onEvent(pod: Pod, container: ImageUser, type: "Normal" | "Warning", reason: string, message: string): void;
  /** The node's own credentials for a repository, tried after the pod's. Asked only where they decide something. */
  nodeCredentials?(pod: Pod, repository: string): Promise<readonly ImageCredential[]>;
  metrics?: ImageMetrics;
  /** A pull for this pod begins, or has ended in either way. */
  onPull?(podUID: string, stage: "began" | "ended"): void;
  /** How far a pull for this container of this pod is, with runtimes that tell; many times a second. */
  onProgress?(pod: Pod, container: ImageUser, progress: PullProgress): void;
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

export function createImageManager(options: ImageManagerOptions): ImageManager {
  const { images, clock, log, onEvent } = options;
  const puller = createPuller(options);
  const backoff = new PullBackoff();

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
    return [...auths, ...(await cancelable(options.nodeCredentials(pod, repository), signal))];
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
    const { pod, container, written, image, sandboxConfig, auths, signal } = wish;
    const podUID = pod.metadata.uid ?? "";
    const key = `${podUID}_${image}`;
    const credentials = digestOf(auths);
    const waiting = backoff.waiting(key, credentials, clock.monotonic());
    if (waiting !== undefined) {
      const message = `Back-off pulling image ${quote(written)}`;
      onEvent(pod, container, "Normal", "BackOff", message);
      throw new ImagePullError("ImagePullBackOff", `${message}: ${waiting.message}`, clock.now() + waiting.restMs);
    }
    onEvent(pod, container, "Normal", "Pulling", `Pulling image ${quote(written)}`);
    const startedAt = clock.monotonic();
    options.onPull?.(podUID, "began");
    let pulled: Pulled;
    try {
      const annotations = pod.metadata.annotations ?? {};
      pulled = await puller.pull(
        { image, annotations, sandboxConfig, credentials: await allCredentials(wish) },
        signal,
        (progress) => options.onProgress?.(pod, container, progress),
      );
    } catch (err) {
      if (signal.aborted) throw new AgentError("Canceled", `pull image ${image}: canceled`);
      const { reason, message } = pullFailure(written, messageOf(err));
      onEvent(pod, container, "Warning", "Failed", `Failed to pull image ${quote(written)}: ${messageOf(err)}`);
      const restMs = backoff.fail(key, credentials, `${reason}: ${message}`, clock.monotonic());
      throw new ImagePullError(reason, message, clock.now() + restMs);
    } finally {
      options.onPull?.(podUID, "ended");
    }
    const waitedMs = clock.monotonic() - startedAt;
    // Who joined a pull under way got it for less than it took.
    const tookMs = Math.min(pulled.durationMs, waitedMs);
    const took = `${goDuration(tookMs)} (${goDuration(waitedMs)} including waiting)`;
    const size = pulled.image?.sizeBytes ?? 0;
    options.metrics?.pulled(pulled.durationMs / 1_000, size);
    const message = `Successfully pulled image ${quote(written)} in ${took}. Image size: ${size} bytes.`;
    onEvent(pod, container, "Normal", "Pulled", message);
    return { imageRef: pulled.imageRef, image: pulled.image };
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
