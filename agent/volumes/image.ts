import type { VolumeMount } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";
import type { Mount, MountedImage } from "../runtime/port.ts";
import type { VolumeKind } from "./kind.ts";
import { buildMount } from "./mounts.ts";
import type { MountContext } from "./port.ts";

/**
 * Files of an image. There is nothing for us to mount: pulling is part of the start of each container that mounts it
 * (pods/image-volumes.ts), and the runtime mounts it. Never writable, and no place of its own on the node.
 */
export const imageKind: VolumeKind = {
  field: "image",
  pluginName: "kubernetes.io/image",
  isReadOnly: true,
  isRelabelled: false,
  isRefreshed: false,
  setUp: async () => ({ hostPath: "" }),
};

/**
 * The CRI mount of an image volume. A subPath is the runtime's to find in the image: nothing is made on the node.
 *
 * @param image what the image of this volume came to; undefined: it was not made sure of
 * Rejects with code Invalid as `buildMount` does, and without an image.
 */
export function buildImageMount(
  mount: VolumeMount,
  image: MountedImage | undefined,
  subPath: string | undefined,
  context: MountContext & { selinuxEnabled: boolean },
): Mount {
  if (image === undefined) throw new AgentError("Invalid", `the image of volume "${mount.name}" is not there`);
  return {
    ...buildMount(mount, imageKind, "", context),
    image,
    ...(subPath === undefined ? {} : { imageSubPath: subPath }),
  };
}
