import { describe, expect, test } from "vitest";
import type { CSINode, Node } from "../../../../agent/kube/types.ts";
import {
  csiNodeUpdates,
  isForeign,
  newCSINode,
  nodePatch,
  topologyProblems,
} from "../../../../agent/volumes/csi/csi-node-plan.ts";
import type { NodeInfo } from "../../../../agent/volumes/csi/port.ts";

const info = (more: Partial<NodeInfo> = {}): NodeInfo => ({
  nodeID: "i-1",
  maxVolumesPerNode: 0,
  topology: {},
  ...more,
});
const wanted = (drivers: Record<string, NodeInfo | undefined>) => new Map(Object.entries(drivers));
const node = (metadata: Partial<Node["metadata"]> = {}): Node => ({ metadata: { name: "n1", uid: "u1", ...metadata } });
const annotated = (ids: string): Node => node({ annotations: { "csi.volume.kubernetes.io/nodeid": ids, other: "x" } });
type Drivers = NonNullable<CSINode["spec"]["drivers"]>;
const withDrivers = (drivers: Drivers | null): CSINode => {
  const csiNode = newCSINode(node(), new Map());
  return { ...csiNode, metadata: { ...csiNode.metadata, resourceVersion: "7" }, spec: { drivers } };
};

describe("the CSINode of a new node", () => {
  test("belongs to its Node and says which built-in kinds are CSI's now", () => {
    expect(
      newCSINode(node(), wanted({ "b.test": info({ topology: { z: "1", a: "2" }, maxVolumesPerNode: 5 }) })),
    ).toEqual({
      apiVersion: "storage.k8s.io/v1",
      kind: "CSINode",
      metadata: {
        name: "n1",
        annotations: {
          "storage.alpha.kubernetes.io/migrated-plugins":
            "kubernetes.io/aws-ebs,kubernetes.io/azure-disk,kubernetes.io/cinder,kubernetes.io/gce-pd",
        },
        ownerReferences: [{ apiVersion: "v1", kind: "Node", name: "n1", uid: "u1" }],
      },
      spec: { drivers: [{ name: "b.test", nodeID: "i-1", topologyKeys: ["a", "z"], allocatable: { count: 5 } }] },
    });
  });

  test("is foreign when another Node of that name owns it", () => {
    const csiNode = newCSINode(node(), new Map());
    expect(isForeign(csiNode, node())).toBe(false);
    expect(isForeign(csiNode, node({ uid: "u2" }))).toBe(true);
    expect(isForeign({ ...csiNode, metadata: { name: "n1" } }, node())).toBe(false);
  });
});

const a = { name: "a.test", nodeID: "i-1" };
const updates: {
  name: string;
  before: Drivers | null;
  wanted: Record<string, NodeInfo | undefined>;
  want: Drivers[];
}[] = [
  { name: "nothing to change", before: [a], wanted: { "a.test": info() }, want: [] },
  { name: "keys as null are no keys", before: [{ ...a, topologyKeys: null }], wanted: { "a.test": info() }, want: [] },
  { name: "the first driver", before: null, wanted: { "a.test": info() }, want: [[a]] },
  {
    name: "drivers from before our start stay",
    before: [a],
    wanted: { "b.test": info() },
    want: [[a, { name: "b.test", nodeID: "i-1" }]],
  },
  { name: "a driver that has gone", before: [a], wanted: { "a.test": undefined }, want: [[]] },
  { name: "one that never was there has gone already", before: [a], wanted: { "b.test": undefined }, want: [] },
  {
    name: "another count is one update",
    before: [{ ...a, allocatable: { count: 3 } }],
    wanted: { "a.test": info({ maxVolumesPerNode: 4 }) },
    want: [[{ ...a, allocatable: { count: 4 } }]],
  },
  {
    name: "no limit any more",
    before: [{ ...a, allocatable: { count: 3 } }],
    wanted: { "a.test": info({ maxVolumesPerNode: -1 }) },
    want: [[a]],
  },
  {
    name: "a count beyond 32 bits",
    before: [],
    wanted: { "a.test": info({ maxVolumesPerNode: 2 ** 40 }) },
    want: [[{ ...a, allocatable: { count: 2_147_483_647 } }]],
  },
  {
    name: "another node ID is a removal and an addition",
    before: [a, { name: "b.test", nodeID: "x" }],
    wanted: { "a.test": info({ nodeID: "i-2" }) },
    want: [
      [{ name: "b.test", nodeID: "x" }],
      [
        { name: "a.test", nodeID: "i-2" },
        { name: "b.test", nodeID: "x" },
      ],
    ],
  },
  {
    name: "so are other topology keys",
    before: [a],
    wanted: { "a.test": info({ topology: { zone: "1" } }) },
    want: [[], [{ ...a, topologyKeys: ["zone"] }]],
  },
];
for (const { name, before, wanted: drivers, want } of updates) {
  test(`csiNodeUpdates: ${name}`, () => {
    const result = csiNodeUpdates(withDrivers(before), wanted(drivers));
    expect(result.map(({ spec }) => spec.drivers)).toEqual(want);
    for (const { metadata } of result) expect(metadata).toMatchObject({ name: "n1", resourceVersion: "7" });
  });
}

test("csiNodeUpdates: the annotation is repaired", () => {
  const csiNode = withDrivers([a]);
  const [update] = csiNodeUpdates({ ...csiNode, metadata: { name: "n1", annotations: { x: "y" } } }, new Map());
  expect(update?.metadata.annotations).toMatchObject({
    x: "y",
    "storage.alpha.kubernetes.io/migrated-plugins": expect.stringContaining("kubernetes.io/cinder"),
  });
});

const key = "csi.volume.kubernetes.io/nodeid";
const patches: {
  name: string;
  node: Node;
  wanted: Record<string, NodeInfo | undefined>;
  part: "add" | "remove";
  want: object | undefined;
}[] = [
  { name: "nothing wanted, nothing there", node: node(), wanted: {}, part: "add", want: undefined },
  {
    name: "the first driver",
    node: node(),
    wanted: { "a.test": info() },
    part: "add",
    want: { metadata: { uid: "u1", annotations: { [key]: '{"a.test":"i-1"}' } } },
  },
  {
    name: "one more, sorted",
    node: annotated('{"b.test":"x"}'),
    wanted: { "a.test": info() },
    part: "add",
    want: { metadata: { uid: "u1", annotations: { [key]: '{"a.test":"i-1","b.test":"x"}' } } },
  },
  {
    name: "all there, in another order",
    node: annotated('{"b.test":"x","a.test":"i-1"}'),
    wanted: { "a.test": info() },
    part: "add",
    want: undefined,
  },
  {
    name: "topology becomes labels, without touching the annotation that is right",
    node: annotated('{"a.test":"i-1"}'),
    wanted: { "a.test": info({ topology: { "t.test/zone": "z1" } }) },
    part: "add",
    want: { metadata: { uid: "u1", labels: { "t.test/zone": "z1" } } },
  },
  {
    name: "one that has gone stays until the CSINode has let it go",
    node: annotated('{"a.test":"i-1"}'),
    wanted: { "a.test": undefined },
    part: "add",
    want: undefined,
  },
  {
    name: "the last one takes the annotation along",
    node: annotated('{"a.test":"i-1"}'),
    wanted: { "a.test": undefined },
    part: "remove",
    want: { metadata: { uid: "u1", annotations: { [key]: null } } },
  },
  {
    name: "what nobody can read is written anew",
    node: annotated("{"),
    wanted: { "a.test": info() },
    part: "add",
    want: { metadata: { uid: "u1", annotations: { [key]: '{"a.test":"i-1"}' } } },
  },
];
for (const { name, node: old, wanted: drivers, part, want } of patches) {
  test(`nodePatch: ${name}`, () => expect(nodePatch(old, wanted(drivers), part)).toEqual(want));
}

const topologies: {
  name: string;
  labels: Record<string, string>;
  drivers: Record<string, NodeInfo>;
  want: string[];
}[] = [
  { name: "no label yet", labels: {}, drivers: { a: info({ topology: { zone: "1" } }) }, want: [] },
  { name: "the same value", labels: { zone: "1" }, drivers: { a: info({ topology: { zone: "1" } }) }, want: [] },
  {
    name: "another value",
    labels: { zone: "2" },
    drivers: { a: info({ topology: { zone: "1" } }), b: info() },
    want: ["topology value collision: CSI driver a says zone=1, the node's label is 2"],
  },
  {
    name: "two drivers at once that contradict each other",
    labels: {},
    drivers: { a: info({ topology: { zone: "1" } }), b: info({ topology: { zone: "2" } }) },
    want: ["topology value collision: CSI driver b says zone=2, the node's label is 1"],
  },
];
for (const { name, labels, drivers, want } of topologies) {
  test(`topologyProblems: ${name}`, () => {
    expect([...topologyProblems(node({ labels }), wanted(drivers)).values()]).toEqual(want);
  });
}
