import { mkdir, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { ApiClient } from "../../../../agent/kube/port.ts";
import type { CSIDriver, Node, Pod, VolumeAttachment } from "../../../../agent/kube/types.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../../agent/lib/metrics.ts";
import { attachPatienceMs, attachPendingMs } from "../../../../agent/volumes/csi/attach.ts";
import { type CSIVolumes, createCSIVolumes, refreshJitter, refreshMs } from "../../../../agent/volumes/csi/kind.ts";
import { sweepMs, unstageBackoff } from "../../../../agent/volumes/csi/devices.ts";
import { createSELinuxMetrics, type SELinuxMetrics } from "../../../../agent/volumes/csi/metrics.ts";
import { deviceDirOf, stagingPathOf } from "../../../../agent/volumes/csi/paths.ts";
import { CSIError, type CSIDriverClient, type NodeCapability } from "../../../../agent/volumes/csi/port.ts";
import { writeVolumeData } from "../../../../agent/volumes/csi/volume-data.ts";
import type { BoundClaim, VolumeContext } from "../../../../agent/volumes/kind.ts";
import type { Token, TokenSpec } from "../../../../agent/volumes/tokens.ts";
import { MemoryStore } from "../../../support/memory-store.ts";
import { metricsText } from "../../lib/metrics-support.ts";
import { FakeClock, makePod, makeTempDir, settle } from "../support.ts";
import { VolumeStepError } from "../../../../agent/volumes/step-error.ts";

// What depends on time and on the order of things; mounts are in the integration tests.

const driverName = "csi.test";
const never = new AbortController().signal;
const inline = { name: "v", csi: { driver: driverName } };

let root: string;
let cleanUp: () => Promise<void>;
let clock: FakeClock;
let object: CSIDriver["spec"];
let capabilities: NodeCapability[];
let calls: string[];
let published: { volumeContext: Readonly<Record<string, string>>; secrets: Readonly<Record<string, string>> }[];
/** Answers of calls by name; default: done. */
let answers: Map<string, () => Promise<void>>;
let csi: CSIVolumes;
let tokens: number;
let driverListeners: Set<(driver: string) => void>;
let ownNode: MemoryStore<Node>;
/** What the API server says of the volume's attachment. */
let attachment: VolumeAttachment["status"];
let refreshes: string[];
let warnings: string[];

beforeEach(async () => {
  ({ dir: root, cleanUp } = await makeTempDir());
  clock = new FakeClock();
  object = { attachRequired: false, volumeLifecycleModes: ["Persistent", "Ephemeral"] };
  capabilities = ["STAGE_UNSTAGE_VOLUME"];
  calls = [];
  published = [];
  answers = new Map();
  tokens = 0;
  driverListeners = new Set();
  ownNode = new MemoryStore<Node>().markSynced();
  attachment = { attached: true };
  refreshes = [];
  warnings = [];
  csi = start();
});
afterEach(() => cleanUp());

function start({ selinuxEnabled = false } = {}, selinux?: SELinuxMetrics): CSIVolumes {
  const call = async (name: string, detail: string): Promise<void> => {
    calls.push(`${name} ${detail}`);
    await (answers.get(name)?.() ?? Promise.resolve());
  };
  const client: CSIDriverClient = {
    driver: driverName,
    nodeGetInfo: async () => await Promise.reject(new Error("not asked here")),
    nodeGetCapabilities: async () => await Promise.resolve(new Set(capabilities)),
    nodeStageVolume: async ({ volumeID }) => await call("stage", volumeID),
    nodeUnstageVolume: async (volumeID) => await call("unstage", volumeID),
    nodePublishVolume: async ({ volumeID, volumeContext, secrets }) => {
      published.push({ volumeContext, secrets });
      await call("publish", volumeID);
    },
    nodeUnpublishVolume: async (volumeID) => await call("unpublish", volumeID),
    nodeGetVolumeStats: async () => await Promise.reject(new Error("not asked here")),
    nodeExpandVolume: async ({ volumeID }) => {
      await call("expand", volumeID);
      return 0;
    },
  };
  return createCSIVolumes({
    rootDir: root,
    nodeName: "n1",
    client: {
      get: async () => await Promise.resolve({ metadata: { name: "csi-1" }, status: attachment }),
    } as unknown as ApiClient,
    refreshLimit: async (driver) => {
      refreshes.push(driver);
      await Promise.resolve();
    },
    drivers: {
      client: () => client,
      subscribe: (listener) => {
        driverListeners.add(listener);
        return () => driverListeners.delete(listener);
      },
    },
    objects: {
      csiDriver: async () => await Promise.resolve({ metadata: { name: driverName }, spec: object }),
      subscribe: () => () => {},
    },
    ownNode,
    selinuxEnabled,
    ...(selinux === undefined ? {} : { selinux }),
    event: () => {},
    clock,
    log: { ...silentLogger, warn: (_fields: unknown, message?: string) => void warnings.push(message ?? "") },
    random: () => 1,
  });
}

const bound: BoundClaim = {
  claim: { metadata: { name: "pv" }, status: { capacity: { storage: "1Gi" } } },
  volume: {
    metadata: { name: "pv" },
    spec: {
      accessModes: ["ReadWriteMany"],
      capacity: { storage: "1Gi" },
      csi: { driver: driverName, volumeHandle: "h" },
    },
  },
  isReadOnly: false,
};

function contextOf(pod: Pod, signal = never, claim?: BoundClaim): VolumeContext {
  const podDir = join(root, "pods", pod.metadata.uid ?? "");
  const specName = claim === undefined ? "v" : "pv";
  const token = async (_pod: Pod, { expirationSeconds }: TokenSpec): Promise<Token> => {
    tokens += 1;
    const expiresAtMs = clock.now() + expirationSeconds * 1000;
    return await Promise.resolve({
      token: `token-${tokens}`,
      expiresAtMs,
      refreshAtMs: clock.now() + expirationSeconds * 800,
    });
  };
  return {
    pod,
    volume: claim === undefined ? inline : { name: "v", persistentVolumeClaim: { claimName: "pv" } },
    specName,
    bound: claim,
    isBlock: false,
    otherPods: [],
    podDir,
    dir: join(podDir, "volumes/kubernetes.io~csi", specName),
    deps: { tokens: { token } } as unknown as VolumeContext["deps"],
    event: () => {},
    signal,
  };
}

const tearDown = async (pod: Pod, specName = "pv") => {
  const { podDir } = contextOf(pod);
  const dir = join(podDir, "volumes/kubernetes.io~csi", specName);
  await csi.kind.tearDown?.({ podUID: pod.metadata.uid ?? "", podDir, specName, dir, isBlock: false });
};

describe("a driver that asks to be told again", () => {
  test("is told each minute or so, sooner when a token is to be replaced, and not at others' refreshes", async () => {
    object = { ...object, requiresRepublish: true, tokenRequests: [{ audience: "a", expirationSeconds: 600 }] };
    const pod = makePod({});
    const first = await csi.kind.setUp(contextOf(pod));
    const laterMs = refreshMs * (1 + refreshJitter);
    expect(first).toMatchObject({ isRefreshed: true, refreshAtMs: clock.now() + laterMs });
    clock.nowMs += laterMs - 1;
    await csi.kind.setUp(contextOf(pod));
    expect(published).toHaveLength(1);
    clock.nowMs += 1;
    await csi.kind.setUp(contextOf(pod));
    expect(published).toHaveLength(2);
    expect(published[1]?.volumeContext["csi.storage.k8s.io/serviceAccount.tokens"]).toContain("token-2");

    object = { ...object, tokenRequests: [{ audience: "a", expirationSeconds: 60 }] };
    clock.nowMs += laterMs;
    const soon = await csi.kind.setUp(contextOf(pod));
    expect(soon.refreshAtMs).toBe(clock.now() + 48_000);
  });

  test("one that does not is told once, and its volume is not looked at again", async () => {
    const pod = makePod({});
    expect(await csi.kind.setUp(contextOf(pod))).toMatchObject({ isRefreshed: false });
    expect((await csi.kind.setUp(contextOf(pod))).refreshAtMs).toBeUndefined();
    expect(published).toHaveLength(1);
  });

  test("a refusal then takes nothing away from the pod", async () => {
    object = { ...object, requiresRepublish: true };
    const pod = makePod({});
    await csi.kind.setUp(contextOf(pod));
    clock.nowMs += refreshMs * 2;
    const refused = new CSIError("Internal", "no", { status: "Internal", isFinal: true });
    answers.set("publish", async () => await Promise.reject(refused));
    await expect(csi.kind.setUp(contextOf(pod))).rejects.toThrow("no");
    expect(await readdir(contextOf(pod).dir)).toEqual(["vol_data.json"]);
  });

  test("nor does one of a volume that an earlier agent published", async () => {
    const pod = makePod({});
    await csi.kind.setUp(contextOf(pod));
    csi = start();
    const refused = new CSIError("Internal", "no", { status: "Internal", isFinal: true });
    answers.set("publish", async () => await Promise.reject(refused));
    await expect(csi.kind.setUp(contextOf(pod))).rejects.toThrow("no");
    expect(await readdir(contextOf(pod).dir)).toEqual(["vol_data.json"]);
  });
});

describe("what a driver was asked", () => {
  test("is not taken back when the pod is deleted: its tear-down follows the answer", async () => {
    const { promise, resolve } = Promise.withResolvers<void>();
    answers.set("publish", async () => await promise);
    const deletion = new AbortController();
    const pod = makePod({});
    const settingUp = csi.kind.setUp(contextOf(pod, deletion.signal, bound));
    settingUp.catch(() => {});
    await waitFor(() => calls.includes("publish h"));
    deletion.abort();
    await expect(settingUp).rejects.toThrow("aborted");
    const tearingDown = tearDown(pod);
    await settle();
    expect(calls).toEqual(["stage h", "publish h"]);
    resolve();
    await tearingDown;
    expect(calls).toEqual(["stage h", "publish h", "unpublish h"]);
  });

  test("a word of its own for an end is no end of the pod's", async () => {
    const canceled = new CSIError("Canceled", "canceled", { status: "Canceled", isFinal: false });
    answers.set("publish", async () => await Promise.reject(canceled));
    await expect(csi.kind.setUp(contextOf(makePod({})))).rejects.toMatchObject({ code: "Unavailable" });
  });
});

describe("a volume that has to be attached", () => {
  /** What trying for as long as a pod's volumes are waited for comes to. */
  const outcomes = async () => {
    const seen = new Set<unknown>();
    for (const endMs = clock.now() + attachPendingMs + attachPatienceMs; clock.now() < endMs; ) {
      const tried = csi.kind.setUp(contextOf(makePod({}), never, bound)).catch((err: unknown) => err);
      await clock.advance(attachPatienceMs);
      const err = await tried;
      seen.add(err instanceof VolumeStepError ? err.meaning : err);
    }
    return [...seen];
  };

  test("is pending for two minutes, and then it is told", async () => {
    object = { ...object, attachRequired: true };
    attachment = { attached: false };
    expect(await outcomes()).toEqual(["pending", undefined]);
  });

  test("to a node that is full gives its pod up then, and not while another may just be going", async () => {
    object = { ...object, attachRequired: true, nodeAllocatableUpdatePeriodSeconds: 60 };
    attachment = { attached: false, attachError: { message: "no slot", errorCode: 8 } };
    expect(await outcomes()).toEqual([undefined, "over the limit"]);
    expect([...new Set(refreshes)]).toEqual([driverName]);
  });

  test("of a driver that does not say anew how many there may be is waited for on and on", async () => {
    object = { ...object, attachRequired: true };
    attachment = { attached: false, attachError: { message: "no slot", errorCode: 8 } };
    expect(await outcomes()).toEqual([undefined]);
    expect(refreshes).toEqual([]);
  });
});

test("a pod's volume is not taken for another one that has its PersistentVolume's name by now", async () => {
  const pod = makePod({});
  await csi.kind.setUp(contextOf(pod, never, bound));
  csi = start(); // which knows only what is on the disk
  const another = structuredClone(bound);
  another.volume.spec.csi = { driver: driverName, volumeHandle: "another" };
  await expect(csi.kind.setUp(contextOf(pod, never, another))).rejects.toMatchObject({
    code: "Unavailable",
    message: expect.stringContaining("the pod still has volume h of driver csi.test"),
  });
  expect(calls.filter((call) => call.startsWith("publish"))).toEqual(["publish h"]);
  await tearDown(pod);
  expect(calls.at(-1)).toBe("unpublish h");
});

describe("what is staged", () => {
  const sweep = async () => {
    const stop = new AbortController();
    const running = csi.run(stop.signal);
    return async () => {
      stop.abort();
      await running;
    };
  };

  test("is unstaged after the last pod, again and again, later each time", async () => {
    const end = await sweep();
    const pod = makePod({});
    await csi.kind.setUp(contextOf(pod, never, bound));
    answers.set("unstage", async () => await Promise.reject(new Error("busy")));
    await tearDown(pod);
    await waitForAdvancing(() => calls.filter((call) => call === "unstage h").length === 1);
    const startMs = clock.now();
    await waitForAdvancing(() => calls.filter((call) => call === "unstage h").length === 3);
    expect(clock.now() - startMs).toBeGreaterThanOrEqual(unstageBackoff.baseMs * 3);
    answers.delete("unstage");
    await waitForAdvancing(
      async () => (await readdir(join(root, "plugins/kubernetes.io/csi", driverName))).length === 0,
    );
    await end();
  });

  test("by an earlier agent for nobody is found; one that hangs keeps no other", async () => {
    for (const handle of ["hangs", "other"]) {
      const dir = deviceDirOf(root, driverName, handle);
      await mkdir(stagingPathOf(dir), { recursive: true });
      await writeVolumeData(dir, { driverName, volumeHandle: handle });
    }
    answers.set("unstage", async () => {
      if (calls.at(-1) === "unstage hangs") await new Promise(() => {});
    });
    void csi.run(never);
    await waitForAdvancing(() => calls.includes("unstage other") && calls.includes("unstage hangs"));
    await waitForAdvancing(
      async () => (await readdir(join(root, "plugins/kubernetes.io/csi", driverName))).length === 1,
    );
    expect(calls.toSorted()).toEqual(["unstage hangs", "unstage other"]);
  });

  test("with another SELinux label is unstaged for the pod that wants this one", async () => {
    const dir = deviceDirOf(root, driverName, "h");
    await mkdir(stagingPathOf(dir), { recursive: true });
    const seLinuxMountContext = "system_u:object_r:container_file_t:s0:c1,c2";
    await writeVolumeData(dir, { driverName, volumeHandle: "h", seLinuxMountContext });
    const user = join(root, "pods/u1/volumes/kubernetes.io~csi/pv");
    await mkdir(user, { recursive: true });
    await writeVolumeData(user, { driverName, volumeHandle: "h", seLinuxMountContext });
    const pod = makePod({});
    await expect(csi.kind.setUp(contextOf(pod, never, bound))).rejects.toMatchObject({
      step: "MountDevice",
      message: "the volume is still mounted with another SELinux label, waiting for its pod",
    });
    await rm(user, { recursive: true });
    await csi.kind.setUp(contextOf(pod, never, bound));
    expect(calls).toEqual(["unstage h", "stage h", "publish h"]);
  });

  test("with SELinux labels is counted once for each pod, and each attempt that a label keeps from it", async () => {
    const registry = new MetricsRegistry();
    const shown = async () =>
      (await metricsText(registry)).split("\n").filter((line) => line.startsWith("volume_manager_selinux_"));
    csi = start({ selinuxEnabled: true }, createSELinuxMetrics(registry));
    object = { ...object, seLinuxMount: true };
    const single = structuredClone(bound);
    single.volume.spec.accessModes = ["ReadWriteOncePod"];
    const container = (name: string, level: string) => ({
      name,
      volumeMounts: [{ name: "v", mountPath: "/v" }],
      securityContext: { seLinuxOptions: { level } },
    });
    const torn = makePod({ containers: [container("app", "s0:c1,c2"), container("side", "s0:c3,c4")] });
    await expect(csi.kind.setUp(contextOf(torn, never, single))).rejects.toThrow("conflicting SELinux labels");
    const pod = makePod({ containers: [container("app", "s0:c1,c2")] });
    const dir = deviceDirOf(root, driverName, "h");
    await mkdir(stagingPathOf(dir), { recursive: true });
    const other = { driverName, volumeHandle: "h", seLinuxMountContext: "u:r:t:s0:c9" };
    await writeVolumeData(dir, other);
    const user = join(root, "pods/u1/volumes/kubernetes.io~csi/pv");
    await mkdir(user, { recursive: true });
    await writeVolumeData(user, other);
    await expect(csi.kind.setUp(contextOf(pod, never, single))).rejects.toThrow("another SELinux label");
    await rm(user, { recursive: true });
    await csi.kind.setUp(contextOf(pod, never, single));
    await csi.kind.setUp(contextOf(pod, never, single));
    const plugin = `volume_plugin="kubernetes.io/csi/${driverName}"`;
    expect(await shown()).toEqual([
      'volume_manager_selinux_pod_context_mismatch_errors_total{access_mode="RWOP"} 1',
      `volume_manager_selinux_volume_context_mismatch_errors_total{access_mode="RWOP",${plugin}} 1`,
      `volume_manager_selinux_volumes_admitted_total{access_mode="RWOP",${plugin}} 1`,
    ]);
  });

  test("and published keeps the label that it has, whatever its driver says by now", async () => {
    csi = start({ selinuxEnabled: true });
    const single = structuredClone(bound);
    single.volume.spec.accessModes = ["ReadWriteOncePod"];
    const containers = [{ name: "app", volumeMounts: [{ name: "v", mountPath: "/v" }] }];
    const pod = makePod({ containers, securityContext: { seLinuxOptions: { level: "s0:c1,c2" } } });
    await csi.kind.setUp(contextOf(pod, never, single));
    object = { ...object, seLinuxMount: true };
    csi = start({ selinuxEnabled: true });
    await csi.kind.setUp(contextOf(pod, never, single));
    expect(calls).toEqual(["stage h", "publish h", "stage h", "publish h"]);
    await tearDown(pod);
    await csi.kind.setUp(contextOf(pod, never, single)); // the next use is with it
    expect(calls.slice(4)).toEqual(["unpublish h", "unstage h", "stage h", "publish h"]);
  });

  test("and says not what it is, is left and told of once", async () => {
    const spoil = async (handle: string) => {
      const dir = deviceDirOf(root, driverName, handle);
      await mkdir(dir, { recursive: true });
      await writeFile(join(dir, "vol_data.json"), "{");
    };
    await spoil("h");
    const end = await sweep();
    await waitFor(() => warnings.length > 0);
    await spoil("later"); // the look that finds this one sees the other again
    await waitFor(async () => {
      await clock.advance(sweepMs);
      return warnings.length > 1;
    });
    expect(warnings).toEqual(["a CSI volume is left as it is", "a CSI volume is left as it is"]);
    await end();
  });

  test("stays while any pod's volume says not what it is", async () => {
    const dir = deviceDirOf(root, driverName, "h");
    await mkdir(stagingPathOf(dir), { recursive: true });
    await writeVolumeData(dir, { driverName, volumeHandle: "h" });
    const unknown = join(root, "pods/u1/volumes/kubernetes.io~csi/x");
    await mkdir(unknown, { recursive: true });
    await writeFile(join(unknown, "vol_data.json"), "{");
    const end = await sweep();
    await clock.advance(200);
    expect(calls).toEqual([]);
    await end();
  });
});

describe("volumesInUse", () => {
  const name = "kubernetes.io/csi/csi.test^h";

  test("is not known before the disk was looked at, and counts what pods want, have, or what is staged", async () => {
    object = { ...object, attachRequired: true };
    ownNode.put({
      metadata: { name: "n1" },
      status: { volumesAttached: [{ name, devicePath: "" }], volumesInUse: [name] },
    });
    expect(csi.volumesInUse()).toBeUndefined();
    const dir = deviceDirOf(root, driverName, "h");
    await mkdir(stagingPathOf(dir), { recursive: true });
    await writeVolumeData(dir, { driverName, volumeHandle: "h" });
    const stuck = Promise.withResolvers<void>();
    answers.set("unstage", async () => await stuck.promise);
    let changes = 0;
    csi.subscribeInUse(() => (changes += 1));
    void csi.run(never);
    await waitForAdvancing(() => csi.volumesInUse() !== undefined);
    expect(csi.volumesInUse()).toEqual([name]);
    stuck.resolve();
    await waitForAdvancing(() => csi.volumesInUse()?.length === 0);
    expect(changes).toBeGreaterThan(1);
  });
});

/** The disk is a real one, and the machine may be busy. */
async function waitFor(isDone: () => boolean | Promise<boolean>): Promise<void> {
  for (const deadline = performance.now() + 20_000; performance.now() < deadline; await sleep(1)) {
    if (await isDone()) return;
  }
  throw new Error(`not reached; calls: ${calls.join(", ")}`);
}

/** Time passes in small steps, with room for the disk in between. */
async function waitForAdvancing(isDone: () => boolean | Promise<boolean>): Promise<void> {
  await waitFor(async () => {
    if (await isDone()) return true;
    await clock.advance(20);
    return false;
  });
}
