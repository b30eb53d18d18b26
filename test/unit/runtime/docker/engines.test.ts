import { describe, expect, test } from "vitest";
import { readDaemonInfo } from "../../../../agent/runtime/docker/daemon.ts";
import { readEvent } from "../../../../agent/runtime/docker/events.ts";
import { imageOf, userOfConfig } from "../../../../agent/runtime/docker/images.ts";
import {
  containerStatus,
  containerSummary,
  sandboxStatus,
  sandboxSummary,
} from "../../../../agent/runtime/docker/inspect.ts";
import { containerLabels, sandboxLabels } from "../../../../agent/runtime/docker/labels.ts";
import { containerName, sandboxName } from "../../../../agent/runtime/docker/names.ts";
import { kindOfInspected, kindOfListed } from "../../../../agent/runtime/docker/ownership.ts";
import { pullMessages } from "../../../../agent/runtime/docker/pull-progress.ts";
import { container, sandbox } from "./config-support.ts";

// What Engines 20.10 to 29 tell of one and the same thing, by the API versions 1.41 to 1.52, cut to what differs.

const pod = sandbox();
const app = container();
const labels = containerLabels("s", app, pod, "node-1");
const Name = `/${containerName(app, pod)}`;
const State = { Running: true, Pid: 7, StartedAt: "2026-01-01T00:00:01Z", FinishedAt: "0001-01-01T00:00:00Z" };
const common = { Id: "c", Name, Image: "sha256:i", Created: "2026-01-01T00:00:00Z", State };

describe("a container that was inspected", () => {
  const engines: { engine: string; more: object }[] = [
    {
      engine: "20.10",
      more: {
        GraphDriver: { Name: "overlay2", Data: { UpperDir: "/x/diff" } },
        NetworkSettings: { Bridge: "", SandboxID: "n", HairpinMode: false, IPAddress: "", Networks: {} },
        HostConfig: { NetworkMode: "container:s", KernelMemory: 0, KernelMemoryTCP: 0, Mounts: null },
        Mounts: [],
      },
    },
    {
      engine: "25, which leaves out what is not set",
      more: { HostConfig: { NetworkMode: "container:s" }, Mounts: [] },
    },
    {
      engine: "28 with containerd's image store",
      more: {
        GraphDriver: { Name: "overlayfs", Data: null },
        ImageManifestDescriptor: { digest: "sha256:m" },
        HostConfig: { NetworkMode: "container:s", Annotations: null },
        Mounts: null,
      },
    },
    {
      engine: "29 by API 1.52",
      more: { Storage: { RootFS: { Snapshot: { Name: "overlayfs" } } }, NetworkSettings: { Networks: {} } },
    },
  ];
  test.each(engines)("by Engine $engine", ({ more }) => {
    const inspect = { ...common, Config: { Image: "app:1", Labels: labels }, ...more };
    expect(kindOfInspected(inspect, "node-1")).toBe("container");
    expect(containerStatus(inspect, "sha256:i")).toMatchObject({
      id: "c",
      name: app.name,
      podUID: pod.uid,
      sandboxID: "s",
      state: "running",
      startedAtMs: Date.parse(State.StartedAt),
      mounts: [],
    });
  });

  test("as a sandbox, without a word about networks", () => {
    const Config = { Labels: sandboxLabels(pod, "", "node-1") };
    const inspect = { ...common, Name: `/${sandboxName(pod)}`, Config, HostConfig: { NetworkMode: "none" } };
    expect(kindOfInspected(inspect, "node-1")).toBe("sandbox");
    expect(sandboxStatus(inspect, ["10.0.0.2"])).toMatchObject({ ready: true, ips: ["10.0.0.2"] });
  });

  test("with nothing in it is nobody's, and ends nothing", () => {
    const empty = { Id: "c", State: null, Config: null, HostConfig: null, Mounts: null, GraphDriver: null };
    expect(kindOfInspected(empty, "node-1")).toBeUndefined();
    expect(containerStatus(empty, "")).toMatchObject({ id: "c", state: "created", mounts: [] });
    expect(sandboxStatus(empty, [])).toMatchObject({ ready: false });
  });
});

test("containers in a list: without annotations, with them (28), and with fields that are null", () => {
  const listed = { Id: "c", Names: [Name], Labels: labels, State: "running", Created: 1, ImageID: "sha256:i" };
  for (const more of [
    { HostConfig: { NetworkMode: "container:s" } },
    { HostConfig: { NetworkMode: "container:s", Annotations: { a: "b" } }, ImageManifestDescriptor: {} },
    { HostConfig: null, NetworkSettings: null, Mounts: null },
  ]) {
    expect(kindOfListed({ ...listed, ...more }, "node-1")).toBe("container");
    expect(containerSummary({ ...listed, ...more })).toMatchObject({ id: "c", state: "running", imageRef: "sha256:i" });
  }
  expect(sandboxSummary({ Id: "s", Labels: null, Names: null, HostConfig: null })).toMatchObject({ ready: false });
});

test("an image: with the fields of old that stand for nothing, and without (25, 28, 29)", () => {
  const image = { Id: "sha256:i", RepoTags: ["app:1"], RepoDigests: [], Size: 7 };
  for (const more of [
    { VirtualSize: 7, Parent: "", Container: "", ContainerConfig: { User: "9" }, Config: { User: "1000", Image: "" } },
    { Config: { User: "1000" }, GraphDriver: { Name: "overlayfs", Data: null } },
  ]) {
    expect(imageOf({ ...image, ...more })).toMatchObject({ id: "sha256:i", sizeBytes: 7 });
    expect(userOfConfig(more.Config)).toEqual({ uid: 1000, username: "" });
  }
  // Of an image without a config for this machine there is none; by API 1.52 a user that is not set is left out.
  for (const config of [undefined, null, {}]) expect(userOfConfig(config)).toEqual({ uid: undefined, username: "" });
  expect(imageOf({ Id: "sha256:i", RepoTags: null, RepoDigests: null })).toMatchObject({ repoTags: [], sizeBytes: 0 });
});

test("an event: with the three fields of API 1.21 beside, and without (29)", () => {
  const Actor = { ID: "c", Attributes: { ...labels, name: Name.slice(1), image: "app:1" } };
  const old = { status: "die", id: "c", from: "app:1", Type: "container", Action: "die", Actor, scope: "local" };
  const { status: _status, id: _id, from: _from, ...today } = old;
  for (const event of [old, today]) {
    const wake = { kind: "exited", podUID: pod.uid, containerID: "c" };
    expect(readEvent(JSON.stringify(event), "node-1")).toMatchObject({ wake });
  }
});

test("a pull that fails: with the error told twice, and once (29)", async () => {
  async function* stream(message: object) {
    yield `${JSON.stringify(message)}\n`;
  }
  const errorDetail = { message: "manifest unknown" };
  for (const message of [{ errorDetail, error: "manifest unknown" }, { errorDetail }]) {
    for await (const { error } of pullMessages(stream(message))) expect(error).toBe("manifest unknown");
  }
});

test("the daemon of itself: 20.10, 25 with CDI, and 29 with containerd's image store", () => {
  const base = {
    OSType: "linux",
    CgroupDriver: "systemd",
    CgroupVersion: "2",
    DockerRootDir: "/d",
    Driver: "overlay2",
  };
  const version = { Version: "29.1.0", ApiVersion: "1.52", MinAPIVersion: "1.44" };
  expect(readDaemonInfo(version, { ...base, KernelMemoryTCP: true, BridgeNfIptables: true })).toMatchObject({
    apiVersion: "1.51",
    hasCDI: false,
  });
  expect(readDaemonInfo(version, { ...base, CDISpecDirs: ["/etc/cdi"] })).toMatchObject({ hasCDI: true });
  const store = {
    Driver: "overlayfs",
    DriverStatus: [["driver-type", "io.containerd.snapshotter.v1"]],
    Containerd: { Address: "/run/containerd/containerd.sock" },
    Runtimes: { runc: { path: "runc", status: { "org.opencontainers.runtime-spec.features": "{}" } } },
  };
  expect(readDaemonInfo(version, { ...base, ...store })).toMatchObject({
    containerdStore: { address: "/run/containerd/containerd.sock" },
    runtimes: ["runc"],
  });
});

describe("containers of the daemon's default runtime", () => {
  const runc = { path: "runc", status: { "org.opencontainers.runtime-spec.features": "{}" } };
  const runtimes = {
    runc,
    "io.containerd.runc.v2": runc,
    fast: { path: "/opt/bin/crun", runtimeArgs: ["--debug"] },
    kata: { runtimeType: "io.containerd.kata.v2" },
    "kata-by-name": { path: "/usr/bin/kata-runtime" },
    typed: { path: "runc", runtimeType: "io.containerd.runsc.v1" },
  };
  test.each([
    ["runc", true],
    ["io.containerd.runc.v2", true],
    ["fast", true],
    ["kata", false],
    ["kata-by-name", false],
    ["typed", false],
    ["gone", false],
    [undefined, false],
  ])("are known to be plain processes with %s: %s", (DefaultRuntime, hasPlainContainers) => {
    const info = { OSType: "linux", Runtimes: runtimes, ...(DefaultRuntime === undefined ? {} : { DefaultRuntime }) };
    expect(readDaemonInfo({ Version: "28.3.0", ApiVersion: "1.51" }, info)).toMatchObject({ hasPlainContainers });
  });
});
