import type { Pod } from "../../../agent/kube/types.ts";
import { systemClock } from "../../../agent/lib/clock.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { createImageManager, ImagePullError } from "../../../agent/runtime/images.ts";
import type { ImageAuth, ImageService, PodSandboxConfig } from "../../../agent/runtime/port.ts";

const never = new AbortController().signal;

/** An image manager with the limits of the defaults over a real runtime, for one container of one pod. */
export function recordedImages(images: ImageService, sandbox: PodSandboxConfig) {
  const pod: Pod = { metadata: { name: "web", namespace: "default", uid: "u1" }, spec: { containers: [] } };
  const events: string[] = [];
  const manager = createImageManager({
    images,
    clock: systemClock,
    log: silentLogger,
    onEvent: (_pod, _container, type, reason, message) => events.push(`${type} ${reason}: ${message}`),
    serializeImagePulls: true,
    registryPullQPS: 5,
    registryBurst: 10,
  });
  const ensure = async (image: string, auths: ImageAuth[]) =>
    await manager.ensureImage(pod, { name: "c", image }, sandbox, auths, never);
  return {
    /** What was told of the pod, in order. */
    events,
    ensure,
    /** Why `ensure` fails. Rejects if it does not. */
    failure: async (image: string, auths: ImageAuth[]): Promise<ImagePullError> => {
      const err: unknown = await ensure(image, auths).catch((e: unknown) => e);
      if (!(err instanceof ImagePullError)) throw new Error(`${image}: no ImagePullError`, { cause: err });
      return err;
    },
    /** Drops the pod's backoff. */
    forget: () => manager.forgetPod("u1"),
  };
}
