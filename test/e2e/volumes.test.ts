import { mkdir, open, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { Container, Pod, PodSpec, Volume, VolumeMount } from "../../agent/kube/types.ts";
import { bindMount, mountFilesystem, unmountAllUnder } from "../../agent/lib/mount.ts";
import {
  isFinished,
  isReady,
  isRunning,
  openNamespace,
  rejectionOf,
  runsDocker,
  type TestNamespace,
  until,
} from "./support/cluster.ts";
import { openKubectl } from "./support/kubectl.ts";
import { type BreakableCluster, mountsOf, openBreakableCluster, podDirs } from "./support/local.ts";
import { jobOf, podOf, shell, sleeperOf } from "./support/pods.ts";

// Volumes that the node makes itself, as processes in containers see them.

let cluster: TestNamespace;
/** A directory of the node that only these tests use. */
let nodeDir: string;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
  nodeDir = `/tmp/nodelet-${cluster.namespace}`;
});
afterAll(async () => {
  await cluster[Symbol.asyncDispose]();
  if (!inject("isLocal")) return;
  await unmountAllUnder(nodeDir);
  await rm(nodeDir, { recursive: true, force: true });
});

/** The lines that a job printed which has `volume` at /v. */
async function linesOf(name: string, script: string, volume: Volume, spec: Partial<PodSpec> = {}): Promise<string[]> {
  const main = { volumeMounts: [{ name: volume.name, mountPath: "/v" }] };
  const { output, exitCode } = await cluster.run(jobOf(name, script, { volumes: [volume], ...spec }, main));
  expect({ output, exitCode }).toMatchObject({ exitCode: 0 });
  return output.trimEnd().split("\n");
}

/** Waits until the pod's first container is refused for its configuration. @returns why */
async function refusalOf(pod: Pod): Promise<string> {
  await cluster.createPod(pod);
  const { name } = pod.metadata;
  const waitingOf = ({ status }: Pod) => status?.containerStatuses?.[0]?.state?.waiting;
  const refused = await cluster.waitForPod(
    name,
    "refused",
    (seen) => waitingOf(seen)?.reason === "CreateContainerConfigError",
  );
  await until("an event that says so", async () =>
    (await cluster.eventsOf(name)).some(
      ({ reason, message }) => reason === "Failed" && message === `Error: ${waitingOf(refused)?.message}`,
    ),
  );
  await cluster.deletePod(name);
  await cluster.waitForPodGone(name);
  return waitingOf(refused)?.message ?? "";
}

/**
 * Whether privileged containers start here. With Docker 20.10 they do not where the daemon itself lacks a capability, which
 * the pod must say: then this is false, once it was seen to.
 */
async function startsPrivileged(inside: TestNamespace, name: string): Promise<boolean> {
  const main = shell("main", "true", { securityContext: { privileged: true } });
  await inside.createPod(podOf(name, [main], { restartPolicy: "Never" }));
  const { status } = await inside.waitForPod(name, "finished", isFinished);
  await inside.deletePod(name);
  await inside.waitForPodGone(name);
  if (status?.phase === "Succeeded") return true;
  expect(await runsDocker(inside)).toBe(true);
  const terminated = status?.containerStatuses?.[0]?.state?.terminated;
  expect(terminated?.reason).toBe("ContainerCannotRun");
  expect(terminated?.message).toMatch(/capabilit|operation not permitted/i);
  return false;
}

describe.concurrent("an emptyDir", () => {
  test.each([
    { medium: "", fsGroup: undefined, want: ["777 0", "644 1001"] },
    { medium: "", fsGroup: 4321, want: ["2777 4321", "644 4321"] },
    { medium: "Memory", fsGroup: undefined, want: ["1777 0", "644 1001"] },
    { medium: "Memory", fsGroup: 4321, want: ["3777 4321", "644 4321"] },
  ])("of medium $medium is everybody's, and with fsGroup $fsGroup the group's", async ({ medium, fsGroup, want }) => {
    const name = `empty-${medium.toLowerCase() || "disk"}-${fsGroup ?? "no-group"}`;
    const securityContext = { runAsUser: 1001, runAsGroup: 1001, ...(fsGroup === undefined ? {} : { fsGroup }) };
    const script = "touch /v/file && stat -c '%a %g' /v /v/file";
    expect(await linesOf(name, script, { name: "v", emptyDir: { medium } }, { securityContext })).toEqual(want);
  });

  test("in memory is no larger than what its pod may use", async () => {
    const volumes: Volume[] = [{ name: "v", emptyDir: { medium: "Memory" } }];
    const main: Partial<Container> = {
      volumeMounts: [{ name: "v", mountPath: "/v" }],
      resources: { limits: { memory: "16Mi" } },
    };
    const { output } = await cluster.run(
      jobOf("empty-limit", "df -k /v | tail -n 1 | tr -s ' ' | cut -d' ' -f2", { volumes }, main),
    );
    expect(output).toBe("16384\n");
  });

  test("of a medium that there is not leaves the pod waiting, with the reason", async () => {
    await cluster.createPod(
      podOf("empty-floppy", [shell("main", "true", { volumeMounts: [{ name: "v", mountPath: "/v" }] })], {
        volumes: [{ name: "v", emptyDir: { medium: "HugePages-2Mi" } }],
      }),
    );
    const { message } = await until("an event", async () =>
      (await cluster.eventsOf("empty-floppy")).find(({ reason }) => reason === "FailedMount"),
    );
    expect(message).toBe(
      'MountVolume.SetUp failed for volume "v" : medium HugePages-2Mi: no container requests hugepages-2Mi',
    );
  });
});

describe.concurrent("a hostPath", () => {
  const at = (path: string, type: string): Volume => ({ name: "v", hostPath: { path, type } });

  test("of each type is what it says, and is made where the type allows", async () => {
    const dir = () => `${nodeDir}/types`;
    expect(await linesOf("host-dir", "stat -c '%a %F' /v; touch /v/file", at(dir(), "DirectoryOrCreate"))).toEqual([
      "755 directory",
    ]);
    expect(await linesOf("host-file-made", "stat -c '%a %F' /v", at(`${dir()}/made`, "FileOrCreate"))).toEqual([
      "644 regular empty file",
    ]);
    expect(await linesOf("host-file", "stat -c %F /v", at(`${dir()}/file`, "File"))).toEqual(["regular empty file"]);
    expect(await linesOf("host-device", "stat -c %F /v", at("/dev/null", "CharDevice"))).toEqual([
      "character special file",
    ]);
  });

  test("that is not there yet keeps its pod waiting with the reason, until it is", async () => {
    const path = `${nodeDir}/late/directory`;
    const main = { volumeMounts: [{ name: "v", mountPath: "/v" }] };
    await cluster.createPod(jobOf("host-late", "echo here", { volumes: [at(path, "Directory")] }, main));
    const { message } = await until("an event", async () =>
      (await cluster.eventsOf("host-late")).find(({ reason }) => reason === "FailedMount"),
    );
    expect(message).toBe(
      `MountVolume.SetUp failed for volume "v" : hostPath type check failed: ${path} is not a directory`,
    );
    expect((await cluster.getPod("host-late")).status?.phase).toBe("Pending");
    await linesOf("host-late-made", "echo made", at(path, "DirectoryOrCreate"));
    const { status } = await cluster.waitForPod("host-late", "finished", isFinished);
    expect(status?.phase).toBe("Succeeded");
  });
});

describe.concurrent("a subPath", () => {
  const volumes: Volume[] = [{ name: "v", emptyDir: {} }];
  const sub = (mountPath: string, more: Partial<VolumeMount>): VolumeMount => ({ name: "v", mountPath, ...more });
  const whole = sub("/v", {});

  test("shows a directory or a file of its volume, named by the environment if need be", async () => {
    const prepare = shell("prepare", "mkdir /v/made; echo text > /v/made/file; ln -s made /v/link", {
      volumeMounts: [whole],
    });
    const env = [{ name: "POD", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } }];
    const volumeMounts = [
      whole,
      sub("/dir", { subPath: "made" }),
      sub("/file", { subPath: "link/file", readOnly: true }),
      sub("/own", { subPathExpr: "logs/$(POD)" }),
    ];
    const script =
      "ls /dir; cat /file; echo x 2>/dev/null > /file || echo read-only; touch /own/here; ls /v/logs/sub-paths; stat -c %a /v/logs /own";
    const main = { volumeMounts, env };
    const { output } = await cluster.run(jobOf("sub-paths", script, { initContainers: [prepare], volumes }, main));
    expect(output.trimEnd().split("\n")).toEqual(["file", "text", "read-only", "here", "777", "777"]);
  });

  test("stays the same when its container starts again, and is found anew when it was replaced", async () => {
    const script =
      "echo run >> /sub/runs; n=$(wc -l < /sub/runs); echo $n > /dev/termination-log; " +
      "if [ -e /v/replaced ]; then sleep 3600; fi; " +
      "if [ $n -ge 2 ]; then rm -r /v/x; mkdir /v/x; touch /v/replaced; fi; exit 1";
    const volumeMounts = [whole, sub("/sub", { subPath: "x" })];
    await cluster.createPod(podOf("sub-again", [shell("main", script, { volumeMounts })], { volumes }));
    const pod = await cluster.waitForPod("sub-again", "ready at the third start", (seen) => {
      const status = seen.status?.containerStatuses?.[0];
      return status?.restartCount === 2 && status.ready;
    });
    // The second run saw what the first had written; the third did not, because the second had replaced the directory.
    expect(pod.status?.containerStatuses?.[0]?.lastState?.terminated?.message).toBe("2\n");
    await cluster.deletePod("sub-again");
    await cluster.waitForPodGone("sub-again");
  });

  test.each([
    { name: "to-a-file", link: "/etc/passwd", subPath: "link" },
    { name: "to-a-directory", link: "/", subPath: "link/etc" },
    { name: "upwards", link: "../../../../../../../etc", subPath: "link" },
    { name: "to-make", link: "/tmp", subPath: "link/nodelet-must-not-appear" },
  ])("that a container made a link out of the volume ($name) is refused", async ({ name, link, subPath }) => {
    const prepare = shell("prepare", `ln -s ${link} /v/link`, { volumeMounts: [whole] });
    const main = shell("main", "true", { volumeMounts: [sub("/sub", { subPath })] });
    expect(await refusalOf(podOf(`sub-${name}`, [main], { initContainers: [prepare], volumes }))).toMatch(
      /^failed to (create subPath directory|prepare subPath) for volumeMount "v" of container "main"$/,
    );
  });

  test("with a variable that has no value is refused by its name", async () => {
    const main = shell("main", "true", {
      volumeMounts: [sub("/sub", { subPathExpr: "$(NOBODY)/$(EMPTY)" })],
      env: [{ name: "EMPTY", value: "" }],
    });
    expect(await refusalOf(podOf("sub-nobody", [main], { volumes }))).toContain("missing value for NOBODY, EMPTY");
  });
});

describe.concurrent("a mount", () => {
  test("that is read-only is, whatever the volume allows others", async () => {
    const volumeMounts = [
      { name: "v", mountPath: "/rw" },
      { name: "v", mountPath: "/ro", readOnly: true },
    ];
    const script = "touch /rw/a && touch /ro/b 2>/dev/null || echo refused; ls /ro";
    const volumes: Volume[] = [{ name: "v", emptyDir: {} }];
    expect((await cluster.run(jobOf("read-only", script, { volumes }, { volumeMounts }))).output).toBe("refused\na\n");
  });

  test("that is to be read-only with all beneath it is, or says that the runtime cannot", async () => {
    const [node] = await cluster.readyNodes();
    const handler = node?.status?.runtimeHandlers?.find(({ name = "" }) => name === "");
    const isSupported = handler?.features?.recursiveReadOnlyMounts === true;
    const mount = (recursiveReadOnly: "IfPossible" | "Enabled"): Container[] => [
      shell("main", "touch /v/x 2>/dev/null || echo refused > /dev/termination-log", {
        volumeMounts: [{ name: "v", mountPath: "/v", readOnly: true, recursiveReadOnly }],
      }),
    ];
    const spec: Partial<PodSpec> = { volumes: [{ name: "v", emptyDir: {} }], restartPolicy: "Never" };
    expect((await cluster.run(podOf("rro-possible", mount("IfPossible"), spec))).output).toBe("refused\n");
    const enabled = podOf("rro-enabled", mount("Enabled"), spec);
    if (isSupported) expect((await cluster.run(enabled)).output).toBe("refused\n");
    else if (await runsDocker(cluster)) {
      await cluster.createPod(enabled);
      expect(await rejectionOf(cluster, "rro-enabled")).toMatch(
        /^Failed: .* volumeMount "v": .*needs? Docker Engine 25 or later/,
      );
    } else expect(await refusalOf(enabled)).toContain("is not supported by this pod's runtime handler");
  });

  test("reaches whom its propagation says: None, HostToContainer, Bidirectional", async () => {
    if (!(await startsPrivileged(cluster, "propagation-privileged"))) return;
    const volumes: Volume[] = [{ name: "v", emptyDir: {} }]; // kubelets see to it that these lie on a shared mount
    const mounter = (mountPropagation: VolumeMount["mountPropagation"], name: string): Container =>
      shell(
        name,
        `mkdir -p /v/${name}; until [ -e /v/start ]; do sleep 0.1; done; ` +
          `mount -t tmpfs ${name} /v/${name} && touch /v/${name}/file /v/${name}-ready; ` +
          "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done",
        {
          securityContext: { privileged: true },
          volumeMounts: [{ name: "v", mountPath: "/v", mountPropagation: mountPropagation ?? "None" }],
          readinessProbe: { exec: { command: ["test", "-e", `/v/${name}-ready`] }, periodSeconds: 1 },
        },
      );
    const modes = [
      ["None", "private"],
      ["HostToContainer", "slave"],
      ["Bidirectional", "shared"],
    ] as const;
    await cluster.createPod(
      podOf(
        "propagation",
        modes.map(([mode, name]) => mounter(mode, name)),
        { volumes },
      ),
    );
    await cluster.waitForPod("propagation", "running", ({ status }) => {
      const running = status?.containerStatuses?.filter(({ state }) => state?.running !== undefined);
      return running?.length === modes.length;
    });
    const kubectl = openKubectl(inject("kubeconfig"), cluster.namespace);
    const inside = async (container: string, ...command: string[]) =>
      (await kubectl.demand(["exec", "propagation", "-c", container, "--", ...command])).trim();
    // All three mount only when all three are there: what comes later is what propagates.
    await inside("private", "touch", "/v/start");
    await cluster.waitForPod("propagation", "ready", isReady);
    const seenBy = async (container: string) =>
      await inside(
        container,
        "sh",
        "-c",
        "cd /v; for x in private slave shared; do [ -e $x/file ] && echo $x; done; true",
      );
    expect(await seenBy("private")).toBe("private");
    expect(await seenBy("slave")).toBe("slave\nshared");
    expect(await seenBy("shared")).toBe("shared");
    await inside("shared", "umount", "/v/shared");
    expect(await seenBy("slave")).toBe("slave");
  });
});

describe.skipIf(!inject("isLocal"))("the end of a volume", () => {
  let env: BreakableCluster;

  beforeAll(async () => {
    env = await openBreakableCluster();
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  const memory = (name: string): Pod => sleeperOf(name, { volumes: [{ name: "v", emptyDir: { medium: "Memory" } }] });
  const withMount = (pod: Pod, mount: Partial<VolumeMount> = {}, more: Partial<Container> = {}): Pod => ({
    ...pod,
    spec: {
      ...pod.spec,
      containers: pod.spec.containers.map((container) => ({
        ...container,
        volumeMounts: [{ name: "v", mountPath: "/v", ...mount }],
        ...more,
      })),
    },
  });
  const dirOf = ({ metadata }: Pod) => join(env.local.rootDir, "pods", metadata.uid ?? "");

  test("waits for who has a file of it open, says so, and comes then", async () => {
    const pod = await env.cluster.createPod(withMount(memory("busy")));
    await env.cluster.waitForPod("busy", "ready", isReady);
    const volume = join(dirOf(pod), "volumes/kubernetes.io~empty-dir/v");
    await writeFile(join(volume, "data"), "in use");
    const file = await open(join(volume, "data"));
    try {
      await env.cluster.deletePod("busy");
      await until("the log says why", async () => {
        const log = await readFile(env.local.agent.logPath, "utf8");
        const said = log.split("\n").filter((line) => line.includes(`cannot unmount ${volume}`));
        return said.some((line) => line.includes("target is busy")) && said.some((line) => line.includes("retryInMs"));
      });
      const { metadata, status } = await env.cluster.getPod("busy");
      expect(metadata.deletionTimestamp).toBeDefined();
      expect(status?.containerStatuses?.[0]?.state?.terminated).toBeDefined();
      expect(await readFile(join(volume, "data"), "utf8")).toBe("in use");
    } finally {
      await file.close();
    }
    await env.cluster.waitForPodGone("busy");
    await until("its directory is gone", async () => !(await podDirs(env)).includes(pod.metadata.uid ?? ""));
  });

  test("ends what a container mounted in it for the node to see, and not what lies there", async () => {
    const isMounter = await startsPrivileged(env.cluster, "mounter-privileged");
    const outside = join(env.local.node.dir, "outside");
    await mkdir(outside);
    await writeFile(join(outside, "data"), "precious");
    const volumes: Volume[] = [
      { name: "v", emptyDir: {} },
      { name: "outside", hostPath: { path: outside } },
    ];
    const script =
      "mkdir -p /v/a/b /v/c; mount -t tmpfs x /v/a && mkdir /v/a/b && mount -t tmpfs y /v/a/b && mount -o bind /outside /v/c && " +
      "ln -s /outside /v/link && touch /v/ready; trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done";
    const watch = "until [ -e /v/c/data ]; do sleep 0.1; done; touch /v/ready; sleep 3600";
    const main = shell("main", isMounter ? script : watch, {
      ...(isMounter ? { securityContext: { privileged: true } } : {}),
      volumeMounts: [
        { name: "v", mountPath: "/v", mountPropagation: isMounter ? "Bidirectional" : "HostToContainer" },
        { name: "outside", mountPath: "/outside" },
      ],
      readinessProbe: { exec: { command: ["test", "-e", "/v/ready"] }, periodSeconds: 1 },
    });
    const pod = await env.cluster.createPod(podOf("mounter", [main], { volumes }));
    if (!isMounter) {
      // Where no container may mount, somebody on the node does, for the container to see.
      await env.cluster.waitForPod("mounter", "running", isRunning);
      const volume = join(dirOf(pod), "volumes/kubernetes.io~empty-dir/v");
      for (const name of ["a", "c"]) await mkdir(join(volume, name));
      await mountFilesystem({ type: "tmpfs", source: "x", target: join(volume, "a"), options: ["size=64k"] });
      await mkdir(join(volume, "a/b"));
      await mountFilesystem({ type: "tmpfs", source: "y", target: join(volume, "a/b"), options: ["size=64k"] });
      await bindMount(outside, join(volume, "c"));
    }
    await env.cluster.waitForPod("mounter", "ready", isReady);
    expect((await mountsOf(env)).filter((path) => path.startsWith(dirOf(pod))).length).toBeGreaterThanOrEqual(3);
    await env.cluster.deletePod("mounter");
    await env.cluster.waitForPodGone("mounter");
    await until("its directory is gone", async () => !(await podDirs(env)).includes(pod.metadata.uid ?? ""));
    expect((await mountsOf(env)).filter((path) => path.startsWith(dirOf(pod)))).toEqual([]);
    expect(await readFile(join(outside, "data"), "utf8")).toBe("precious");
  });

  test("comes for two hundred pods of another time, but for what somebody has mounted or put there", async () => {
    const { cluster, local } = env;
    const witness = await cluster.createPod(withMount(memory("witness"), { subPath: "sub" }));
    await cluster.waitForPod("witness", "ready", isReady);
    await local.agent.stop("SIGKILL");
    const podsDir = join(local.rootDir, "pods");
    for (let i = 0; i < 200; i += 1) {
      const volume = join(podsDir, `old-${i}`, "volumes/kubernetes.io~empty-dir/v");
      await mkdir(volume, { recursive: true });
      if (i % 20 === 0) {
        await mountFilesystem({ type: "tmpfs", source: "tmpfs", target: volume, options: ["size=64k"] });
      }
      await writeFile(join(volume, "data"), "data");
      await mkdir(join(podsDir, `old-${i}`, "containers/main"), { recursive: true });
      await writeFile(join(podsDir, `old-${i}`, "etc-hosts"), "");
    }
    const foreign = join(podsDir, "old-0/volumes/example.com~disk/v");
    await mkdir(foreign, { recursive: true });
    await mountFilesystem({ type: "tmpfs", source: "tmpfs", target: foreign, options: ["size=64k"] });
    await writeFile(join(foreign, "data"), "precious");
    const file = join(podsDir, "old-1/volumes/example.com~disk/v/data");
    await mkdir(join(file, ".."), { recursive: true });
    await writeFile(file, "precious");
    try {
      await local.agent.start();
      await until("the others are gone", async () => (await podDirs(env)).length === 3);
      expect(new Set(await podDirs(env))).toEqual(new Set([witness.metadata.uid, "old-0", "old-1"]));
      const kubectl = openKubectl(local.kubeconfig, cluster.namespace);
      await until("the metrics count these two", async () => {
        const text = await kubectl.demand(["get", "--raw", `/api/v1/nodes/${local.node.name}/proxy/metrics`]);
        return (
          /^kubelet_orphan_pod_cleaned_volumes 2$/m.test(text) &&
          /^kubelet_orphan_pod_cleaned_volumes_errors 2$/m.test(text)
        );
      });
      expect(await readFile(join(foreign, "data"), "utf8")).toBe("precious");
      expect(await readFile(file, "utf8")).toBe("precious");
      expect(await readdir(join(dirOf(witness), "volume-subpaths/v/main"))).toEqual(["0"]);
      expect((await mountsOf(env)).filter((path) => path.startsWith(dirOf(witness))).length).toBe(3); // with its token
    } finally {
      await unmountAllUnder(foreign);
      await rm(file);
    }
    await rm(join(foreign, "data"), { force: true });
    await until("these two are gone, too", async () => (await podDirs(env)).length === 1);
  });
});
