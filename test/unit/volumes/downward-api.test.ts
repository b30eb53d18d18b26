import { describe, expect, test } from "vitest";
import type { Container, DownwardAPIItem, Pod } from "../../../agent/kube/types.ts";
import { downwardAPIFiles } from "../../../agent/volumes/downward-api.ts";
import { makePod } from "./support.ts";

const node = { cpu: "3500m", memory: "8Gi", "ephemeral-storage": "100Gi", "hugepages-2Mi": "4Mi" };
const app: Container = {
  name: "app",
  resources: { limits: { memory: "64Mi" }, requests: { cpu: "250m", "hugepages-2Mi": "2Mi" } },
};
const pod = makePod(
  { containers: [app], initContainers: [{ name: "init" }], resources: { limits: { cpu: "2", memory: "1Gi" } } },
  {
    labels: { zone: "b", app: "web", "example.com/odd": 'say "hi"\\\n' },
    annotations: { builder: "john", "Example.com/Case": "kept", empty: "" },
  },
);

function textOf(item: Omit<DownwardAPIItem, "path">, of: Pod = pod): string {
  const files = downwardAPIFiles(of, [{ path: "file", ...item }], 0o644, node);
  return Buffer.from(files.get("file")?.data ?? []).toString();
}
const field = (fieldPath: string) => ({ fieldRef: { fieldPath } });
const resource = (name: string, containerName = "app", divisor?: string) => ({
  resourceFieldRef: { containerName, resource: name, ...(divisor === undefined ? {} : { divisor }) },
});

describe("fields", () => {
  test.each([
    ["metadata.name", "web"],
    ["metadata.namespace", "shop"],
    ["metadata.uid", pod.metadata.uid],
    ["metadata.labels", 'app="web"\nexample.com/odd="say \\"hi\\"\\\\\\n"\nzone="b"'],
    ["metadata.labels['zone']", "b"],
    ["metadata.labels['example.com/odd']", 'say "hi"\\\n'],
    ["metadata.labels['absent']", ""],
    ["metadata.labels['toString']", ""],
    ["metadata.annotations", 'Example.com/Case="kept"\nbuilder="john"\nempty=""'],
    ["metadata.annotations['Example.com/Case']", "kept"],
    ["metadata.annotations['absent']", ""],
  ])("%s", (path, want) => expect(textOf(field(path))).toBe(want));

  test("the version that a path is written for does not matter", () => {
    expect(textOf({ fieldRef: { apiVersion: "v7", fieldPath: "metadata.name" } })).toBe("web");
  });

  test("no labels at all is an empty file", () => {
    expect(textOf(field("metadata.labels"), makePod({}))).toBe("");
  });

  test.each([
    ["spec.nodeName", 'unsupported fieldPath "spec.nodeName"'],
    ["status.podIP", 'unsupported fieldPath "status.podIP"'],
    ["metadata.labels['no good']", "is not a valid key"],
    ["", 'unsupported fieldPath ""'],
  ])("%s is refused", (path, why) => expect(() => textOf(field(path))).toThrow(why));
});

describe("values are quoted as Go quotes them", () => {
  test.each([
    ["plain text", '"plain text"'],
    ["a\u0007\b\f\n\r\t\v", '"a\\a\\b\\f\\n\\r\\t\\v"'],
    ['back\\slash "quote"', '"back\\\\slash \\"quote\\""'],
    ["\u0000\u001b\u007f", '"\\x00\\x1b\\x7f"'],
    ["ü € 漢 😀", '"ü € 漢 😀"'],
    ["\u0085\u00a0\u200b\ufeff", '"\\u0085\\u00a0\\u200b\\ufeff"'],
    ["\u{e0001}", '"\\U000e0001"'],
    ["\ud800", '"\ufffd"'],
  ])("%j", (value, want) => {
    const of = makePod({}, { annotations: { k: value } });
    expect(textOf(field("metadata.annotations"), of)).toBe(`k=${want}`);
  });
});

describe("resources", () => {
  test.each([
    ["limits.memory", "app", undefined, String(64 << 20)],
    ["limits.memory", "app", "1Mi", "64"],
    ["limits.memory", "app", "1Gi", "1"],
    ["requests.cpu", "app", undefined, "1"],
    ["requests.cpu", "app", "1m", "250"],
    // Unset: what the node has. The pod's own limits do not count in volumes.
    ["limits.cpu", "app", "1m", "3500"],
    ["limits.ephemeral-storage", "app", "1Gi", "100"],
    ["requests.memory", "app", undefined, "0"],
    ["requests.hugepages-2Mi", "app", "1Mi", "2"],
    ["limits.hugepages-2Mi", "app", undefined, "0"],
    ["limits.memory", "init", undefined, "0"],
    ["limits.cpu", "app", "0", "4"],
  ])("%s of %s by %s is %s", (name, container, divisor, want) => {
    expect(textOf(resource(name, container, divisor))).toBe(want);
  });

  test.each([
    [resource("limits.memory", "nobody"), 'container "nobody" not found'],
    [resource("limits.memory", ""), "containerName is required"],
    [resource("limits.gpu"), 'unsupported resource "limits.gpu"'],
  ])("%o is refused", (item, why) => expect(() => textOf(item)).toThrow(why));
});

test("modes: the item's own, else the default; 0 is a mode", () => {
  const item = { fieldRef: { fieldPath: "metadata.name" } };
  const items = [
    { path: "a", ...item },
    { path: "b", mode: 0o400, ...item },
    { path: "c", mode: 0, ...item },
  ];
  expect([...downwardAPIFiles(pod, items, 0o444, {})].map(([path, { mode }]) => [path, mode])).toEqual([
    ["a", 0o444],
    ["b", 0o400],
    ["c", 0],
  ]);
});
