import { describe, expect, test } from "vitest";
import {
  containerStatus,
  containerSummary,
  sandboxStatus,
  sandboxSummary,
} from "../../../../agent/runtime/docker/inspect.ts";
import type { WireInspect, WireState } from "../../../../agent/runtime/docker/wire.ts";

const zero = "0001-01-01T00:00:00Z";
const created = "2026-01-01T00:00:00.123456789Z";
const createdAtMs = Date.parse("2026-01-01T00:00:00.123Z");
const started = "2026-01-01T00:00:01.5Z";
const finished = "2026-01-01T00:00:02Z";

const labels = {
  "io.kubernetes.docker.type": "container",
  "io.kubernetes.pod.uid": "u",
  "io.kubernetes.pod.name": "web",
  "io.kubernetes.pod.namespace": "shop",
  "io.kubernetes.container.name": "app",
  "io.kubernetes.container.logpath": "/var/log/pods/x/app/0.log",
  "io.nodelet.attempt": "2",
  "io.nodelet.keys": "[]",
};

function inspectOf(state: WireState, more: Partial<WireInspect> = {}): WireInspect {
  return {
    Id: "c1",
    Name: "/k8s_app_web_shop_u_2",
    Created: created,
    State: state,
    Config: { Labels: labels },
    ...more,
  };
}

describe("a container's state", () => {
  const cases: { name: string; state: WireState; want: object }[] = [
    {
      name: "created",
      state: { ExitCode: 0, StartedAt: zero, FinishedAt: zero },
      want: { state: "created", startedAtMs: 0, finishedAtMs: 0, exitCode: 0, reason: "", message: "" },
    },
    {
      name: "running, after an earlier run of Docker's own",
      state: { Running: true, Pid: 7, StartedAt: started, FinishedAt: finished },
      want: { state: "running", startedAtMs: Date.parse(started), finishedAtMs: 0 },
    },
    {
      name: "paused is running",
      state: { Running: true, Paused: true, StartedAt: started },
      want: { state: "running" },
    },
    {
      name: "ended well",
      state: { ExitCode: 0, StartedAt: started, FinishedAt: finished },
      want: { state: "exited", exitCode: 0, reason: "Completed", finishedAtMs: Date.parse(finished) },
    },
    {
      name: "ended badly",
      state: { ExitCode: 3, StartedAt: started, FinishedAt: finished },
      want: { state: "exited", exitCode: 3, reason: "Error" },
    },
    {
      name: "killed by the kernel for its memory",
      state: { ExitCode: 137, OOMKilled: true, StartedAt: started, FinishedAt: finished },
      want: { state: "exited", exitCode: 137, reason: "OOMKilled" },
    },
    {
      name: "could not be started",
      state: { ExitCode: 127, Error: 'exec: "/x": no such file', StartedAt: zero, FinishedAt: zero },
      want: {
        state: "exited",
        exitCode: 127,
        reason: "ContainerCannotRun",
        message: 'exec: "/x": no such file',
        startedAtMs: createdAtMs,
        finishedAtMs: createdAtMs,
      },
    },
    {
      name: "could not be started, and left no exit code",
      state: { ExitCode: 0, Error: "mount failed", StartedAt: zero, FinishedAt: zero },
      want: { state: "exited", exitCode: 128, reason: "ContainerCannotRun", message: "mount failed" },
    },
  ];
  for (const { name, state, want } of cases) {
    test(name, () => expect(containerStatus(inspectOf(state), "sha256:i")).toMatchObject(want));
  }
});

test("a container tells its mounts, resources and log", () => {
  const inspect = inspectOf(
    { Running: true, StartedAt: started },
    {
      HostConfig: {
        ...{ Memory: 1 << 20, MemorySwap: 1 << 21, CpuShares: 512, CpuQuota: 0, OomScoreAdj: 999, CpusetCpus: "0-1" },
        Mounts: [{ Target: "/ro", BindOptions: { ReadOnlyForceRecursive: true } }],
      },
      Mounts: [
        { Type: "bind", Source: "/host/ro", Destination: "/ro", RW: false, Propagation: "rprivate" },
        { Type: "bind", Source: "/host/shared", Destination: "/shared", RW: true, Propagation: "rshared" },
        { Type: "volume", Source: "/docker/volumes/x", Destination: "/cache", RW: true },
      ],
    },
  );
  expect(containerStatus(inspect, "registry/app@sha256:d")).toMatchObject({
    imageRef: "registry/app@sha256:d",
    attempt: 2,
    logPath: "/var/log/pods/x/app/0.log",
    mounts: [
      { containerPath: "/ro", hostPath: "/host/ro", readonly: true, propagation: "PRIVATE", recursiveReadOnly: true },
      { containerPath: "/shared", readonly: false, propagation: "BIDIRECTIONAL", recursiveReadOnly: false },
    ],
    resources: {
      memoryLimitBytes: 1 << 20,
      memorySwapLimitBytes: 1 << 21,
      cpuShares: 512,
      oomScoreAdj: 999,
      cpusetCpus: "0-1",
    },
  });
});

describe("a sandbox", () => {
  const sandbox = (network: string, running: boolean) =>
    inspectOf({ Running: running, StartedAt: started }, { HostConfig: { NetworkMode: network } });
  const cases: { name: string; network: string; running: boolean; ips: string[]; want: object }[] = [
    {
      name: "with addresses is ready",
      network: "none",
      running: true,
      ips: ["10.0.0.2"],
      want: { ready: true, ips: ["10.0.0.2"] },
    },
    {
      name: "without an address was not finished",
      network: "none",
      running: true,
      ips: [],
      want: { ready: false, ips: [] },
    },
    {
      name: "whose process ended has none",
      network: "none",
      running: false,
      ips: ["10.0.0.2"],
      want: { ready: false, ips: [] },
    },
    {
      name: "on the node's network needs none",
      network: "host",
      running: true,
      ips: [],
      want: { ready: true, ips: [], networkMode: "NODE" },
    },
  ];
  for (const { name, network, running, ips, want } of cases) {
    test(name, () => expect(sandboxStatus(sandbox(network, running), ips)).toMatchObject(want));
  }
});

test("a sandbox whose pause container was started again by hand is not ready: its network is gone", () => {
  const state = { Running: true, StartedAt: finished, FinishedAt: started };
  const restarted = inspectOf(state, { HostConfig: { NetworkMode: "none" } });
  expect(sandboxStatus(restarted, ["10.0.0.2"])).toMatchObject({ ready: false, ips: [] });
});

test("lists are read from labels, in the states that Docker lists", () => {
  const listed = {
    Id: "c",
    Labels: labels,
    ImageID: "sha256:i",
    Created: 1_700_000_000,
  };
  const states = {
    created: "created",
    running: "running",
    paused: "running",
    exited: "exited",
    dead: "exited",
    odd: "unknown",
  };
  for (const [State, state] of Object.entries(states)) expect(containerSummary({ ...listed, State }).state).toBe(state);
  expect(containerSummary({ ...listed, State: "exited" })).toMatchObject({
    podUID: "u",
    podName: "web",
    podNamespace: "shop",
    name: "app",
    attempt: 2,
    createdAtMs: 1_700_000_000_000,
    imageRef: "sha256:i",
  });
  expect(sandboxSummary({ ...listed, State: "running", HostConfig: { NetworkMode: "host" } })).toMatchObject({
    ready: true,
    networkMode: "NODE",
  });
  // Frozen, as the status has it.
  expect(sandboxSummary({ ...listed, State: "paused" })).toMatchObject({ ready: true });
});
