import { describe, expect, test } from "vitest";
import type { Container, Pod, PodSpec } from "../../../agent/kube/types.ts";
import { hugePageSize, memoryVolumeBytes } from "../../../agent/volumes/empty-dir.ts";
import { makePod } from "./support.ts";

const MiB = 1024 ** 2;
const node = { memory: "8Gi" };
const nodeBytes = 8 * 1024 * MiB;

function container(name: string, resources: Container["resources"] = {}): Container {
  return { name, resources };
}

describe("the size of an emptyDir in memory", () => {
  const both = { requests: { cpu: "1", memory: "64Mi" }, limits: { cpu: "1", memory: "64Mi" } };
  const limit = (memory: string) => ({ limits: { memory } });
  const cases: { name: string; spec: Partial<PodSpec>; sizeLimit?: string; want: number }[] = [
    { name: "BestEffort: the node's", spec: {}, want: nodeBytes },
    { name: "Guaranteed: the pod's limit", spec: { containers: [container("a", both)] }, want: 64 * MiB },
    {
      name: "Burstable, requests only: the node's",
      spec: { containers: [container("a", { requests: { memory: "1Mi" } })] },
      want: nodeBytes,
    },
    {
      name: "every container limited: their sum",
      spec: { containers: [container("a", limit("1Mi")), container("b", limit("2Mi"))] },
      want: 3 * MiB,
    },
    {
      name: "one not limited: the node's",
      spec: { containers: [container("a", limit("1Mi")), container("b")] },
      want: nodeBytes,
    },
    {
      name: "an init container not limited: the node's",
      spec: { containers: [container("a", limit("1Mi"))], initContainers: [container("b")] },
      want: nodeBytes,
    },
    {
      name: "a larger init container: its limit",
      spec: { containers: [container("a", limit("1Mi"))], initContainers: [container("b", limit("5Mi"))] },
      want: 5 * MiB,
    },
    {
      name: "a sidecar: on top",
      spec: {
        containers: [container("a", limit("1Mi"))],
        initContainers: [{ ...container("b", limit("5Mi")), restartPolicy: "Always" }],
      },
      want: 6 * MiB,
    },
    {
      name: "the pod's own limit, whatever its containers say",
      spec: { containers: [container("a")], resources: limit("7Mi") },
      want: 7 * MiB,
    },
    { name: "sizeLimit below all", spec: { containers: [container("a", both)] }, sizeLimit: "1Mi", want: MiB },
    {
      name: "sizeLimit above the pod's limit",
      spec: { containers: [container("a", both)] },
      sizeLimit: "1Gi",
      want: 64 * MiB,
    },
    { name: "sizeLimit above the node's", spec: {}, sizeLimit: "1Ti", want: nodeBytes },
    { name: "sizeLimit 0 limits nothing", spec: {}, sizeLimit: "0", want: nodeBytes },
  ];
  test.each(cases)("$name", ({ spec, sizeLimit, want }) => {
    expect(memoryVolumeBytes(makePod(spec), sizeLimit, node)).toBe(want);
  });
  test("of a node that is not known yet is sizeLimit, or none", () => {
    expect(memoryVolumeBytes(makePod({}), "3Mi", {})).toBe(3 * MiB);
    expect(memoryVolumeBytes(makePod({}), undefined, {})).toBe(0);
  });
});

describe("the page size of an emptyDir of huge pages", () => {
  const pages = (...sizes: string[]) => ({
    requests: Object.fromEntries(sizes.map((size) => [`hugepages-${size}`, size])),
  });
  const pod = (spec: Partial<PodSpec>): Pod => makePod({ containers: [container("a")], ...spec });
  const byContainer = pod({ containers: [container("a", pages("2Mi")), container("b")] });
  const byInit = pod({ initContainers: [container("i", pages("2Mi"))] });
  const byPod = pod({ resources: pages("2Mi") });
  const byTwo = pod({ containers: [container("a", pages("2Mi"))], initContainers: [container("i", pages("1Gi"))] });
  const alike = pod({ containers: [container("a", pages("2Mi"))], initContainers: [container("i", pages("2048Ki"))] });
  test.each([
    { name: "asked for by a container", of: byContainer, medium: "HugePages", want: "2Mi" },
    { name: "by an init container", of: byInit, medium: "HugePages", want: "2Mi" },
    { name: "by the pod as a whole", of: byPod, medium: "HugePages", want: "2Mi" },
    {
      name: "by limits alone",
      of: pod({ resources: { limits: { "hugepages-2Mi": "4Mi" } } }),
      medium: "HugePages",
      want: "2Mi",
    },
    { name: "one size written twice", of: alike, medium: "HugePages", want: "2Mi" },
    { name: "chosen of two", of: byTwo, medium: "HugePages-1Gi", want: "1Gi" },
    { name: "written differently", of: byContainer, medium: "HugePages-2048Ki", want: "2048Ki" },
  ])("$name", ({ of, medium, want }) => expect(hugePageSize(of, medium)).toBe(want));

  test.each([
    { name: "nobody asks", of: pod({}), medium: "HugePages", why: "no container requests hugepages-<size>" },
    {
      name: "nobody asks for that size",
      of: byContainer,
      medium: "HugePages-1Gi",
      why: "no container requests hugepages-1Gi",
    },
    { name: "two sizes and no choice", of: byTwo, medium: "HugePages", why: "write HugePages-<size>" },
    { name: "no size", of: byContainer, medium: "HugePages-", why: "no container requests hugepages-" },
    { name: "nonsense", of: byContainer, medium: "HugePages-many", why: "no container requests hugepages-many" },
  ])("is an error: $name", ({ of, medium, why }) => {
    expect(() => hugePageSize(of, medium)).toThrow(
      expect.objectContaining({ code: "Invalid", message: expect.stringContaining(why) as string }),
    );
  });
});
