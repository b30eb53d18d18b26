import { mkdir, readFile, rename, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { hasCode, messageOf } from "../../../agent/lib/errors.ts";
import { idsInUse } from "../../../agent/node/image-garbage.ts";
import type { ContainerConfig, ContainerStatus, PodSandboxConfig, Runtime } from "../../../agent/runtime/port.ts";
import { customImage } from "../images/images.ts";
import type { Image } from "../images/oci.ts";
import { containerConfig, sandboxConfig } from "./configs.ts";
import { eventually, expectCode, followEvents } from "./watching.ts";

/** One runtime, connected, with the standard images in it. */
export interface RuntimeUnderTest {
  runtime: Runtime;
  /** Writable, below it everything the suite makes. */
  dir: string;
  cgroupRoot: string;
  busyboxImage: string;
  webImage: string;
  /** How a line of a container's log looks; CRI's way unless given. */
  logLine?(stream: "stdout" | "stderr", text: string): RegExp;
  /** Where the runtime pulls images from whose names begin with `name`/. */
  registry: { name: string; push(image: Image): Promise<void> };
  /** Restarts the runtime's daemon; resolves when it serves again. Containers are meant to survive. */
  restart(): Promise<void>;
  dispose(): Promise<void>;
}

const time = "\\d{4}-\\d\\d-\\d\\dT[\\d:.]+(Z|[+-]\\d\\d:\\d\\d)";
const criLogLine = (stream: string, text: string) => new RegExp(`^${time} ${stream} F ${text}$`, "m");

const noSuchID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

async function bodyAt(url: string): Promise<string> {
  return await (await fetch(url, { signal: AbortSignal.timeout(2_000) })).text();
}

/** What every implementation of `Runtime` must do, tried on a real one. */
export function runtimeContract(name: string, make: () => Promise<RuntimeUnderTest>): void {
  describe(`runtime contract: ${name}`, () => {
    let t: RuntimeUnderTest;
    let runtime: Runtime;
    let logLine: NonNullable<RuntimeUnderTest["logLine"]>;
    beforeAll(async () => {
      t = await make();
      runtime = t.runtime;
      logLine = t.logLine ?? criLogLine;
    });
    afterAll(async () => {
      await t?.dispose();
    });

    const newSandbox = async (change: Partial<PodSandboxConfig> = {}) => {
      const config = await sandboxConfig(t.dir, t.cgroupRoot, change);
      return { config, id: await runtime.runPodSandbox(config, "") };
    };
    const newContainer = async (
      sandbox: { config: PodSandboxConfig; id: string },
      script: string,
      change: Partial<ContainerConfig> = {},
    ) => {
      const containerName = change.name ?? "main";
      const command = ["sh", "-c", script];
      const config = await containerConfig(sandbox.config, containerName, t.busyboxImage, command, change);
      return await runtime.createContainer(sandbox.id, config, sandbox.config);
    };
    const startNew = async (...args: Parameters<typeof newContainer>) => {
      const id = await newContainer(...args);
      await runtime.startContainer(id);
      return id;
    };
    const exited = async (id: string): Promise<ContainerStatus> =>
      await eventually(async () => {
        const status = await runtime.containerStatus(id);
        expect(status.state).toBe("exited");
        return status;
      });
    const removeSandbox = async (id: string) => {
      await runtime.stopPodSandbox(id);
      await runtime.removePodSandbox(id);
    };

    test("says who it is and that it is ready", async () => {
      const version = await runtime.version();
      expect(version.runtimeName).not.toBe("");
      expect(version.runtimeVersion).toMatch(/\d/);
      const status = await runtime.status();
      expect(status.runtimeReady).toMatchObject({ status: true });
      expect(status.networkReady).toMatchObject({ status: true });
    });

    test("tells that its containers are plain processes, runc's, once events are followed", async () => {
      await using _events = followEvents(runtime);
      await eventually(async () => expect(runtime.hasPlainContainers?.()).toBe(true));
    });

    test("a sandbox lives, has an address, stops and goes", async () => {
      const before = Date.now();
      const { id, config } = await newSandbox({ annotations: { note: "kept" } });
      const status = await runtime.podSandboxStatus(id);
      expect(status).toMatchObject({
        id,
        podUID: config.uid,
        podName: config.name,
        podNamespace: "default",
        attempt: 0,
        ready: true,
        networkMode: "POD",
        annotations: { note: "kept" },
      });
      expect(status.labels).toMatchObject(config.labels);
      expect(status.ips).toEqual([expect.stringMatching(/^\d+\.\d+\.\d+\.\d+$/)]);
      expect(status.createdAtMs).toBeGreaterThanOrEqual(before - 1_000);
      expect(status.createdAtMs).toBeLessThanOrEqual(Date.now() + 1_000);
      expect((await runtime.list(config.uid)).sandboxes.map((s) => s.id)).toEqual([id]);

      await runtime.stopPodSandbox(id);
      expect(await runtime.podSandboxStatus(id)).toMatchObject({ ready: false, ips: [] });
      await runtime.stopPodSandbox(id);
      await runtime.removePodSandbox(id);
      await runtime.removePodSandbox(id);
      await expectCode(runtime.podSandboxStatus(id), "NotFound");
      expect((await runtime.list(config.uid)).sandboxes).toEqual([]);
    });

    test("a sandbox that is being made is not seen before it is ready", async () => {
      const config = await sandboxConfig(t.dir, t.cgroupRoot);
      const making = runtime.runPodSandbox(config, "");
      const look = async () => {
        const [{ sandboxes }, snapshot] = await Promise.all([
          runtime.list(config.uid),
          runtime.podSnapshot(config.uid),
        ]);
        expect([...sandboxes, ...snapshot.sandboxes].filter(({ ready }) => !ready)).toEqual([]);
        return "";
      };
      let id = "";
      while (id === "") id = await Promise.race([making, look()]);
      await removeSandbox(id);
    });

    test("a sandbox on the host's network has no address of its own", async () => {
      const base = await sandboxConfig(t.dir, t.cgroupRoot);
      const namespaceOptions = { ...base.securityContext.namespaceOptions, network: "NODE" as const };
      const { id } = await newSandbox({ hostname: "", securityContext: { ...base.securityContext, namespaceOptions } });
      expect(await runtime.podSandboxStatus(id)).toMatchObject({ ready: true, ips: [], networkMode: "NODE" });
      await removeSandbox(id);
    });

    describe("containers", () => {
      let sandbox: { config: PodSandboxConfig; id: string };
      beforeAll(async () => {
        sandbox = await newSandbox();
      });
      afterAll(async () => {
        await removeSandbox(sandbox.id);
      });

      test("a container is created, runs, and tells its state and identity", async () => {
        const id = await newContainer(sandbox, "sleep 1000", { name: "states", attempt: 3, annotations: { a: "b" } });
        const created = await runtime.containerStatus(id);
        expect(created).toMatchObject({ state: "created", startedAtMs: 0, finishedAtMs: 0 });
        await runtime.startContainer(id);
        const running = await runtime.containerStatus(id);
        expect(running).toMatchObject({
          id,
          sandboxID: sandbox.id,
          podUID: sandbox.config.uid,
          podName: sandbox.config.name,
          podNamespace: "default",
          name: "states",
          attempt: 3,
          state: "running",
          annotations: { a: "b" },
          logPath: join(sandbox.config.logDirectory, "states/3.log"),
        });
        expect(running.startedAtMs).toBeGreaterThanOrEqual(running.createdAtMs);
        expect(running.finishedAtMs).toBe(0);
        await runtime.stopContainer(id, 0);
        await runtime.removeContainer(id);
        await expectCode(runtime.containerStatus(id), "NotFound");
      });

      const endsAs = (script: string, exitCode: number, reason: string) =>
        test(`"${script}" is seen as exit code ${exitCode}, ${reason}`, async () => {
          // PID 1 cannot kill itself, so the script runs one level down.
          const id = await startNew(sandbox, `sh -c '${script}'; exit $?`, { name: `exit-${exitCode}` });
          const status = await exited(id);
          expect(status).toMatchObject({ exitCode, reason });
          // Not compared with startedAtMs: containerd notes a start when it has returned, some ms after a short life's end.
          expect(status.finishedAtMs).toBeGreaterThanOrEqual(status.createdAtMs);
          await runtime.removeContainer(id);
        });
      endsAs("exit 0", 0, "Completed");
      endsAs("exit 7", 7, "Error");
      endsAs("kill -9 $$", 137, "Error");

      test("a container that eats more than its memory is OOMKilled", async () => {
        // Docker tells of it in an event, which may come after the end: as the agent does, somebody has to listen.
        await using events = followEvents(runtime);
        const resources = { memoryLimitBytes: 32 << 20, memorySwapLimitBytes: 32 << 20 };
        const id = await startNew(sandbox, "sleep 0.5; exec tail /dev/zero", { name: "oom", resources });
        await events.until(({ kind, containerID }) => kind === "exited" && containerID === id);
        expect(await exited(id)).toMatchObject({ exitCode: 137, reason: "OOMKilled" });
        await runtime.removeContainer(id);
      });

      test("a program that is not there fails the start and says so", async () => {
        const config = await containerConfig(sandbox.config, "nofile", t.busyboxImage, ["/no/such/program"]);
        const id = await runtime.createContainer(sandbox.id, config, sandbox.config);
        await expect(runtime.startContainer(id)).rejects.toThrow("/no/such/program");
        // As runc's caller has it: containerd's 128, or Docker's 127 as a shell has it.
        expect([127, 128]).toContain((await exited(id)).exitCode);
        await runtime.removeContainer(id);
      });

      test("environment, directory, user and mounts arrive", async () => {
        const shared = join(t.dir, "shared");
        await mkdir(shared, { recursive: true });
        await writeFile(join(shared, "file"), "from the host");
        const mount = { selinuxRelabel: false, propagation: "PRIVATE", recursiveReadOnly: false } as const;
        const base = await containerConfig(sandbox.config, "x", t.busyboxImage, []);
        const id = await startNew(
          sandbox,
          'echo "$GREETING" $(pwd) $(id -u):$(id -g) "$(cat /data/file)"; touch /data/x',
          {
            name: "settings",
            envs: [{ key: "GREETING", value: "héllo $HOME" }],
            workingDir: "/tmp",
            mounts: [{ containerPath: "/data", hostPath: shared, readonly: true, ...mount }],
            securityContext: { ...base.securityContext, runAsUser: 1000, runAsGroup: 1001 },
          },
        );
        const status = await exited(id);
        const log = await readFile(status.logPath, "utf8");
        expect(log).toContain("héllo $HOME /tmp 1000:1001 from the host");
        expect(log).toContain("Read-only file system");
        expect(status.mounts).toContainEqual(
          expect.objectContaining({ containerPath: "/data", hostPath: shared, readonly: true, propagation: "PRIVATE" }),
        );
        await runtime.removeContainer(id);
      });

      test("the log holds stdout and stderr, and goes on in a new file after it was moved away", async () => {
        const id = await startNew(sandbox, "echo one; echo two >&2; while sleep 0.05; do echo more; done", {
          name: "logs",
        });
        const { logPath } = await runtime.containerStatus(id);
        await eventually(async () => {
          const log = await readFile(logPath, "utf8");
          expect(log).toMatch(logLine("stdout", "one"));
          expect(log).toMatch(logLine("stderr", "two"));
        });
        await rename(logPath, `${logPath}.1`);
        await runtime.reopenContainerLog(id);
        await eventually(async () => expect(await readFile(logPath, "utf8")).toContain("more"));
        await runtime.stopContainer(id, 0);
        await runtime.removeContainer(id);
      });

      test("stop lets a container end in its own way, and kills it after the grace period", async () => {
        const polite = await startNew(sandbox, 'trap "exit 3" TERM; while :; do sleep 0.05; done', { name: "polite" });
        const deaf = await startNew(sandbox, 'trap "" TERM; while :; do sleep 0.05; done', { name: "deaf" });
        await sleep(100); // both must have set their traps
        const startedAt = performance.now();
        await runtime.stopContainer(polite, 30);
        expect(performance.now() - startedAt).toBeLessThan(5_000);
        expect(await runtime.containerStatus(polite)).toMatchObject({ state: "exited", exitCode: 3 });

        const deafAt = performance.now();
        await runtime.stopContainer(deaf, 1);
        expect(performance.now() - deafAt).toBeGreaterThanOrEqual(950);
        expect(await runtime.containerStatus(deaf)).toMatchObject({ state: "exited", exitCode: 137 });
        await runtime.stopContainer(deaf, 1);
        await Promise.all([polite, deaf].map(async (id) => await runtime.removeContainer(id)));
      });

      test("exec returns output and exit code, and ends at its time limit", async () => {
        const id = await startNew(sandbox, "sleep 1000", { name: "exec" });
        const result = await runtime.execSync(id, ["sh", "-c", "echo out; echo err >&2; exit 5"], 10);
        expect(result.exitCode).toBe(5);
        expect(result.stdout.toString()).toBe("out\n");
        expect(result.stderr.toString()).toBe("err\n");
        expect(await runtime.execSync(id, ["true"], 0)).toMatchObject({ exitCode: 0 });

        const startedAt = performance.now();
        await expectCode(runtime.execSync(id, ["sleep", "100"], 1), "DeadlineExceeded");
        expect(performance.now() - startedAt).toBeLessThan(5_000);
        expect(await runtime.containerStatus(id)).toMatchObject({ state: "running" });

        expect(
          await runtime.streamingURL({
            kind: "exec",
            containerID: id,
            command: ["true"],
            tty: false,
            stdin: false,
            stdout: true,
            stderr: true,
          }),
        ).toMatch(/^https?:\/\//);
        await runtime.stopContainer(id, 0);
        await expect(runtime.execSync(id, ["true"], 1)).rejects.toThrow();
        await runtime.removeContainer(id);
      });

      test("resources can change while it runs", async () => {
        const id = await startNew(sandbox, "sleep 1000", { name: "resize", resources: { memoryLimitBytes: 64 << 20 } });
        await runtime.updateContainerResources(id, { memoryLimitBytes: 128 << 20 });
        const limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
        const { stdout } = await runtime.execSync(id, ["sh", "-c", limit], 10);
        expect(stdout.toString().trim()).toBe(String(128 << 20));
        await runtime.stopContainer(id, 0);
        await runtime.removeContainer(id);
      });

      test("a sandbox hears of its pod's new resources, or the runtime says that it has no use for them", async () => {
        const resources = { memoryLimitBytes: 128 << 20, cpuShares: 512 };
        const told = runtime.updatePodSandboxResources(sandbox.id, { resources, overhead: undefined });
        const outcome = await told.then(
          () => "told",
          (err: unknown) => (hasCode(err, "Unimplemented") ? "told" : String(err)),
        );
        expect(outcome).toBe("told");
      });

      test("figures of running containers: processor, memory and what was written", async () => {
        const id = await startNew(sandbox, "dd if=/dev/zero of=/written bs=1M count=3; while :; do :; done", {
          name: "figures",
        });
        const stats = await eventually(async () => {
          const found = (await runtime.containerStats()).find(({ containerID }) => containerID === id);
          expect(found?.cpu?.usageCoreNanoSeconds).toBeGreaterThan(100_000_000);
          // Runtimes measure layers now and then: containerd every 10 s.
          expect(found?.writableLayer?.usedBytes).toBeGreaterThan(3 << 20);
          return found;
        }, 30_000);
        expect(Math.abs((stats?.cpu?.timestampMs ?? 0) - Date.now())).toBeLessThan(60_000);
        expect(stats?.memory?.workingSetBytes).toBeGreaterThan(0);
        expect(stats?.writableLayer?.mountpoint).toMatch(/^\//);
        expect(stats?.writableLayer?.inodesUsed).toBeGreaterThan(0);
        await runtime.stopContainer(id, 0);
        await runtime.removeContainer(id);
        expect((await runtime.containerStats()).map(({ containerID }) => containerID)).not.toContain(id);
      });

      test("a sandbox's process leads to its network", async () => {
        const { pid, image } = await runtime.sandboxProcess(sandbox.id);
        expect(image).not.toBe("");
        expect(await readFile(`/proc/${pid}/net/dev`, "utf8")).toContain("eth0:");
        await expectCode(runtime.sandboxProcess(noSuchID), "NotFound");
      });

      test("a checkpoint is written, or the runtime says that it cannot", async () => {
        const id = await startNew(sandbox, "sleep 1000", { name: "checkpoint" });
        const path = join(t.dir, "checkpoint.tar");
        const outcome: unknown = await runtime.checkpointContainer(id, path, 0).catch((err: unknown) => err);
        if (outcome === undefined) expect((await stat(path)).size).toBeGreaterThan(0);
        else expect(outcome).toMatchObject({ code: "Unimplemented" });
        await runtime.stopContainer(id, 0);
        await runtime.removeContainer(id);
      });

      test("what is not there: stop and remove succeed, everything else says NotFound", async () => {
        await runtime.stopContainer(noSuchID, 1);
        await runtime.removeContainer(noSuchID);
        await runtime.stopPodSandbox(noSuchID);
        await runtime.removePodSandbox(noSuchID);
        await expectCode(runtime.containerStatus(noSuchID), "NotFound");
        await expectCode(runtime.startContainer(noSuchID), "NotFound");
        await expectCode(runtime.execSync(noSuchID, ["true"], 1), "NotFound");
        const config = await containerConfig(sandbox.config, "lost", t.busyboxImage, ["true"]);
        await expectCode(runtime.createContainer(noSuchID, config, sandbox.config), "NotFound");
        expect(await runtime.podSnapshot("no-such-pod")).toMatchObject({ sandboxes: [], containers: [] });
      });
    });

    test("a snapshot holds one pod's objects, the newest first", async () => {
      const other = await newSandbox();
      const first = await newSandbox();
      await runtime.stopPodSandbox(first.id);
      const second = await newSandbox({ ...first.config, attempt: 1 });
      const old = await startNew(second, "exit 1", { name: "app" });
      await exited(old);
      const recent = await startNew(second, "sleep 1000", { name: "app", attempt: 1 });

      const before = Date.now();
      const snapshot = await runtime.podSnapshot(first.config.uid);
      expect(snapshot.observedAtMs).toBeGreaterThanOrEqual(before);
      expect(snapshot.sandboxes.map(({ id, ready }) => ({ id, ready }))).toEqual([
        { id: second.id, ready: true },
        { id: first.id, ready: false },
      ]);
      expect(snapshot.containers.map(({ id, state }) => ({ id, state }))).toEqual([
        { id: recent, state: "running" },
        { id: old, state: "exited" },
      ]);
      const list = await runtime.list();
      expect(list.sandboxes.map(({ id }) => id)).toEqual(expect.arrayContaining([other.id, first.id, second.id]));
      expect(list.containers.map(({ id }) => id)).toEqual(expect.arrayContaining([old, recent]));

      for (const { id } of [second, first, other]) await removeSandbox(id);
      expect(await runtime.podSnapshot(first.config.uid)).toMatchObject({ sandboxes: [], containers: [] });
    });

    test("removing a sandbox takes its containers along", async () => {
      const sandbox = await newSandbox();
      const id = await startNew(sandbox, "sleep 1000");
      await removeSandbox(sandbox.id);
      await expectCode(runtime.containerStatus(id), "NotFound");
    });

    test("a pod's server answers at the pod's address", async () => {
      const sandbox = await newSandbox();
      const config = await containerConfig(sandbox.config, "web", t.webImage, []);
      await runtime.startContainer(await runtime.createContainer(sandbox.id, config, sandbox.config));
      const [ip] = (await runtime.podSandboxStatus(sandbox.id)).ips;
      await eventually(async () => expect((await bodyAt(`http://${ip}:8080/`)).trim()).toBe(sandbox.config.hostname));
      await removeSandbox(sandbox.id);
    });

    test("an exit wakes its pod soon, and by then it can be seen; an exec that ends wakes nobody", async () => {
      await using events = followEvents(runtime);
      const sandbox = await newSandbox();
      const id = await startNew(sandbox, "sleep 1000");
      await events.until(({ kind, containerID }) => kind === "started" && containerID === id);
      await runtime.execSync(id, ["true"], 10);
      await sleep(300);
      expect(events.seen.filter((event) => event.kind === "exited" && event.containerID === id)).toEqual([]);

      const startedAt = performance.now();
      await runtime.stopContainer(id, 0);
      const event = await events.until(({ kind, containerID }) => kind === "exited" && containerID === id);
      expect(performance.now() - startedAt).toBeLessThan(2_000);
      expect(event.podUID).toBe(sandbox.config.uid);
      expect(await runtime.containerStatus(id)).toMatchObject({ state: "exited" });
      await removeSandbox(sandbox.id);
    });

    test("a short container's own end is told long before anybody lists", async () => {
      await using events = followEvents(runtime);
      const sandbox = await newSandbox();
      const id = await startNew(sandbox, "sleep 0.3");
      await events.until(({ kind, containerID }) => kind === "exited" && containerID === id);
      const wokenAtMs = Date.now();
      const { state, finishedAtMs } = await runtime.containerStatus(id);
      expect(state).toBe("exited");
      expect(wokenAtMs - finishedAtMs).toBeLessThan(1_000);
      await removeSandbox(sandbox.id);
    });

    test("images are listed, looked up, pulled and removed", async () => {
      const images = await runtime.images.listImages();
      expect(images.flatMap(({ repoTags }) => repoTags)).toContain(t.busyboxImage);
      expect((await runtime.images.imageStatus(t.busyboxImage))?.id).toMatch(/^sha256:/);
      expect(await runtime.images.imageStatus("registry.local/never-built:1")).toBeUndefined();

      const name = `${t.registry.name}/contract/app:1`;
      await t.registry.push(await customImage({ name, user: "1000", labels: { made: "here" } }));
      expect(await runtime.images.imageStatus(name)).toBeUndefined();
      const imageRef = await runtime.images.pullImage(name, { annotations: {} });
      const info = await runtime.images.imageStatus(imageRef);
      expect(info).toMatchObject({ repoTags: [name], uid: 1000, username: "" });
      expect(info?.repoDigests).toEqual([expect.stringMatching(/contract\/app@sha256:/)]);
      expect(info?.sizeBytes).toBeGreaterThan(100_000);

      const sandbox = await newSandbox();
      const id = await startNew(sandbox, "id -u", { imageRef });
      const status = await exited(id);
      expect(await readFile(status.logPath, "utf8")).toMatch(logLine("stdout", "1000"));
      const used = async () => [...idsInUse(await runtime.images.listImages(), await runtime.images.imagesInUse())];
      expect(await used()).toContain(imageRef);
      await removeSandbox(sandbox.id);
      expect(await used()).not.toContain(imageRef);

      await runtime.images.removeImage(imageRef);
      await runtime.images.removeImage(imageRef);
      expect(await runtime.images.imageStatus(name)).toBeUndefined();
      const { imageFilesystems, containerFilesystems } = await runtime.images.fsInfo();
      for (const filesystem of [...imageFilesystems.slice(0, 1), ...containerFilesystems]) {
        expect(filesystem.mountpoint).toMatch(/^\//);
        expect(filesystem.usedBytes).toBeGreaterThan(0);
        expect(Math.abs(filesystem.timestampMs - Date.now())).toBeLessThan(60_000);
      }
      expect(imageFilesystems).not.toEqual([]);
    });

    test("an image that the registry does not have: NotFound, naming the image", async () => {
      const name = `${t.registry.name}/no/such/image:1`;
      const err: unknown = await runtime.images.pullImage(name, { annotations: {} }).catch((e: unknown) => e);
      expect(err).toMatchObject({ code: "NotFound" });
      expect(messageOf(err)).toContain("no/such/image:1");
      expect(messageOf(err)).toMatch(
        /^rpc error: code = NotFound desc = |^pull image \S+: Error response from daemon: /,
      );
    });

    test("a restart of the runtime keeps containers running, and events go on", async () => {
      await using events = followEvents(runtime);
      const sandbox = await newSandbox();
      const id = await startNew(sandbox, "sleep 1000");
      const { startedAtMs } = await runtime.containerStatus(id);
      const { ips } = await runtime.podSandboxStatus(sandbox.id);
      const seenBefore = events.seen.length;

      await t.restart();
      await events.until(({ podUID }, index) => index >= seenBefore && podUID === undefined);
      await eventually(async () =>
        expect(await runtime.containerStatus(id)).toMatchObject({ state: "running", startedAtMs }),
      );
      expect(await runtime.podSandboxStatus(sandbox.id)).toMatchObject({ ready: true, ips });
      await eventually(async () => await runtime.stopContainer(id, 0));
      const event = await events.until(({ kind, containerID }) => kind === "exited" && containerID === id);
      expect(event.podUID).toBe(sandbox.config.uid);
      await removeSandbox(sandbox.id);
    });
  });
}
