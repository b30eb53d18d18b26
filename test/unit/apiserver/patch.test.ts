import { expect, test } from "vitest";
import { applyConfiguration } from "../../support/apiserver/apply.ts";
import { jsonPatch, mergePatch } from "../../support/apiserver/patch.ts";
import { strategicMerge } from "../../support/apiserver/strategic-merge.ts";
import { mergeSchemaOf } from "../../support/apiserver/strategic-schema.ts";

const strategicCases: { name: string; kind?: string; current: unknown; patch: unknown; want: unknown }[] = [
  {
    name: "containers merge by name and keep what the patch does not say",
    current: { spec: { containers: [{ name: "a", image: "x", env: [{ name: "E", value: "1" }] }, { name: "b" }] } },
    patch: { spec: { containers: [{ name: "a", image: "y", env: [{ name: "F", value: "2" }] }] } },
    want: {
      spec: {
        containers: [
          {
            name: "a",
            image: "y",
            env: [
              { name: "E", value: "1" },
              { name: "F", value: "2" },
            ],
          },
          { name: "b" },
        ],
      },
    },
  },
  {
    name: "conditions merge by type, as a kubelet's status patch has them",
    current: {
      status: {
        phase: "Pending",
        conditions: [
          { type: "Ready", status: "False" },
          { type: "X", status: "True" },
        ],
      },
    },
    patch: {
      status: {
        "$setElementOrder/conditions": [{ type: "X" }, { type: "Ready" }],
        phase: "Running",
        conditions: [{ type: "Ready", status: "True" }],
      },
    },
    want: {
      status: {
        phase: "Running",
        conditions: [
          { type: "X", status: "True" },
          { type: "Ready", status: "True" },
        ],
      },
    },
  },
  {
    name: "podIPs merge by ip",
    current: { status: { podIPs: [{ ip: "10.0.0.1" }] } },
    patch: { status: { podIPs: [{ $patch: "delete", ip: "10.0.0.1" }, { ip: "10.0.0.2" }] } },
    want: { status: { podIPs: [{ ip: "10.0.0.2" }] } },
  },
  {
    name: "$patch: delete takes an element out, null a field",
    current: { spec: { hostname: "h", volumes: [{ name: "a" }, { name: "b" }] } },
    patch: { spec: { hostname: null, volumes: [{ $patch: "delete", name: "a" }] } },
    want: { spec: { volumes: [{ name: "b" }] } },
  },
  {
    name: "$patch: replace in a list replaces all of it, as the node's addresses are",
    kind: "Node",
    current: {
      status: {
        addresses: [
          { type: "InternalIP", address: "1" },
          { type: "Hostname", address: "n" },
        ],
      },
    },
    patch: { status: { addresses: [{ type: "InternalIP", address: "2" }, { $patch: "replace" }] } },
    want: { status: { addresses: [{ type: "InternalIP", address: "2" }] } },
  },
  {
    name: "$patch: replace in an object replaces it",
    current: { metadata: { labels: { a: "1", b: "2" } } },
    patch: { metadata: { labels: { $patch: "replace", c: "3" } } },
    want: { metadata: { labels: { c: "3" } } },
  },
  {
    name: "$retainKeys drops the other kind of volume",
    current: { spec: { volumes: [{ name: "v", emptyDir: {} }] } },
    patch: { spec: { volumes: [{ $retainKeys: ["name", "hostPath"], name: "v", hostPath: { path: "/p" } }] } },
    want: { spec: { volumes: [{ name: "v", hostPath: { path: "/p" } }] } },
  },
  {
    name: "finalizers are a set",
    current: { metadata: { finalizers: ["a", "b"] } },
    patch: { metadata: { "$deleteFromPrimitiveList/finalizers": ["a"], finalizers: ["c"] } },
    want: { metadata: { finalizers: ["b", "c"] } },
  },
  {
    name: "tolerations are atomic",
    current: { spec: { tolerations: [{ key: "a" }] } },
    patch: { spec: { tolerations: [{ key: "b" }] } },
    want: { spec: { tolerations: [{ key: "b" }] } },
  },
  {
    name: "container statuses are atomic",
    current: { status: { containerStatuses: [{ name: "a", ready: true }, { name: "b" }] } },
    patch: { status: { containerStatuses: [{ name: "a", ready: false }] } },
    want: { status: { containerStatuses: [{ name: "a", ready: false }] } },
  },
  {
    name: "service ports merge by port",
    kind: "Service",
    current: { spec: { ports: [{ port: 80, nodePort: 30000 }, { port: 81 }] } },
    patch: { spec: { ports: [{ port: 80, targetPort: 8080 }] } },
    want: { spec: { ports: [{ port: 80, nodePort: 30000, targetPort: 8080 }, { port: 81 }] } },
  },
  {
    name: "container ports merge by containerPort, mounts by path",
    current: {
      spec: {
        containers: [
          { name: "a", ports: [{ containerPort: 1, name: "x" }], volumeMounts: [{ mountPath: "/a", name: "v" }] },
        ],
      },
    },
    patch: {
      spec: {
        containers: [
          { name: "a", ports: [{ containerPort: 1, name: "y" }], volumeMounts: [{ mountPath: "/a", readOnly: true }] },
        ],
      },
    },
    want: {
      spec: {
        containers: [
          {
            name: "a",
            ports: [{ containerPort: 1, name: "y" }],
            volumeMounts: [{ mountPath: "/a", name: "v", readOnly: true }],
          },
        ],
      },
    },
  },
];

for (const { name, kind = "Pod", current, patch, want } of strategicCases) {
  test(`strategic merge: ${name}`, () => {
    const before = structuredClone(current);
    expect(strategicMerge(current, patch, mergeSchemaOf(kind))).toEqual(want);
    expect(current).toEqual(before);
  });
}

test("strategic merge: an element without its merge key is refused", () => {
  const patch = { spec: { containers: [{ image: "x" }] } };
  expect(() => strategicMerge({}, patch, mergeSchemaOf("Pod"))).toThrow("does not contain declared merge key: name");
});

test("merge patch: null removes, lists replace, other objects merge", () => {
  const current = { a: { b: 1, c: 2 }, list: [1, 2], gone: true };
  expect(mergePatch(current, { a: { b: 3 }, list: [9], gone: null })).toEqual({ a: { b: 3, c: 2 }, list: [9] });
});

const jsonCases: { name: string; ops: unknown; want?: unknown; error?: string }[] = [
  { name: "add to a list's end", ops: [{ op: "add", path: "/list/-", value: 3 }], want: { list: [1, 2, 3], "a/b": 1 } },
  { name: "insert", ops: [{ op: "add", path: "/list/0", value: 0 }], want: { list: [0, 1, 2], "a/b": 1 } },
  { name: "escaped path", ops: [{ op: "replace", path: "/a~1b", value: 2 }], want: { list: [1, 2], "a/b": 2 } },
  { name: "remove", ops: [{ op: "remove", path: "/list/0" }], want: { list: [2], "a/b": 1 } },
  { name: "move", ops: [{ op: "move", from: "/a~1b", path: "/c" }], want: { list: [1, 2], c: 1 } },
  { name: "copy", ops: [{ op: "copy", from: "/list/1", path: "/c" }], want: { list: [1, 2], "a/b": 1, c: 2 } },
  { name: "failed test", ops: [{ op: "test", path: "/a~1b", value: 9 }], error: "testing path /a~1b failed" },
  { name: "removing nothing", ops: [{ op: "remove", path: "/nope" }], error: "there is nothing at /nope" },
  { name: "not a list", ops: { op: "add" }, error: "a JSON patch is a list of operations" },
];

for (const { name, ops, want, error } of jsonCases) {
  test(`JSON patch: ${name}`, () => {
    const document = { list: [1, 2], "a/b": 1 };
    if (error === undefined) expect(jsonPatch(document, ops)).toEqual(want);
    else expect(() => jsonPatch(document, ops)).toThrow(error);
    expect(document).toEqual({ list: [1, 2], "a/b": 1 });
  });
}

test("apply: sets its fields, withdraws what it set before, leaves the others'", () => {
  const schema = mergeSchemaOf("Pod");
  const current = {
    metadata: { labels: { mine: "1", theirs: "2" } },
    spec: { containers: [{ name: "a", image: "x", env: [{ name: "OLD" }, { name: "KEPT" }] }], nodeName: "n" },
  };
  const before = { metadata: { labels: { mine: "1" } }, spec: { containers: [{ name: "a", env: [{ name: "OLD" }] }] } };
  const applied = { spec: { containers: [{ name: "a", image: "y", env: [{ name: "NEW" }] }] } };
  expect(applyConfiguration(current, before, applied, schema)).toEqual({
    metadata: { labels: { theirs: "2" } },
    spec: { containers: [{ name: "a", image: "y", env: [{ name: "KEPT" }, { name: "NEW" }] }], nodeName: "n" },
  });
});
