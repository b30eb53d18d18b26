import type { Clock } from "../../lib/clock.ts";
import { AgentError, ifThere } from "../../lib/errors.ts";
import { fullName, fullNameOf, parseImageName } from "../images-name.ts";
import type { ImageInfo, ImageService } from "../port.ts";
import { fieldsOf, objectsIn, textOf, textsOf } from "./answers.ts";
import { ask, type DockerClient } from "./client.ts";
import type { DockerDisk } from "./fs-usage.ts";
import { pullFromRegistry } from "./image-pull.ts";
import { forEachOf } from "./lanes.ts";

export interface DockerImagesOptions {
  /** Name or ID of the image of sandboxes, which no garbage collection may take. */
  pauseImage: string;
  disk: Pick<DockerDisk, "imageFs">;
  clock: Clock;
}

/** An image as the daemon tells it, in a list or at a look. */
interface DockerImage {
  id: string;
  repoTags: string[];
  repoDigests: string[];
  sizeBytes: number;
}

/** Whom an image's containers run as unless told otherwise. */
type ImageUser = Pick<ImageInfo, "uid" | "username">;

// Looks at images that a list shows for the first time.
const looksAtOnce = 4;

/** The images of a Docker daemon. Names are given in full, as CRI has them: `docker.io/library/busybox:latest`. */
export function createDockerImages(client: DockerClient, options: DockerImagesOptions): ImageService {
  const isPinned = pinnedBy(options.pauseImage);
  // By image ID. What an ID stands for never changes, and lists do not tell it.
  const users = new Map<string, ImageUser>();

  const look = async (image: string): Promise<ImageInfo | undefined> => {
    const query = queryFor(image);
    if (query === undefined) return undefined;
    const found = await inspect(client, query);
    if (found === undefined) return undefined;
    users.set(found.image.id, found.user);
    return { ...found.image, ...found.user, pinned: isPinned(found.image) };
  };

  const userOf = async (id: string): Promise<ImageUser | undefined> => {
    const known = users.get(id);
    if (known !== undefined) return known;
    const found = await inspect(client, id);
    if (found !== undefined) users.set(id, found.user);
    return found?.user;
  };

  return {
    imageStatus: look,

    listImages: async () => {
      const answer: unknown = await client.call(
        "list images",
        async (abortSignal) => await client.docker.listImages({ abortSignal } as object),
      );
      const images = objectsIn(answer, "list images")
        .map(imageOf)
        .filter(({ id }) => id !== "");
      const present = new Set(images.map(({ id }) => id));
      for (const id of users.keys()) if (!present.has(id)) users.delete(id);
      const infos = new Map<string, ImageInfo>();
      await forEachOf(images, looksAtOnce, async (image) => {
        const user = await userOf(image.id);
        if (user !== undefined) infos.set(image.id, { ...image, ...user, pinned: isPinned(image) });
      });
      return images.flatMap(({ id }) => infos.get(id) ?? []);
    },

    pullImage: async (image, { auth, signal, onProgress }) => {
      const name = parseImageName(image);
      if (typeof name === "string") throw new AgentError("Invalid", name);
      await pullFromRegistry(client, {
        image,
        name,
        clock: options.clock,
        ...(auth === undefined ? {} : { auth }),
        ...(signal === undefined ? {} : { signal }),
        ...(onProgress === undefined ? {} : { onProgress }),
      });
      const pulled = await look(image);
      if (pulled === undefined) {
        throw new AgentError("Internal", `pull image ${image}: the daemon reports success but does not have the image`);
      }
      return pulled.id;
    },

    removeImage: async (image) => {
      const found = await look(image);
      if (found === undefined) return;
      await refuseUsed(client, found);
      await remove(client, found);
    },

    imagesInUse: async () => {
      const [containers, images] = await Promise.all([
        client.call<unknown>(
          "list all containers",
          async (abortSignal) => await client.docker.listContainers({ all: true, abortSignal } as object),
        ),
        // With those in between that a build left.
        client.call<unknown>(
          "list all images",
          async (abortSignal) => await client.docker.listImages({ all: true, abortSignal } as object),
        ),
      ]);
      const used = [
        ...objectsIn(containers, "list all containers").flatMap(imagesOfContainer),
        // What others were built upon cannot go before them, and would only lose its names.
        ...objectsIn(images, "list all images").map(({ ParentId }) => textOf(ParentId)),
      ];
      return new Set(used.filter((reference) => reference !== ""));
    },

    fsInfo: async () => ({ imageFilesystems: [await options.disk.imageFs()], containerFilesystems: [] }),
  };
}

/**
 * How to ask the daemon for an image. Always in full: a short name that looks like the beginning of an ID could mean another
 * image.
 *
 * @returns undefined if nothing can have that name
 */
export function queryFor(image: string): string | undefined {
  const [, hex] = /^(?:sha256:)?([0-9a-f]{64})$/.exec(image) ?? [];
  if (hex !== undefined) return `sha256:${hex}`;
  const name = parseImageName(image);
  return typeof name === "string" ? undefined : fullName(name);
}

function pinnedBy(pauseImage: string): (image: DockerImage) => boolean {
  const pinned = queryFor(pauseImage);
  return ({ id, repoTags, repoDigests }) =>
    pinned !== undefined && (id === pinned || repoTags.includes(pinned) || repoDigests.includes(pinned));
}

async function inspect(
  client: DockerClient,
  query: string,
): Promise<{ image: DockerImage; user: ImageUser } | undefined> {
  const answer = await ifThere(
    client.call(
      `status of image ${query}`,
      // dockerode's own takes no signal: without one, a daemon that hangs would keep the connection.
      async (abortSignal) => await ask(client.docker.modem, `/images/${query}/json`, abortSignal),
    ),
  );
  if (answer === undefined) return undefined;
  const image = imageOf(answer);
  if (image.id === "") throw new AgentError("Internal", `status of image ${query}: the daemon's answer has no ID`);
  return { image, user: userOfConfig(fieldsOf(answer)["Config"]) };
}

/** What it was made of, and what it mounts. */
function imagesOfContainer({ ImageID, Mounts }: Record<string, unknown>): string[] {
  const mounts = Array.isArray(Mounts) ? Mounts.map(fieldsOf).filter(({ Type }) => Type === "image") : [];
  return [textOf(ImageID), ...mounts.flatMap(({ Name, Source }) => [textOf(Name), textOf(Source)])];
}

/** Garbage collection must not take what a container stands on, whoever's it is, nor half of an image's names before it fails. */
async function refuseUsed(client: DockerClient, { id }: ImageInfo): Promise<void> {
  const answer: unknown = await client.call(
    `list containers of image ${id}`,
    async (abortSignal) =>
      await client.docker.listContainers({ all: true, filters: { ancestor: [id] }, abortSignal } as object),
  );
  for (const { Names, ImageID, Id, State } of objectsIn(answer, `list containers of image ${id}`)) {
    if (ImageID !== id) continue;
    const [name = Id] = textsOf(Names);
    const who = `container ${String(name).replace(/^\//, "")} (${String(State)})`;
    throw new AgentError("Conflict", `remove image ${id}: it is in use by ${who}; remove that first`);
  }
}

/** Takes the names away one by one, as an image that several repositories name cannot be removed by its ID; then what is left. */
async function remove(client: DockerClient, { id, repoTags, repoDigests }: ImageInfo): Promise<void> {
  const removeOne = async (name: string) =>
    await ifThere(
      client.call(
        `remove image ${name}`,
        async (abortSignal) => void (await client.docker.getImage(name).remove({ abortSignal } as object)),
      ),
    );
  if (repoTags.length > 1) for (const tag of repoTags) await removeOne(tag);
  const left = repoTags.length > 1 ? await inspect(client, id) : { image: { repoDigests } };
  if (left === undefined) return;
  if (left.image.repoDigests.length > 1) for (const digest of left.image.repoDigests) await removeOne(digest);
  await removeOne(id);
}

/** Reads what lists and looks have in common. */
export function imageOf(answer: unknown): DockerImage {
  const { Id, RepoTags, RepoDigests, Size } = fieldsOf(answer);
  const named = (names: unknown) => textsOf(names).flatMap((name) => (name.includes("<none>") ? [] : fullNameOf(name)));
  return {
    id: textOf(Id),
    repoTags: named(RepoTags),
    repoDigests: named(RepoDigests),
    sizeBytes: typeof Size === "number" ? Size : 0,
  };
}

/** As CRI tells it: a number is a UID, what stands behind a colon is the group. */
export function userOfConfig(config: unknown): ImageUser {
  const { User } = fieldsOf(config);
  const [user = ""] = textOf(User).split(":");
  return /^\d{1,15}$/.test(user) ? { uid: Number(user), username: "" } : { uid: undefined, username: user };
}
