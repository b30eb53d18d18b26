import { readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { beforeEach, describe, expect, test } from "vitest";
import {
  nodes,
  persistentVolumeClaims,
  persistentVolumes,
  secrets,
  serviceAccounts,
  volumeAttachments,
} from "../../agent/kube/resources.ts";
import { messageOf } from "../../agent/lib/errors.ts";
import { listMountsUnder } from "../../agent/lib/mount.ts";
import { attachmentName, ephemeralHandle, uniqueVolumeName } from "../../agent/volumes/csi/paths.ts";
import { attachErrorAnnotation } from "../support/apiserver/controllers/attach.ts";
import { driverName, never, until, useCSIVolumes } from "../support/csi/use-volumes.ts";

// The CSI volume kind with a real driver in a process of its own, real mounts and the real API client; no containers.

describe("CSI volumes", () => {
  const on = useCSIVolumes();

  test("a claim's volume is attached, staged and published, and taken away in reverse", async () => {
    on.createVolume("pv", { mountOptions: ["noatime"] });
    const agent = await on.startAgent();
    const pod = on.podWithClaim("web");
    await on.setUp(agent, pod);
    const target = on.targetOf(pod);
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
    const staged = await on.last("NodeStageVolume");
    expect(staged).toMatchObject({
      volume_id: handle,
      publish_context: { devicePath: "/dev/test/pv" },
      volume_context: { size: "8Mi" },
      volume_capability: { access_mode: { mode: "SINGLE_NODE_WRITER" }, mount: { mount_flags: ["noatime"] } },
    });
    const stagingPath = String(staged["staging_target_path"]);
    expect(stagingPath).toMatch(
      new RegExp(`^${on.rootDir}/plugins/kubernetes.io/csi/csi.test/[0-9a-f]{64}/globalmount$`),
    );
    expect(JSON.parse(await readFile(join(stagingPath, "../vol_data.json"), "utf8"))).toEqual({
      volumeHandle: handle,
      driverName,
    });
    expect(await on.last("NodePublishVolume")).toMatchObject({
      volume_id: handle,
      target_path: target,
      staging_target_path: stagingPath,
      publish_context: { devicePath: "/dev/test/pv" },
      readonly: false,
    });
    const unique = uniqueVolumeName(driverName, handle);
    expect(on.server.objects.find(nodes, { name: "n1" })?.status?.volumesInUse).toEqual([unique]);
    await writeFile(join(target, "kept"), "data");

    on.deletePod("web");
    await on.tearDown(agent, pod);
    await on.nothingIsLeft();
    expect(await on.changes()).toEqual([
      "NodeStageVolume",
      "NodePublishVolume",
      "NodeUnpublishVolume",
      "NodeUnstageVolume",
    ]);
    await until(
      "it is detached",
      () => on.server.objects.find(volumeAttachments, { name: attachmentID }) === undefined,
    );
    expect(on.server.objects.find(nodes, { name: "n1" })?.status?.volumesInUse ?? []).toEqual([]);
  });

  test("two pods share one stage, which goes with the last of them", async () => {
    on.createVolume("pv", { accessModes: ["ReadWriteMany"] });
    const agent = await on.startAgent();
    const [a, b] = [on.podWithClaim("a"), on.podWithClaim("b")];
    await Promise.all([on.setUp(agent, a), on.setUp(agent, b)]);
    await writeFile(join(on.targetOf(a), "hello"), "from a");
    expect(await readFile(join(on.targetOf(b), "hello"), "utf8")).toBe("from a");
    expect(await on.driver.calls("NodeStageVolume")).toHaveLength(1);
    await on.tearDown(agent, a);
    await sleep(200); // a sweep had its chance
    expect(await on.driver.calls("NodeUnstageVolume")).toEqual([]);
    expect(await readFile(join(on.targetOf(b), "hello"), "utf8")).toBe("from a");
    await on.tearDown(agent, b);
    await on.nothingIsLeft();
    expect(await on.driver.calls("NodeUnstageVolume")).toHaveLength(1);
  });

  test("what goes wrong is told with the step, and the driver's words", async () => {
    on.createVolume("pv");
    const agent = await on.startAgent();
    const pod = on.podWithClaim("web");
    await on.driver.fail("NodeStageVolume", { code: "InvalidArgument", message: "no such disk" });
    await until("the volume is attached", async () => {
      await agent.manager.setUp(pod, never).catch((err: unknown) => agent.events.push(messageOf(err)));
      return agent.events.find((text) => text.includes("no such disk"));
    });
    expect(agent.events.at(-1)).toMatch(
      /^MountVolume\.MountDevice failed for volume "pv" : .*rpc error: code = InvalidArgument desc = no such disk$/,
    );
    expect(await on.leftovers()).toEqual([]); // the driver has refused: nothing is there
    await on.driver.heal();
    await on.driver.fail("NodePublishVolume", { code: "Internal", message: "not today" });
    await expect(agent.manager.setUp(pod, never)).rejects.toThrow(
      /^MountVolume\.SetUp failed for volume "pv" : .*desc = not today$/,
    );
    await expect(stat(join(on.targetOf(pod), ".."))).rejects.toThrow("ENOENT");
    await on.driver.heal();
    await on.setUp(agent, pod);
    await on.tearDown(agent, pod);
    await on.nothingIsLeft();
  });

  test("after an error that leaves it open the volume is taken for mounted", async () => {
    on.createVolume("pv");
    const agent = await on.startAgent();
    const pod = on.podWithClaim("web");
    await on.driver.fail("NodePublishVolume", { code: "DeadlineExceeded", message: "slow", isAfterwards: true });
    await until("published", async () => {
      await agent.manager.setUp(pod, never).catch(() => {});
      return (await on.driver.calls("NodePublishVolume")).length > 0;
    });
    expect((await listMountsUnder(on.targetOf(pod))).length).toBe(1);
    await on.tearDown(agent, pod);
    await on.nothingIsLeft();
    expect(await on.driver.calls("NodeUnpublishVolume")).toHaveLength(1);
  });

  test("a volume that cannot be attached says why, and the pod is woken when it can", async () => {
    on.createVolume("pv");
    on.server.objects.patch(
      persistentVolumes,
      { name: "pv" },
      { metadata: { annotations: { [attachErrorAnnotation]: "no" } } },
    );
    const agent = await on.startAgent();
    const pod = on.podWithClaim("web");
    await expect(agent.manager.setUp(pod, never)).rejects.toThrow(
      /MountVolume\.VerifyControllerAttachedVolume failed for volume "pv" : waiting for the attach\/detach controller.*: no$/,
    );
    expect(await on.changes()).toEqual([]);
    on.server.objects.patch(
      persistentVolumes,
      { name: "pv" },
      { metadata: { annotations: { [attachErrorAnnotation]: null } } },
    );
    await until("the pod is told", () => agent.wakes.includes(on.uid(pod)));
    await on.setUp(agent, pod);
  });

  test("attachRequired false: nobody waits for anybody", async () => {
    on.describeDriver({ attachRequired: false });
    on.createVolume("pv");
    const agent = await on.startAgent();
    const pod = on.podWithClaim("web");
    await agent.manager.setUp(pod, never);
    expect(on.server.objects.find(nodes, { name: "n1" })?.status?.volumesInUse ?? []).toEqual([]);
    expect((await on.last("NodePublishVolume"))["publish_context"]).toEqual({});
  });

  test("a driver that is not there yet is waited for", async () => {
    on.describeDriver({ attachRequired: false });
    on.createVolume("pv");
    const agent = await on.startAgent();
    await on.driver.stop();
    await until("it is gone", () => !agent.drivers.names().includes(driverName));
    const pod = on.podWithClaim("web");
    await expect(agent.manager.setUp(pod, never)).rejects.toThrow(/MountVolume\.MountDevice failed .*csi\.test/);
    await on.driver.start();
    await until("the pod is told", () => agent.wakes.includes(on.uid(pod)));
    await agent.manager.setUp(pod, never);
  });

  describe("inline volumes", () => {
    const inline = (extra: object = {}) => [{ name: "scratch", csi: { driver: driverName, ...extra } }];

    test("need a CSIDriver object that allows them", async () => {
      const agent = await on.startAgent();
      const pod = on.createPod("web", inline());
      await expect(agent.manager.setUp(pod, never)).rejects.toThrow(
        'MountVolume.NewMounter initialization failed for volume "scratch" : ' +
          'volume mode "Ephemeral" not supported by driver csi.test (no CSIDriver object)',
      );
      on.describeDriver({ volumeLifecycleModes: ["Ephemeral"], podInfoOnMount: true });
      await until("the pod is told", () => agent.wakes.includes(on.uid(pod)));
      await agent.manager.setUp(pod, never);
      const request = await on.last("NodePublishVolume");
      expect(request).toMatchObject({
        volume_id: ephemeralHandle(on.uid(pod), "scratch"),
        staging_target_path: "",
        volume_context: {
          "csi.storage.k8s.io/pod.name": "web",
          "csi.storage.k8s.io/pod.namespace": "default",
          "csi.storage.k8s.io/pod.uid": on.uid(pod),
          "csi.storage.k8s.io/ephemeral": "true",
        },
      });
      expect(await on.driver.calls("NodeStageVolume")).toEqual([]);
      await on.tearDown(agent, pod);
      expect(await on.leftovers()).toEqual([]);
    });

    test("get the secret that they name as soon as it is there, which no error and no event repeats", async () => {
      on.describeDriver({ volumeLifecycleModes: ["Ephemeral"] });
      const agent = await on.startAgent();
      const pod = on.createPod("web", inline({ nodePublishSecretRef: { name: "login" } }));
      agent.objects.register(pod);
      await expect(agent.manager.setUp(pod, never)).rejects.toThrow(
        "fetching NodePublishSecretRef default/login failed",
      );
      on.server.objects.create(secrets, {
        apiVersion: "v1",
        kind: "Secret",
        metadata: { name: "login", namespace: "default" },
        data: { password: Buffer.from("hunter2").toString("base64") },
      });
      await expect.poll(() => agent.wakes).toContain(on.uid(pod));
      await on.driver.fail("NodePublishVolume", { code: "Internal", message: "no", times: 1 });
      const failed = await agent.manager.setUp(pod, never).catch(messageOf);
      expect(failed).toContain("desc = no");
      await agent.manager.setUp(pod, never);
      expect((await on.last("NodePublishVolume"))["secrets"]).toEqual({ password: "hunter2" });
      expect([failed, ...agent.events].join("\n")).not.toContain("hunter2");
      agent.objects.unregister(on.uid(pod));
    });
  });

  describe("fsGroup", () => {
    const group = { securityContext: { fsGroup: 4321 } };

    test("owns a volume of one writer with a file system type; not others", async () => {
      on.describeDriver({ attachRequired: false });
      on.createVolume("typed", { csi: { driver: driverName, volumeHandle: "t", fsType: "tmpfs" } });
      on.createVolume("untyped");
      const agent = await on.startAgent();
      const [typed, untyped] = [on.podWithClaim("a", "typed", group), on.podWithClaim("b", "untyped", group)];
      await Promise.all([agent.manager.setUp(typed, never), agent.manager.setUp(untyped, never)]);
      const { gid, mode } = await stat(on.targetOf(typed, "typed"));
      expect([gid, mode & 0o7070]).toEqual([4321, 0o2070]);
      expect((await stat(on.targetOf(untyped, "untyped"))).gid).toBe(0);
    });

    test("is given to drivers that apply it themselves", async () => {
      on.describeDriver({ attachRequired: false, fsGroupPolicy: "File" });
      await on.driver.configure({ capabilities: ["STAGE_UNSTAGE_VOLUME", "VOLUME_MOUNT_GROUP"] });
      on.createVolume("pv");
      const agent = await on.startAgent();
      await agent.manager.setUp(on.podWithClaim("web", "pv", group), never);
      for (const method of ["NodeStageVolume", "NodePublishVolume"]) {
        expect(await on.last(method)).toMatchObject({ volume_capability: { mount: { volume_mount_group: "4321" } } });
      }
    });
  });

  test("a driver without staging publishes only", async () => {
    on.describeDriver({ attachRequired: false });
    await on.driver.configure({ capabilities: ["SINGLE_NODE_MULTI_WRITER"] });
    on.createVolume("pv", { accessModes: ["ReadWriteOncePod"] });
    const agent = await on.startAgent();
    const pod = on.podWithClaim("web");
    await agent.manager.setUp(pod, never);
    expect(await on.last("NodePublishVolume")).toMatchObject({
      staging_target_path: "",
      volume_capability: { access_mode: { mode: "SINGLE_NODE_SINGLE_WRITER" } },
    });
    await on.tearDown(agent, pod);
    await on.nothingIsLeft();
    expect(await on.changes()).toEqual(["NodePublishVolume", "NodeUnpublishVolume"]);
  });

  test("a pod alone has a volume of mode ReadWriteOncePod", async () => {
    on.describeDriver({ attachRequired: false });
    on.createVolume("pv", { accessModes: ["ReadWriteOncePod"] });
    const agent = await on.startAgent();
    const [first, second] = [on.podWithClaim("first"), on.podWithClaim("second")];
    await agent.manager.setUp(first, never);
    const next = await on.startAgent(); // it is known after a restart, too
    await expect(next.manager.setUp(second, never)).rejects.toThrow(
      'MountVolume.SetUp failed for volume "pv" : volume uses the ReadWriteOncePod access mode and is already in use',
    );
    await on.tearDown(next, first);
    await on.setUp(next, second);
  });

  describe("a driver that asks for tokens", () => {
    beforeEach(() => {
      const metadata = { name: "default", namespace: "default" };
      on.server.objects.create(serviceAccounts, { apiVersion: "v1", kind: "ServiceAccount", metadata });
    });

    test("gets them of the pod, and is told again", async () => {
      const tokenRequests = [{ audience: "vault", expirationSeconds: 600 }, { audience: "" }];
      on.describeDriver({ attachRequired: false, requiresRepublish: true, podInfoOnMount: true, tokenRequests });
      on.createVolume("pv");
      const agent = await on.startAgent();
      const pod = on.podWithClaim("web");
      await agent.manager.setUp(pod, never);
      const { "csi.storage.k8s.io/serviceAccount.tokens": text = "" } = (await on.last("NodePublishVolume"))[
        "volume_context"
      ] as Record<string, string>;
      const tokens = JSON.parse(text) as Record<string, { token: string; expirationTimestamp: string }>;
      expect(Object.keys(tokens).toSorted()).toEqual(["", "vault"]);
      expect(tokens["vault"]?.token).toMatch(/^ey/);
      expect(tokens["vault"]?.expirationTimestamp).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
      const inMs = agent.manager.refreshInMs(on.uid(pod)) ?? 0;
      expect(inMs).toBeGreaterThan(0);
      expect(inMs).toBeLessThanOrEqual(90_000);
      await agent.manager.setUp(pod, never); // somebody else's refresh
      expect(await on.driver.calls("NodePublishVolume")).toHaveLength(1);
    });

    test("gets them among its secrets if it likes", async () => {
      const tokenRequests = [{ audience: "vault" }];
      on.describeDriver({ attachRequired: false, tokenRequests, serviceAccountTokenInSecrets: true });
      on.createVolume("pv");
      const agent = await on.startAgent();
      await agent.manager.setUp(on.podWithClaim("web"), never);
      const { secrets: given, volume_context: context } = await on.last("NodePublishVolume");
      expect(Object.keys(given as object)).toEqual(["csi.storage.k8s.io/serviceAccount.tokens"]);
      expect(context).toEqual({ size: "8Mi" });
    });
  });

  describe("a volume that has grown", () => {
    const grow = (storage: string) => {
      on.server.objects.patch(persistentVolumes, { name: "pv" }, { spec: { capacity: { storage } } });
    };
    const claim = () => on.server.objects.find(persistentVolumeClaims, { namespace: "default", name: "pv" });

    test("is expanded before its pod gets it, and the claim says so", async () => {
      on.describeDriver({ attachRequired: false });
      on.createVolume("pv");
      grow("16Mi");
      const agent = await on.startAgent();
      const pod = on.podWithClaim("web");
      await agent.manager.setUp(pod, never);
      expect(await on.last("NodeExpandVolume")).toMatchObject({
        volume_id: "handle-pv",
        volume_path: on.targetOf(pod),
        capacity_range: { required_bytes: String(16 << 20) },
      });
      expect(claim()?.status?.capacity).toEqual({ storage: "16Mi" });
      const said = 'FileSystemResizeSuccessful MountVolume.NodeExpandVolume succeeded for volume "pv" n1';
      expect(agent.events).toEqual([said, `pv: ${said}`]);
    });

    test("while it is used is expanded under its pod, with the claim's resize status", async () => {
      on.describeDriver({ attachRequired: false });
      on.createVolume("pv");
      const agent = await on.startAgent();
      const pod = on.podWithClaim("web");
      await agent.manager.setUp(pod, never);
      expect(agent.manager.refreshInMs(on.uid(pod))).toBeLessThanOrEqual(90_000);
      grow("16Mi");
      on.server.objects.patch(
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
      await on.driver.fail("NodeExpandVolume", { code: "Internal", message: "disk is shy", times: 1 });
      await agent.manager.setUp(pod, never);
      expect(agent.events.at(-1)).toMatch(
        /^VolumeResizeFailed NodeExpandVolume\.NodeExpandVolume failed for volume "pv" : .*disk is shy$/,
      );
      expect(claim()?.status).toMatchObject({
        allocatedResourceStatuses: { storage: "NodeResizeInProgress" },
        conditions: [{ type: "FileSystemResizePending" }, { type: "NodeResizeError", status: "True" }],
      });
      expect(agent.manager.refreshInMs(on.uid(pod))).toBeLessThanOrEqual(1_000); // tried again soon
      await agent.manager.setUp(pod, never);
      expect(claim()?.status?.capacity).toEqual({ storage: "16Mi" });
      expect(claim()?.status?.conditions ?? []).toEqual([]);
      expect(claim()?.status?.allocatedResourceStatuses ?? {}).toEqual({});
      expect(await on.driver.calls("NodePublishVolume")).toHaveLength(1);
    });

    test("but cannot be expanded keeps its pod waiting, or is given up where that can never work", async () => {
      on.describeDriver({ attachRequired: false });
      on.createVolume("pv");
      grow("16Mi");
      const agent = await on.startAgent();
      const pod = on.podWithClaim("web");
      await on.driver.fail("NodeExpandVolume", { code: "OutOfRange", message: "too big" });
      await expect(agent.manager.setUp(pod, never)).rejects.toThrow(
        /^MountVolume\.NodeExpandVolume failed for volume "pv" : .*too big$/,
      );
      await on.driver.fail("NodeExpandVolume", { code: "FailedPrecondition", message: "in use" });
      await agent.manager.setUp(pod, never);
      expect(claim()?.status?.capacity).toEqual({ storage: "8Mi" });
    });
  });
});
