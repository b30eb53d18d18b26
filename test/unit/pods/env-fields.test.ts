import { describe, expect, test } from "vitest";
import { fieldRefValue } from "../../../agent/pods/env-fields.ts";
import { formatMap, metadataField, resourceField } from "../../../agent/volumes/fields.ts";
import { makePod } from "../volumes/support.ts";

const pod = makePod(
  { nodeName: "n1", serviceAccountName: "sa" },
  { labels: { app: "web", "example.com/tier": "front" }, annotations: { "Example.com/Note": "hi", multi: "a\nb" } },
);
const addresses = { podIPs: ["10.0.0.5", "fd00::5"], hostIPs: ["192.0.2.1", "2001:db8::1"] };

describe("fieldRefValue", () => {
  test.each([
    ["metadata.name", "web"],
    ["metadata.namespace", "shop"],
    ["metadata.uid", "11111111-2222-3333-4444-555555555555"],
    ["metadata.labels['app']", "web"],
    ["metadata.labels['example.com/tier']", "front"],
    ["metadata.labels['missing']", ""],
    ["metadata.annotations['Example.com/Note']", "hi"],
    ["metadata.annotations['missing']", ""],
    ["metadata.annotations['constructor']", ""],
    ["metadata.annotations", 'Example.com/Note="hi"\nmulti="a\\nb"'],
    ["metadata.annotations['multi']", "a\nb"],
    ["metadata.labels", 'app="web"\nexample.com/tier="front"'],
    ["spec.nodeName", "n1"],
    ["spec.host", "n1"],
    ["spec.serviceAccountName", "sa"],
    ["status.podIP", "10.0.0.5"],
    ["status.podIPs", "10.0.0.5,fd00::5"],
    ["status.hostIP", "192.0.2.1"],
    ["status.hostIPs", "192.0.2.1,2001:db8::1"],
  ])("%s → %s", (fieldPath, want) => expect(fieldRefValue(pod, { fieldPath }, addresses)).toBe(want));

  test.each([
    ["status.phase", "unsupported fieldPath: status.phase"],
    ["spec.schedulerName", "unsupported fieldPath"],
    ["metadata", "unsupported fieldPath"],
    ["", "unsupported fieldPath"],
    ["metadata.annotations['']", "is not a valid key"],
    [`metadata.labels['${"k".repeat(64)}']`, "is not a valid key"],
    ["spec.restartPolicy", "unsupported fieldPath"],
    ["metadata.labels['not a key']", '"not a key" is not a valid key'],
    ["metadata.labels['Example.com/x']", "is not a valid key"],
    ["metadata.labels['a/b/c']", "is not a valid key"],
    ["metadata.name['x']", "unsupported fieldPath"],
  ])("%s is refused", (fieldPath, why) => expect(() => fieldRefValue(pod, { fieldPath }, addresses)).toThrow(why));

  test("only apiVersion v1", () => {
    const ref = { apiVersion: "v2", fieldPath: "metadata.name" };
    expect(() => fieldRefValue(pod, ref, addresses)).toThrow('unsupported apiVersion "v2"');
  });

  test("a pod IP that is not known yet is empty, a missing host IP is an error", () => {
    const none = { podIPs: [], hostIPs: [] };
    expect(fieldRefValue(pod, { fieldPath: "status.podIP" }, none)).toBe("");
    expect(() => fieldRefValue(pod, { fieldPath: "status.hostIP" }, none)).toThrow("no known IP address");
  });
});

describe("formatMap", () => {
  test.each([
    ["nothing", undefined, ""],
    ["sorted lines", { b: "2", a: "1" }, 'a="1"\nb="2"'],
    ["quotes and escapes", { k: 'say "hi"\\\n\t\x07' }, 'k="say \\"hi\\"\\\\\\n\\t\\a"'],
    ["control characters", { k: "\x01\x7f" }, 'k="\\x01\\x7f"'],
    ["printable Unicode stays", { k: "grüße 日本 €" }, 'k="grüße 日本 €"'],
    ["what does not print is escaped", { k: "\u00a0\u200b\u{e0001}" }, 'k="\\u00a0\\u200b\\U000e0001"'],
    ["half a surrogate pair", { k: "\ud800" }, 'k="\ufffd"'],
  ])("%s", (_name, map, want) => expect(formatMap(map)).toBe(want));
});

test("metadataField: what is not metadata is undefined", () => {
  expect(metadataField(pod, "spec.nodeName")).toBeUndefined();
});

describe("resourceField", () => {
  const app = {
    name: "app",
    resources: { limits: { cpu: "1500m", "hugepages-2Mi": "4Mi" }, requests: { cpu: "250m", memory: "64Mi" } },
  };
  const bare = { name: "bare" };
  const init = { name: "init", resources: { limits: { memory: "1Gi" } } };
  const zero = { name: "zero", resources: { limits: { memory: "0" }, requests: { cpu: "100u", memory: "1Ti" } } };
  const ones = ["k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].map((unit) => ({
    name: `one-${unit}`,
    resources: { limits: { memory: `1${unit}` } },
  }));
  const resources = makePod({ containers: [app, bare, zero, ...ones], initContainers: [init] });
  const nodeAllocatable = { cpu: "3900m", memory: "8Gi", "ephemeral-storage": "100Gi" };

  test.each([
    { name: "cpu rounds up to whole cores", ref: { resource: "limits.cpu" }, want: "2" },
    { name: "cpu in thousandths", ref: { resource: "limits.cpu", divisor: "1m" }, want: "1500" },
    { name: "request", ref: { resource: "requests.cpu", divisor: "1m" }, want: "250" },
    { name: "memory in MiB", ref: { resource: "requests.memory", divisor: "1Mi" }, want: "64" },
    { name: "memory rounds up", ref: { resource: "requests.memory", divisor: "1G" }, want: "1" },
    { name: "divisor 0 means 1", ref: { resource: "requests.memory", divisor: "0" }, want: "67108864" },
    { name: "huge pages", ref: { resource: "limits.hugepages-2Mi", divisor: "1Mi" }, want: "4" },
    { name: "no huge pages: no default", ref: { resource: "limits.hugepages-1Gi" }, want: "0" },
    { name: "unset request is 0", ref: { containerName: "bare", resource: "requests.memory" }, want: "0" },
    {
      name: "unset limit is the node's",
      ref: { containerName: "bare", resource: "limits.cpu", divisor: "1m" },
      want: "3900",
    },
    { name: "ephemeral storage too", ref: { resource: "limits.ephemeral-storage", divisor: "1Gi" }, want: "100" },
    {
      name: "an init container's own",
      ref: { containerName: "init", resource: "limits.memory", divisor: "1Mi" },
      want: "1024",
    },
    { name: "an init container gets no default", ref: { containerName: "init", resource: "limits.cpu" }, want: "0" },
    {
      name: "a limit of 0 is none",
      ref: { containerName: "zero", resource: "limits.memory", divisor: "1Gi" },
      want: "8",
    },
    {
      name: "an empty name is one's own",
      ref: { containerName: "", resource: "limits.cpu", divisor: "1m" },
      want: "1500",
    },
    { name: "cpu below a thousandth rounds up", ref: { containerName: "zero", resource: "requests.cpu" }, want: "1" },
    {
      name: "cpu below a thousandth, in thousandths",
      ref: { containerName: "zero", resource: "requests.cpu", divisor: "1m" },
      want: "1",
    },
    { name: "bytes beyond 2^32", ref: { containerName: "zero", resource: "requests.memory" }, want: "1099511627776" },
    ...["k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].map((unit) => ({
      name: `one ${unit} divided by one ${unit}`,
      ref: { containerName: `one-${unit}`, resource: "limits.memory", divisor: `1${unit}` },
      want: "1",
    })),
  ])("$name", ({ ref, want }) => expect(resourceField(resources, ref, app, { nodeAllocatable })).toBe(want));

  test("pod-level limits come before the node's, where they are looked at", () => {
    const ref = { containerName: "bare", resource: "limits.memory", divisor: "1Mi" };
    expect(resourceField(resources, ref, app, { nodeAllocatable, podLimits: { memory: "512Mi" } })).toBe("512");
  });

  test.each([
    { name: "a container's own limit beats the pod's", resource: "limits.cpu", divisor: "1m", own: app, want: "1500" },
    { name: "an unset one is the pod's", resource: "limits.cpu", divisor: "1m", own: bare, want: "700" },
    {
      name: "but for storage, which pods have none of",
      resource: "limits.ephemeral-storage",
      divisor: "1Gi",
      own: bare,
      want: "100",
    },
    { name: "nor do requests take the pod's", resource: "requests.cpu", divisor: "1m", own: bare, want: "0" },
    { name: "an init container that asks for its own", resource: "limits.cpu", divisor: "1m", own: init, want: "700" },
  ])("pod-level limits: $name", ({ resource, divisor, own, want }) => {
    const podLimits = { cpu: "700m", "ephemeral-storage": "1Gi" };
    expect(resourceField(resources, { resource, divisor }, own, { nodeAllocatable, podLimits })).toBe(want);
  });

  test("before the node has told what it has, a default is 0", () => {
    expect(resourceField(resources, { resource: "limits.memory" }, bare, { nodeAllocatable: {} })).toBe("0");
  });

  test.each([
    [{ resource: "limits.disk" }, 'unsupported resource "limits.disk"'],
    [{ resource: "limits.nvidia.com/gpu" }, "unsupported resource"],
    [{ resource: "cpu" }, "unsupported resource"],
    [{ containerName: "nobody", resource: "limits.cpu" }, 'container "nobody" not found'],
  ])("refuses %o", (ref, why) => expect(() => resourceField(resources, ref, app, { nodeAllocatable })).toThrow(why));

  test("a volume must name the container", () => {
    expect(() => resourceField(resources, { resource: "limits.cpu" }, undefined, { nodeAllocatable })).toThrow(
      "containerName is required",
    );
  });
});
