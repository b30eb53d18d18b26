import { mkdir, mkdtemp, readdir, readFile, realpath, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import {
  csiDrivers,
  nodes,
  persistentVolumeClaims,
  persistentVolumes,
  pods,
  secrets,
  serviceAccounts,
  volumeAttachments,
} from "../../agent/kube/resources.ts";
import type { CSIDriver, PersistentVolume, PersistentVolumeClaim, Pod, PodSpec } from "../../agent/kube/types.ts";
import { exec } from "../../agent/lib/exec.ts";
import { messageOf } from "../../agent/lib/errors.ts";
import { listMountsUnder, unmountAllUnder } from "../../agent/lib/mount.ts";
import { attachmentName, ephemeralHandle, uniqueVolumeName } from "../../agent/volumes/csi/paths.ts";
import { attachErrorAnnotation } from "../support/apiserver/controllers/attach.ts";
import { startTestApiServer, type TestApiServer } from "../support/apiserver/server.ts";
import type { CSICallRecord } from "../support/csi/config.ts";
import { startCSIDriver, type TestCSIDriver } from "../support/csi/start.ts";
import { type DeathAt, VolumeAgent } from "../support/csi/volume-agent.ts";

// The CSI volume kind with a real driver in a process of its own, real mounts and the real API client; no containers.

const driverName = "csi.test";
const never = new AbortController().signal;

async function until<T>(what: string, look: () => T | undefined | false | Promise<T | undefined | false>): Promise<T> {
  const deadline = performance.now() + 30_000;
  for (;;) {
    const found = await look();
    if (found !== undefined && found !== false) return found;
    if (performance.now() > deadline) throw new Error(`not within 30 s: ${what}`);
    await sleep(20);
  }
}

describe("CSI volumes", () => {
  let server: TestApiServer;
  let base: string;
  let rootDir: string;
  let agents: VolumeAgent[];
  let driver: TestCSIDriver;

  beforeEach(async () => {
    base = await realpath(await mkdtemp(join(tmpdir(), "nodelet-csivol-")));
    rootDir = join(base, "root");
    await mkdir(rootDir);
    server = await startTestApiServer({ controllers: { serviceAccounts: false, bind: false } });
    await writeFile(join(base, "kubeconfig"), server.kubeconfig("node:n1"), { mode: 0o600 });
    server.objects.create(nodes, { apiVersion: "v1", kind: "Node", metadata: { name: "n1" } });
    agents = [];
    driver = await startCSIDriver({ rootDir, dir: join(base, "driver"), name: driverName });
  });

  afterEach(async () => {
    await driver.heal();
    for (const agent of agents) await agent.stop();
    await driver.destroy();
    await server.close();
    await unmountAllUnder(base);
    await rm(base, { recursive: true });
  });

  const startAgent = async (options: { deathAt?: DeathAt } = {}) => {
    const agent = await VolumeAgent.start(join(base, "kubeconfig"), rootDir, options);
    agents.push(agent);
    await until("the driver is registered", () => agent.drivers.names().includes(driverName));
    return agent;
  };
  const describeDriver = (spec: CSIDriver["spec"]) =>
    server.objects.create(csiDrivers, {
      apiVersion: "storage.k8s.io/v1",
      kind: "CSIDriver",
      metadata: { name: driverName },
      spec,
    });
  /** A PersistentVolume that is bound to a claim of the same name. */
  const createVolume = (name: string, spec: Partial<PersistentVolume["spec"]> = {}, handle = `handle-${name}`) => {
    server.objects.create(persistentVolumes, {
      apiVersion: "v1",
      kind: "PersistentVolume",
      metadata: { name },
      spec: {
        accessModes: ["ReadWriteOnce"],
        capacity: { storage: "8Mi" },
        volumeMode: "Filesystem",
        csi: { driver: driverName, volumeHandle: handle, volumeAttributes: { size: "8Mi" } },
        ...spec,
      },
    });
    const claim: PersistentVolumeClaim = {
      apiVersion: "v1",
      kind: "PersistentVolumeClaim",
      metadata: { name, namespace: "default" },
      spec: { volumeName: name, volumeMode: spec.volumeMode ?? "Filesystem" },
    };
    server.objects.create(persistentVolumeClaims, claim);
  };
  const createPod = (name: string, volumes: PodSpec["volumes"], spec: Partial<PodSpec> = {}): Pod =>
    server.objects.create(pods, {
      apiVersion: "v1",
      kind: "Pod",
      metadata: { name, namespace: "default" },
      spec: {
        nodeName: "n1",
        containers: [
          {
            name: "app",
            image: "busybox",
            volumeMounts: (volumes ?? []).map((volume) => ({ name: volume.name, mountPath: `/${volume.name}` })),
          },
        ],
        ...(volumes === undefined ? {} : { volumes }),
        ...spec,
      },
    });
  const podWithClaim = (name: string, claimName = "pv", spec: Partial<PodSpec> = {}) =>
    createPod(name, [{ name: "data", persistentVolumeClaim: { claimName } }], spec);
  const deletePod = (name: string) =>
    server.objects.delete(pods, { namespace: "default", name }, { gracePeriodSeconds: 0 });
  const uid = (pod: Pod) => pod.metadata.uid ?? "";
  const targetOf = (pod: Pod, specName = "pv") =>
    join(rootDir, "pods", uid(pod), "volumes/kubernetes.io~csi", specName, "mount");
  /** Names of the calls that change something, in order. */
  const changes = async (): Promise<string[]> => {
    const all = await driver.calls();
    return all
      .map(({ method }) => method)
      .filter((method) => /^Node(Stage|Publish|Unpublish|Unstage|Expand)Volume$/.test(method));
  };
  const last = async (method: string): Promise<CSICallRecord["request"]> =>
    (await driver.calls(method)).at(-1)?.request ?? {};
  const leftovers = async (): Promise<string[]> => {
    const found = await readdir(join(rootDir, "plugins/kubernetes.io/csi"), { recursive: true }).catch(() => []);
    const mounts = (await listMountsUnder(rootDir)).map(({ mountPoint }) => mountPoint);
    return [...found.filter((path) => path.includes("globalmount") || path.includes("vol_data")), ...mounts];
  };
  /** As a worker does it: again and again until it works. */
  const setUp = async (agent: VolumeAgent, pod: Pod) =>
    await until(`the volumes of ${pod.metadata.name}`, async () => {
      try {
        await agent.manager.setUp(pod, never);
        return true;
      } catch (err) {
        agent.events.push(messageOf(err));
        await sleep(50);
        return undefined;
      }
    });
  const tearDown = async (agent: VolumeAgent, pod: Pod) =>
    await until(`${pod.metadata.name} has no volumes`, async () => {
      try {
        await agent.manager.tearDown(uid(pod));
        return true;
      } catch (err) {
        agent.events.push(messageOf(err));
        await sleep(50);
        return undefined;
      }
    });
  const nothingIsLeft = async () => await until("nothing is left", async () => (await leftovers()).length === 0);

  test("a claim's volume is attached, staged and published, and taken away in reverse", async () => {
    createVolume("pv", { mountOptions: ["noatime"] });
    const agent = await startAgent();
    const pod = podWithClaim("web");
    await setUp(agent, pod);
    const target = targetOf(pod);
    const handle = "handle-pv";
    const attachmentID = attachmentName(handle, driverName, "n1");
    expect(JSON.parse(await readFile(join(target, "../vol_data.json"), "utf8"))).toEqual({
      specVolID: "pv",
      volumeHandle: handle,
      driverName,
      nodeName: "n1",
      attachmentID,
      volumeLifecycleMode: "Persistent",
    });
    expect((await stat(join(target, ".."))).mode & 0o777).toBe(0o750);
    const staged = await last("NodeStageVolume");
    expect(staged).toMatchObject({
      volume_id: handle,
      publish_context: { devicePath: "/dev/test/pv" },
      volume_context: { size: "8Mi" },
      volume_capability: { access_mode: { mode: "SINGLE_NODE_WRITER" }, mount: { mount_flags: ["noatime"] } },
    });
    const stagingPath = String(staged["staging_target_path"]);
    expect(stagingPath).toMatch(new RegExp(`^${rootDir}/plugins/kubernetes.io/csi/csi.test/[0-9a-f]{64}/globalmount$`));
    expect(JSON.parse(await readFile(join(stagingPath, "../vol_data.json"), "utf8"))).toEqual({
      volumeHandle: handle,
      driverName,
    });
    expect(await last("NodePublishVolume")).toMatchObject({
      volume_id: handle,
      target_path: target,
      staging_target_path: stagingPath,
      publish_context: { devicePath: "/dev/test/pv" },
      readonly: false,
    });
    const unique = uniqueVolumeName(driverName, handle);
    expect(server.objects.find(nodes, { name: "n1" })?.status?.volumesInUse).toEqual([unique]);
    await writeFile(join(target, "kept"), "data");

    deletePod("web");
    await tearDown(agent, pod);
    await nothingIsLeft();
    expect(await changes()).toEqual([
      "NodeStageVolume",
      "NodePublishVolume",
      "NodeUnpublishVolume",
      "NodeUnstageVolume",
    ]);
    await until("it is detached", () => server.objects.find(volumeAttachments, { name: attachmentID }) === undefined);
    expect(server.objects.find(nodes, { name: "n1" })?.status?.volumesInUse ?? []).toEqual([]);
  });

  test("two pods share one stage, which goes with the last of them", async () => {
    createVolume("pv", { accessModes: ["ReadWriteMany"] });
    const agent = await startAgent();
    const [a, b] = [podWithClaim("a"), podWithClaim("b")];
    await Promise.all([setUp(agent, a), setUp(agent, b)]);
    await writeFile(join(targetOf(a), "hello"), "from a");
    expect(await readFile(join(targetOf(b), "hello"), "utf8")).toBe("from a");
    expect(await driver.calls("NodeStageVolume")).toHaveLength(1);
    await tearDown(agent, a);
    await sleep(200); // a sweep had its chance
    expect(await driver.calls("NodeUnstageVolume")).toEqual([]);
    expect(await readFile(join(targetOf(b), "hello"), "utf8")).toBe("from a");
    await tearDown(agent, b);
    await nothingIsLeft();
    expect(await driver.calls("NodeUnstageVolume")).toHaveLength(1);
  });

  test("what goes wrong is told with the step, and the driver's words", async () => {
    createVolume("pv");
    const agent = await startAgent();
    const pod = podWithClaim("web");
    await driver.fail("NodeStageVolume", { code: "InvalidArgument", message: "no such disk" });
    await until("the volume is attached", async () => {
      await agent.manager.setUp(pod, never).catch((err: unknown) => agent.events.push(messageOf(err)));
      return agent.events.find((text) => text.includes("no such disk"));
    });
    expect(agent.events.at(-1)).toMatch(
      /^MountVolume\.MountDevice failed for volume "pv" : .*rpc error: code = InvalidArgument desc = no such disk$/,
    );
    expect(await leftovers()).toEqual([]); // the driver has refused: nothing is there
    await driver.heal();
    await driver.fail("NodePublishVolume", { code: "Internal", message: "not today" });
    await expect(agent.manager.setUp(pod, never)).rejects.toThrow(
      /^MountVolume\.SetUp failed for volume "pv" : .*desc = not today$/,
    );
    await expect(stat(join(targetOf(pod), ".."))).rejects.toThrow("ENOENT");
    await driver.heal();
    await setUp(agent, pod);
    await tearDown(agent, pod);
    await nothingIsLeft();
  });

  test("after an error that leaves it open the volume is taken for mounted", async () => {
    createVolume("pv");
    const agent = await startAgent();
    const pod = podWithClaim("web");
    await driver.fail("NodePublishVolume", { code: "DeadlineExceeded", message: "slow", isAfterwards: true });
    await until("published", async () => {
      await agent.manager.setUp(pod, never).catch(() => {});
      return (await driver.calls("NodePublishVolume")).length > 0;
    });
    expect((await listMountsUnder(targetOf(pod))).length).toBe(1);
    await tearDown(agent, pod);
    await nothingIsLeft();
    expect(await driver.calls("NodeUnpublishVolume")).toHaveLength(1);
  });

  test("a volume that cannot be attached says why, and the pod is woken when it can", async () => {
    createVolume("pv");
    server.objects.patch(
      persistentVolumes,
      { name: "pv" },
      { metadata: { annotations: { [attachErrorAnnotation]: "no" } } },
    );
    const agent = await startAgent();
    const pod = podWithClaim("web");
    await expect(agent.manager.setUp(pod, never)).rejects.toThrow(
      'MountVolume.VerifyControllerAttachedVolume failed for volume "pv" : waiting for the attach/detach controller',
    );
    expect(await changes()).toEqual([]);
    server.objects.patch(
      persistentVolumes,
      { name: "pv" },
      { metadata: { annotations: { [attachErrorAnnotation]: null } } },
    );
    await until("the pod is told", () => agent.wakes.includes(uid(pod)));
    await setUp(agent, pod);
  });

  test("attachRequired false: nobody waits for anybody", async () => {
    describeDriver({ attachRequired: false });
    createVolume("pv");
    const agent = await startAgent();
    const pod = podWithClaim("web");
    await agent.manager.setUp(pod, never);
    expect(server.objects.find(nodes, { name: "n1" })?.status?.volumesInUse ?? []).toEqual([]);
    expect((await last("NodePublishVolume"))["publish_context"]).toEqual({});
  });

  test("a driver that is not there yet is waited for", async () => {
    describeDriver({ attachRequired: false });
    createVolume("pv");
    const agent = await startAgent();
    await driver.stop();
    await until("it is gone", () => !agent.drivers.names().includes(driverName));
    const pod = podWithClaim("web");
    await expect(agent.manager.setUp(pod, never)).rejects.toThrow(/MountVolume\.MountDevice failed .*csi\.test/);
    await driver.start();
    await until("the pod is told", () => agent.wakes.includes(uid(pod)));
    await agent.manager.setUp(pod, never);
  });

  describe("inline volumes", () => {
    const inline = (extra: object = {}) => [{ name: "scratch", csi: { driver: driverName, ...extra } }];

    test("need a CSIDriver object that allows them", async () => {
      const agent = await startAgent();
      const pod = createPod("web", inline());
      await expect(agent.manager.setUp(pod, never)).rejects.toThrow(
        'MountVolume.NewMounter initialization failed for volume "scratch" : ' +
          'volume mode "Ephemeral" not supported by driver csi.test (no CSIDriver object)',
      );
      describeDriver({ volumeLifecycleModes: ["Ephemeral"], podInfoOnMount: true });
      await until("the pod is told", () => agent.wakes.includes(uid(pod)));
      await agent.manager.setUp(pod, never);
      const request = await last("NodePublishVolume");
      expect(request).toMatchObject({
        volume_id: ephemeralHandle(uid(pod), "scratch"),
        staging_target_path: "",
        volume_context: {
          "csi.storage.k8s.io/pod.name": "web",
          "csi.storage.k8s.io/pod.namespace": "default",
          "csi.storage.k8s.io/pod.uid": uid(pod),
          "csi.storage.k8s.io/ephemeral": "true",
        },
      });
      expect(await driver.calls("NodeStageVolume")).toEqual([]);
      await tearDown(agent, pod);
      expect(await leftovers()).toEqual([]);
    });

    test("get the secret that they name, which no error and no event repeats", async () => {
      describeDriver({ volumeLifecycleModes: ["Ephemeral"] });
      const agent = await startAgent();
      const pod = createPod("web", inline({ nodePublishSecretRef: { name: "login" } }));
      await expect(agent.manager.setUp(pod, never)).rejects.toThrow(
        "fetching NodePublishSecretRef default/login failed",
      );
      server.objects.create(secrets, {
        apiVersion: "v1",
        kind: "Secret",
        metadata: { name: "login", namespace: "default" },
        data: { password: Buffer.from("hunter2").toString("base64") },
      });
      await driver.fail("NodePublishVolume", { code: "Internal", message: "no", times: 1 });
      const failed = await agent.manager.setUp(pod, never).catch(messageOf);
      expect(failed).toContain("desc = no");
      await agent.manager.setUp(pod, never);
      expect((await last("NodePublishVolume"))["secrets"]).toEqual({ password: "hunter2" });
      expect([failed, ...agent.events].join("\n")).not.toContain("hunter2");
    });
  });

  describe("fsGroup", () => {
    const group = { securityContext: { fsGroup: 4321 } };

    test("owns a volume of one writer with a file system type; not others", async () => {
      describeDriver({ attachRequired: false });
      createVolume("typed", { csi: { driver: driverName, volumeHandle: "t", fsType: "tmpfs" } });
      createVolume("untyped");
      const agent = await startAgent();
      const [typed, untyped] = [podWithClaim("a", "typed", group), podWithClaim("b", "untyped", group)];
      await Promise.all([agent.manager.setUp(typed, never), agent.manager.setUp(untyped, never)]);
      const { gid, mode } = await stat(targetOf(typed, "typed"));
      expect([gid, mode & 0o7070]).toEqual([4321, 0o2070]);
      expect((await stat(targetOf(untyped, "untyped"))).gid).toBe(0);
    });

    test("is given to drivers that apply it themselves", async () => {
      describeDriver({ attachRequired: false, fsGroupPolicy: "File" });
      await driver.configure({ capabilities: ["STAGE_UNSTAGE_VOLUME", "VOLUME_MOUNT_GROUP"] });
      createVolume("pv");
      const agent = await startAgent();
      await agent.manager.setUp(podWithClaim("web", "pv", group), never);
      for (const method of ["NodeStageVolume", "NodePublishVolume"]) {
        expect(await last(method)).toMatchObject({ volume_capability: { mount: { volume_mount_group: "4321" } } });
      }
    });
  });

  test("a driver without staging publishes only", async () => {
    describeDriver({ attachRequired: false });
    await driver.configure({ capabilities: ["SINGLE_NODE_MULTI_WRITER"] });
    createVolume("pv", { accessModes: ["ReadWriteOncePod"] });
    const agent = await startAgent();
    const pod = podWithClaim("web");
    await agent.manager.setUp(pod, never);
    expect(await last("NodePublishVolume")).toMatchObject({
      staging_target_path: "",
      volume_capability: { access_mode: { mode: "SINGLE_NODE_SINGLE_WRITER" } },
    });
    await tearDown(agent, pod);
    await nothingIsLeft();
    expect(await changes()).toEqual(["NodePublishVolume", "NodeUnpublishVolume"]);
  });

  test("a pod alone has a volume of mode ReadWriteOncePod", async () => {
    describeDriver({ attachRequired: false });
    createVolume("pv", { accessModes: ["ReadWriteOncePod"] });
    const agent = await startAgent();
    const [first, second] = [podWithClaim("first"), podWithClaim("second")];
    await agent.manager.setUp(first, never);
    const next = await startAgent(); // it is known after a restart, too
    await expect(next.manager.setUp(second, never)).rejects.toThrow(
      'MountVolume.SetUp failed for volume "pv" : volume uses the ReadWriteOncePod access mode and is already in use',
    );
    await tearDown(next, first);
    await setUp(next, second);
  });

  describe("a driver that asks for tokens", () => {
    beforeEach(() => {
      const metadata = { name: "default", namespace: "default" };
      server.objects.create(serviceAccounts, { apiVersion: "v1", kind: "ServiceAccount", metadata });
    });

    test("gets them of the pod, and is told again", async () => {
      const tokenRequests = [{ audience: "vault", expirationSeconds: 600 }, { audience: "" }];
      describeDriver({ attachRequired: false, requiresRepublish: true, podInfoOnMount: true, tokenRequests });
      createVolume("pv");
      const agent = await startAgent();
      const pod = podWithClaim("web");
      await agent.manager.setUp(pod, never);
      const { "csi.storage.k8s.io/serviceAccount.tokens": text = "" } = (await last("NodePublishVolume"))[
        "volume_context"
      ] as Record<string, string>;
      const tokens = JSON.parse(text) as Record<string, { token: string; expirationTimestamp: string }>;
      expect(Object.keys(tokens).toSorted()).toEqual(["", "vault"]);
      expect(tokens["vault"]?.token).toMatch(/^ey/);
      expect(tokens["vault"]?.expirationTimestamp).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
      const inMs = agent.manager.refreshInMs(uid(pod)) ?? 0;
      expect(inMs).toBeGreaterThan(0);
      expect(inMs).toBeLessThanOrEqual(90_000);
      await agent.manager.setUp(pod, never); // somebody else's refresh
      expect(await driver.calls("NodePublishVolume")).toHaveLength(1);
    });

    test("gets them among its secrets if it likes", async () => {
      const tokenRequests = [{ audience: "vault" }];
      describeDriver({ attachRequired: false, tokenRequests, serviceAccountTokenInSecrets: true });
      createVolume("pv");
      const agent = await startAgent();
      await agent.manager.setUp(podWithClaim("web"), never);
      const { secrets: given, volume_context: context } = await last("NodePublishVolume");
      expect(Object.keys(given as object)).toEqual(["csi.storage.k8s.io/serviceAccount.tokens"]);
      expect(context).toEqual({ size: "8Mi" });
    });
  });

  describe("a volume that has grown", () => {
    const grow = (storage: string) => {
      server.objects.patch(persistentVolumes, { name: "pv" }, { spec: { capacity: { storage } } });
    };
    const claim = () => server.objects.find(persistentVolumeClaims, { namespace: "default", name: "pv" });

    test("is expanded before its pod gets it, and the claim says so", async () => {
      describeDriver({ attachRequired: false });
      createVolume("pv");
      grow("16Mi");
      const agent = await startAgent();
      const pod = podWithClaim("web");
      await agent.manager.setUp(pod, never);
      expect(await last("NodeExpandVolume")).toMatchObject({
        volume_id: "handle-pv",
        volume_path: targetOf(pod),
        capacity_range: { required_bytes: String(16 << 20) },
      });
      expect(claim()?.status?.capacity).toEqual({ storage: "16Mi" });
      const said = 'FileSystemResizeSuccessful MountVolume.NodeExpandVolume succeeded for volume "pv" n1';
      expect(agent.events).toEqual([said, `pv: ${said}`]);
    });

    test("while it is used is expanded under its pod, with the claim's resize status", async () => {
      describeDriver({ attachRequired: false });
      createVolume("pv");
      const agent = await startAgent();
      const pod = podWithClaim("web");
      await agent.manager.setUp(pod, never);
      expect(agent.manager.refreshInMs(uid(pod))).toBeLessThanOrEqual(90_000);
      grow("16Mi");
      server.objects.patch(
        persistentVolumeClaims,
        { namespace: "default", name: "pv" },
        {
          status: {
            allocatedResources: { storage: "16Mi" },
            allocatedResourceStatuses: { storage: "NodeResizePending" },
            conditions: [{ type: "FileSystemResizePending", status: "True" }],
          },
        },
        { subresource: "status" },
      );
      await driver.fail("NodeExpandVolume", { code: "Internal", message: "disk is shy", times: 1 });
      await agent.manager.setUp(pod, never);
      expect(agent.events.at(-1)).toMatch(
        /^VolumeResizeFailed NodeExpandVolume\.NodeExpandVolume failed for volume "pv" : .*disk is shy$/,
      );
      expect(claim()?.status).toMatchObject({
        allocatedResourceStatuses: { storage: "NodeResizeInProgress" },
        conditions: [{ type: "FileSystemResizePending" }, { type: "NodeResizeError", status: "True" }],
      });
      expect(agent.manager.refreshInMs(uid(pod))).toBeLessThanOrEqual(1_000); // tried again soon
      await agent.manager.setUp(pod, never);
      expect(claim()?.status?.capacity).toEqual({ storage: "16Mi" });
      expect(claim()?.status?.conditions ?? []).toEqual([]);
      expect(claim()?.status?.allocatedResourceStatuses ?? {}).toEqual({});
      expect(await driver.calls("NodePublishVolume")).toHaveLength(1);
    });

    test("but cannot be expanded keeps its pod waiting, or is given up where that can never work", async () => {
      describeDriver({ attachRequired: false });
      createVolume("pv");
      grow("16Mi");
      const agent = await startAgent();
      const pod = podWithClaim("web");
      await driver.fail("NodeExpandVolume", { code: "OutOfRange", message: "too big" });
      await expect(agent.manager.setUp(pod, never)).rejects.toThrow(
        /^MountVolume\.NodeExpandVolume failed for volume "pv" : .*too big$/,
      );
      await driver.fail("NodeExpandVolume", { code: "FailedPrecondition", message: "in use" });
      await agent.manager.setUp(pod, never);
      expect(claim()?.status?.capacity).toEqual({ storage: "8Mi" });
    });
  });

  describe("a block volume", () => {
    const podWithDevice = (name: string) =>
      createPod(name, [{ name: "disk", persistentVolumeClaim: { claimName: "pv" } }], {
        containers: [{ name: "app", image: "busybox", volumeDevices: [{ name: "disk", devicePath: "/dev/disk" }] }],
      });
    const linkOf = (pod: Pod) => join(rootDir, "pods", uid(pod), "volumeDevices/kubernetes.io~csi/pv");
    const own = () => join(rootDir, "plugins/kubernetes.io/csi/volumeDevices");

    beforeEach(() => {
      describeDriver({ attachRequired: false });
      createVolume("pv", { volumeMode: "Block", accessModes: ["ReadWriteMany"] });
    });

    test("is given to two pods as a device, held open, and goes with all that belongs to it", async () => {
      const agent = await startAgent();
      const [a, b] = [podWithDevice("a"), podWithDevice("b")];
      if (!(await hasLoopDevices())) {
        // The driver's volumes are loop devices, too: it says what this kernel cannot do.
        await expect(agent.manager.setUp(a, never)).rejects.toThrow(
          /^MapVolume\.MapPodDevice failed for volume "pv" : .*losetup/,
        );
        await tearDown(agent, a);
        return;
      }
      await agent.manager.setUp(a, never);
      await agent.manager.setUp(b, never);
      expect(await driver.calls("NodeStageVolume")).toHaveLength(1);
      expect(await last("NodePublishVolume")).toMatchObject({
        target_path: join(own(), "publish/pv", uid(b)),
        staging_target_path: join(own(), "staging/pv"),
        volume_capability: { access_mode: { mode: "MULTI_NODE_MULTI_WRITER" }, block: {} },
      });
      expect(JSON.parse(await readFile(join(own(), "pv/data/vol_data.json"), "utf8"))).toMatchObject({
        specVolID: "pv",
        volumeHandle: "handle-pv",
      });
      expect((await stat(linkOf(a))).isBlockDevice()).toBe(true);
      expect(agent.manager.devices(uid(a), a.spec.containers[0]!)).toEqual([
        { hostPath: linkOf(a), containerPath: "/dev/disk", permissions: "mrw" },
      ]);
      const mapped = agent.events.filter((text) => text.startsWith("SuccessfulMountVolume"));
      expect(mapped.slice(0, 2)).toEqual([
        `SuccessfulMountVolume MapVolume.MapPodDevice succeeded for volume "pv" globalMapPath "${own()}/pv/dev"`,
        expect.stringContaining('MapVolume.MapPodDevice succeeded for volume "pv" volumeMapPath "'),
      ]);
      await tearDown(agent, a);
      expect((await stat(linkOf(b))).isBlockDevice()).toBe(true);
      await tearDown(agent, b);
      await nothingIsLeft();
      expect(await driver.calls("NodeUnstageVolume")).toHaveLength(1);
      expect(await readdir(join(own(), "publish"))).toEqual([]);
      expect((await readdir(own())).toSorted()).toEqual(["publish", "staging"]);
    });

    test.each(twice(["nodeStageVolume", "nodePublishVolume", "nodeUnpublishVolume", "nodeUnstageVolume"]))(
      "of an agent that is killed $when $method is taken away by the next",
      async (deathAt) => {
        const first = await startAgent({ deathAt });
        const pod = podWithDevice("a");
        const isThere = await hasLoopDevices();
        if (!isThere && deathAt.method !== "nodeStageVolume" && deathAt.when === "after") return; // never gets there
        const work = first.manager.setUp(pod, never).then(async () => await first.manager.tearDown(uid(pod)));
        void work.catch(async () => await first.manager.tearDown(uid(pod)).catch(() => {}));
        await first.died;
        const next = await startAgent();
        await tearDown(next, pod);
        await nothingIsLeft();
      },
    );
  });

  describe("a driver that hangs", () => {
    test("keeps neither other pods nor the deletion of its own, which goes on once it answers", async () => {
      describeDriver({ attachRequired: false });
      createVolume("pv");
      createVolume("other");
      const agent = await startAgent();
      const [stuck, fine] = [podWithClaim("stuck"), podWithClaim("fine", "other")];
      await driver.fail("NodePublishVolume", { hangs: true, times: 1 });
      const deletion = new AbortController();
      const settingUp = agent.manager.setUp(stuck, deletion.signal);
      await until("it hangs", async () => (await driver.calls("NodePublishVolume")).length === 1);
      await agent.manager.setUp(fine, never);
      deletion.abort();
      await expect(settingUp).rejects.toThrow();
      const tearingDown = agent.manager.tearDown(uid(stuck));
      await agent.manager.tearDown(uid(fine));
      await sleep(100);
      expect(await driver.calls("NodeUnpublishVolume")).toHaveLength(1); // of the other: nobody knows what this one will do
      await driver.heal();
      await tearingDown;
      await nothingIsLeft();
      expect(await driver.calls("NodeUnpublishVolume")).toHaveLength(2);
    });

    test("when it dies in the middle of a call, its volume is published again, or taken away", async () => {
      describeDriver({ attachRequired: false });
      createVolume("pv");
      const agent = await startAgent();
      const pod = podWithClaim("web");
      await driver.fail("NodePublishVolume", { hangs: true, isAfterwards: true });
      const settingUp = agent.manager.setUp(pod, never).catch(messageOf);
      await until("it hangs", async () => (await listMountsUnder(targetOf(pod))).length === 1);
      await driver.stop("SIGKILL");
      await driver.heal();
      expect(await settingUp).toContain("MountVolume.SetUp failed");
      await driver.start();
      await setUp(agent, pod);
      await tearDown(agent, pod);
      await nothingIsLeft();
    });
  });

  describe("an agent that is killed", () => {
    const attempts = ["nodeGetCapabilities", "nodeStageVolume", "nodePublishVolume"];
    test.each(twice(attempts))("$when $method: the next one goes on, or takes it away", async (deathAt) => {
      describeDriver({ attachRequired: false });
      createVolume("pv");
      createVolume("gone");
      const [stays, goes] = [podWithClaim("stays"), podWithClaim("goes", "gone")];
      const begin = async (pod: Pod) => {
        const agent = await startAgent({ deathAt });
        void agent.manager.setUp(pod, never).catch(() => {});
        await agent.died;
      };
      await begin(stays);
      await begin(goes);
      await driver.stop("SIGKILL");
      await driver.start();
      const next = await startAgent();
      await Promise.all([setUp(next, stays), tearDown(next, goes)]);
      await until("only one is left", async () => (await listMountsUnder(rootDir)).length === 2);
      expect(await listMountsUnder(targetOf(stays))).toHaveLength(1);
      await expect(stat(join(targetOf(goes, "gone"), ".."))).rejects.toThrow("ENOENT");
      await tearDown(next, stays);
      await nothingIsLeft();
    });

    const ends = ["nodeUnpublishVolume", "nodeUnstageVolume"];
    test.each(twice(ends))(
      "$when $method: the next one ends it, and leaves another pod's volume alone",
      async (deathAt) => {
        describeDriver({ attachRequired: false });
        createVolume("pv");
        createVolume("used");
        const first = await startAgent({ deathAt });
        const [pod, user] = [podWithClaim("web"), podWithClaim("user", "used")];
        await Promise.all([setUp(first, pod), setUp(first, user)]);
        await writeFile(join(targetOf(user, "used"), "file"), "still here");
        void first.manager.tearDown(uid(pod)).catch(() => {});
        await first.died;
        const second = await startAgent();
        await tearDown(second, pod);
        await until("it is unstaged", async () => (await listMountsUnder(rootDir)).length === 2);
        expect(await readFile(join(targetOf(user, "used"), "file"), "utf8")).toBe("still here");
        const unpublished = await driver.calls("NodeUnpublishVolume");
        expect(unpublished.every(({ request }) => request["volume_id"] === "handle-pv")).toBe(true);
        await tearDown(second, user);
        await nothingIsLeft();
      },
    );
  });
});

async function hasLoopDevices(): Promise<boolean> {
  return (await exec("losetup", ["--find"], { timeoutMs: 10_000 })).failure === undefined;
}

function twice(methods: readonly string[]): DeathAt[] {
  return methods.flatMap((method) => [
    { method, when: "before" as const },
    { method, when: "after" as const },
  ]);
}
