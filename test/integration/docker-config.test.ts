import { mkdir, readFile, readlink, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { exec } from "../../agent/lib/exec.ts";
import { readOOMScoreAdjMin } from "../../agent/runtime/docker/host-limits.ts";
import type {
  ContainerConfig,
  ContainerSecurityContext,
  Mount,
  NamespaceOptions,
  PodSandboxConfig,
  Runtime,
} from "../../agent/runtime/port.ts";
import { busyboxImageName, customImage } from "../support/images/images.ts";
import { containerConfig, sandboxConfig } from "../support/runtime/configs.ts";
import { startTestDocker, type TestDocker } from "../support/runtime/docker.ts";

// What pods ask for, seen from inside the containers that a real daemon made of it.

const echoImageName = "registry.local/echo:1";

let docker: TestDocker;
let runtime: Runtime;
/** What the daemon says of itself. */
let info: { CgroupVersion?: string; SecurityOptions: string[]; DockerRootDir: string };

beforeAll(async () => {
  docker = await startTestDocker();
  await docker.load([await customImage({ name: echoImageName, entrypoint: ["/bin/echo", "entry"], cmd: ["cmd"] })]);
  info = (await docker.api("GET", "/info")) as typeof info;
  runtime = await docker.connect();
});

afterAll(async () => {
  await runtime?.close();
  await docker?.destroy();
});

interface Running {
  id: string;
  /** On the host. */
  pid: number;
  /** Standard output of a shell command in it, without the end of the line; throws if it fails. */
  sh(command: string): Promise<string>;
}

interface Pod {
  config: PodSandboxConfig;
  sandbox: Running;
  /** Starts a container that sleeps unless `command` says else. */
  add(change?: Partial<ContainerConfig>, command?: string[]): Promise<Running>;
  security(change: Partial<ContainerSecurityContext>): Partial<ContainerConfig>;
}

async function startPod(
  change: Partial<PodSandboxConfig> = {},
  namespaces: Partial<NamespaceOptions> = {},
): Promise<Pod> {
  const base = await sandboxConfig(docker.node.dir, docker.node.cgroupRoot, change);
  const namespaceOptions = { ...base.securityContext.namespaceOptions, ...namespaces };
  const config = { ...base, securityContext: { ...base.securityContext, namespaceOptions } };
  const sandboxID = await runtime.runPodSandbox(config, "");
  const plain = (await containerConfig(config, "plain", busyboxImageName, [])).securityContext;
  let count = 0;
  return {
    config,
    sandbox: await running(sandboxID),
    security: (own) => ({ securityContext: { ...plain, ...own } }),
    add: async (own = {}, command = ["sleep", "1000000"]) => {
      count += 1;
      const container = await containerConfig(config, `c${count}`, busyboxImageName, command, own);
      const id = await runtime.createContainer(sandboxID, container, config);
      await runtime.startContainer(id);
      return await running(id);
    },
  };
}

async function running(id: string): Promise<Running> {
  const { State } = (await docker.api("GET", `/containers/${id}/json`)) as { State: { Pid: number } };
  return {
    id,
    pid: State.Pid,
    sh: async (command) => {
      const { stdout, stderr, exitCode } = await runtime.execSync(id, ["sh", "-c", command], 30);
      if (exitCode !== 0) throw new Error(`${command}: ${exitCode}: ${stderr.toString()}`);
      return stdout.toString().trimEnd();
    },
  };
}

async function run(file: string, ...args: string[]): Promise<string> {
  const result = await exec(file, args, { timeoutMs: 10_000 });
  if (result.failure !== undefined) throw new Error(result.message);
  return result.stdout;
}

const namespaceOf = async (pid: number | "self", kind: string) => await readlink(`/proc/${pid}/ns/${kind}`);
const fieldOf = async (container: Running, name: string) =>
  (await container.sh(`grep ^${name}: /proc/1/status`)).replace(/^\w+:\s*/, "");
// Their bits, as /proc shows them.
const capability = { chown: 0n, netBindService: 10n, netAdmin: 12n, sysTime: 25n };
const runtimeDefault = { type: "RuntimeDefault", localhostRef: "" } as const;
const ownCapabilities = async () =>
  BigInt(`0x${/^CapBnd:\s*([0-9a-f]+)$/m.exec(await readFile("/proc/self/status", "utf8"))?.[1] ?? "0"}`);
const hasCap = (bits: string, bit: bigint) => ((BigInt(`0x${bits}`) >> bit) & 1n) === 1n;
const bind = (hostPath: string, containerPath: string, change: Partial<Mount> = {}): Mount => ({
  hostPath,
  containerPath,
  readonly: false,
  selinuxRelabel: false,
  propagation: "PRIVATE",
  recursiveReadOnly: false,
  ...change,
});

describe("namespaces", () => {
  test("containers share the pod's network, IPC and hostname, and each has its own processes", async () => {
    const pod = await startPod({ hostname: "my-host" });
    const [one, two] = await Promise.all([pod.add(), pod.add()]);
    for (const kind of ["net", "ipc"]) {
      const ofPod = await namespaceOf(pod.sandbox.pid, kind);
      expect(await Promise.all([one, two].map(async ({ pid }) => await namespaceOf(pid, kind)))).toEqual([
        ofPod,
        ofPod,
      ]);
      expect(ofPod).not.toBe(await namespaceOf("self", kind));
    }
    expect(await one.sh("hostname; echo $HOSTNAME; cat /etc/hostname")).toBe("my-host\nmy-host\nmy-host");
    expect(await one.sh("cat /proc/1/comm; ls -d /proc/[0-9]* | wc -l")).toMatch(/^sleep\n\d$/);
    await one.sh("echo shared > /dev/shm/file");
    expect(await two.sh("cat /dev/shm/file")).toBe("shared");
  });

  test("processes shared in the pod: the pause process is the first", async () => {
    const pod = await startPod({}, { pid: "POD" });
    const container = await pod.add();
    expect(await namespaceOf(container.pid, "pid")).toBe(await namespaceOf(pod.sandbox.pid, "pid"));
    expect(await container.sh("cat /proc/1/comm")).toBe("pause");
  });

  test("a debugging container sees the processes of its target", async () => {
    const pod = await startPod();
    const target = await pod.add();
    const namespaceOptions = {
      ...pod.config.securityContext.namespaceOptions,
      pid: "TARGET" as const,
      targetID: target.id,
    };
    const debug = await pod.add(pod.security({ namespaceOptions }));
    expect(await namespaceOf(debug.pid, "pid")).toBe(await namespaceOf(target.pid, "pid"));
  });

  test("the node's network, IPC, processes and hostname", async () => {
    const pod = await startPod({ hostname: "" }, { network: "NODE", ipc: "NODE", pid: "NODE" });
    const container = await pod.add();
    for (const kind of ["ipc", "pid", "uts"]) {
      expect(await namespaceOf(container.pid, kind)).toBe(await namespaceOf("self", kind));
    }
    const { ino } = await stat(docker.node.network.netnsPath);
    expect(await namespaceOf(container.pid, "net")).toBe(`net:[${ino}]`);
    expect(await container.sh("hostname")).toBe((await run("hostname")).trim());
  });

  test("sysctls of the pod hold in its containers", async () => {
    const pod = await startPod({
      sysctls: { "kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "1100 2200" },
    });
    const container = await pod.add();
    const sysctls = await container.sh("cd /proc/sys; cat kernel/shm_rmid_forced net/ipv4/ip_local_port_range");
    expect(sysctls.split(/\s+/)).toEqual(["1", "1100", "2200"]);
  });

  test("localhost is there in both IP families, where the kernel has both", async () => {
    const hasIPv6 = (await readFile("/proc/net/if_inet6", "utf8").catch(() => "")) !== "";
    const container = await (await startPod()).add();
    const addresses = await container.sh("ip addr show lo | grep -o 'inet[6]* [^ ]*'");
    expect(addresses.split("\n")).toEqual(["inet 127.0.0.1/8", ...(hasIPv6 ? ["inet6 ::1/128"] : [])]);
  });
});

describe("the process", () => {
  /** What the image's program says, from its log. */
  const echo = async (own: Partial<ContainerConfig>, command: string[]): Promise<string> => {
    const pod = await startPod();
    const { id } = await pod.add({ imageRef: echoImageName, ...own }, command);
    await docker.api("POST", `/containers/${id}/wait`);
    const { logPath } = await runtime.containerStatus(id);
    return (JSON.parse(await readFile(logPath, "utf8")) as { log: string }).log.trim();
  };
  test.each([
    ["neither: the image's entry point and arguments", [], [], "entry cmd"],
    ["args alone: the image's entry point", [], ["a b"], "entry a b"],
    ["a command alone: none of the image's", ["/bin/echo", "mine"], [], "mine"],
    ["both", ["/bin/echo", "mine"], ["arg"], "mine arg"],
  ])("command and args; %s", async (_name, command, args, want) => {
    expect(await echo({ args }, command)).toBe(want);
  });

  test("environment, working directory and terminal", async () => {
    const pod = await startPod();
    const envs = [
      { key: "A", value: "first" },
      { key: "UTF", value: 'ä "quoted" $HOME' },
      { key: "EMPTY", value: "" },
      { key: "A", value: "last=1" },
    ];
    const container = await pod.add({ envs, workingDir: "/made/by/docker", tty: true, stdin: true });
    const env = (await container.sh("tr '\\0' '\\n' < /proc/1/environ")).split("\n");
    expect(env).toEqual(expect.arrayContaining(["A=last=1", 'UTF=ä "quoted" $HOME', "EMPTY=", "TERM=xterm"]));
    expect(env.filter((line) => line.startsWith("A="))).toHaveLength(1);
    expect(await container.sh("readlink /proc/1/cwd; readlink /proc/1/fd/0")).toMatch(
      /^\/made\/by\/docker\n\/dev\/pts\/0$/,
    );
  });

  test("user, group and supplemental groups", async () => {
    const pod = await startPod();
    const container = await pod.add(pod.security({ runAsUser: 1000, runAsGroup: 2000, supplementalGroups: [5, 3000] }));
    expect(await fieldOf(container, "Uid")).toBe("1000\t1000\t1000\t1000");
    expect(await fieldOf(container, "Gid")).toBe("2000\t2000\t2000\t2000");
    expect((await fieldOf(container, "Groups")).split(" ").sort()).toEqual(expect.arrayContaining(["3000", "5"]));
  });
});

describe("rights", () => {
  test("capabilities", async () => {
    const pod = await startPod();
    const bits = async (add: string[], drop: string[]) =>
      await fieldOf(await pod.add(pod.security({ capabilities: { add, drop } })), "CapEff");
    const mixed = await bits(["NET_ADMIN", "CAP_SYS_TIME"], ["SYS_TIME", "CHOWN"]);
    expect([capability.netAdmin, capability.sysTime, capability.chown].map((bit) => hasCap(mixed, bit))).toEqual([
      true,
      false,
      false,
    ]);
    expect(BigInt(`0x${await bits(["NET_BIND_SERVICE"], ["ALL"])}`)).toBe(1n << capability.netBindService);
    expect(BigInt(`0x${await bits(["ALL"], ["ALL"])}`)).toBe(0n);
  });

  test("the pause process has none and can get none", async () => {
    const pod = await startPod();
    const status = await readFile(`/proc/${pod.sandbox.pid}/status`, "utf8");
    expect(status).toMatch(/^CapEff:\s*0+$/m);
    expect(status).toMatch(/^NoNewPrivs:\s*1$/m);
    expect(status).toMatch(/^Seccomp:\s*2$/m);
  });

  test("no new privileges, only when asked for", async () => {
    const pod = await startPod();
    const [strict, plain] = await Promise.all([pod.add(pod.security({ noNewPrivs: true })), pod.add()]);
    expect([await fieldOf(strict, "NoNewPrivs"), await fieldOf(plain, "NoNewPrivs")]).toEqual(["1", "0"]);
  });

  test("seccomp: the daemon's profile, none, or the node's", async () => {
    const pod = await startPod();
    const path = join(docker.node.dir, "no-mkdir.json");
    const syscalls = [{ names: ["mkdir", "mkdirat"], action: "SCMP_ACT_ERRNO", args: [], includes: {}, excludes: {} }];
    await writeFile(path, JSON.stringify({ defaultAction: "SCMP_ACT_ALLOW", syscalls }));
    const of = async (type: "RuntimeDefault" | "Unconfined" | "Localhost") =>
      await pod.add(pod.security({ seccomp: { type, localhostRef: type === "Localhost" ? path : "" } }));
    const [byDefault, unconfined, localhost] = [
      await of("RuntimeDefault"),
      await of("Unconfined"),
      await of("Localhost"),
    ];
    const modes = [byDefault, unconfined, localhost].map(async (container) => await fieldOf(container, "Seccomp"));
    expect(await Promise.all(modes)).toEqual(["2", "0", "2"]);
    await expect(localhost.sh("mkdir /made")).rejects.toThrow(/Operation not permitted/);
    await byDefault.sh("mkdir /made");
  });

  test("privileged: all capabilities, no filter, the node's devices", async () => {
    const pod = await startPod();
    const devices = [{ hostPath: "/dev/zero", containerPath: "/dev/my-zero", permissions: "r" }];
    const privileged = { devices, ...pod.security({ privileged: true, seccomp: runtimeDefault }) };
    const all = (1n << (BigInt(await readFile("/proc/sys/kernel/cap_last_cap", "utf8")) + 1n)) - 1n;
    if ((await ownCapabilities()) !== all) {
      // Docker 20.10 gives a privileged container all capabilities, or none at all where it lacks one itself.
      await expect(pod.add(privileged)).rejects.toThrow(
        /^start container .*: unable to apply caps: operation not permitted/,
      );
      return;
    }
    const container = await pod.add(privileged);
    expect(BigInt(`0x${await fieldOf(container, "CapEff")}`)).toBe(all);
    expect(await fieldOf(container, "Seccomp")).toBe("0");
    expect(await container.sh("ls -d /dev/tty0; head -c 4 /dev/my-zero | wc -c")).toBe("/dev/tty0\n4");
  });

  test("paths of /proc are masked and read-only as the pod says, not as the daemon does", async () => {
    const pod = await startPod();
    const listed = await pod.add(pod.security({ maskedPaths: ["/proc/uptime"], readonlyPaths: ["/proc/bus"] }));
    expect(await listed.sh("wc -c < /proc/uptime")).toBe("0");
    const mounts = (container: Running) => container.sh("grep -o ' /proc/[a-z]* r[wo]' /proc/1/mountinfo || true");
    expect(
      (await mounts(listed))
        .split("\n")
        .map((line) => line.trim())
        .sort(),
    ).toEqual(["/proc/bus ro", "/proc/uptime rw"]);
    expect(await mounts(await pod.add())).toBe("");
  });

  test("a read-only root", async () => {
    const pod = await startPod();
    const container = await pod.add(pod.security({ readonlyRootfs: true }));
    await expect(container.sh("touch /file")).rejects.toThrow(/Read-only file system/);
  });

  test("AppArmor: a profile where the kernel has it, a clear refusal where not", async () => {
    const pod = await startPod();
    const apparmor = { type: "Localhost" as const, localhostRef: "docker-default" };
    if (info.SecurityOptions.some((option) => option.startsWith("name=apparmor"))) {
      const container = await pod.add(pod.security({ apparmor }));
      expect(await container.sh("cat /proc/1/attr/current")).toMatch(/^docker-default/);
    } else {
      await expect(pod.add(pod.security({ apparmor }))).rejects.toThrow(/the Docker daemon has no AppArmor$/);
    }
  });

  test("devices under another name, with the permissions asked for", async () => {
    const pod = await startPod();
    const hostPath = join(docker.node.dir, "device");
    await run("mknod", hostPath, "c", "10", "253"); // there is no driver for it: who may open it is told that
    const container = await pod.add({ devices: [{ hostPath, containerPath: "/dev/mine", permissions: "r" }] });
    await expect(container.sh(": < /dev/mine")).rejects.toThrow(/No such device/);
    await expect(container.sh(": > /dev/mine")).rejects.toThrow(/Operation not permitted/);
  });
});

describe("mounts", () => {
  test("read-write, read-only, paths with colons, missing ones, and the later of two at one place", async () => {
    const pod = await startPod();
    const dir = join(docker.node.dir, "volumes");
    for (const name of ["a", "b:c"]) {
      await mkdir(join(dir, name), { recursive: true });
      await writeFile(join(dir, name, "file"), name);
    }
    const container = await pod.add({
      mounts: [
        bind(join(dir, "a"), "/rw"),
        bind(join(dir, "a"), "/ro", { readonly: true }),
        bind(join(dir, "b:c"), "/co:lon"),
        bind(join(dir, "not/there"), "/new"),
        bind(join(dir, "a"), "/twice"),
        bind(join(dir, "b:c"), "/twice/"),
      ],
    });
    expect(await container.sh("cat /rw/file /ro/file /co:lon/file /twice/file")).toBe("aab:cb:c");
    await container.sh("echo new > /rw/made; echo new > /new/made");
    expect(await readFile(join(dir, "not/there/made"), "utf8")).toBe("new\n");
    await expect(container.sh("touch /ro/made")).rejects.toThrow(/Read-only file system/);
  });

  test("propagation: none, from the node, and both ways; read-only leaves what is mounted below alone", async () => {
    const pod = await startPod();
    const dir = join(docker.node.dir, "shared");
    for (const name of ["", "before", "later", "inside"]) await mkdir(join(dir, name), { recursive: true });
    await run("mount", "--bind", dir, dir);
    await run("mount", "--make-shared", dir);
    await run("mount", "-t", "tmpfs", "tmpfs", join(dir, "before"));
    const of = async (propagation: Mount["propagation"], change: Partial<Mount> = {}) =>
      await pod.add({
        mounts: [bind(dir, "/m", { propagation, ...change })],
        ...pod.security({ capabilities: { add: ["SYS_ADMIN"], drop: [] } }),
      });
    const [none, fromNode, both] = [await of("PRIVATE"), await of("HOST_TO_CONTAINER"), await of("BIDIRECTIONAL")];
    const readOnly = await of("PRIVATE", { readonly: true });
    await run("mount", "-t", "tmpfs", "tmpfs", join(dir, "later"));
    await writeFile(join(dir, "later/file"), "");
    await both.sh("mount -t tmpfs tmpfs /m/inside && touch /m/inside/file");
    const seen = async (container: Running) =>
      await container.sh("cd /m; ls later/file inside/file 2>/dev/null || true");
    expect(await Promise.all([none, fromNode, both].map(seen))).toEqual([
      "",
      "inside/file\nlater/file",
      "inside/file\nlater/file",
    ]);
    expect((await stat(join(dir, "inside/file"))).isFile()).toBe(true);
    await readOnly.sh("touch /m/before/file");
    await expect(readOnly.sh("touch /m/file")).rejects.toThrow(/Read-only file system/);
  });

  test("Docker's data root can be mounted without a word on propagation", async () => {
    const pod = await startPod();
    const container = await pod.add({
      mounts: [bind(info.DockerRootDir, "/docker", { readonly: true }), bind("/", "/host", { readonly: true })],
    });
    expect(await container.sh(`ls /docker/containers | grep ${container.id}`)).toBe(container.id);
    expect(await container.sh("ls /host/etc/passwd")).toBe("/host/etc/passwd");
  });
});

describe("limits", () => {
  const v2 = () => info.CgroupVersion === "2";
  /** A file of the container's own cgroup, as it sees it. */
  const cgroupFile = async (container: Running, controller: string, v1File: string, v2File: string) =>
    await container.sh(`cat ${v2() ? `/sys/fs/cgroup/${v2File}` : `/sys/fs/cgroup/${controller}/${v1File}`}`);
  const memoryOf = async (container: Running) =>
    await cgroupFile(container, "memory", "memory.limit_in_bytes", "memory.max");
  const quotaOf = async (container: Running) =>
    v2()
      ? await container.sh("cat /sys/fs/cgroup/cpu.max")
      : await container.sh("cd /sys/fs/cgroup/cpu; cat cpu.cfs_quota_us cpu.cfs_period_us");
  const mi = 1024 * 1024;

  test("CPU and memory below the pod's cgroup, and their change while the container runs", async () => {
    const pod = await startPod();
    const resources = {
      cpuShares: 512,
      cpuQuota: 50_000,
      cpuPeriod: 100_000,
      memoryLimitBytes: 64 * mi,
      oomScoreAdj: 500,
    };
    const container = await pod.add({ resources });
    expect(await memoryOf(container)).toBe(String(64 * mi));
    expect((await quotaOf(container)).split(/\s/)).toEqual(["50000", "100000"]);
    expect(await cgroupFile(container, "cpu", "cpu.shares", "cpu.weight")).toBe(v2() ? "20" : "512");
    expect(await container.sh("cat /proc/1/oom_score_adj")).toBe("500");
    expect(await readFile(`/proc/${container.pid}/cgroup`, "utf8")).toContain(`${pod.config.cgroupParent}/`);

    await runtime.updateContainerResources(container.id, {
      cpuQuota: 20_000,
      cpuPeriod: 100_000,
      memoryLimitBytes: 32 * mi,
      memorySwapLimitBytes: 32 * mi,
    });
    expect(await memoryOf(container)).toBe(String(32 * mi));
    await runtime.updateContainerResources(container.id, {
      memoryLimitBytes: 128 * mi,
      memorySwapLimitBytes: 128 * mi,
    });
    expect(await memoryOf(container)).toBe(String(128 * mi));
    expect((await quotaOf(container)).split(/\s/)).toEqual(["20000", "100000"]);
  });

  test("no limits: the kernel's own", async () => {
    const pod = await startPod();
    const container = await pod.add({ resources: { cpuShares: 2, cpuQuota: -1, cpuPeriod: 100_000 } });
    expect((await quotaOf(container)).split(/\s/)).toEqual([v2() ? "max" : "-1", "100000"]);
    await runtime.updateContainerResources(container.id, { cpuShares: 512, cpuQuota: 10_000, cpuPeriod: 100_000 });
    expect((await quotaOf(container)).split(/\s/)).toEqual(["10000", "100000"]);
    await runtime.updateContainerResources(container.id, { cpuShares: 512, cpuQuota: -1, cpuPeriod: 100_000 });
    expect((await quotaOf(container)).split(/\s/)).toEqual([v2() ? "max" : "-1", "100000"]);
  });

  test("an oom_score_adj that is too low for this machine does not keep a container from starting", async () => {
    const pod = await startPod();
    const container = await pod.add({ resources: { oomScoreAdj: -997 } });
    expect(await container.sh("cat /proc/1/oom_score_adj")).toBe(String(Math.max(-997, await readOOMScoreAdjMin())));
  });

  test("huge page limits, where the kernel has them", async () => {
    const pod = await startPod();
    const pageSize = "2MB";
    const container = await pod.add({ resources: { hugepageLimits: [{ pageSize, limit: 4 * mi }] } });
    const file = v2()
      ? `/sys/fs/cgroup/hugetlb.${pageSize}.max`
      : `/sys/fs/cgroup/hugetlb/hugetlb.${pageSize}.limit_in_bytes`;
    expect(await container.sh(`cat ${file} 2>/dev/null || echo none`)).toMatch(new RegExp(`^(${4 * mi}|none)$`));
  });

  test("too little memory is refused before the daemon is asked", async () => {
    const pod = await startPod();
    await expect(pod.add({ resources: { memoryLimitBytes: 4 * mi } })).rejects.toThrow(/below 6291456 \(6Mi\)/);
  });
});
