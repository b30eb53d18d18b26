import { uidOf } from "../kube/pod-resources.ts";
import type { Container, Pod } from "../kube/types.ts";
import type { EnsuredImage, ImageUser } from "../runtime/images.ts";
import { ImagePullError } from "../runtime/images.ts";
import type { MountedImage } from "../runtime/port.ts";

/** An image volume that a container mounts, as the image manager is asked for it. */
interface ImageVolume {
  volume: string;
  user: ImageUser;
}

/** The image volumes among a container's mounts, each once. Pure. */
export function imageVolumesOf(pod: Pod, { volumeMounts = [] }: Container): ImageVolume[] {
  const mounted = new Set(volumeMounts.map(({ name }) => name));
  return (pod.spec.volumes ?? []).flatMap(({ name, image }) => {
    if (!mounted.has(name) || image === undefined || image === null) return [];
    const { reference = "", pullPolicy } = image;
    // Nobody's name: what is said of the image is about the pod, for several containers may mount it.
    return [
      {
        volume: name,
        user: { name: "", image: reference, ...(pullPolicy === undefined ? {} : { imagePullPolicy: pullPolicy }) },
      },
    ];
  });
}

/** Makes one image present; see `ImageManager.ensureImage`. */
type EnsureImage = (user: ImageUser) => Promise<EnsuredImage>;

/** Makes sure of the images of image volumes. Containers that ask for the same volume of their pod at once share the work. */
export class ImageVolumes {
  readonly #underWay = new Map<string, Promise<EnsuredImage>>();

  /**
   * @returns by volume name, what mounts of `container` need; without the runtime handler, which its sandbox has
   * Rejects with an `ImagePullError` that names the volume, once all of them have come or failed.
   */
  async ensure(pod: Pod, container: Container, ensureImage: EnsureImage): Promise<Map<string, EnsuredVolumeImage>> {
    const found = await Promise.allSettled(
      imageVolumesOf(pod, container).map(async ({ volume, user }) => {
        const { imageRef } = await this.#shared(`${uidOf(pod)}/${volume}`, async () => await ensureImage(user)).catch(
          (err: unknown) => {
            if (!(err instanceof ImagePullError)) throw err;
            throw new ImagePullError(err.reason, `volume "${volume}": ${err.message}`, err.retryAtMs);
          },
        );
        const { annotations = {} } = pod.metadata;
        return [volume, { image: imageRef, userSpecifiedImage: user.image ?? "", annotations }] as const;
      }),
    );
    const images = new Map<string, EnsuredVolumeImage>();
    for (const result of found) {
      if (result.status === "rejected") throw result.reason;
      images.set(...result.value);
    }
    return images;
  }

  async #shared(key: string, work: () => Promise<EnsuredImage>): Promise<EnsuredImage> {
    const underWay = this.#underWay.get(key) ?? work().finally(() => this.#underWay.delete(key));
    this.#underWay.set(key, underWay);
    return await underWay;
  }
}

/** The images as the runtime of a sandbox is to mount them. Pure. */
export function mountedImages(
  images: ReadonlyMap<string, EnsuredVolumeImage> | undefined,
  runtimeHandler: string,
): Map<string, MountedImage> {
  return new Map([...(images ?? [])].map(([volume, image]) => [volume, { ...image, runtimeHandler }]));
}

/** The image of a volume, made sure of. */
export type EnsuredVolumeImage = Pick<MountedImage, "image" | "userSpecifiedImage" | "annotations">;
