import { readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { beforeEach, describe, expect, test } from "vitest";
import { persistentVolumeClaims, persistentVolumes } from "../../agent/kube/resources.ts";
import type { Pod } from "../../agent/kube/types.ts";
import { exec } from "../../agent/lib/exec.ts";
import { messageOf } from "../../agent/lib/errors.ts";
import { listMountsUnder } from "../../agent/lib/mount.ts";
import { never, until, useCSIVolumes } from "../support/csi/use-volumes.ts";
import type { DeathAt } from "../support/csi/volume-agent.ts";

// CSI volumes under drivers that hang or die and agents that are killed, and volumes that are block devices.

describe("CSI volumes", () => {
  const on = useCSIVolumes();
  const {
    startAgent,
    describeDriver,
    createVolume,
    createPod,
    podWithClaim,
    uid,
    targetOf,
    last,
    setUp,
    tearDown,
    nothingIsLeft,
  } = on;

  describe("a block volume", () => {
    const podWithDevice = (name: string) =>
      createPod(name, [{ name: "disk", persistentVolumeClaim: { claimName: "pv" } }], {
        containers: [{ name: "app", image: "busybox", volumeDevices: [{ name: "disk", devicePath: "/dev/disk" }] }],
      });
    const linkOf = (pod: Pod) => join(on.rootDir, "pods", uid(pod), "volumeDevices/kubernetes.io~csi/pv");
    const own = () => join(on.rootDir, "plugins/kubernetes.io/csi/volumeDevices");

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
      expect(await on.driver.calls("NodeStageVolume")).toHaveLength(1);
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
      expect(await on.driver.calls("NodeUnstageVolume")).toHaveLength(1);
      expect(await readdir(join(own(), "publish"))).toEqual([]);
      expect((await readdir(own())).toSorted()).toEqual(["publish", "staging"]);
    });

    test("waits for the one whose PersistentVolume had its name before, and takes nothing from it", async () => {
      if (!(await hasLoopDevices())) return;
      const agent = await startAgent();
      const a = podWithDevice("a");
      await agent.manager.setUp(a, never);
      const first = async () => (await readFile(linkOf(a))).subarray(0, 5).toString();
      await writeFile(linkOf(a), "first");
      on.server.objects.delete(persistentVolumeClaims, { namespace: "default", name: "pv" });
      on.server.objects.delete(persistentVolumes, { name: "pv" });
      createVolume("pv", { volumeMode: "Block", accessModes: ["ReadWriteMany"] }, "another");
      const b = podWithDevice("b");
      await expect(agent.manager.setUp(b, never)).rejects.toMatchObject({
        code: "Unavailable",
        message: expect.stringContaining("a pod still has volume handle-pv of driver csi.test"),
      });
      expect((await on.driver.calls("NodeStageVolume")).map(({ request }) => request["volume_id"])).toEqual([
        "handle-pv",
      ]);
      expect(await first()).toBe("first");
      await tearDown(agent, a);
      await setUp(agent, b);
      expect(await last("NodeUnpublishVolume")).toMatchObject({ volume_id: "handle-pv" });
      expect(await last("NodeUnstageVolume")).toMatchObject({ volume_id: "handle-pv" });
      expect(await last("NodePublishVolume")).toMatchObject({ volume_id: "another" });
      await tearDown(agent, b);
      await nothingIsLeft();
    });

    test("of a pod whose directory is gone is taken from it, though another pod goes on with the volume", async () => {
      if (!(await hasLoopDevices())) return;
      const agent = await startAgent();
      const [a, b] = [podWithDevice("a"), podWithDevice("b")];
      await agent.manager.setUp(a, never);
      await agent.manager.setUp(b, never);
      await agent.stop();
      await rm(join(on.rootDir, "pods", uid(a)), { recursive: true });
      const next = await startAgent();
      await next.manager.setUp(b, never);
      await until("it is taken away", async () => (await readdir(join(own(), "publish/pv"))).join() === uid(b));
      expect(await readdir(join(own(), "pv/dev"))).toEqual([uid(b)]);
      expect((await last("NodeUnpublishVolume"))["target_path"]).toContain(uid(a));
      expect((await stat(linkOf(b))).isBlockDevice()).toBe(true);
      await tearDown(next, b);
      await nothingIsLeft();
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
        await expect(stat(linkOf(pod))).rejects.toThrow("ENOENT");
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
      await on.driver.fail("NodePublishVolume", { hangs: true, times: 1 });
      const deletion = new AbortController();
      const settingUp = agent.manager.setUp(stuck, deletion.signal);
      await until("it hangs", async () => (await on.driver.calls("NodePublishVolume")).length === 1);
      await agent.manager.setUp(fine, never);
      deletion.abort();
      await expect(settingUp).rejects.toThrow();
      const tearingDown = agent.manager.tearDown(uid(stuck));
      await agent.manager.tearDown(uid(fine));
      await sleep(100);
      expect(await on.driver.calls("NodeUnpublishVolume")).toHaveLength(1); // of the other: nobody knows what this one will do
      await on.driver.heal();
      await tearingDown;
      await nothingIsLeft();
      expect(await on.driver.calls("NodeUnpublishVolume")).toHaveLength(2);
    });

    test("when it dies in the middle of a call, its volume is published again, or taken away", async () => {
      describeDriver({ attachRequired: false });
      createVolume("pv");
      const agent = await startAgent();
      const pod = podWithClaim("web");
      await on.driver.fail("NodePublishVolume", { hangs: true, isAfterwards: true });
      const settingUp = agent.manager.setUp(pod, never).catch(messageOf);
      await until("it hangs", async () => (await listMountsUnder(targetOf(pod))).length === 1);
      await on.driver.stop("SIGKILL");
      await on.driver.heal();
      expect(await settingUp).toContain("MountVolume.SetUp failed");
      await on.driver.start();
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
      await on.driver.stop("SIGKILL");
      await on.driver.start();
      const next = await startAgent();
      await Promise.all([setUp(next, stays), tearDown(next, goes)]);
      await until("only one is left", async () => (await listMountsUnder(on.rootDir)).length === 2);
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
        await until("it is unstaged", async () => (await listMountsUnder(on.rootDir)).length === 2);
        expect(await readFile(join(targetOf(user, "used"), "file"), "utf8")).toBe("still here");
        const unpublished = await on.driver.calls("NodeUnpublishVolume");
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
