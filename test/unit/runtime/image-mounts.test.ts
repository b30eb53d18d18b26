import { describe, expect, test } from "vitest";
import { createWithImageMounts, imageMountSupport } from "../../../agent/runtime/cri/image-mounts.ts";
import type { Mount, Runtime } from "../../../agent/runtime/port.ts";

const version = (runtimeName: string, runtimeVersion: string) => {
  return { runtimeName, runtimeVersion, runtimeApiVersion: "v1" };
};
const plain: Mount = {
  containerPath: "/config",
  hostPath: "/srv",
  readonly: false,
  selinuxRelabel: false,
  propagation: "PRIVATE",
  recursiveReadOnly: false,
};
const image: Mount = {
  ...plain,
  containerPath: "/model",
  hostPath: "",
  readonly: true,
  image: { image: "sha256:1", userSpecifiedImage: "model:1", runtimeHandler: "", annotations: {} },
};

describe("image mounts", () => {
  const tooOld = "cannot mount image volumes (at /model): it needs";
  test.each([
    ["containerd", "1.6.20~ds1", `containerd 1.6.20~ds1 ${tooOld} containerd 2.1 or later`],
    ["containerd", "v2.0.5", `containerd v2.0.5 ${tooOld} containerd 2.1 or later`],
    ["containerd", "v2.1.0-rc.1", undefined],
    ["containerd", "10.0.1", undefined],
    ["cri-o", "1.30.9", `cri-o 1.30.9 ${tooOld} cri-o 1.31 or later`],
    ["cri-o", "1.31.0", undefined],
  ])("of %s %s", (name, number, refusal) => {
    const support = imageMountSupport(version(name, number), { mounts: [plain, image] });
    expect(support).toEqual({ isKnown: true, ...(refusal === undefined ? {} : { refusal }) });
  });

  test("with a subPath are younger in CRI-O", () => {
    const mounts = [{ ...image, imageSubPath: "weights" }];
    expect(imageMountSupport(version("cri-o", "1.32.1"), { mounts }).refusal).toContain("a subPath of an image volume");
    expect(imageMountSupport(version("cri-o", "1.33.0"), { mounts })).toEqual({ isKnown: true });
  });

  test.each([
    ["kata-cri", "3.0"],
    ["containerd", "devel"],
  ])("of %s %s cannot be known", (name, number) => {
    expect(imageMountSupport(version(name, number), { mounts: [image] })).toEqual({ isKnown: false });
  });

  test("that there are none of need no knowledge", () => {
    expect(imageMountSupport(version("containerd", "1.6.20"), { mounts: [plain] })).toEqual({ isKnown: true });
  });
});

/** A runtime of a script that makes containers with these mounts. */
function runtimeOf(name: string, number: string, made: readonly Mount[] | Error) {
  const calls: string[] = [];
  const runtime = {
    version: async () => version(name, number),
    containerStatus: async () => {
      calls.push("status");
      if (made instanceof Error) throw made;
      return { mounts: made };
    },
    removeContainer: async (id: string) => void calls.push(`remove ${id}`),
  } as unknown as Runtime;
  const create = async () => {
    calls.push("create");
    return "c1";
  };
  const start = async (mounts: readonly Mount[]) =>
    await createWithImageMounts({ name: "app", mounts: [...mounts] }, create, runtime);
  return { calls, start };
}

describe("a container with an image volume", () => {
  test("is not made by a runtime that would leave it out", async () => {
    const { calls, start } = runtimeOf("containerd", "1.6.20", []);
    await expect(start([image])).rejects.toMatchObject({ code: "Unimplemented" });
    expect(calls).toEqual([]);
  });

  test("is made by one that knows it", async () => {
    const { calls, start } = runtimeOf("containerd", "2.1.4", []);
    expect(await start([image])).toBe("c1");
    expect(calls).toEqual(["create"]);
  });

  test.each([
    ["names the image", [image]],
    ["names the place where it put the image", [{ ...plain, containerPath: "/model", hostPath: "/run/images/1" }]],
  ])("is kept if an unknown runtime %s", async (_, made) => {
    const { calls, start } = runtimeOf("other", "0.1", made);
    expect(await start([plain, image])).toBe("c1");
    expect(calls).toEqual(["create", "status"]);
  });

  test.each([
    ["dropped the image", [plain, { ...plain, containerPath: "/model", hostPath: "" }]],
    ["dropped the mount", [plain]],
  ])("is removed again if an unknown runtime %s", async (_, made) => {
    const { calls, start } = runtimeOf("other", "0.1", made);
    await expect(start([plain, image])).rejects.toMatchObject({
      code: "Unimplemented",
      message: "other 0.1 did not mount the image volume of container app at /model",
    });
    expect(calls).toEqual(["create", "status", "remove c1"]);
  });

  test("is removed again if nobody can see what was made", async () => {
    const { calls, start } = runtimeOf("other", "0.1", new Error("timed out"));
    await expect(start([image])).rejects.toThrow("look whether container app has its image volumes: timed out");
    expect(calls).toEqual(["create", "status", "remove c1"]);
  });

  test("without any, nothing is asked", async () => {
    const { calls, start } = runtimeOf("containerd", "1.6.20", []);
    expect(await start([plain])).toBe("c1");
    expect(calls).toEqual(["create"]);
  });
});
