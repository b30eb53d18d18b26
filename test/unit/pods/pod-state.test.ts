import { expect, test } from "vitest";
import type { ContainerStatus, PodSpec, PodStatus } from "../../../agent/kube/types.ts";
import { podStateWord } from "../../../agent/pods/pod-state.ts";
import { podOf } from "./support.ts";

const container = (state: ContainerStatus["state"], changes: Partial<ContainerStatus> = {}): ContainerStatus => ({
  name: "app",
  ready: false,
  restartCount: 0,
  image: "",
  imageID: "",
  state: state ?? {},
  ...changes,
});
const waiting = (reason: string) => container({ waiting: { reason } });
const init = { ...waiting("PodInitializing"), name: "init" };

const cases: { want: string; status: PodStatus; spec?: Partial<PodSpec>; isDeleted?: true }[] = [
  { want: "Pending", status: {} },
  { want: "ContainerCreating", status: { phase: "Pending", containerStatuses: [waiting("ContainerCreating")] } },
  { want: "ErrImagePull", status: { phase: "Pending", containerStatuses: [waiting("ErrImagePull")] } },
  { want: "CrashLoopBackOff", status: { phase: "Running", containerStatuses: [waiting("CrashLoopBackOff")] } },
  { want: "NotReady", status: { phase: "Running", containerStatuses: [container({ running: {} })] } },
  { want: "Running", status: { phase: "Running", conditions: [{ type: "Ready", status: "True" }] } },
  { want: "Completed", status: { phase: "Succeeded" } },
  { want: "Failed", status: { phase: "Failed" } },
  { want: "Evicted", status: { phase: "Failed", reason: "Evicted" } },
  { want: "Terminating", status: { phase: "Running" }, isDeleted: true },
  { want: "Completed", status: { phase: "Succeeded" }, isDeleted: true },
  {
    want: "Init:0/1",
    status: { phase: "Pending", initContainerStatuses: [init] },
    spec: { initContainers: [{ name: "init" }] },
  },
  {
    want: "Init:CrashLoopBackOff",
    status: { phase: "Pending", initContainerStatuses: [{ ...waiting("CrashLoopBackOff"), name: "init" }] },
    spec: { initContainers: [{ name: "init" }] },
  },
  {
    want: "Init:0/1", // a running init container is started, but not done
    status: { phase: "Pending", initContainerStatuses: [{ ...init, state: { running: {} }, started: true }] },
    spec: { initContainers: [{ name: "init" }] },
  },
  {
    want: "PodInitializing", // a sidecar is done once it is started
    status: {
      phase: "Pending",
      initContainerStatuses: [{ ...init, state: { running: {} }, started: true }],
      containerStatuses: [waiting("PodInitializing")],
    },
    spec: { initContainers: [{ name: "init", restartPolicy: "Always" }] },
  },
];

test.each(cases)("$status: $want", ({ status, spec, isDeleted, want }) => {
  const metadata = isDeleted === true ? { deletionTimestamp: "2026-01-01T00:00:00Z" } : {};
  expect(podStateWord(podOf(spec, metadata), status)).toBe(want);
});
