import { expect, test } from "vitest";
import type { Pod, PodStatus } from "../../../agent/kube/types.ts";
import { duration } from "../../support/apiserver/duration.ts";
import { podRow } from "../../support/apiserver/pod-row.ts";

const nowMs = Date.parse("2026-01-01T00:10:00Z");
const status = (name: string, state: object, more = {}) => ({
  name,
  state,
  ready: false,
  restartCount: 0,
  image: "i",
  imageID: "",
  ...more,
});
const running = { running: {} };

const cases: { name: string; spec?: object; status: PodStatus; deleted?: boolean; want: [string, string, string] }[] = [
  { name: "pending", status: { phase: "Pending" }, want: ["0/1", "Pending", "0"] },
  {
    name: "running and ready",
    status: { phase: "Running", containerStatuses: [status("a", running, { ready: true })] },
    want: ["1/1", "Running", "0"],
  },
  {
    name: "crash loop",
    status: {
      phase: "Running",
      containerStatuses: [
        status(
          "a",
          { waiting: { reason: "CrashLoopBackOff" } },
          { restartCount: 3, lastState: { terminated: { exitCode: 1, finishedAt: "2026-01-01T00:09:30Z" } } },
        ),
      ],
    },
    want: ["0/1", "CrashLoopBackOff", "3 (30s ago)"],
  },
  {
    name: "image missing",
    status: { phase: "Pending", containerStatuses: [status("a", { waiting: { reason: "ImagePullBackOff" } })] },
    want: ["0/1", "ImagePullBackOff", "0"],
  },
  {
    name: "completed",
    status: {
      phase: "Succeeded",
      containerStatuses: [status("a", { terminated: { exitCode: 0, reason: "Completed" } })],
    },
    want: ["0/1", "Completed", "0"],
  },
  {
    name: "killed",
    status: { phase: "Failed", containerStatuses: [status("a", { terminated: { exitCode: 137, signal: 9 } })] },
    want: ["0/1", "Signal:9", "0"],
  },
  { name: "evicted", status: { phase: "Failed", reason: "Evicted" }, want: ["0/1", "Evicted", "0"] },
  {
    name: "being deleted",
    status: { phase: "Running", containerStatuses: [status("a", running, { ready: true })] },
    deleted: true,
    want: ["1/1", "Terminating", "0"],
  },
  {
    name: "initializing",
    spec: { initContainers: [{ name: "i" }, { name: "j" }] },
    status: {
      phase: "Pending",
      initContainerStatuses: [status("i", { terminated: { exitCode: 0 } }), status("j", running)],
    },
    want: ["0/1", "Init:1/2", "0"],
  },
  {
    name: "init failed",
    spec: { initContainers: [{ name: "i" }] },
    status: {
      phase: "Pending",
      initContainerStatuses: [status("i", { terminated: { exitCode: 1, reason: "Error" } })],
    },
    want: ["0/1", "Init:Error", "0"],
  },
  {
    name: "sidecar counts",
    spec: { initContainers: [{ name: "s", restartPolicy: "Always" }] },
    status: {
      phase: "Running",
      initContainerStatuses: [status("s", running, { ready: true, started: true })],
      containerStatuses: [status("a", running, { ready: true })],
    },
    want: ["2/2", "Running", "0"],
  },
];
for (const { name, spec = {}, status: podStatus, deleted = false, want } of cases) {
  test(`pod row: ${name}`, () => {
    const pod: Pod = {
      metadata: { name: "p", ...(deleted ? { deletionTimestamp: "2026-01-01T00:10:30Z" } : {}) },
      spec: { containers: [{ name: "a" }], ...spec },
      status: podStatus,
    };
    const row = podRow(pod, nowMs);
    expect([`${row.ready}/${row.total}`, row.status, row.restarts]).toEqual(want);
  });
}

const ages: [seconds: number, text: string][] = [
  [0, "0s"],
  [119, "119s"],
  [120, "2m"],
  [150, "2m30s"],
  [600, "10m"],
  [10_800, "3h"],
  [12_600, "3h30m"],
  [90_000, "25h"],
  [172_800, "2d"],
  [864_000, "10d"],
  [63_072_000, "2y"],
];
for (const [seconds, text] of ages) {
  test(`age of ${seconds} s is ${text}`, () => expect(duration(seconds * 1000)).toBe(text));
}
