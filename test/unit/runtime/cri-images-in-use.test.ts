import { expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import type { RuntimeCalls } from "../../../agent/runtime/cri/calls.ts";
import { createImagesInUse } from "../../../agent/runtime/cri/images-in-use.ts";
import type { WireContainer, WireContainerStatus, WireImageSpec } from "../../../agent/runtime/cri/wire.ts";

type Listed = Pick<WireContainer, "id" | "image" | "image_ref" | "image_id"> & Partial<Pick<WireContainer, "metadata">>;

/** A runtime with containers, by what they mount, and a configuration as its verbose status tells it. */
function runtimeOf(containers: Listed[], options: { mounts?: Record<string, WireImageSpec[]>; config?: string } = {}) {
  const { mounts = {}, config } = options;
  const looks: string[] = [];
  const calls: Pick<RuntimeCalls, "call" | "listContainers" | "containerStatus"> = {
    call: async <R extends object>(method: string, request: object) => {
      expect([method, request]).toEqual(["Status", { verbose: true }]);
      return { info: config === undefined ? {} : { config } } as R;
    },
    listContainers: async () => containers as WireContainer[],
    containerStatus: async (id) => {
      looks.push(id);
      const found = mounts[id];
      if (found === undefined) throw new AgentError("NotFound", `status of container ${id}`);
      return { mounts: [{ image: null }, ...found.map((image) => ({ image }))] } as WireContainerStatus;
    },
  };
  return { inUse: createImagesInUse(calls), looks, containers };
}

const named = (image: string): WireImageSpec => ({ image });

test("containers tell their image as exactly as the runtime can", async () => {
  const { inUse } = runtimeOf([
    { id: "new", image: named("web:1"), image_ref: "web@sha256:d", image_id: "sha256:a" },
    { id: "old", image: named("web:1"), image_ref: "sha256:b" },
    { id: "bare", image: named("web:1"), image_ref: "", image_id: "" },
    { id: "odd", image: null, image_ref: "" },
  ]);
  expect([...(await inUse())]).toEqual(["sha256:a", "sha256:b", "web:1"]);
});

test("mounted images count, and each container is looked at once", async () => {
  const t = runtimeOf([{ id: "a", image: null, image_ref: "sha256:a" }], {
    mounts: { a: [{ image: "sha256:m", image_ref: "model@sha256:d" }], b: [] },
  });
  const want = ["sha256:a", "sha256:m", "model@sha256:d"];
  expect([...(await t.inUse())]).toEqual(want);
  expect([...(await t.inUse())]).toEqual(want);
  t.containers.push(
    { id: "b", image: null, image_ref: "sha256:b" },
    { id: "gone", image: null, image_ref: "sha256:c" },
  );
  await t.inUse();
  expect(t.looks).toEqual(["a", "b", "gone"]);
  t.containers.splice(0, 1);
  expect([...(await t.inUse())]).toEqual(["sha256:b", "sha256:c"]);
});

test.each([
  { name: "containerd's", config: `{"sandboxImage":"registry.k8s.io/pause:3.6"}`, want: ["registry.k8s.io/pause:3.6"] },
  { name: "one without it", config: `{"snapshotter":"overlayfs"}`, want: [] },
  { name: "one that says something else", config: `{"sandboxImage":7}`, want: [] },
  { name: "CRI-O's, which is no JSON", config: `[crio.image]\n  pause_image = "x"`, want: [] },
  { name: "none", config: undefined, want: [] },
])("the image of sandboxes, by a runtime's configuration: $name", async ({ config, want }) => {
  const { inUse } = runtimeOf([], config === undefined ? {} : { config });
  expect([...(await inUse())]).toEqual(want);
});

test("a runtime that cannot tell what a container mounts is an error that names it, and says what comes of it", async () => {
  const err = new AgentError("Unavailable", "status of container a: connection refused");
  const { inUse } = runtimeOf([{ id: "a", metadata: { name: "db", attempt: 0 }, image: null, image_ref: "sha256:a" }], {
    mounts: {
      get a(): WireImageSpec[] {
        throw err;
      },
    },
  });
  await expect(inUse()).rejects.toMatchObject({
    code: "Unavailable",
    message:
      'no image can go: container "db" (a) may mount any of them, remove it if this stays so: status of container a: connection refused',
  });
});
