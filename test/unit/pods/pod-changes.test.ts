import { expect, test } from "vitest";
import type { Pod } from "../../../agent/kube/types.ts";
import { podChanges, resizedContainers } from "../../../agent/pods/pod-changes.ts";
import { podOf } from "./support.ts";

const nothing = { spec: false, images: [], texts: false };
const init = { name: "init", image: "image:1" };
const cases: { name: string; before?: Pod; after: Pod; want: object }[] = [
  { name: "nothing", after: podOf({}, { resourceVersion: "2" }), want: nothing },
  { name: "its spec", after: podOf({ activeDeadlineSeconds: 1 }, { generation: 2 }), want: { ...nothing, spec: true } },
  { name: "labels", after: podOf({}, { labels: { a: "b" } }), want: { ...nothing, texts: true } },
  { name: "annotations", after: podOf({}, { annotations: { a: "b" } }), want: { ...nothing, texts: true } },
  {
    name: "images, of init containers, too",
    before: podOf({ initContainers: [init], ephemeralContainers: [{ name: "debug", image: "image:1" }] }),
    after: podOf({
      initContainers: [{ ...init, image: "image:2" }],
      containers: [{ name: "app", image: "image:2" }],
      ephemeralContainers: [{ name: "debug", image: "image:1" }],
    }),
    want: { ...nothing, images: ["init", "app"] },
  },
  {
    name: "a container that is new",
    after: podOf({ ephemeralContainers: [{ name: "debug", image: "image:2" }] }),
    want: nothing,
  },
];
test.each(cases)("what has changed: $name", ({ before = podOf(), after, want }) =>
  expect(podChanges(before, after)).toEqual(want),
);

test("who has other resources", () => {
  const app = (cpu: string) => ({ name: "app", image: "image:1", resources: { requests: { cpu } } });
  const pod = (cpu: string) => podOf({ initContainers: [init], containers: [app(cpu)] });
  expect(resizedContainers(pod("1"), pod("1000m"))).toEqual([]);
  expect(resizedContainers(pod("1"), pod("2"))).toEqual(["app"]);
});
