import { expect, test } from "vitest";
import type { PodSpec } from "../../../../agent/kube/types.ts";
import { type PodGates, withoutGated } from "../../../../agent/pods/sources/gated.ts";
import { podOf } from "../support.ts";

const on: PodGates = { HostnameOverride: true, ContainerRestartRules: true, ContainerStopSignals: true };
const rules = [{ action: "Restart" as const, exitCodes: { operator: "In" as const, values: [42] } }];
const app = { name: "app", image: "image:1" };
const hook = { preStop: { sleep: { seconds: 1 } } };
const all: Partial<PodSpec> = {
  hostnameOverride: "other",
  initContainers: [
    { name: "init", restartPolicy: "Never", restartPolicyRules: rules },
    { name: "side", restartPolicy: "Always" },
  ],
  containers: [
    { ...app, restartPolicy: "Always", restartPolicyRules: rules, lifecycle: { ...hook, stopSignal: "SIGINT" } },
  ],
};

test("with all gates on, and without their fields, a pod is what it was", () => {
  const pod = podOf(all);
  expect(withoutGated(pod, on)).toBe(pod);
  const plain = podOf({ initContainers: [{ name: "side", restartPolicy: "Always" }] });
  const off = { HostnameOverride: false, ContainerRestartRules: false, ContainerStopSignals: false };
  expect(withoutGated(plain, off)).toBe(plain);
});

test("without HostnameOverride the pod has its own name", () => {
  const { spec } = withoutGated(podOf(all), { ...on, HostnameOverride: false });
  const { hostnameOverride: _, ...rest } = podOf(all).spec;
  expect(spec).toEqual(rest);
});

test("without ContainerRestartRules only sidecars have a policy", () => {
  const { spec } = withoutGated(podOf(all), { ...on, ContainerRestartRules: false });
  expect(spec.initContainers).toEqual([{ name: "init" }, { name: "side", restartPolicy: "Always" }]);
  expect(spec.containers).toEqual([{ ...app, lifecycle: { ...hook, stopSignal: "SIGINT" } }]);
});

test("without ContainerStopSignals hooks stay", () => {
  const { spec } = withoutGated(podOf(all), { ...on, ContainerStopSignals: false });
  expect(spec.containers[0]?.lifecycle).toEqual(hook);
});
