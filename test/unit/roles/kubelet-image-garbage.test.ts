import { expect, test } from "vitest";
import type { Pod } from "../../../agent/kube/types.ts";
import { imagesOf } from "../../../agent/roles/kubelet-image-garbage.ts";

test("a pod needs the images of all its containers and of its image volumes", () => {
  const pod: Pod = {
    metadata: { name: "web", namespace: "ns", uid: "u" },
    spec: {
      initContainers: [{ name: "init", image: "init:1" }],
      containers: [{ name: "main", image: "main:1" }, { name: "none" }, { name: "empty", image: "" }],
      ephemeralContainers: [{ name: "debug", image: "debug:1" }],
      volumes: [
        { name: "model", image: { reference: "model:1" } },
        { name: "later", image: {} },
        { name: "scratch", emptyDir: {} },
      ],
    },
  };
  expect(imagesOf(pod)).toEqual(["init:1", "main:1", "debug:1", "model:1"]);
});
