import { ifThere, withContext } from "../../lib/errors.ts";
import { isObject } from "../../lib/json.ts";
import type { ImageService } from "../port.ts";
import type { RuntimeCalls } from "./calls.ts";
import type { WireContainer, WireContainerStatus } from "./wire.ts";

/** Asks a CRI runtime for the images that its containers and sandboxes stand on. */
export function createImagesInUse(
  calls: Pick<RuntimeCalls, "call" | "listContainers" | "containerStatus">,
): ImageService["imagesInUse"] {
  // By container ID: lists do not tell what a container mounts, and it never changes.
  const mounted = new Map<string, readonly string[]>();

  return async () => {
    const [containers, sandboxImage] = await Promise.all([calls.listContainers({}), sandboxImageOf(calls)]);
    const present = new Set(containers.map(({ id }) => id));
    for (const id of mounted.keys()) if (!present.has(id)) mounted.delete(id);
    for (const { id, metadata } of containers) {
      if (mounted.has(id)) continue;
      const status = await ifThere(calls.containerStatus(id)).catch((err: unknown) => {
        const who = `container "${metadata?.name ?? ""}" (${id})`;
        throw withContext(err, `no image can go: ${who} may mount any of them, remove it if this stays so`);
      });
      if (status !== undefined) mounted.set(id, mountedImages(status));
    }
    const references = [...containers.map(imageOf), ...[...mounted.values()].flat(), sandboxImage];
    return new Set(references.filter((reference) => reference !== ""));
  };
}

/** The most exact name that the runtime tells. A tag may stand for another image by now. */
function imageOf({ image_id, image_ref, image }: WireContainer): string {
  return image_id || image_ref || (image?.image ?? "");
}

function mountedImages({ mounts }: WireContainerStatus): string[] {
  return mounts.flatMap(({ image }) => (image === null ? [] : [image.image, image.image_ref ?? ""]));
}

/**
 * The image of sandboxes as containerd tells it; before 1.7 it does not say in its list that this image is pinned. Other
 * runtimes do, and tell their configuration in other forms, or not at all: then it is "".
 */
async function sandboxImageOf(calls: Pick<RuntimeCalls, "call">): Promise<string> {
  const { info } = await calls.call<{ info: Readonly<Record<string, string>> }>(
    "Status",
    { verbose: true },
    "runtime status with its configuration",
  );
  let config: unknown;
  try {
    config = JSON.parse(info["config"] ?? "{}");
  } catch {
    return "";
  }
  const image = isObject(config) ? config["sandboxImage"] : undefined;
  return typeof image === "string" ? image : "";
}
