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

  describe("a block volume", () => {
    const podWithDevice = (name: string) =>
      on.createPod(name, [{ name: "disk", persistentVolumeClaim: { claimName: "pv" } }], {
        containers: [{ name: "app", image: "busybox", volumeDevices: [{ name: "disk", devicePath: "/dev/disk" }] }],
      });
    const linkOf = (pod: Pod) => join(on.rootDir, "pods", on.uid(pod), "volumeDevices/kubernetes.io~csi/pv");
    const own = () => join(on.rootDir, "plugins/kubernetes.io/csi/volumeDevices");

    beforeEach(() => {
      on.describeDriver({ attachRequired: false });
      on.createVolume("pv", { volumeMode: "Block", accessModes: ["ReadWriteMany"] });
    });

    test("is given to two pods as a device, held open, and goes with all that belongs to it", async () => {
      const agent = await on.startAgent();
      const [a, b] = [podWithDevice("a"), podWithDevice("b")];
      if (!(await hasLoopDevices())) {
        // The driver's volumes are loop devices, too: it says what this kernel cannot do.
        await expect(agent.manager.setUp(a, never)).rejects.toThrow(
          /^MapVolume\.MapPodDevice failed for volume "pv" : .*losetup/,
        );
        await on.tearDown(agent, a);
        return;
      }
      await agent.manager.setUp(a, never);
      await agent.manager.setUp(b, never);
      expect(await on.driver.calls("NodeStageVolume")).toHaveLength(1);
      expect(await on.last("NodePublishVolume")).toMatchObject({
        target_path: join(own(), "publish/pv", on.uid(b)),
        staging_target_path: join(own(), "staging/pv"),
        volume_capability: { access_mode: { mode: "MULTI_NODE_MULTI_WRITER" }, block: {} },
      });
      expect(JSON.parse(await readFile(join(own(), "pv/data/vol_data.json"), "utf8"))).toMatchObject({
        specVolID: "pv",
        volumeHandle: "handle-pv",
      });
      expect((await stat(linkOf(a))).isBlockDevice()).toBe(true);
      expect(agent.manager.devices(on.uid(a), a.spec.containers[0]!)).toEqual([
        { hostPath: linkOf(a), containerPath: "/dev/disk", permissions: "mrw" },
      ]);
      const mapped = agent.events.filter((text) => text.startsWith("SuccessfulMountVolume"));
      expect(mapped.slice(0, 2)).toEqual([
        `SuccessfulMountVolume MapVolume.MapPodDevice succeeded for volume "pv" globalMapPath "${own()}/pv/dev"`,
        expect.stringContaining('MapVolume.MapPodDevice succeeded for volume "pv" volumeMapPath "'),
      ]);
      await on.tearDown(agent, a);
      expect((await stat(linkOf(b))).isBlockDevice()).toBe(true);
      await on.tearDown(agent, b);
      await on.nothingIsLeft();
      expect(await on.driver.calls("NodeUnstageVolume")).toHaveLength(1);
      expect(await readdir(join(own(), "publish"))).toEqual([]);
      expect((await readdir(own())).toSorted()).toEqual(["publish", "staging"]);
    });

    test("waits for the one whose PersistentVolume had its name before, and takes nothing from it", async () => {
      if (!(await hasLoopDevices())) return;
      const agent = await on.startAgent();
      const a = podWithDevice("a");
      await agent.manager.setUp(a, never);
      const first = async () => (await readFile(linkOf(a))).subarray(0, 5).toString();
      await writeFile(linkOf(a), "first");
      on.server.objects.delete(persistentVolumeClaims, { namespace: "default", name: "pv" });
      on.server.objects.delete(persistentVolumes, { name: "pv" });
      on.createVolume("pv", { volumeMode: "Block", accessModes: ["ReadWriteMany"] }, "another");
      const b = podWithDevice("b");
      await expect(agent.manager.setUp(b, never)).rejects.toMatchObject({
        code: "Unavailable",
        message: expect.stringContaining("a pod still has volume handle-pv of driver csi.test"),
      });
      expect((await on.driver.calls("NodeStageVolume")).map(({ request }) => request["volume_id"])).toEqual([
        "handle-pv",
      ]);
      expect(await first()).toBe("first");
      await on.tearDown(agent, a);
      await on.setUp(agent, b);
      expect(await on.last("NodeUnpublishVolume")).toMatchObject({ volume_id: "handle-pv" });
      expect(await on.last("NodeUnstageVolume")).toMatchObject({ volume_id: "handle-pv" });
      expect(await on.last("NodePublishVolume")).toMatchObject({ volume_id: "another" });
      await on.tearDown(agent, b);
      await on.nothingIsLeft();
    });

    test("of a pod whose directory is gone is taken from it, though another pod goes on with the volume", async () => {
      if (!(await hasLoopDevices())) return;
      const agent = await on.startAgent();
      const [a, b] = [podWithDevice("a"), podWithDevice("b")];
      await agent.manager.setUp(a, never);
      await agent.manager.setUp(b, never);
      await agent.stop();
      await rm(join(on.rootDir, "pods", on.uid(a)), { recursive: true });
      const next = await on.startAgent();
      await next.manager.setUp(b, never);
      await until("it is taken away", async () => (await readdir(join(own(), "publish/pv"))).join() === on.uid(b));
      expect(await readdir(join(own(), "pv/dev"))).toEqual([on.uid(b)]);
      expect((await on.last("NodeUnpublishVolume"))["target_path"]).toContain(on.uid(a));
      expect((await stat(linkOf(b))).isBlockDevice()).toBe(true);
      await on.tearDown(next, b);
      await on.nothingIsLeft();
    });

    test.each(twice(["nodeStageVolume", "nodePublishVolume", "nodeUnpublishVolume", "nodeUnstageVolume"]))(
      "of an agent that is killed $when $method is taken away by the next",
      async (deathAt) => {
        const first = await on.startAgent({ deathAt });
        const pod = podWithDevice("a");
        const isThere = await hasLoopDevices();
        if (!isThere && deathAt.method !== "nodeStageVolume" && deathAt.when === "after") return; // never gets there
        const work = first.manager.setUp(pod, never).then(async () => await first.manager.tearDown(on.uid(pod)));
        void work.catch(async () => await first.manager.tearDown(on.uid(pod)).catch(() => {}));
        await first.died;
        const next = await on.startAgent();
        await on.tearDown(next, pod);
        await on.nothingIsLeft();
        await expect(stat(linkOf(pod))).rejects.toThrow("ENOENT");
      },
    );
  });

  describe("a driver that hangs", () => {
    test("keeps neither other pods nor the deletion of its own, which goes on once it answers", async () => {
      on.describeDriver({ attachRequired: false });
      on.createVolume("pv");
      on.createVolume("other");
      const agent = await on.startAgent();
      const [stuck, fine] = [on.podWithClaim("stuck"), on.podWithClaim("fine", "other")];
      await on.driver.fail("NodePublishVolume", { hangs: true, times: 1 });
      const deletion = new AbortController();
      const settingUp = agent.manager.setUp(stuck, deletion.signal);
      await until("it hangs", async () => (await on.driver.calls("NodePublishVolume")).length === 1);
      await agent.manager.setUp(fine, never);
      deletion.abort();
      await expect(settingUp).rejects.toThrow();
      const tearingDown = agent.manager.tearDown(on.uid(stuck));
      await agent.manager.tearDown(on.uid(fine));
      await sleep(100);
      expect(await on.driver.calls("NodeUnpublishVolume")).toHaveLength(1); // of the other: nobody knows what this one will do
      await on.driver.heal();
      await tearingDown;
      await on.nothingIsLeft();
      expect(await on.driver.calls("NodeUnpublishVolume")).toHaveLength(2);
    });

    test("when it dies in the middle of a call, its volume is published again, or taken away", async () => {
      on.describeDriver({ attachRequired: false });
      on.createVolume("pv");
      const agent = await on.startAgent();
      const pod = on.podWithClaim("web");
      await on.driver.fail("NodePublishVolume", { hangs: true, isAfterwards: true });
      const settingUp = agent.manager.setUp(pod, never).catch(messageOf);
      await until("it hangs", async () => (await listMountsUnder(on.targetOf(pod))).length === 1);
      await on.driver.stop("SIGKILL");
      await on.driver.heal();
      expect(await settingUp).toContain("MountVolume.SetUp failed");
      await on.driver.start();
      await on.setUp(agent, pod);
      await on.tearDown(agent, pod);
      await on.nothingIsLeft();
    });
  });

  describe("an agent that is killed", () => {
    const attempts = ["nodeGetCapabilities", "nodeStageVolume", "nodePublishVolume"];
    test.each(twice(attempts))("$when $method: the next one goes on, or takes it away", async (deathAt) => {
      on.describeDriver({ attachRequired: false });
      on.createVolume("pv");
      on.createVolume("gone");
      const [stays, goes] = [on.podWithClaim("stays"), on.podWithClaim("goes", "gone")];
      const begin = async (pod: Pod) => {
        const agent = await on.startAgent({ deathAt });
        void agent.manager.setUp(pod, never).catch(() => {});
        await agent.died;
      };
      await begin(stays);
      await begin(goes);
      await on.driver.stop("SIGKILL");
      await on.driver.start();
      const next = await on.startAgent();
      await Promise.all([on.setUp(next, stays), on.tearDown(next, goes)]);
      await until("only one is left", async () => (await listMountsUnder(on.rootDir)).length === 2);
      expect(await listMountsUnder(on.targetOf(stays))).toHaveLength(1);
      await expect(stat(join(on.targetOf(goes, "gone"), ".."))).rejects.toThrow("ENOENT");
      await on.tearDown(next, stays);
      await on.nothingIsLeft();
    });

    const ends = ["nodeUnpublishVolume", "nodeUnstageVolume"];
    test.each(twice(ends))(
      "$when $method: the next one ends it, and leaves another pod's volume alone",
      async (deathAt) => {
        on.describeDriver({ attachRequired: false });
        on.createVolume("pv");
        on.createVolume("used");
        const first = await on.startAgent({ deathAt });
        const [pod, user] = [on.podWithClaim("web"), on.podWithClaim("user", "used")];
        await Promise.all([on.setUp(first, pod), on.setUp(first, user)]);
        await writeFile(join(on.targetOf(user, "used"), "file"), "still here");
        void first.manager.tearDown(on.uid(pod)).catch(() => {});
        await first.died;
        const second = await on.startAgent();
        await on.tearDown(second, pod);
        await until("it is unstaged", async () => (await listMountsUnder(on.rootDir)).length === 2);
        expect(await readFile(join(on.targetOf(user, "used"), "file"), "utf8")).toBe("still here");
        const unpublished = await on.driver.calls("NodeUnpublishVolume");
        expect(unpublished.every(({ request }) => request["volume_id"] === "handle-pv")).toBe(true);
        await on.tearDown(second, user);
        await on.nothingIsLeft();
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
