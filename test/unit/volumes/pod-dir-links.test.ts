import { chmod, mkdir, readdir, stat, symlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { Volume } from "../../../agent/kube/types.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { createPodVolumes, type VolumeManager } from "../../../agent/volumes/manager.ts";
import { FakeClock, FakeObjects, makePod, makeTempDir } from "./support.ts";

const never = new AbortController().signal;
const podUID = makePod({}).metadata.uid ?? "";
let root: string;
let cleanUp: () => Promise<void>;
let manager: VolumeManager;

beforeEach(async () => {
  ({ dir: root, cleanUp } = await makeTempDir());
  manager = createPodVolumes({
    rootDir: root,
    client: undefined,
    objects: new FakeObjects(),
    clock: new FakeClock(),
    log: silentLogger,
    nodeAllocatable: () => ({}),
    selinuxEnabled: false,
  });
});
afterEach(async () => {
  manager.close();
  await cleanUp();
});

describe("a link in a pod's directory that leads to the host's files", () => {
  const kinds: Volume[] = [
    { name: "v", configMap: { name: "settings", optional: true } },
    { name: "v", emptyDir: {} },
  ];
  const pod = (volume: Volume) =>
    makePod({ volumes: [volume], containers: [{ name: "app", volumeMounts: [{ name: "v", mountPath: "/v" }] }] });
  const places = ["volumes/PLUGIN/v", "volumes/PLUGIN", "plugins/kubernetes.io~empty-dir"];
  const cases = kinds.flatMap((volume) =>
    places.map((place) => {
      const plugin = volume.configMap === undefined ? "kubernetes.io~empty-dir" : "kubernetes.io~configmap";
      return { volume, place: place.replace("PLUGIN", plugin) };
    }),
  );
  test.each(cases)("at $place is refused, and nothing behind it touched", async ({ volume, place }) => {
    const { dir: host, cleanUp: removeHost } = await makeTempDir();
    try {
      await chmod(host, 0o700);
      await mkdir(join(host, "v"), { mode: 0o700 });
      const at = join(root, "pods", podUID, place);
      await mkdir(dirname(at), { recursive: true });
      await symlink(host, at);
      await expect(manager.setUp(pod(volume), never)).rejects.toThrow("is in the way: it is a link or no directory");
      expect(await readdir(host)).toEqual(["v"]);
      expect(await readdir(join(host, "v"))).toEqual([]);
      for (const dir of [host, join(host, "v")]) expect((await stat(dir)).mode & 0o7777).toBe(0o700);
    } finally {
      await removeHost();
    }
  });
});
