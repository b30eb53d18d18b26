import { AgentError, hasCode } from "../../lib/errors.ts";
import type { ImageService } from "../port.ts";
import type { GRPCStatus } from "../../lib/grpc/channel.ts";
import { type CRIChannel, statusText } from "./client.ts";
import { authToWire, imageInfo, sandboxConfigToWire } from "./convert.ts";
import type { ProtoPackage } from "../../lib/grpc/proto.ts";
import { filesystemUsage } from "./stats.ts";
import type { WireFilesystemUsage, WireImage } from "./wire.ts";

const service = "runtime.v1.ImageService";

/** CRI's image service; who uses its images only the runtime service knows. `timeoutMs` bounds every call but pullImage, which may take as long as the registry does. */
export function createImageService(
  channel: CRIChannel,
  proto: ProtoPackage,
  timeoutMs: number,
): Omit<ImageService, "imagesInUse"> {
  const call = async <Response extends object>(method: string, request: object, what: string) =>
    await channel.call<Response>(proto, service, method, request, { timeoutMs, what });

  return {
    listImages: async () => {
      const { images } = await call<{ images: WireImage[] }>("ListImages", {}, "list images");
      return images.map(imageInfo);
    },

    imageStatus: async (image) => {
      const request = { image: { image } };
      const { image: found } = await call<{ image: WireImage | null }>(
        "ImageStatus",
        request,
        `status of image ${image}`,
      );
      return found === null || found.id === "" ? undefined : imageInfo(found);
    },

    pullImage: async (image, { auth, annotations, sandboxConfig, signal }) => {
      const request = {
        image: { image, annotations },
        auth: auth === undefined ? null : authToWire(auth),
        sandbox_config: sandboxConfig === undefined ? null : sandboxConfigToWire(sandboxConfig),
      };
      try {
        const { image_ref } = await channel.call<{ image_ref: string }>(proto, service, "PullImage", request, {
          timeoutMs: Number.POSITIVE_INFINITY,
          what: `pull image ${image}`,
          ...(signal === undefined ? {} : { signal }),
        });
        return image_ref;
      } catch (err) {
        throw withStatusText(err);
      }
    },

    removeImage: async (image) => {
      try {
        await call("RemoveImage", { image: { image } }, `remove image ${image}`);
      } catch (err) {
        if (!hasCode(err, "NotFound")) throw err;
      }
    },

    fsInfo: async () => {
      const { image_filesystems, container_filesystems } = await call<{
        image_filesystems: WireFilesystemUsage[];
        container_filesystems: WireFilesystemUsage[];
      }>("ImageFsInfo", {}, "image file system usage");
      return {
        imageFilesystems: image_filesystems.map(filesystemUsage),
        containerFilesystems: container_filesystems.map(filesystemUsage),
      };
    },
  };
}

/** A failed pull's message goes to people as it is, in the words they know from other nodes. */
function withStatusText(err: unknown): unknown {
  if (!(err instanceof AgentError) || !isStatus(err.cause)) return err;
  return new AgentError(err.code, statusText(err.cause), { cause: err.cause });
}

function isStatus(cause: unknown): cause is GRPCStatus {
  return (
    typeof cause === "object" &&
    cause !== null &&
    "code" in cause &&
    typeof cause.code === "number" &&
    "details" in cause &&
    typeof cause.details === "string"
  );
}
