import { describe, expect, test } from "vitest";
import { containerCreateBody } from "../../../../agent/runtime/docker/container-config.ts";
import type { CreateBody } from "../../../../agent/runtime/docker/create-body.ts";
import type { DaemonInfo } from "../../../../agent/runtime/docker/daemon.ts";
import type { ContainerConfig, NamespaceOptions, PodSandboxConfig } from "../../../../agent/runtime/port.ts";
import { container, context, sandbox, security } from "./config-support.ts";

const logConfig = { Type: "json-file", Config: { "max-size": "10m" } };

function body(
  change: Partial<ContainerConfig> = {},
  of: { pod?: Partial<PodSandboxConfig>; daemon?: Partial<DaemonInfo>; seccomp?: string; handler?: string } = {},
): CreateBody {
  return containerCreateBody("sb1", container(change), sandbox(of.pod), context(of.daemon), {
    logConfig,
    seccompProfile: of.seccomp,
    runtimeHandler: of.handler ?? "",
  });
}

const namespaces = (change: Partial<NamespaceOptions>): Partial<ContainerConfig> => ({
  securityContext: security({
    namespaceOptions: { network: "POD", pid: "CONTAINER", ipc: "POD", targetID: "", ...change },
  }),
});

test("a plain container is described in full: nothing is left to the daemon's defaults that a pod would notice", () => {
  const { Labels, ...rest } = body();
  expect(Labels).toMatchObject({ "io.kubernetes.docker.type": "container", "io.kubernetes.sandbox.id": "sb1" });
  expect(rest).toEqual({
    name: "k8s_app_web_shop_u1_3",
    Image: "sha256:abc",
    Healthcheck: { Test: ["NONE"] },
    Env: [],
    User: "0",
    Tty: false,
    OpenStdin: false,
    StdinOnce: false,
    AttachStdin: false,
    AttachStdout: false,
    AttachStderr: false,
    HostConfig: {
      AutoRemove: false,
      RestartPolicy: { Name: "no" },
      Init: false,
      Privileged: false,
      ReadonlyRootfs: false,
      SecurityOpt: [],
      MaskedPaths: ["/proc/kcore"],
      ReadonlyPaths: ["/proc/sys"],
      NetworkMode: "container:sb1",
      IpcMode: "container:sb1",
      CgroupnsMode: "host",
      CgroupParent: "/kubepods/burstable/podu1",
      OomScoreAdj: 0,
      LogConfig: logConfig,
    },
  });
});

const bodies: {
  name: string;
  change: Partial<ContainerConfig>;
  want: Partial<CreateBody>;
  absent?: (keyof CreateBody)[];
}[] = [
  { name: "neither command nor args: the image's", change: {}, want: {}, absent: ["Entrypoint", "Cmd"] },
  {
    name: "a command alone",
    change: { command: ["/bin/app"] },
    want: { Entrypoint: ["/bin/app"] },
    absent: ["Cmd"],
  },
  {
    name: "args alone keep the image's entry point",
    change: { args: ["-v"] },
    want: { Cmd: ["-v"] },
    absent: ["Entrypoint"],
  },
  {
    name: "command and args",
    change: { command: ["/bin/app"], args: ["-v", ""] },
    want: { Entrypoint: ["/bin/app"], Cmd: ["-v", ""] },
  },
  {
    name: "environment in order, the later of two with one name",
    change: {
      envs: [
        { key: "A", value: "1" },
        { key: "B", value: "" },
        { key: "A", value: "x=y" },
        { key: "Ü.b-c", value: "ä\n" },
      ],
    },
    want: { Env: ["A=x=y", "B=", "Ü.b-c=ä\n"] },
  },
  { name: "working directory", change: { workingDir: "/srv" }, want: { WorkingDir: "/srv" } },
  { name: "stop signal", change: { stopSignal: "SIGRTMIN+3" }, want: { StopSignal: "SIGRTMIN+3" } },
  { name: "terminal", change: { tty: true, stdin: true }, want: { Tty: true, OpenStdin: true, StdinOnce: false } },
  { name: "stdin once", change: { stdin: true, stdinOnce: true }, want: { OpenStdin: true, StdinOnce: true } },
  {
    name: "stdin once without stdin is nothing",
    change: { stdinOnce: true },
    want: { OpenStdin: false, StdinOnce: false },
  },
  {
    name: "user by name with a group",
    change: { securityContext: security({ runAsUser: undefined, runAsUsername: "www", runAsGroup: 33 }) },
    want: { User: "www:33" },
  },
];
for (const { name, change, want, absent = [] } of bodies) {
  test(`containerCreateBody: ${name}`, () => {
    const got = body(change);
    expect(got).toMatchObject(want);
    for (const field of absent) expect(got).not.toHaveProperty(field);
  });
}

const modes: { name: string; change: Partial<NamespaceOptions>; want: object }[] = [
  { name: "own processes", change: {}, want: { NetworkMode: "container:sb1", IpcMode: "container:sb1" } },
  { name: "processes shared in the pod", change: { pid: "POD" }, want: { PidMode: "container:sb1" } },
  { name: "processes of the node", change: { pid: "NODE" }, want: { PidMode: "host" } },
  {
    name: "processes of another container",
    change: { pid: "TARGET", targetID: "c9" },
    want: { PidMode: "container:c9" },
  },
  {
    name: "network of the node, by way of the sandbox for its resolv.conf",
    change: { network: "NODE" },
    want: { NetworkMode: "container:sb1", UTSMode: "host" },
  },
  { name: "IPC of the node", change: { ipc: "NODE" }, want: { IpcMode: "host" } },
];
for (const { name, change, want } of modes) {
  test(`namespaces: ${name}`, () => {
    const { NetworkMode, IpcMode, PidMode, UTSMode } = body(namespaces(change)).HostConfig;
    expect({ NetworkMode, IpcMode, PidMode, UTSMode }).toMatchObject(want);
    if (!("PidMode" in want)) expect(PidMode).toBeUndefined();
    if (!("UTSMode" in want)) expect(UTSMode).toBeUndefined();
    expect(body(namespaces(change))).not.toHaveProperty("Hostname"); // Docker refuses one beside another's network
  });
}

describe("the daemon's cgroups", () => {
  test("a systemd daemon is given the slice's name alone", () => {
    const cgroupParent = "/kubepods.slice/kubepods-podu1.slice";
    const { HostConfig } = body({}, { pod: { cgroupParent }, daemon: { cgroupDriver: "systemd" } });
    expect(HostConfig.CgroupParent).toBe("kubepods-podu1.slice");
  });
  test("on cgroup v2 a container sees its own cgroup as the root, a privileged one the node's", () => {
    const v2 = { daemon: { cgroupVersion: 2 as const } };
    expect(body({}, v2).HostConfig.CgroupnsMode).toBe("private");
    const privileged = { securityContext: security({ privileged: true }) };
    expect(body(privileged, v2).HostConfig.CgroupnsMode).toBe("host");
  });
  test("an oom_score_adj is no lower than the daemon may give", () => {
    const config = container({ resources: { oomScoreAdj: -997 } });
    const inputs = { logConfig, seccompProfile: undefined, runtimeHandler: "" };
    const adj = (min: number) =>
      containerCreateBody("sb1", config, sandbox(), context({}, min), inputs).HostConfig.OomScoreAdj;
    expect([adj(-1000), adj(-500), adj(0)]).toEqual([-997, -500, 0]);
  });
});

test("the sandbox's OCI runtime runs its containers, too", () => {
  expect(body({}, { handler: "gvisor" }).HostConfig.Runtime).toBe("gvisor");
});

test("devices are given under their names, CDI devices by the daemon that knows them", () => {
  const devices = [{ hostPath: "/dev/sdb", containerPath: "/dev/xvda", permissions: "mrw" }];
  expect(body({ devices }).HostConfig.Devices).toEqual([
    { PathOnHost: "/dev/sdb", PathInContainer: "/dev/xvda", CgroupPermissions: "mrw" },
  ]);
  const cdi = body({ cdiDevices: ["vendor.com/gpu=0"] }, { daemon: { apiVersion: "1.51", hasCDI: true } });
  expect(cdi.HostConfig.DeviceRequests).toEqual([{ Driver: "cdi", DeviceIDs: ["vendor.com/gpu=0"] }]);
});

const refused: { name: string; change: Partial<ContainerConfig>; want: RegExp }[] = [
  {
    name: "environment of bytes, by name",
    change: { envs: [{ key: "KEY", value: new Uint8Array([0xff]) }] },
    want: /^container app in pod shop\/web: environment variable "KEY" is no UTF-8 text/,
  },
  {
    name: "a zero byte",
    change: { envs: [{ key: "KEY", value: "secret\0" }] },
    want: /variable "KEY" contains a zero byte$/,
  },
  { name: "a name with =", change: { envs: [{ key: "A=B", value: "" }] }, want: /variable "A=B" has no usable name/ },
  { name: "no target", change: namespaces({ pid: "TARGET" }), want: /whose processes it is to see is not named/ },
  {
    name: "a user namespace",
    change: namespaces({ userns: { mode: "POD", uids: [], gids: [] } }),
    want: /hostUsers: false needs a CRI runtime/,
  },
  {
    name: "CDI where there is none",
    change: { cdiDevices: ["v.com/gpu=0"] },
    want: /CDI device "v.com\/gpu=0" needs Docker Engine 25/,
  },
  {
    name: "files of cgroup v2 on v1",
    change: { resources: { unified: { "memory.oom.group": "1" } } },
    want: /cgroup v1$/,
  },
];
for (const { name, change, want } of refused) {
  test(`refused with words that name the container: ${name}`, () => {
    expect(() => body(change)).toThrow(want);
    expect(() => body(change)).toThrow(/^container app in pod shop\/web: /);
  });
}
