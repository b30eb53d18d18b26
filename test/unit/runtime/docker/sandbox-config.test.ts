import { expect, test } from "vitest";
import type { DaemonInfo } from "../../../../agent/runtime/docker/daemon.ts";
import { sandboxCreateBody } from "../../../../agent/runtime/docker/sandbox-config.ts";
import type { PodSandboxConfig, SandboxSecurityContext } from "../../../../agent/runtime/port.ts";
import { context, sandbox } from "./config-support.ts";

function body(change: Partial<PodSandboxConfig> = {}, handler = "", daemon: Partial<DaemonInfo> = {}) {
  return sandboxCreateBody(sandbox(change), "pause:3.10", handler, context(daemon));
}

const secured = (change: Partial<SandboxSecurityContext>): Partial<PodSandboxConfig> => ({
  securityContext: { ...sandbox().securityContext, ...change },
});

const namespaces = { network: "POD", pid: "CONTAINER", ipc: "POD", targetID: "" } as const;

test("a plain sandbox: an empty network for CNI, memory to share, no rights", () => {
  const { Labels, ...rest } = body();
  expect(Labels).toMatchObject({ app: "web", "io.kubernetes.docker.type": "podsandbox" });
  expect(rest).toEqual({
    name: "k8s_POD_web_shop_u1_2",
    Image: "pause:3.10",
    Hostname: "web-0",
    Healthcheck: { Test: ["NONE"] },
    HostConfig: {
      AutoRemove: false,
      RestartPolicy: { Name: "no" },
      Init: false,
      Privileged: false,
      ReadonlyRootfs: false,
      CapDrop: ["ALL"],
      SecurityOpt: ["no-new-privileges"],
      NetworkMode: "none",
      IpcMode: "shareable",
      CgroupnsMode: "host",
      CgroupParent: "/kubepods/burstable/podu1",
      Sysctls: { "net.ipv6.conf.all.disable_ipv6": "0" },
      CpuShares: 2,
      OomScoreAdj: -998,
      LogConfig: { Type: "json-file", Config: { "max-size": "100k" } },
    },
  });
});

test("on the node's network it has the node's name and no own", () => {
  const got = body(secured({ namespaceOptions: { ...namespaces, network: "NODE" } }));
  expect(got.HostConfig).toMatchObject({ NetworkMode: "host", UTSMode: "host" });
  expect(got).not.toHaveProperty("Hostname");
});

test("the node's IPC and processes", () => {
  const got = body(secured({ namespaceOptions: { ...namespaces, ipc: "NODE", pid: "NODE" } }));
  expect(got.HostConfig).toMatchObject({ IpcMode: "host", PidMode: "host" });
});

test("IPv6 stays on in the pod's own network, unless the pod or the node's kernel says no", () => {
  const sysctl = "net.ipv6.conf.all.disable_ipv6";
  expect(body({ sysctls: { [sysctl]: "1" } }).HostConfig.Sysctls).toEqual({ [sysctl]: "1" });
  const onHost = body(secured({ namespaceOptions: { ...namespaces, network: "NODE" } }));
  expect(onHost.HostConfig).not.toHaveProperty("Sysctls");
  const without = sandboxCreateBody(sandbox(), "pause:3.10", "", { ...context(), hasIPv6: false });
  expect(without.HostConfig).not.toHaveProperty("Sysctls");
});

test("processes shared in the pod are the sandbox's own: it gets a PID namespace like any container", () => {
  const got = body(secured({ namespaceOptions: { ...namespaces, pid: "POD" } }));
  expect(got.HostConfig).not.toHaveProperty("PidMode");
});

test("sysctls, user, groups and SELinux options of the pod", () => {
  const selinux = { user: "u", role: "", type: "container_t", level: "s0:c1,c2" };
  const got = body({
    sysctls: { "net.core.somaxconn": "1024" },
    ...secured({ runAsUser: 1000, runAsGroup: 2000, supplementalGroups: [5, 6], selinux, privileged: true }),
  });
  expect(got.User).toBe("1000:2000");
  expect(got.HostConfig).toMatchObject({
    Sysctls: { "net.core.somaxconn": "1024" },
    GroupAdd: ["5", "6"],
    Privileged: false,
    SecurityOpt: ["no-new-privileges", "label=user:u", "label=type:container_t", "label=level:s0:c1,c2"],
  });
});

test("a group without a user leaves the pause image its own user", () => {
  expect(body(secured({ runAsGroup: 2000 }))).not.toHaveProperty("User");
});

test("cgroup v2 with systemd", () => {
  const got = body({ cgroupParent: "/kubepods.slice/kubepods-podu1.slice" }, "", {
    cgroupDriver: "systemd",
    cgroupVersion: 2,
  });
  expect(got.HostConfig).toMatchObject({ CgroupParent: "kubepods-podu1.slice", CgroupnsMode: "private" });
});

test("a RuntimeClass's handler is one of the daemon's runtimes, or refused with the names that it has", () => {
  expect(body({}, "kata", { runtimes: ["kata", "runc"] }).HostConfig.Runtime).toBe("kata");
  expect(() => body({}, "kata")).toThrow(
    'sandbox of pod shop/web: the Docker daemon has no runtime "kata" (it has: runc); add it to "runtimes" in daemon.json',
  );
});

test("a user namespace and strict groups are refused", () => {
  const userns = { mode: "POD", uids: [], gids: [] } as const;
  expect(() =>
    body(secured({ namespaceOptions: { ...namespaces, userns: { ...userns, uids: [], gids: [] } } })),
  ).toThrow(/^sandbox of pod shop\/web: hostUsers: false needs a CRI runtime/);
  expect(() => body(secured({ supplementalGroupsPolicy: "Strict" }))).toThrow(/supplementalGroupsPolicy Strict/);
});
