import type { Clock } from "../../lib/clock.ts";
import { withContext } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { ImageCredential } from "../images-auth.ts";
import { createPuller } from "../images-pull.ts";
import type { ImageService, PodSandboxConfig, PullProgress } from "../port.ts";

export interface PauseImageOptions {
  /** The image whose program waits for signals and does nothing else. */
  image: string;
  images: Pick<ImageService, "imageStatus" | "pullImage">;
  /** What the node has for it, tried before anonymously: it is no pod's image, and no pod's secrets are tried. Never rejects. */
  credentials(): Promise<readonly ImageCredential[]>;
  clock: Clock;
  log: Logger;
}

/** The image of sandboxes. */
export interface PauseImage {
  readonly name: string;
  /** Pulls it unless it is there; pods that come together share a pull, which ends with the last of their signals. */
  ensure(
    sandboxConfig: PodSandboxConfig,
    signal: AbortSignal,
    onProgress?: (progress: PullProgress) => void,
  ): Promise<void>;
}

export function createPauseImage({ image, images, credentials, clock, log }: PauseImageOptions): PauseImage {
  // The limits for pulls are for images of pods, which may be many; nothing starts without this one.
  const limits = { serializeImagePulls: false, registryPullQPS: 0, registryBurst: 0 };
  const puller = createPuller({ images, clock, log, ...limits });
  return {
    name: image,
    ensure: async (sandboxConfig, signal, onProgress) => {
      if ((await images.imageStatus(image)) !== undefined) return;
      const ofNode = await credentials();
      const pull = async (some: readonly ImageCredential[]) => {
        const request = { image, annotations: {}, sandboxConfig, credentials: some };
        // A registry that hangs must not hold a pod for good: it is tried again.
        await puller.pull(request, signal, onProgress);
      };
      try {
        await pull(ofNode).catch(async (err: unknown) => {
          if (ofNode.length === 0 || signal.aborted) throw err;
          // They may be out of date, and the image everybody's: no pod of the node would start.
          await pull([]).catch(() => {
            throw err;
          });
        });
      } catch (err) {
        throw withContext(err, "image of the sandbox"); // which one, the pull's own error says
      }
    },
  };
}
