import { describe, expect, test } from "vitest";
import type { ResourceRequirements } from "../../../../agent/kube/types.ts";
import {
  changedResources,
  hasResources,
  isSameRequirements,
  resourcesOf,
  withResources,
} from "../../../../agent/pods/resize/allocation.ts";
import { podOf } from "../support.ts";
import { both, requests, sized, sizedPod } from "./support.ts";

const comparisons: {
  name: string;
  a?: ResourceRequirements;
  b?: ResourceRequirements;
  same: boolean;
  changed: string[];
}[] = [
  { name: "nothing and nothing", same: true, changed: [] },
  { name: "nothing and empty lists", b: { requests: {}, limits: {} }, same: true, changed: [] },
  { name: "other spellings", a: requests("1", "1Gi"), b: requests("1000m", "1024Mi"), same: true, changed: [] },
  { name: "cpu", a: requests("1", "1Gi"), b: requests("2", "1Gi"), same: false, changed: ["cpu"] },
  { name: "memory", a: both("1", "1Gi"), b: both("1", "2Gi"), same: false, changed: ["memory"] },
  { name: "a limit added", a: requests("1", "1Gi"), b: both("1", "1Gi"), same: false, changed: ["cpu", "memory"] },
  { name: "zero and none", a: { requests: { cpu: "0" } }, same: false, changed: ["cpu"] },
  {
    name: "what cannot be resized",
    a: { requests: { "example.com/gpu": "1" } },
    b: { requests: { "example.com/gpu": "2" } },
    same: false,
    changed: [],
  },
];
test.each(comparisons)("compares $name", ({ a, b, same, changed }) => {
  expect(isSameRequirements(a, b)).toBe(same);
  expect(changedResources(a, b)).toEqual(changed);
});

describe("a pod with what it was given", () => {
  const init = sized("init", requests("1", "1Gi"));
  const pod = podOf({ containers: [sized("app", requests("1", "1Gi"))], initContainers: [init] });

  test("is itself when that is what it asks for", () => {
    expect(withResources(pod, undefined)).toBe(pod);
    expect(withResources(pod, resourcesOf(pod))).toBe(pod);
    expect(withResources(pod, { containers: { app: requests("1000m", "1Gi"), gone: requests("5", "5Gi") } })).toBe(pod);
  });

  test("has other resources in init and regular containers, and nothing else is different", () => {
    const given = { containers: { app: requests("2", "1Gi"), init: requests("3", "1Gi") } };
    expect(withResources(pod, given)).toEqual({
      ...pod,
      spec: {
        ...pod.spec,
        containers: [sized("app", requests("2", "1Gi"))],
        initContainers: [sized("init", requests("3", "1Gi"))],
      },
    });
    expect(pod.spec.containers[0]?.resources).toEqual(requests("1", "1Gi"));
  });

  test("has the pod's own resources, too", () => {
    const whole = sizedPod("web", requests("1", "1Gi"), { resources: both("4", "4Gi") });
    const given = { containers: {}, pod: both("2", "2Gi") };
    expect(withResources(whole, given).spec.resources).toEqual(both("2", "2Gi"));
  });

  test("keeps its claims of devices", () => {
    const claims = [{ name: "gpu" }];
    const claiming = podOf({ containers: [sized("app", { ...requests("1", "1Gi"), claims })] });
    const given = withResources(claiming, { containers: { app: requests("2", "1Gi") } });
    expect(given.spec.containers[0]?.resources).toEqual({ ...requests("2", "1Gi"), claims });
  });
});

test("a pod without any requests and limits has nothing to resize", () => {
  expect(hasResources(resourcesOf(podOf()))).toBe(false);
  expect(hasResources(resourcesOf(podOf({ containers: [sized("app", { requests: {} })] })))).toBe(false);
  expect(hasResources(resourcesOf(sizedPod("web", { limits: { cpu: "1" } })))).toBe(true);
  expect(hasResources(resourcesOf(podOf({ resources: { requests: { cpu: "1" } } })))).toBe(true);
});
