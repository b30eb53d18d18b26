import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, lstat, mkdir, readdir, readFile, rm, stat, statfs, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import { silentLogger } from "../../agent/lib/log.ts";
import { isMountPoint, listMountsUnder, mountFilesystem, unmountAllUnder } from "../../agent/lib/mount.ts";
import { openDir } from "../../agent/volumes/safe-path.ts";
import { writePayload } from "../../agent/volumes/atomic-writer.ts";
import { tmpfsMagic } from "../../agent/volumes/empty-dir.ts";
import { applyFSGroup } from "../../agent/volumes/ownership.ts";
import { createProjectedKind } from "../../agent/volumes/projected.ts";
import { never, podUID, podWith, useVolumeRoot } from "../support/volume-root.ts";
import { hiddenNames, payloadOf, visible, write } from "../unit/volumes/writer-support.ts";

// Config volumes on real mounts, as root, under attack and with disks that are full.

let events: string[];
let logged: string;

const on = useVolumeRoot(() => {
  [events, logged] = [[], ""];
  const note = (...args: unknown[]) => {
    logged += JSON.stringify(args);
  };
  return {
    log: { ...silentLogger, debug: note, info: note, warn: note, error: note },
    onEvent: (_pod, type, reason, message) => events.push(`${type} ${reason} ${message}`),
  };
});

const dirOf = (plugin: string) => join(on.root, "pods", podUID, `volumes/kubernetes.io~${plugin}/v`);

describe("medium", () => {
  test.each([
    { plugin: "configmap", volume: { configMap: { name: "o" } }, inMemory: false },
    { plugin: "secret", volume: { secret: { secretName: "o" } }, inMemory: true },
    {
      plugin: "downward-api",
      volume: { downwardAPI: { items: [{ path: "k", fieldRef: { fieldPath: "metadata.name" } }] } },
      inMemory: true,
    },
    { plugin: "projected", volume: { projected: { sources: [{ secret: { name: "o" } }] } }, inMemory: true },
  ])("$plugin: in memory $inMemory, sized as a Memory emptyDir", async ({ plugin, volume, inMemory }) => {
    on.objects.setConfigMap("o", { k: "1" });
    on.objects.setSecret("o", { k: "1" });
    await on.manager.setUp(podWith({ name: "v", ...volume }), never);
    const dir = dirOf(plugin);
    expect(await isMountPoint(dir)).toBe(inMemory);
    if (inMemory) {
      const { type, blocks, bsize } = await statfs(dir);
      expect([type, blocks * bsize]).toEqual([tmpfsMagic, 64 << 20]);
    }
    const marks = await readdir(join(on.root, "pods", podUID, "plugins/kubernetes.io~empty-dir"));
    expect(marks).toEqual(["wrapped_v"]);
  });

  test("a first write that fails leaves neither mount nor directory", async () => {
    on.objects.setSecret("o", { "..data": "1" });
    const pod = podWith({ name: "v", secret: { secretName: "o" } });
    await expect(on.manager.setUp(pod, never)).rejects.toThrow('must not start with ".."');
    expect(
      (await listMountsUnder(on.root)).filter(({ mountPoint }) => mountPoint.includes("kubernetes.io~secret")),
    ).toEqual([]);
    await expect(lstat(dirOf("secret"))).rejects.toThrow("ENOENT");
    on.objects.setSecret("o", { good: "1" });
    await on.manager.setUp(pod, never);
    expect(await visible(dirOf("secret"))).toEqual({ good: "1" });
  });
});

test("a secret deleted and made anew under a running pod: the old content stays until the new one is there", async () => {
  const pod = podWith({ name: "v", secret: { secretName: "login" } });
  on.objects.setSecret("login", { password: "one", gone: "x" });
  await on.manager.setUp(pod, never);
  on.objects.secrets.clear();
  await on.manager.setUp(pod, never);
  expect(await visible(dirOf("secret"))).toEqual({ password: "one", gone: "x" });
  expect(events).toEqual(['Warning FailedMount MountVolume.SetUp failed for volume "v" : secret "login" not found']);
  on.objects.setSecret("login", { password: "two" });
  await on.manager.setUp(pod, never);
  expect(await visible(dirOf("secret"))).toEqual({ password: "two" });
});

describe("a full disk", () => {
  const sizeBytes = 4 << 20;

  beforeEach(async () => {
    await mountFilesystem({ type: "tmpfs", source: "tmpfs", target: on.root, options: [`size=${sizeBytes}`] });
  });

  test("during an update: old content stays whole, an event says why, and the update comes when there is room", async () => {
    const pod = podWith({ name: "v", configMap: { name: "settings" } });
    on.objects.setConfigMap("settings", { a: "old", b: "old" });
    await on.manager.setUp(pod, never);
    await writeFile(join(on.root, "filler"), Buffer.alloc(sizeBytes)).catch(() => {}); // as much as there is
    const big = "x".repeat(1 << 20);
    on.objects.setConfigMap("settings", { a: "new", b: big });
    await on.manager.setUp(pod, never);
    expect(await visible(dirOf("configmap"))).toEqual({ a: "old", b: "old" });
    expect(events).toEqual([
      'Warning FailedMount MountVolume.SetUp failed for volume "v" : ' +
        "cannot write the volume's files: ENOSPC: no space left on device",
    ]);
    expect(await hiddenNames(dirOf("configmap"))).toHaveLength(2);
    await rm(join(on.root, "filler"));
    await on.manager.setUp(pod, never);
    expect(await visible(dirOf("configmap"))).toEqual({ a: "new", b: big });
  });

  test("during the first set-up: the reason is told, and nothing is left that could count as ready", async () => {
    const pod = podWith({ name: "v", configMap: { name: "settings" } });
    on.objects.setConfigMap("settings", { big: "x".repeat(sizeBytes + 1) });
    await expect(on.manager.setUp(pod, never)).rejects.toThrow("no space left on device");
    await expect(lstat(dirOf("configmap"))).rejects.toThrow("ENOENT");
    on.objects.setConfigMap("settings", { small: "x" });
    await on.manager.setUp(pod, never);
    expect(await visible(dirOf("configmap"))).toEqual({ small: "x" });
  });
});

describe("the writer's process is killed", () => {
  test("at any moment: files agree with each other, and the next run leaves no rubbish", async () => {
    const dir = join(on.base, "volume");
    await mkdir(dir);
    const script = join(import.meta.dirname, "../support/config-writer-process.ts");
    for (let round = 0; round < 8; round += 1) {
      const child = spawn(process.execPath, [script, dir], { stdio: ["ignore", "pipe", "inherit"] });
      const exited = once(child, "exit");
      try {
        await once(child.stdout, "data");
        const spins = Math.floor(Math.random() * 40);
        for (let spin = 0; spin < spins; spin += 1) await stat(dir);
      } finally {
        child.kill("SIGKILL");
        await exited;
      }
      const seen = await visible(dir);
      expect(seen["b"]).toBe(seen["a"]);
      expect(seen["deep/c"]).toBe(seen["a"]);
      await write(dir, payloadOf({ a: "after", "deep/c": "after" }));
      expect(await visible(dir)).toEqual({ a: "after", "deep/c": "after" });
      expect(await hiddenNames(dir)).toHaveLength(2);
    }
  });
});

// What somebody with access to the node's files could do: everything in the volume is swapped for links all the time.
const swapForEver = `
const fs = require("node:fs");
const [volume, host] = process.argv.slice(1);
process.chdir(volume);
process.stdout.write("ready");
const quiet = (fn) => { try { fn(); } catch {} };
for (let n = 0; ; n += 1) {
  for (const name of fs.readdirSync(".")) {
    if (name.startsWith("aside")) quiet(() => fs.rmSync(name, { recursive: true, force: true }));
    else quiet(() => {
      if (n % 3 !== 0 && fs.lstatSync(name).isDirectory()) {
        quiet(() => fs.renameSync(name + "/deep", name + "/aside"));
        fs.symlinkSync(host + "/deep", name + "/deep");
      } else {
        fs.renameSync(name, "aside" + n);
        fs.symlinkSync(n % 2 ? host : host + "/key", name);
      }
    });
  }
}`;

test("somebody who swaps all parts of a volume for links to the host's files gets nothing of them changed", async () => {
  const volume = join(on.base, "volume");
  const host = join(on.base, "host");
  await mkdir(volume);
  await mkdir(join(host, "deep"), { recursive: true });
  for (const name of ["key", "deep/key", "deep/other"]) await writeFile(join(host, name), "precious", { mode: 0o600 });
  await chmod(host, 0o700);
  const picture = async () =>
    await Promise.all(
      [".", ...(await readdir(host, { recursive: true })).sort()].map(async (name) => {
        const { mode, uid, gid, size, mtimeMs } = await lstat(join(host, name));
        return { name, mode, uid, gid, size, mtimeMs };
      }),
    );
  const before = await picture();
  const attacker = spawn(process.execPath, ["-e", swapForEver, volume, host], { stdio: ["ignore", "pipe", "inherit"] });
  const exited = once(attacker, "exit");
  const rounds = 40;
  let written = 0;
  try {
    await once(attacker.stdout, "data");
    for (let round = 0; round < rounds; round += 1) {
      const handle = await openDir(volume);
      try {
        const applyOwnership = () => applyFSGroup(handle, 4321, { isReadOnly: true });
        const payload = payloadOf({ key: String(round), "deep/key": String(round), "deep/other": "" });
        await writePayload(handle, payload, { nowMs: Date.now(), applyOwnership });
        written += 1;
      } catch {
        // Whoever wrecks the volume has a wrecked volume.
      } finally {
        await handle.close();
      }
    }
  } finally {
    attacker.kill("SIGKILL");
    await exited;
  }
  expect(await picture()).toEqual(before);
  expect(written).toBeLessThan(rounds);
  await write(volume, payloadOf({ key: "good" }));
  expect(await readFile(join(volume, "key"), "utf8")).toBe("good");
});

test("a link in the place of a volume's directory is not written through", async () => {
  on.objects.setConfigMap("settings", { key: "value" });
  const host = join(on.base, "host");
  await mkdir(host);
  await mkdir(join(on.root, "pods", podUID, "volumes"), { recursive: true });
  await symlink(host, join(on.root, "pods", podUID, "volumes/kubernetes.io~configmap"));
  await expect(on.manager.setUp(podWith({ name: "v", configMap: { name: "settings" } }), never)).rejects.toThrow();
  expect(await readdir(host, { recursive: true })).not.toContain("key");
});

describe("identity", () => {
  const token = { serviceAccountToken: { path: "token", expirationSeconds: 3600, audience: "vault" } };

  test("a token is on no disk and in no log, also when its renewal fails, and goes with the pod", async () => {
    const pod = podWith({ name: "v", projected: { sources: [token] } });
    await on.manager.setUp(pod, never);
    await on.clock.advance(0.8 * 3600_000);
    on.server.failures = [];
    await on.manager.setUp(pod, never);
    expect(await readFile(join(dirOf("projected"), "token"), "utf8")).toBe("token-2");
    expect(logged).not.toMatch(/token-\d/);
    await unmountAllUnder(on.root); // what is left is the disk
    const files = (await readdir(on.root, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile());
    for (const { parentPath, name } of files) {
      expect(await readFile(join(parentPath, name), "utf8")).not.toMatch(/token-\d/);
    }
    await on.manager.tearDown(podUID);
  });

  test.each([
    { name: "nothing said: readable by all", spec: {}, want: { trust: "644 0 0", key: "644 0 0" } },
    { name: "fsGroup", spec: { securityContext: { fsGroup: 4321 } }, want: { trust: "640 0 4321", key: "640 0 4321" } },
    {
      name: "one user",
      spec: { securityContext: { runAsUser: 1000 } },
      want: { trust: "600 1000 0", key: "600 1000 0" },
    },
    {
      name: "one user and fsGroup",
      spec: { securityContext: { runAsUser: 1000, fsGroup: 4321 } },
      want: { trust: "640 1000 4321", key: "640 1000 4321" },
    },
  ])("trust bundles and certificates: $name; other sources keep their modes", async ({ spec, want }) => {
    on.manager.close();
    let wake = () => {};
    const woken: string[] = [];
    const kind = createProjectedKind({
      trustBundles: {
        anchors: () => Promise.resolve("TRUST"),
        onChange: (listener) => {
          wake = listener;
          return () => {};
        },
        close: () => Promise.resolve(),
      },
      podCertificates: {
        certificate: () =>
          Promise.resolve({ keyPem: "KEY\n", chainPem: "CHAIN\n", refreshAtMs: on.clock.now() + 5000 }),
        forget: () => {},
        onChange: () => () => {},
        states: () => [],
        close: () => Promise.resolve(),
      },
    });
    on.restart({ kinds: [kind] });
    on.manager.onChange((uid) => woken.push(uid));
    on.objects.setSecret("login", { password: "x" });
    const podCertificate = {
      signerName: "s/x",
      keyType: "ED25519",
      credentialBundlePath: "bundle.pem",
      keyPath: "key.pem",
      certificateChainPath: "chain.pem",
    };
    const sources = [
      { clusterTrustBundle: { name: "b", path: "ca.pem" } },
      { podCertificate },
      { secret: { name: "login", items: [{ key: "password", path: "password", mode: 0o604 }] } },
    ];
    const pod = podWith({ name: "v", projected: { sources } }, {}, spec);
    await on.manager.setUp(pod, never);
    const dir = dirOf("projected");
    expect(await visible(dir)).toEqual({
      "ca.pem": "TRUST",
      "bundle.pem": "KEY\nCHAIN\n",
      "key.pem": "KEY\n",
      "chain.pem": "CHAIN\n",
      password: "x",
    });
    const look = async (name: string) => {
      const { mode, uid, gid } = await stat(join(dir, name));
      return `${(mode & 0o7777).toString(8)} ${uid} ${gid}`;
    };
    expect({ trust: await look("ca.pem"), key: await look("key.pem") }).toEqual(want);
    expect((await look("password")).split(" ")[0]).toBe(want.trust.endsWith("4321") ? "644" : "604");
    expect(on.manager.refreshInMs(podUID)).toBe(5000);
    wake();
    expect(woken).toEqual([podUID]);
    await on.manager.tearDown(podUID);
    wake();
    expect(woken).toEqual([podUID]);
  });

  test.each([
    [
      { clusterTrustBundle: { name: "b", path: "p" } },
      "clusterTrustBundle needs an API server and the feature gate ClusterTrustBundleProjection",
    ],
    [
      { podCertificate: { signerName: "s/x", keyType: "ED25519", keyPath: "k" } },
      "podCertificate needs an API server and the feature gate PodCertificateRequest",
    ],
    [{ somethingNew: {} }, "projected source somethingNew is not supported"],
  ])("%o is refused where its gate is off", async (source, why) => {
    await expect(on.manager.setUp(podWith({ name: "v", projected: { sources: [source] } }), never)).rejects.toThrow(
      why,
    );
  });

  test("a later source wins a path", async () => {
    on.objects.setConfigMap("a", { key: "a" });
    on.objects.setSecret("b", { key: "b" });
    const sources = [{ configMap: { name: "a" } }, { secret: { name: "b" } }];
    await on.manager.setUp(podWith({ name: "v", projected: { sources } }), never);
    expect(await visible(dirOf("projected"))).toEqual({ key: "b" });
  });
});
