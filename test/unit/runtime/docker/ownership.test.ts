import { describe, expect, test } from "vitest";
import { containerLabels, sandboxLabels } from "../../../../agent/runtime/docker/labels.ts";
import { kindOf, kindOfInspected, kindOfListed } from "../../../../agent/runtime/docker/ownership.ts";
import { container, sandbox } from "./config-support.ts";
import { containerName, sandboxName } from "../../../../agent/runtime/docker/names.ts";

const pod = sandbox();
const app = container();
const own = {
  sandbox: { labels: sandboxLabels(pod, "", "node-1"), names: [`/${sandboxName(pod)}`] },
  container: { labels: containerLabels("s", app, pod, "node-1"), names: [`/${containerName(app, pod)}`] },
};
const without = (labels: Record<string, string>, key: string) =>
  Object.fromEntries(Object.entries(labels).filter(([name]) => name !== key));

describe.each(["sandbox", "container"] as const)("a pod's %s", (kind) => {
  const { labels, names } = own[kind];
  const [name = ""] = names;
  const cases: { is: string; labels?: Record<string, string>; names?: string[]; isOurs: boolean }[] = [
    { is: "ours under its name", isOurs: true },
    { is: "ours with a suffix, where its name was taken", names: [`${name}_0a1b2c3d`], isOurs: true },
    { is: "ours without the slash, as events tell it", names: [name.slice(1)], isOurs: true },
    { is: "ours also if others link to it by names of their own", names: ["/web/db", name], isOurs: true },
    {
      is: "ours if an earlier agent made it, who told no node",
      labels: without(labels, "io.nodelet.node"),
      isOurs: true,
    },
    { is: "another node's", labels: { ...labels, "io.nodelet.node": "node-2" }, isOurs: false },
    { is: "not what somebody runs of an image with its labels", names: ["/jolly_turing"], isOurs: false },
    { is: "not what somebody gave a name like it", names: ["/k8s_app"], isOurs: false },
    { is: "not another attempt", names: [`${name}1`], isOurs: false },
    { is: "not what has a suffix of somebody else's", names: [`${name}_debug`], isOurs: false },
    { is: "not what has no name", names: [], isOurs: false },
    { is: "not another agent's of the same tradition", labels: without(labels, "io.nodelet.keys"), isOurs: false },
  ];
  test.each(cases)("is $is", ({ isOurs, ...change }) => {
    expect(kindOf({ labels, names, ...change }, "node-1")).toBe(isOurs ? kind : undefined);
  });

  test("is known in a list and at a look", () => {
    expect(kindOfListed({ Id: "x", Labels: labels, Names: names }, "node-1")).toBe(kind);
    expect(kindOfInspected({ Config: { Labels: labels }, Name: name }, "node-1")).toBe(kind);
  });
});

test("what tells neither labels nor names is nobody's", () => {
  expect(kindOfListed({ Id: "x", Labels: null, Names: null }, "node-1")).toBeUndefined();
  expect(kindOfInspected({ Config: null }, "node-1")).toBeUndefined();
});
