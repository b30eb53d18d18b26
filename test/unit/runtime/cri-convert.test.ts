import { describe, expect, test } from "vitest";
import { socketTarget, statusText, translateError } from "../../../agent/runtime/cri/client.ts";
import {
  containerConfigToWire,
  containerStatus,
  msFromNanos,
  runtimeStatus,
  sandboxConfigToWire,
  sandboxStatus,
} from "../../../agent/runtime/cri/convert.ts";
import { loadProto } from "../../../agent/lib/grpc/proto.ts";
import { containerStats, sandboxProcess } from "../../../agent/runtime/cri/stats.ts";
import type { WireContainerStatus, WirePodSandboxStatus } from "../../../agent/runtime/cri/wire.ts";
import type { ContainerConfig } from "../../../agent/runtime/port.ts";
import { containerConfig, sandboxConfig } from "../../support/runtime/configs.ts";

const service = "runtime.v1.RuntimeService";

/** What the other side of the socket reads. */
async function overTheWire(method: string, request: object): Promise<unknown> {
  const { requestSerialize, requestDeserialize } = (await loadProto("runtime.v1.proto")).method(service, method);
  return requestDeserialize(requestSerialize(request));
}

/** What we read when the other side answers. */
async function answer<T extends object>(method: string, response: object): Promise<T> {
  const { responseSerialize, responseDeserialize } = (await loadProto("runtime.v1.proto")).method(service, method);
  return responseDeserialize(responseSerialize(response)) as T;
}

const dir = `/tmp/nodelet-unit-${process.pid}`;

test("a sandbox config keeps everything on the wire", async ({ onTestFinished }) => {
  const { rm } = await import("node:fs/promises");
  onTestFinished(async () => await rm(dir, { recursive: true, force: true }));
  const base = await sandboxConfig(dir, "/kubepods", { name: "web", uid: "u1" });
  const config = {
    ...base,
    attempt: 2,
    dns: { servers: ["10.0.0.10"], searches: ["svc"], options: ["ndots:5"] },
    portMappings: [{ protocol: "UDP" as const, containerPort: 53, hostPort: 5353, hostIP: "127.0.0.1" }],
    sysctls: { "net.core.somaxconn": "1024" },
    resources: { cpuShares: 512, memoryLimitBytes: 2 ** 40 },
    securityContext: {
      ...base.securityContext,
      runAsUser: 0,
      supplementalGroups: [1000, 4_294_967_295],
      supplementalGroupsPolicy: "Strict" as const,
      namespaceOptions: {
        network: "NODE" as const,
        pid: "CONTAINER" as const,
        ipc: "POD" as const,
        targetID: "",
        userns: { mode: "POD" as const, uids: [{ hostID: 65_536, containerID: 0, length: 65_536 }], gids: [] },
      },
    },
  };
  expect(
    await overTheWire("RunPodSandbox", { config: sandboxConfigToWire(config), runtime_handler: "kata" }),
  ).toMatchObject({
    runtime_handler: "kata",
    config: {
      metadata: { name: "web", uid: "u1", namespace: "default", attempt: 2 },
      dns_config: { servers: ["10.0.0.10"], searches: ["svc"], options: ["ndots:5"] },
      port_mappings: [{ protocol: "UDP", container_port: 53, host_port: 5353, host_ip: "127.0.0.1" }],
      labels: config.labels,
      linux: {
        cgroup_parent: "/kubepods/podu1",
        sysctls: { "net.core.somaxconn": "1024" },
        overhead: null,
        resources: { cpu_shares: "512", memory_limit_in_bytes: "1099511627776", cpu_quota: "0" },
        security_context: {
          run_as_user: { value: "0" },
          run_as_group: null,
          supplemental_groups: ["1000", "4294967295"],
          supplemental_groups_policy: "Strict",
          seccomp: { profile_type: "RuntimeDefault" },
          apparmor: null,
          namespace_options: {
            network: "NODE",
            pid: "CONTAINER",
            ipc: "POD",
            userns_options: { mode: "POD", uids: [{ host_id: 65_536, container_id: 0, length: 65_536 }] },
          },
        },
      },
    },
  });
});

test("a container config keeps everything on the wire", async ({ onTestFinished }) => {
  const { rm } = await import("node:fs/promises");
  onTestFinished(async () => await rm(dir, { recursive: true, force: true }));
  const sandbox = await sandboxConfig(dir, "/kubepods");
  const base = await containerConfig(sandbox, "app", "sha256:1", ["run"]);
  const config: ContainerConfig = {
    ...base,
    args: ["-v"],
    envs: [
      { key: "GREETING", value: "grüß" },
      { key: "KEY", value: new Uint8Array([0xff, 0x00]) },
    ],
    cdiDevices: ["vendor.com/gpu=0"],
    devices: [{ containerPath: "/dev/a", hostPath: "/dev/b", permissions: "rw" }],
    mounts: [
      {
        containerPath: "/data",
        hostPath: "/srv",
        readonly: true,
        selinuxRelabel: false,
        propagation: "HOST_TO_CONTAINER",
        recursiveReadOnly: true,
        image: { image: "img", userSpecifiedImage: "img:1", runtimeHandler: "gvisor", annotations: {} },
        imageSubPath: "sub",
      },
    ],
    resources: {
      cpuQuota: -1,
      oomScoreAdj: -997,
      hugepageLimits: [{ pageSize: "2MB", limit: 4 }],
      unified: { "memory.oom.group": "1" },
    },
    securityContext: {
      ...base.securityContext,
      capabilities: { add: ["NET_ADMIN"], drop: ["ALL"] },
      runAsUsername: "web",
      noNewPrivs: true,
      maskedPaths: ["/proc/kcore"],
      apparmor: { type: "Localhost", localhostRef: "mine" },
    },
    stopSignal: "SIGRTMIN+3",
  };
  expect(
    await overTheWire("CreateContainer", { pod_sandbox_id: "s1", config: containerConfigToWire(config) }),
  ).toMatchObject({
    config: {
      image: { image: "sha256:1", user_specified_image: "sha256:1" },
      command: ["run"],
      args: ["-v"],
      envs: [
        { key: "GREETING", value: Buffer.from("grüß") },
        { key: "KEY", value: Buffer.from([0xff, 0x00]) },
      ],
      CDI_devices: [{ name: "vendor.com/gpu=0" }],
      devices: [{ container_path: "/dev/a", host_path: "/dev/b", permissions: "rw" }],
      mounts: [
        {
          container_path: "/data",
          host_path: "/srv",
          readonly: true,
          propagation: "PROPAGATION_HOST_TO_CONTAINER",
          recursive_read_only: true,
          image: { image: "img", user_specified_image: "img:1", runtime_handler: "gvisor" },
          image_sub_path: "sub",
        },
      ],
      linux: {
        resources: {
          cpu_quota: "-1",
          oom_score_adj: "-997",
          hugepage_limits: [{ page_size: "2MB", limit: "4" }],
          unified: { "memory.oom.group": "1" },
        },
        security_context: {
          capabilities: { add_capabilities: ["NET_ADMIN"], drop_capabilities: ["ALL"] },
          run_as_user: null,
          run_as_username: "web",
          no_new_privs: true,
          masked_paths: ["/proc/kcore"],
          apparmor: { profile_type: "Localhost", localhost_ref: "mine" },
          apparmor_profile: "localhost/mine",
        },
      },
      stop_signal: "SIGRTMINPLUS3",
    },
  });
});

test("a full container status is read in our words", async () => {
  const { status } = await answer<{ status: WireContainerStatus }>("ContainerStatus", {
    status: {
      id: "c1",
      metadata: { name: "app", attempt: 4 },
      state: "CONTAINER_EXITED",
      created_at: "1767225600123456789",
      started_at: "1767225601000000000",
      finished_at: "1767225602000000000",
      exit_code: 137,
      image: { image: "sha256:1", user_specified_image: "app:1" },
      image_ref: "sha256:1",
      reason: "OOMKilled",
      labels: { "io.kubernetes.pod.uid": "u1", "io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "ns" },
      mounts: [{ container_path: "/a", host_path: "/b", propagation: "PROPAGATION_BIDIRECTIONAL" }],
      resources: { linux: { cpu_shares: 2, memory_limit_in_bytes: "1099511627776", unified: { a: "b" } } },
      user: { linux: { uid: 1000, gid: "4294967295", supplemental_groups: [5] } },
      stop_signal: "SIGRTMAXMINUS2",
    },
  });
  expect(containerStatus(status, "s1")).toEqual({
    id: "c1",
    sandboxID: "s1",
    podUID: "u1",
    podName: "web",
    podNamespace: "ns",
    name: "app",
    attempt: 4,
    state: "exited",
    createdAtMs: 1_767_225_600_123,
    startedAtMs: 1_767_225_601_000,
    finishedAtMs: 1_767_225_602_000,
    exitCode: 137,
    reason: "OOMKilled",
    message: "",
    image: "app:1",
    imageRef: "sha256:1",
    labels: expect.any(Object) as object,
    annotations: {},
    logPath: "",
    mounts: [
      {
        containerPath: "/a",
        hostPath: "/b",
        readonly: false,
        selinuxRelabel: false,
        propagation: "BIDIRECTIONAL",
        recursiveReadOnly: false,
      },
    ],
    resources: { oomScoreAdj: 0, cpuShares: 2, memoryLimitBytes: 2 ** 40, unified: { a: "b" } },
    user: { uid: 1000, gid: 4_294_967_295, supplementalGroups: [5] },
    stopSignal: "SIGRTMAX-2",
  });
});

test("an empty status, as a careless runtime sends it, is read without harm", async () => {
  const { status } = await answer<{ status: WireContainerStatus }>("ContainerStatus", { status: { id: "c1" } });
  expect(containerStatus(status, "")).toMatchObject({
    state: "created",
    podUID: "",
    startedAtMs: 0,
    resources: undefined,
    user: undefined,
    stopSignal: undefined,
  });
  expect(runtimeStatus(await answer("Status", {}))).toMatchObject({ runtimeReady: { status: false }, handlers: [] });
});

const sandboxes: { name: string; wire: object; ips: string[] }[] = [
  {
    name: "ready",
    wire: { network: { ip: "10.0.0.1", additional_ips: [{ ip: "fd00::1" }] } },
    ips: ["10.0.0.1", "fd00::1"],
  },
  { name: "dead", wire: { state: "SANDBOX_NOTREADY", network: { ip: "10.0.0.1" } }, ips: [] },
  {
    name: "host network",
    wire: { network: { ip: "192.0.2.1" }, linux: { namespaces: { options: { network: "NODE" } } } },
    ips: [],
  },
  { name: "no network yet", wire: {}, ips: [] },
];
for (const { name, wire, ips } of sandboxes) {
  test(`addresses of a sandbox: ${name}`, async () => {
    const response = { status: { id: "s1", ...wire } };
    const { status } = await answer<{ status: WirePodSandboxStatus }>("PodSandboxStatus", response);
    expect(sandboxStatus(status).ips).toEqual(ips);
  });
}

for (const [nanos, ms] of [
  ["1767225600123999999", 1_767_225_600_123],
  ["999999", 0],
  ["1000000", 1],
  ["0", 0],
  ["-6795364578871345152", 0],
] as const) {
  test(`${nanos} ns are ${ms} ms`, () => expect(msFromNanos(nanos)).toBe(ms));
}

for (const endpoint of ["unix:///run/c.sock", "/run/c.sock", "unix:/run/c.sock"]) {
  test(`${endpoint} names a socket`, () => expect(socketTarget(endpoint)).toBe("unix:///run/c.sock"));
}
for (const endpoint of ["tcp://localhost:1234", "localhost:1234", "", "unix://", "npipe:////./pipe/c"]) {
  test(`"${endpoint}" is refused by name`, () =>
    expect(() => socketTarget(endpoint)).toThrow(`endpoint "${endpoint}"`));
}

const errors = [
  { code: 5, details: "not found", want: "NotFound" },
  { code: 2, details: 'container "x": not found', want: "NotFound" },
  { code: 2, details: "failed to exec: timeout 1s exceeded", want: "DeadlineExceeded" },
  { code: 14, details: "no connection", want: "Unavailable" },
  { code: 12, details: "unknown method", want: "Unimplemented" },
  { code: 2, details: "broken", want: "Internal" },
  { code: 13, details: "", want: "Internal" },
];
for (const { code, details, want } of errors) {
  test(`gRPC ${code} "${details}" is ${want}`, () => {
    const err = translateError({ code, details }, "stop container c1");
    expect(err.code).toBe(want);
    expect(err.message).toBe(`stop container c1: ${details || "Internal"}`);
  });
}

test("a status without a kind is its text alone, others keep their code", () => {
  expect(statusText({ code: 2, details: "plain" })).toBe("plain");
  expect(statusText({ code: 5, details: "no image" })).toBe("rpc error: code = NotFound desc = no image");
});

describe("container statistics", () => {
  const nothing = { attributes: { id: "c1" }, cpu: null, memory: null, swap: null, writable_layer: null };

  test("what the runtime does not measure is left out, and 0 is a figure", () => {
    expect(containerStats(nothing)).toEqual({ containerID: "c1" });
    const layer = {
      timestamp: "1700000000123456789",
      fs_id: { mountpoint: "/var/lib/c" },
      used_bytes: { value: "0" },
      inodes_used: null,
    };
    expect(containerStats({ ...nothing, writable_layer: layer })).toEqual({
      containerID: "c1",
      writableLayer: { timestampMs: 1_700_000_000_123, mountpoint: "/var/lib/c", usedBytes: 0 },
    });
    const cpu = {
      timestamp: "1700000000000000000",
      usage_core_nano_seconds: { value: "123456789" },
      usage_nano_cores: null,
    };
    expect(containerStats({ ...nothing, cpu }).cpu).toEqual({
      timestampMs: 1_700_000_000_000,
      usageCoreNanoSeconds: 123_456_789,
    });
  });

  test.each([
    {
      name: "containerd's and CRI-O's form",
      info: { info: '{"pid":4711,"image":"pause:3","runtimeSpec":{}}' },
      want: { pid: 4711, image: "pause:3" },
    },
    { name: "no such information", info: {}, want: { image: "" } },
    { name: "no process", info: { info: '{"pid":0}' }, want: { image: "" } },
    { name: "not JSON", info: { info: "pid: 1" }, want: { image: "" } },
    { name: "not an object", info: { info: "null" }, want: { image: "" } },
    { name: "a path for a number", info: { info: '{"pid":"../1","image":7}' }, want: { image: "" } },
  ])("a sandbox's process: $name", ({ info, want }) => {
    expect(sandboxProcess(info as Record<string, string>)).toEqual(want);
  });
});
