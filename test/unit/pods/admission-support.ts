import { expect, test } from "vitest";
import type { Node, Pod, PodSpec } from "../../../agent/kube/types.ts";
import { admit } from "../../../agent/pods/admission/admit.ts";
import type { Admission, AdmissionContext } from "../../../agent/pods/admission/port.ts";
import { podOf } from "./support.ts";

export const node: Node = {
  metadata: { name: "node1", labels: { disk: "ssd", cores: "8", "kubernetes.io/os": "linux" } },
  status: {
    allocatable: {
      cpu: "2",
      memory: "1Gi",
      pods: "3",
      "ephemeral-storage": "1Gi",
      "hugepages-2Mi": "4Mi",
      "example.com/gpu": "1",
    },
  },
};

export function admitted(pod: Pod, changes: Partial<AdmissionContext> = {}): Admission {
  return admit(pod, {
    node,
    others: [],
    pressures: [],
    allowedUnsafeSysctls: [],
    kernelVersion: "6.1.0-18-amd64",
    isAppArmorEnabled: false,
    isShuttingDown: false,
    ...changes,
  });
}

export const rejection = (reason: string, message: unknown = expect.any(String)) => ({
  kind: "rejected",
  rejection: { reason, message },
});
export const welcome: Admission = { kind: "admitted" };
export const asks = (requests: Record<string, string>) => [{ name: "app", resources: { requests } }];
export const asking = (requests: Record<string, string>, spec: Partial<PodSpec> = {}) =>
  podOf({ containers: asks(requests), ...spec });
export const guaranteed = (cpu: string, memory: string): Partial<PodSpec> => ({
  containers: [{ name: "app", resources: { requests: { cpu, memory }, limits: { cpu, memory } } }],
});
export const named = (name: string, spec: Partial<PodSpec>) => podOf(spec, { name, uid: name });
export const critical = 2_000_000_000;
export const staticPod = (spec: Partial<PodSpec> = {}) =>
  podOf(spec, { annotations: { "kubernetes.io/config.source": "file" } });

interface Case {
  name: string;
  pod?: Pod;
  context?: Partial<AdmissionContext>;
  want: unknown;
}

export function check(cases: Case[]): void {
  test.each(cases)("$name", ({ pod = podOf(), context = {}, want }) => {
    expect(admitted(pod, context)).toEqual(want);
  });
}
