import { AgentError, messageOf } from "../../lib/errors.ts";
import type { ContainerConfig, Runtime, RuntimeVersion } from "../port.ts";

/** Runtimes that are known to mount images, since when. CRI has no field in which a runtime would say so. */
const supportSince: Readonly<Record<string, { since: string; subPathSince?: string }>> = {
  containerd: { since: "2.1" },
  "cri-o": { since: "1.31", subPathSince: "1.33" },
};

/**
 * Why a runtime cannot give a container its image volumes; undefined: it can. Pure.
 *
 * @returns `isKnown` false: nobody knows, and only what it has made will tell
 */
export function imageMountSupport(
  { runtimeName, runtimeVersion }: RuntimeVersion,
  config: Pick<ContainerConfig, "mounts">,
): { isKnown: boolean; refusal?: string } {
  const mounts = config.mounts.filter(({ image }) => image !== undefined);
  const known = Object.hasOwn(supportSince, runtimeName) ? supportSince[runtimeName] : undefined;
  const version = versionOf(runtimeVersion);
  if (mounts.length === 0 || known === undefined || version === undefined) return { isKnown: mounts.length === 0 };
  const isBefore = (since: string) => compare(version, versionOf(since) ?? [0, 0]) < 0;
  const tell = (what: string, since: string, containerPath = "") =>
    `${runtimeName} ${runtimeVersion} cannot mount ${what} (at ${containerPath}): it needs ${runtimeName} ${since} or later`;
  if (isBefore(known.since)) {
    return { isKnown: true, refusal: tell("image volumes", known.since, mounts[0]?.containerPath) };
  }
  const withSubPath = mounts.find(({ imageSubPath }) => imageSubPath !== undefined);
  if (withSubPath !== undefined && known.subPathSince !== undefined && isBefore(known.subPathSince)) {
    return {
      isKnown: true,
      refusal: tell("a subPath of an image volume", known.subPathSince, withSubPath.containerPath),
    };
  }
  return { isKnown: true };
}

/**
 * Creates a container, but none without its image volumes: runtimes that do not know them drop that field of CRI without a
 * word.
 *
 * Rejects with Unimplemented when the runtime is known not to mount images, or has made a container without them; that one
 * is removed.
 */
export async function createWithImageMounts(
  config: Pick<ContainerConfig, "name" | "mounts">,
  create: () => Promise<string>,
  runtime: Pick<Runtime, "version" | "containerStatus" | "removeContainer">,
): Promise<string> {
  if (config.mounts.every(({ image }) => image === undefined)) return await create();
  const version = await runtime.version();
  const { isKnown, refusal } = imageMountSupport(version, config);
  if (refusal !== undefined) throw new AgentError("Unimplemented", refusal);
  const id = await create();
  if (isKnown) return id;
  const missing = await missingImageMount(config, id, runtime);
  if (missing === undefined) return id;
  await runtime.removeContainer(id);
  const { runtimeName, runtimeVersion } = version;
  throw new AgentError(
    "Unimplemented",
    `${runtimeName} ${runtimeVersion} did not mount the image volume of container ${config.name} at ${missing}`,
  );
}

/** The path of an image mount that the runtime did not take over; undefined: it took all. */
async function missingImageMount(
  { name, mounts }: Pick<ContainerConfig, "name" | "mounts">,
  id: string,
  runtime: Pick<Runtime, "containerStatus" | "removeContainer">,
): Promise<string | undefined> {
  const status = await runtime.containerStatus(id).catch(async (err: unknown) => {
    await runtime.removeContainer(id);
    throw new AgentError("Internal", `look whether container ${name} has its image volumes: ${messageOf(err)}`, {
      cause: err,
    });
  });
  // A runtime that knows image mounts names the image, or the place where it put it.
  return mounts.find(({ image, containerPath }) => {
    if (image === undefined) return false;
    const made = status.mounts.find((mount) => mount.containerPath === containerPath);
    return made === undefined || (made.image === undefined && made.hostPath === "");
  })?.containerPath;
}

/** Major and minor number; undefined for what is no version. */
function versionOf(text: string): readonly [number, number] | undefined {
  const [, major, minor] = /^v?(\d+)\.(\d+)/.exec(text) ?? [];
  return major === undefined || minor === undefined ? undefined : [Number(major), Number(minor)];
}

function compare(a: readonly [number, number], b: readonly [number, number]): number {
  return a[0] - b[0] || a[1] - b[1];
}
